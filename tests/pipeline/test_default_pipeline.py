"""`lm-gym pipeline` with its defaults does what it is shown for (slow)."""

from __future__ import annotations

from pathlib import Path

import pytest
from pipeline_runs import made

from lm_gym.cli import main

pytestmark = pytest.mark.slow


def test_rlhf_wins_over_sft_by_a_reward_model_near_the_ceiling(tmp_path: Path) -> None:
    assert main(["pipeline", "--out", str(tmp_path)]) == 0
    stages = made(tmp_path)
    results, judge = stages["evaluation"]["numbers"], stages["reward-model"]["numbers"]["accuracy"]
    assert results["wins"]["rl"]["sft"]["rate"][1] > 0.6  # the lower end of the 95% interval
    assert results["policies"]["sft"]["gold"][0] > results["policies"]["base"]["gold"][0] + 0.05
    assert judge["gap"][0] < 0.03
    assert 0.65 < judge["judge"][0] < judge["gold"][0] + 0.01
    assert sum(stage["cpu_seconds"] for stage in stages.values()) < 500


def test_following_a_learned_reward_too_far_shows(tmp_path: Path) -> None:
    """With few labels and hardly a price for KL the learned reward rises by much more than the gold."""
    flags = ["--preferences.pairs", "150", "--rl.kl-coef", "0.005", "--evaluation.texts", "256"]
    assert main(["pipeline", "--out", str(tmp_path), *flags]) == 0
    policies = made(tmp_path)["evaluation"]["numbers"]["policies"]
    gains = {
        key: (policies["rl"][key][0] - policies["sft"][key][0]) / policies["sft"][f"{key}_std"]
        for key in ("reward", "gold")
    }
    assert gains["reward"] > gains["gold"] + 0.5
    assert "over-optimised" in (tmp_path / "evaluation" / "report.html").read_text()
