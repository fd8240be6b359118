"""REINFORCE: its gradient by hand with either baseline, the optimum, the same numbers again."""

from pathlib import Path

import exact_runs
import gymnasium as gym
import numpy as np
import pytest

from lm_gym.agents import A2C, REINFORCE


def test_the_gradient_with_the_batchs_mean_by_hand() -> None:
    agent, rollout = exact_runs.moved(REINFORCE)
    returns = [sum(r) for r in exact_runs.step_rewards(agent, rollout)]
    mean, tokens = sum(returns) / len(returns), int(rollout.lengths.sum())
    want, _ = exact_runs.gradient_by_hand(
        agent, rollout, lambda i, t, ratio, _: -ratio * (returns[i] - mean), lambda i, n: 1 / tokens
    )
    found, metrics = exact_runs.update_gradient(agent, rollout)
    np.testing.assert_allclose(found, want, atol=1e-5)
    assert "val/explained_variance" not in metrics and agent.policy.value_head is None


def test_the_gradient_with_a_learned_baseline_by_hand() -> None:
    """A_t = G_t − V(s_t) with the values of the rollout; a critic of its own leaves the policy's gradient alone."""
    agent, rollout = exact_runs.moved(REINFORCE, critic="separate")
    rollout.values = rollout.response_mask * 0.7
    rewards = exact_runs.step_rewards(agent, rollout)
    tokens = int(rollout.lengths.sum())
    want, _ = exact_runs.gradient_by_hand(
        agent, rollout, lambda i, t, ratio, _: -ratio * (sum(rewards[i][t:]) - 0.7), lambda i, n: 1 / tokens
    )
    found, metrics = exact_runs.update_gradient(agent, rollout)
    np.testing.assert_allclose(found, want, atol=1e-5)
    to_go = [sum(r[t:]) for r in rewards for t in range(len(r))]
    # the head starts at 0 and is moved to the mean error, .7 below that of the returns, before the step
    left = np.mean([(np.mean(to_go) - 0.7 - g) ** 2 for g in to_go])
    assert metrics["loss/value_avg"] == pytest.approx(left / 2, rel=1e-4)


def test_the_optimum_is_found() -> None:
    assert exact_runs.regret(REINFORCE, 20_000) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("seed", exact_runs.SEEDS)
@pytest.mark.parametrize("critic", ["none", "shared"])
def test_the_optimum_is_found_to_the_digits(critic: str, seed: int) -> None:
    assert exact_runs.regret(REINFORCE, exact_runs.TOKENS, seed=seed, critic=critic) < 0.002


def test_with_a_critic_it_is_a2c() -> None:
    """λ = 1 and no whitening: the same algorithm, to the bit."""
    one, other = (kind(gym.make("LMAlignExact-v0"), critic="shared") for kind in (REINFORCE, A2C))
    assert exact_runs.learn(one, 600) == exact_runs.learn(other, 600)


@pytest.mark.parametrize("critic", ["none", "shared"])
def test_the_same_seed_and_a_loaded_checkpoint_give_the_same_numbers(critic: str, tmp_path: Path) -> None:
    exact_runs.assert_same_seed_same_numbers(REINFORCE, critic=critic)
    exact_runs.assert_goes_on_after_loading(REINFORCE, tmp_path, critic=critic)


def test_a_weight_of_values_without_values_is_refused() -> None:
    with pytest.raises(ValueError, match="vf_coef expected a critic"):
        REINFORCE(gym.make("LMAlignExact-v0"), vf_coef=0.5)
