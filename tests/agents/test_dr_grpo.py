"""Dr. GRPO: its gradient by hand, its end point, the optimum with KL in the reward, the same numbers again."""

from pathlib import Path

import exact_runs
import numpy as np
import pytest

from lm_gym import exact
from lm_gym.agents import DrGRPO

END = {"kl_in": "loss", "estimator": "k3", "group_size": 8}


def test_the_gradient_by_hand() -> None:
    """Score less the group's mean, clipped; β·k3, whose slope is 1 − π_ref/π; every token over B·L_max = 24·3."""
    agent, rollout = exact_runs.moved(DrGRPO, group_size=3)
    scores = exact_runs.scores(rollout)
    advantages = [r - sum(scores[i // 3 * 3 : i // 3 * 3 + 3]) / 3 for i, r in enumerate(scores)]
    want, ratios = exact_runs.gradient_by_hand(
        agent,
        rollout,
        lambda i, t, ratio, x: exact_runs.clipped_slope(ratio, advantages[i]) + exact_runs.BETA * (1 - 1 / x),
        lambda i, n: 1 / (24 * 3),
    )
    found, metrics = exact_runs.update_gradient(agent, rollout)
    np.testing.assert_allclose(found, want, atol=1e-5)
    assert max(map(max, ratios)) > 1.2 and metrics["policy/clipfrac_avg"] > 0


def test_the_number_of_its_docstring() -> None:
    assert exact.endpoint(exact.ExactLanguage(), **END).regret == pytest.approx(0.0407, abs=5e-5)


def test_it_goes_to_its_end_point() -> None:
    regret, end, kl = exact_runs.distance(DrGRPO, 20_000, END)
    assert kl < 0.02 and regret == pytest.approx(end, abs=0.01)


@pytest.mark.slow
def test_its_end_point_to_the_digits() -> None:
    """Strictly on-policy, as GRPO's: .0008 ± .0002 above; with the default minibatches about .0016."""
    exact_runs.assert_ends_at(DrGRPO, END, minibatch_size=None)


@pytest.mark.slow
def test_with_kl_in_the_reward_it_finds_the_optimum() -> None:
    assert exact_runs.regret(DrGRPO, 50_000, kl_in="reward") < 0.002


def test_the_same_seed_and_a_loaded_checkpoint_give_the_same_numbers(tmp_path: Path) -> None:
    exact_runs.assert_same_seed_same_numbers(DrGRPO)
    exact_runs.assert_goes_on_after_loading(DrGRPO, tmp_path, epochs=2)
