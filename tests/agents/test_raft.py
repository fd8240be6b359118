"""RAFT: what is kept and its gradient by hand, the optimum, adaptive KL, the same numbers again."""

from pathlib import Path
from typing import Any

import exact_runs
import gymnasium as gym
import numpy as np
import pytest
import torch
from ppo_runs import environment, problem

from lm_gym.agents import RAFT
from lm_gym.agents.raft import kept_texts
from lm_gym.kl import AdaptiveKL
from lm_gym.tracking import METRICS


def test_what_is_kept_by_hand() -> None:
    """Two groups of four; in the first the best is its third text, in the second three tie and the first two stay."""
    returns = torch.tensor([0.0, 1.0, 3.0, 2.0, 5.0, 5.0, -1.0, 5.0])
    assert kept_texts(returns, 4, 1).tolist() == [2, 4]
    assert kept_texts(returns, 4, 2).tolist() == [2, 3, 4, 5]
    assert kept_texts(returns, 4, 3).tolist() == [1, 2, 3, 4, 5, 7]
    assert kept_texts(torch.zeros(6), 2, 1).tolist() == [0, 2, 4]


@pytest.mark.parametrize("keep", [1, 2])
def test_the_gradient_by_hand(keep: int) -> None:
    """-log π of the best of each three texts by R - β·log π/π_ref, mean over the tokens of those kept."""
    agent, rollout = exact_runs.moved(RAFT, group_size=3, keep=keep)
    returns = [sum(r) for r in exact_runs.step_rewards(agent, rollout)]
    groups = [range(i, i + 3) for i in range(0, 24, 3)]
    kept = {i for group in groups for i in sorted(group, key=lambda i: -returns[i])[:keep]}
    tokens = sum(int(rollout.lengths[i]) for i in kept)
    want, _ = exact_runs.gradient_by_hand(
        agent, rollout, lambda i, t, ratio, _: -1.0 if i in kept else 0.0, lambda i, n: 1 / tokens
    )
    nll = -np.log(agent.exact_policy(agent.base.language))
    language, texts = agent.base.language, rollout.token_lists()[1]
    loss = sum(nll[language.state(tuple(texts[i][:t])), a] for i in kept for t, a in enumerate(texts[i])) / tokens
    found, metrics = exact_runs.update_gradient(agent, rollout)
    np.testing.assert_allclose(found, want, atol=1e-5)
    assert metrics["sft/loss"] == pytest.approx(loss, abs=1e-5)
    assert metrics["sft/perplexity"] == pytest.approx(np.exp(loss), rel=1e-4)
    assert metrics["raft/kept_return"] == pytest.approx(np.mean([returns[i] for i in kept]), abs=1e-4)
    assert set(metrics) <= set(METRICS)


def test_the_optimum_is_found() -> None:
    assert exact_runs.regret(RAFT, 15_000) < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("seed", exact_runs.SEEDS)
def test_the_optimum_is_found_to_the_digits(seed: int) -> None:
    assert exact_runs.regret(RAFT, exact_runs.TOKENS, seed=seed) < 0.002


def test_an_adaptive_coefficient_goes_by_all_texts_and_not_by_those_kept() -> None:
    agent = RAFT(gym.make("LMAlignExact-v0"), kl_target=1.0, kl_horizon=100)
    agent.learn(2000)  # away from the reference, where the KL of those kept is another
    rollout, _ = agent.collect()
    before, control = agent.kl_coef, AdaptiveKL(agent.kl_coef, 1.0, 100)
    k1 = ((rollout.logprobs - rollout.ref_logprobs) * rollout.response_mask).sum(-1)
    agent.update(rollout)
    assert agent.kl_coef == pytest.approx(control.update(float(k1.mean()), 64)) and agent.kl_coef != before


def test_the_same_seed_and_a_loaded_checkpoint_give_the_same_numbers(tmp_path: Path) -> None:
    small = {"minibatch_size": 4, "keep": 2, "epochs": 2}
    exact_runs.assert_goes_on_after_loading(RAFT, tmp_path, **small)
    logs = [
        exact_runs.learn(RAFT(gym.make("LMAlignExact-v0"), seed=seed, batch_size=32, **small), 300)
        for seed in (0, 0, 1)
    ]
    assert logs[0] == logs[1] != logs[2]


def test_it_learns_to_write_a_letter() -> None:
    agent = RAFT(environment(problem()), learning_rate=3e-3)
    before = agent.evaluate(n=128)["objective/scores"]
    assert agent.learn(4000).evaluate(n=128)["objective/scores"] > before + 1


@pytest.mark.filterwarnings("ignore:the environment is wrapped")
def test_texts_that_a_wrapper_cuts_off_are_refused() -> None:
    agent = RAFT(gym.wrappers.TimeLimit(environment(problem(min_new_tokens=4)), 3), batch_size=8)
    with pytest.raises(ValueError, match="got 8 of 8 cut off by a wrapper"):
        agent.learn(10)


def test_kl_in_the_loss_warns() -> None:
    with pytest.warns(UserWarning, match="ranking by the score alone pulls as hard for a small difference"):
        RAFT(gym.make("LMAlignExact-v0"), kl_in="loss")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"keep": 4}, "keep expected 1 to group_size - 1 = 3, got 4"),
        ({"keep": 0}, "keep expected 1 to group_size - 1 = 3, got 0"),
        ({"minibatch_size": 17}, "minibatch_size expected at most the 16 texts that are kept, got 17"),
        ({"group_size": 3}, "batch_size expected a multiple of group_size=3, got 64"),
    ],
)
def test_what_makes_no_sense_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RAFT(gym.make("LMAlignExact-v0"), **config)
