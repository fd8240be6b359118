"""A judge that says the same of every text teaches nothing: no agent may move, whatever the number is.

A gradient of rounding alone is enough to move one: Adam divides it by its own size.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ppo_runs import environment, problem

from lm_gym.agents import A2C, DPO, GRPO, NLPO, PPO, REINFORCE, RLOO, DrGRPO, OnlineDPO, ReinforcePP
from lm_gym.collect import reference_scale
from lm_gym.reward_models import Normalised

SCORES = [0.9, 10_000.1]
"""Of which a float32 mean of 8 misses the first by 6e-8 and the second by .001."""


def weights(agent: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in agent.policy.lm.parameters()]


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (GRPO, {}),
        (GRPO, {"overlong_buffer": 0, "aggregation": "token_mean", "kl_in": "reward"}),
        (DrGRPO, {}),
        (RLOO, {}),
        (REINFORCE, {}),
        (ReinforcePP, {}),
        (ReinforcePP, {"group_size": 8, "kl_in": "loss"}),
        (PPO, {}),
        (A2C, {"whiten_advantages": True}),
        (NLPO, {"top_p": 1.0}),
    ],
    ids=lambda x: x.__name__ if isinstance(x, type) else str(x),
)
def test_no_policy_moves(kind: Any, config: dict[str, Any], score: float) -> None:
    mdp = problem(reward_model=lambda completions, **_: [score] * len(completions), kl_coef=0.0)
    agent = kind(environment(mdp), batch_size=32, minibatch_size=16, lr_schedule="constant", **config)
    before = weights(agent)
    agent.learn(100_000, callback=lambda a, _: a.updates < 2)
    assert all(torch.equal(p, q) for p, q in zip(before, weights(agent), strict=True))


def test_scores_that_are_equal_make_ties_of_pairs() -> None:
    """The label of a pair is ½ to the bit, so that the reference is where its loss is least."""
    mdp = problem(reward_model=lambda completions, **_: [10_000.1] * len(completions))
    for kind in (DPO, OnlineDPO):
        agent = kind(environment(mdp), batch_size=8, learning_rate=3e-3, lr_schedule="constant")
        agent.learn(100_000, callback=lambda a, _: a.updates < 3)
        assert agent.evaluate(n=64)["objective/kl"] < 0.01, kind


def test_a_group_that_differs_learns_as_before_beside_groups_that_do_not() -> None:
    """Scores are equal in all groups but one: its advantages are those of the definition, the others' are 0."""
    found: list[torch.Tensor] = []
    agent = GRPO(environment(problem(kl_coef=0.0)), batch_size=32)
    rollout, _ = agent.collect()
    rollout.rewards = torch.zeros_like(rollout.rewards)
    paid = torch.full((32,), 0.9)
    paid[8:16] = torch.tensor([0.1, 0.9, 0.9, 0.4, 0.9, 0.9, 0.9, 0.2])
    rollout.rewards[torch.arange(32), rollout.lengths - 1] = paid
    agent.loss = lambda batch, advantages: found.append(advantages) or GRPO.loss(agent, batch, advantages)  # type: ignore
    agent.update(rollout)
    group = paid[8:16].double().numpy()
    want = np.zeros(32)
    want[8:16] = (group - group.mean()) / (group.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(found[0].numpy(), want, atol=1e-6)
    assert not found[0][:8].any() and not found[0][16:].any()


@pytest.mark.parametrize("score", [0.1, 0.9])
def test_equal_scores_have_no_scale(score: float) -> None:
    """In float64 the standard deviation of 64 scores of .1 is 1.4e-17, and not 0: a division by it would be noise."""
    assert np.full(64, score).std() > 0
    mdp = problem(reward_model=lambda completions, **_: [score] * len(completions))
    with pytest.raises(ValueError, match=f"scores that differ, got {score} for 64 samples"):
        reference_scale(mdp, 64, seed=0)
    with pytest.raises(ValueError, match=f"all score {score}; a reward that does not vary"):
        Normalised(mdp.reward_model).fit(mdp, n=64)


def test_the_scale_is_measured_on_prompts_of_the_whole_set() -> None:
    """A set that is sorted: the first 8 of 64 prompts score 0 to .07, the others 10 to 15.5; all 11.16 ± 4.47."""
    levels = [i / 100 if i < 8 else 10 + (i - 8) / 10 for i in range(64)]
    prompts = [{"prompt": "abcdefgh"[i % 8] * (1 + i // 8), "level": level} for i, level in enumerate(levels)]
    scores = lambda completions, level, **_: list(level)
    whole = reference_scale(problem(prompts=prompts, reward_model=scores), 64, seed=3)
    assert whole == pytest.approx((np.mean(levels), np.std(levels)))
    means, stds = np.array(
        [reference_scale(problem(prompts=prompts, reward_model=scores), 8, seed=seed) for seed in range(10)]
    ).T
    assert abs(means.mean() - np.mean(levels)) < 3 * np.std(levels) / np.sqrt(80), "8 of them, without bias"
    assert (stds > 1).all(), "not the .023 of the first 8"
    again = [reference_scale(problem(prompts=prompts, reward_model=scores), 8, seed=4) for _ in range(2)]
    assert again[0] == again[1] == pytest.approx((means[4], stds[4]))


def test_a_score_of_a_million_hides_neither_its_scale_nor_the_kl() -> None:
    """(R − mean)/std − β·KL with scores of 1e6 ± 1: of float32 a sum of the two would keep steps of .06."""
    judge = lambda completions, **_: [1e6 + (len(c) % 3) for c in completions]
    agent = REINFORCE(environment(problem(reward_model=judge, kl_coef=0.5)), batch_size=32, normalize_scores=64)
    with torch.no_grad():
        for p in agent.policy.lm.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    rollout, _ = agent.collect()
    mean, std = agent.score_scale
    k1 = ((rollout.logprobs - rollout.ref_logprobs) * rollout.response_mask).double().sum(-1)
    want = (rollout.scores.double() - mean) / std - 0.5 * k1
    assert float(k1.abs().max()) > 0.5
    torch.testing.assert_close(rollout.text_returns().double(), want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", [GRPO, DrGRPO, RLOO, REINFORCE, ReinforcePP, PPO, A2C, NLPO])
def test_a_horizon_in_updates_is_refused_before_training(kind: Any) -> None:
    for kl_in in ("reward", "loss"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(
                ValueError, match="kl_horizon expected above 25.6 for updates of 128 texts .*counts texts"
            ):
                kind(environment(problem()), kl_target=6.0, kl_horizon=20, kl_in=kl_in)


def test_a_coefficient_that_fell_as_fast_as_it_may_is_loaded_again(tmp_path: Path) -> None:
    config = {"batch_size": 64, "minibatch_size": 32, "kl_target": 50.0, "kl_horizon": 13}
    agent = PPO(environment(problem()), **config).learn(100_000, callback=lambda a, _: a.updates < 3)
    agent.save(tmp_path / "saved")
    assert 0 < agent.kl_coef < 1e-4 and PPO.load(tmp_path / "saved", environment(problem())).kl_coef == agent.kl_coef


@pytest.mark.parametrize(
    ("config", "near"),
    [
        ({"critic": "seperate"}, "separate"),
        ({"aggregation": "token-mean"}, "token_mean"),
        ({"kl_in": "rewards"}, "reward"),
    ],
)
def test_a_word_that_is_nearly_known_is_refused_at_once(config: dict[str, Any], near: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{near}'"):
        PPO(environment(problem()), **config)
