"""REINFORCE++ and its baseline variant: gradients by hand, where they end, the same numbers again."""

import dataclasses
import warnings
from pathlib import Path

import exact_runs
import gymnasium as gym
import numpy as np
import pytest

from lm_gym import exact
from lm_gym.agents import ReinforcePP
from lm_gym.cli.options import parse_train

BASELINE = {"kl_in": "loss", "estimator": "k2", "whiten": True, "group_size": 8}


def test_the_gradient_by_hand() -> None:
    """Returns to go with k1 in the rewards, mean 0 and standard deviation 1 over all tokens, clipped."""
    agent, rollout = exact_runs.moved(ReinforcePP)
    rewards = exact_runs.step_rewards(agent, rollout)
    to_go = [[sum(r[t:]) for t in range(len(r))] for r in rewards]
    flat = [g for text in to_go for g in text]
    mean, std = np.mean(flat), np.std(flat)
    want, _ = exact_runs.gradient_by_hand(
        agent,
        rollout,
        lambda i, t, ratio, _: exact_runs.clipped_slope(ratio, (to_go[i][t] - mean) / std),
        lambda i, n: 1 / len(flat),
    )
    found, metrics = exact_runs.update_gradient(agent, rollout)
    np.testing.assert_allclose(found, want, atol=1e-5)
    assert metrics["policy/clipfrac_avg"] > 0 and "loss/kl_avg" not in metrics


def test_the_gradient_of_the_baseline_variant_by_hand() -> None:
    """Score less the group's mean, then normalised over the tokens; k2 in the loss, whose slope is log π/π_ref."""
    agent, rollout = exact_runs.moved(ReinforcePP, group_size=3)
    scores = exact_runs.scores(rollout)
    centred = [r - sum(scores[i // 3 * 3 : i // 3 * 3 + 3]) / 3 for i, r in enumerate(scores)]
    flat = [a for a, n in zip(centred, rollout.lengths.tolist(), strict=True) for _ in range(n)]
    mean, std = np.mean(flat), np.std(flat)
    want, _ = exact_runs.gradient_by_hand(
        agent,
        rollout,
        lambda i, t, ratio, x: (
            exact_runs.clipped_slope(ratio, (centred[i] - mean) / std) + exact_runs.BETA * float(np.log(x))
        ),
        lambda i, n: 1 / len(flat),
    )
    found, metrics = exact_runs.update_gradient(agent, rollout)
    np.testing.assert_allclose(found, want, atol=1e-5)
    assert metrics["group/std_avg"] > 0


def test_the_optimum_is_found() -> None:
    assert exact_runs.regret(ReinforcePP, 20_000) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("seed", exact_runs.SEEDS)
def test_the_optimum_is_found_to_the_digits(seed: int) -> None:
    assert exact_runs.regret(ReinforcePP, exact_runs.TOKENS, seed=seed) < 0.002


def test_the_baseline_variant_pays_ever_less_kl() -> None:
    """Its end point is .4177; with KL in the reward the same variant finds the optimum."""
    assert exact.endpoint(exact.ExactLanguage(), **BASELINE).regret == pytest.approx(0.4177, abs=5e-5)
    steps = {"group_size": 8, "minibatch_size": 32, "learning_rate": 0.05}
    assert exact_runs.regret(ReinforcePP, 20_000, **steps) > 0.1
    assert exact_runs.regret(ReinforcePP, 12_000, **steps, kl_in="reward") < 0.02


def test_what_is_published_does_not_warn_and_what_is_biased_by_choice_does() -> None:
    env = gym.make("LMAlignExact-v0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ReinforcePP(env).config.kl_in == "reward"
        assert ReinforcePP(env, group_size=8).config.kl_in == "loss"
        # as the command line passes it: every field by name
        agent = parse_train("reinforce++", ["--group-size", "8"]).agent
        assert ReinforcePP(env, **dataclasses.asdict(agent)).config.kl_in == "loss"
    for config in ({"kl_in": "loss"}, {"kl_in": "entropy"}, {"ent_coef": 0.1}):
        with pytest.warns(UserWarning, match="rescales the reward against the KL or entropy in the loss"):
            ReinforcePP(env, **config)


def test_the_same_seed_and_a_loaded_checkpoint_give_the_same_numbers(tmp_path: Path) -> None:
    exact_runs.assert_same_seed_same_numbers(ReinforcePP)
    exact_runs.assert_goes_on_after_loading(ReinforcePP, tmp_path, group_size=8)
