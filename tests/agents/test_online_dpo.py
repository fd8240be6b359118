"""Online DPO: pairs of groups, end points, the same numbers again."""

import warnings
from pathlib import Path
from typing import Any

import exact_runs
import gymnasium as gym
import numpy as np
import pytest
import torch
from ppo_runs import environment, problem
from preference_runs import assert_goes_on_after_loading, assert_same_seed_same_numbers

from lm_gym import exact, judged
from lm_gym.agents import OnlineDPO
from lm_gym.agents.dpo import dpo_loss
from lm_gym.tracking import METRICS


def test_a_pair_is_the_best_and_the_worst_of_a_group() -> None:
    agent = OnlineDPO(gym.make("LMAlignExact-v0"), group_size=4, batch_size=8, labels="hard")
    texts, _ = judged.draw(agent, agent.policy.lm, agent.prompts_for_update())
    texts.scores = torch.tensor([1.0, 3.0, 3.0, 0.5, 2.0, 2.0, 2.0, 2.0])
    batch = agent.pairs(texts, {})
    written = texts.token_lists()[1]
    assert batch.texts.token_lists()[1] == [written[i] for i in (1, 3, 4, 7)]
    assert batch.labels.tolist() == [1.0, 0.5]
    torch.testing.assert_close(batch.ref_logprobs.flatten(), texts.ref_logprobs.sum(-1)[[1, 3, 4, 7]])


def test_a_gradient_by_hand() -> None:
    """Σ over pairs of ∂L/∂h·(Σ_t (e_a − π) of the first text − of the second), over the table of logits."""
    agent = OnlineDPO(gym.make("LMAlignExact-v0"), batch_size=12, max_grad_norm=1e9)
    with torch.no_grad():
        agent.policy.lm.logits.add_(0.5 * torch.randn(13, 4, generator=torch.Generator().manual_seed(3)).T)
    language = agent.base.language
    probs, ref = agent.exact_policy(language), exact.reference_policy(language)
    found: list[np.ndarray] = []
    agent.optimizer.step = lambda: found.append(agent.policy.lm.logits.grad.T.double().numpy().copy())
    drawn: list[Any] = []
    keep = agent.pairs
    agent.pairs = lambda texts, metrics: drawn.append(keep(texts, metrics)) or drawn[-1]
    [log] = exact_runs.learn(agent, 1)

    want, losses, scores = np.zeros_like(probs), [], []
    tokens = drawn[0].texts.token_lists()[1]
    for first, second in zip(tokens[::2], tokens[1::2], strict=True):
        h, step = 0.0, np.zeros_like(probs)
        for sign, text in ((1, first), (-1, second)):
            for t, a in enumerate(text):
                s = language.state(text[:t])
                h += sign * np.log(probs[s, a] / ref[s, a])
                step[s] -= sign * probs[s]
                step[s, a] += sign
        scores += [language.reward(first), language.reward(second)]
        p = 1 / (1 + np.exp(scores[-1] - scores[-2]))
        want += (1 / (1 + np.exp(-0.5 * h)) - p) * 0.5 * step / 6
        losses.append(dpo_loss(torch.tensor([h]), torch.tensor([p]), 0.5).item())
    np.testing.assert_allclose(found[0], want, atol=1e-6)
    assert log["loss/preference_avg"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert log["objective/scores"] == pytest.approx(np.mean(scores), abs=1e-6)
    assert {m for m in log if not m.startswith("reward/")} <= set(METRICS)


@pytest.mark.parametrize("config", [{}, {"group_size": 4}], ids=str)
def test_the_optimum_is_found(config: dict[str, Any]) -> None:
    assert exact_runs.regret(OnlineDPO, 15_000, learning_rate=0.06, **config) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("seed", exact_runs.SEEDS)
def test_the_optimum_is_found_to_the_digits(seed: int) -> None:
    assert exact_runs.regret(OnlineDPO, exact_runs.TOKENS, seed=seed) < 0.002


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "end"),
    [
        ({"label_smoothing": 0.1}, {"label_smoothing": 0.1}),
        ({"loss": "ipo"}, {"variant": "ipo"}),
        ({"label_smoothing": 0.1, "labels": "hard"}, {"label_smoothing": 0.1, "labels": "hard"}),
    ],
    ids=str,
)
def test_biased_forms_go_to_their_end_points(config: dict[str, Any], end: dict[str, Any]) -> None:
    language, agent = exact_runs.train(OnlineDPO, exact_runs.TOKENS, **config)
    assert exact.kl_between(language, agent, exact.dpo_endpoint(language, on_policy=True, **end).policy) < 0.005


def test_hard_labels_go_past_the_optimum_to_the_best_texts() -> None:
    """E[R] = 2.25 at the optimum."""
    language, agent = exact_runs.train(OnlineDPO, 15_000, learning_rate=0.06, labels="hard")
    found = exact.evaluate(language, agent)
    assert found.reward > 2.6 and found.regret > 0.1


@pytest.mark.parametrize(
    ("make", "config"),
    [(None, {}), (lambda: environment(problem(top_k=4)), {"group_size": 4, "labels": "sampled"})],
    ids=["exact", "top_k"],
)
def test_the_same_seed_and_a_loaded_checkpoint_give_the_same_numbers(
    make: Any, config: dict[str, Any], tmp_path: Path
) -> None:
    where = {} if make is None else {"make": make}
    assert_same_seed_same_numbers(OnlineDPO, **where, **config)
    assert_goes_on_after_loading(OnlineDPO, tmp_path, **where, **config)


def test_a_wrapped_environment_judges_the_pairs() -> None:
    """A wrapper that turns the reward round turns the policy round; what it pays is what is logged."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the environment is wrapped")
        env = gym.wrappers.vector.TransformReward(gym.make_vec("LMAlignExact-v0", num_envs=8), lambda r: -r)
        logs = exact_runs.learn(OnlineDPO(env, learning_rate=0.1), 3000)
    scores = [log["objective/scores"] for log in logs]
    assert np.mean(scores[:5]) < -0.5 and np.mean(scores[-5:]) > 0
    assert logs[-1]["objective/non_score_reward"] == pytest.approx(-0.5 * logs[-1]["objective/kl_k1"], abs=1e-4)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"group_size": 1}, "group_size expected 2"),
        ({"group_size": 3}, "batch_size expected a multiple of group_size=3"),
        ({"labels": "soft"}, "labels expected one of"),
        ({"kl_coef": 0.0}, "kl_coef expected above 0"),
        ({"pairs": "file.jsonl"}, "has no field 'pairs'"),
    ],
)
def test_what_makes_no_sense_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OnlineDPO(gym.make("LMAlignExact-v0"), **config)
