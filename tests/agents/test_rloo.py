"""RLOO: its gradient by hand, the optimum, groups through wrappers, the same numbers again."""

import math
from pathlib import Path
from typing import Any

import exact_runs
import gymnasium as gym
import numpy as np
import pytest
from ppo_runs import environment, problem

from lm_gym import exact
from lm_gym.agents import RLOO
from lm_gym.vector_env import LMAlignVectorEnv

WRAPPED = "ignore:the environment is wrapped"


def same(env: Any) -> Any:
    return gym.wrappers.vector.TransformReward(env, lambda r: r)


@pytest.mark.parametrize("clip", [None, 0.2])
def test_the_gradient_by_hand(clip: float | None) -> None:
    """Each text's whole return less the mean of the other two of its prompt; mean over all tokens."""
    agent, rollout = exact_runs.moved(RLOO, group_size=3, clip_range=clip)
    returns = [sum(r) for r in exact_runs.step_rewards(agent, rollout)]
    groups = [returns[i // 3 * 3 : i // 3 * 3 + 3] for i in range(24)]
    advantages = [r - (sum(group) - r) / 2 for r, group in zip(returns, groups, strict=True)]
    eps = math.inf if clip is None else clip
    tokens = int(rollout.lengths.sum())
    want, ratios = exact_runs.gradient_by_hand(
        agent,
        rollout,
        lambda i, t, ratio, _: exact_runs.clipped_slope(ratio, advantages[i], eps, eps),
        lambda i, n: 1 / tokens,
    )
    found, metrics = exact_runs.update_gradient(agent, rollout)
    np.testing.assert_allclose(found, want, atol=1e-5)
    assert max(map(max, ratios)) > 1.2 and ("policy/clipfrac_avg" in metrics) == (clip is not None)
    assert metrics["group/std_avg"] == pytest.approx(
        np.mean([np.std(groups[i], ddof=1) for i in range(0, 24, 3)]), abs=1e-5
    )


def test_the_optimum_is_found() -> None:
    assert exact_runs.regret(RLOO, 20_000) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("seed", exact_runs.SEEDS)
def test_the_optimum_is_found_to_the_digits(seed: int) -> None:
    assert exact_runs.regret(RLOO, exact_runs.TOKENS, seed=seed) < 0.002


def test_k2_in_the_loss_goes_to_its_end_point() -> None:
    """.0099, and the leave-one-out baseline does not move it: the same as with a large group."""
    _, _, kl = exact_runs.distance(RLOO, 20_000, {"kl_in": "loss", "estimator": "k2"}, kl_in="loss", group_size=2)
    assert kl < 0.05


def test_the_same_seed_and_a_loaded_checkpoint_give_the_same_numbers(tmp_path: Path) -> None:
    exact_runs.assert_same_seed_same_numbers(RLOO)
    exact_runs.assert_goes_on_after_loading(RLOO, tmp_path, clip_range=0.2, epochs=2)


@pytest.mark.filterwarnings(WRAPPED)
def test_groups_stay_together_through_a_wrapper() -> None:
    """Rows end at different times: still four texts in a row of each prompt, as without a wrapper."""
    agent = RLOO(same(LMAlignVectorEnv(8, mdp=problem())), batch_size=32)
    plain = RLOO(environment(problem()), batch_size=32)
    for _ in range(3):
        (stepped, _), (batched, _) = agent.collect(), plain.collect()
        for rollout in (stepped, batched):
            prompts = rollout.token_lists()[0]
            assert all(prompts[i] == prompts[i // 4 * 4] for i in range(32))
            assert len({tuple(p) for p in prompts}) >= 4
        assert len({tuple(y) for y in stepped.token_lists()[1][:4]}) > 1, "texts of their own"


@pytest.mark.filterwarnings(WRAPPED)
def test_it_learns_through_a_wrapper() -> None:
    env = gym.make_vec("LMAlignExact-v0", num_envs=32)
    agent = RLOO(same(env)).learn(10_000)
    assert agent.wrappers == ["TransformReward"]
    assert exact.evaluate(env.unwrapped.language, agent).regret < 0.05


@pytest.mark.filterwarnings(WRAPPED)
def test_texts_that_a_wrapper_cuts_off_are_refused() -> None:
    agent = RLOO(gym.wrappers.TimeLimit(environment(problem(min_new_tokens=4)), 3), batch_size=8, minibatch_size=8)
    with pytest.raises(ValueError, match="got 8 of 8 cut off by a wrapper: train with a critic"):
        agent.learn(10)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"group_size": 1}, "group_size expected 2"),
        ({"group_size": 5}, "batch_size expected a multiple of group_size=5, got 128"),
        ({"aggregation": "mean"}, "aggregation expected"),
    ],
)
def test_what_makes_no_sense_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RLOO(gym.make("LMAlignExact-v0"), **config)
