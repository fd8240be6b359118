"""A2C: its gradient by hand, the optimum, the same numbers again."""

from pathlib import Path

import exact_runs
import gymnasium as gym
import numpy as np
import pytest

from lm_gym.agents import A2C


@pytest.mark.parametrize("whiten", [False, True])
def test_the_gradient_by_hand(whiten: bool) -> None:
    """λ = .5, γ = .9, values .7: A_t = Σ_l .45^l·δ_{t+l}, whitened over the tokens or not; a token mean."""
    agent, rollout = exact_runs.moved(A2C, critic="separate", lam=0.5, gamma=0.9, whiten_advantages=whiten)
    rollout.values = rollout.response_mask * 0.7
    advantages = []
    for rewards in exact_runs.step_rewards(agent, rollout):
        n = len(rewards)
        delta = [r + (0.9 * 0.7 if t < n - 1 else 0.0) - 0.7 for t, r in enumerate(rewards)]
        advantages.append([sum(0.45 ** (k - t) * delta[k] for k in range(t, n)) for t in range(n)])
    flat = [a for text in advantages for a in text]
    mean, std = (np.mean(flat), np.std(flat)) if whiten else (0.0, 1.0)
    want, _ = exact_runs.gradient_by_hand(
        agent, rollout, lambda i, t, ratio, _: -ratio * (advantages[i][t] - mean) / std, lambda i, n: 1 / len(flat)
    )
    found, metrics = exact_runs.update_gradient(agent, rollout)
    np.testing.assert_allclose(found, want, atol=1e-5)
    assert "policy/clipfrac_avg" not in metrics and metrics["loss/value_avg"] > 0


def test_the_optimum_is_found() -> None:
    assert exact_runs.regret(A2C, 20_000) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("seed", exact_runs.SEEDS)
def test_the_optimum_is_found_to_the_digits(seed: int) -> None:
    assert exact_runs.regret(A2C, exact_runs.TOKENS, seed=seed) < 0.002


def test_the_same_seed_and_a_loaded_checkpoint_give_the_same_numbers(tmp_path: Path) -> None:
    exact_runs.assert_same_seed_same_numbers(A2C)
    exact_runs.assert_goes_on_after_loading(A2C, tmp_path, lam=0.9, kl_target=1.0, kl_horizon=100)


def test_what_makes_no_sense_is_refused_and_what_is_biased_warns() -> None:
    with pytest.raises(ValueError, match="A2C needs values"):
        A2C(gym.make("LMAlignExact-v0"), critic="none")
    with pytest.warns(UserWarning, match="set whiten_advantages=False"):
        A2C(gym.make("LMAlignExact-v0"), kl_in="loss", whiten_advantages=True)
