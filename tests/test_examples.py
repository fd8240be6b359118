"""Every example runs from start to end, on a budget of seconds.

A new example needs one line in RUNS: the arguments that make it short, and a word that its output must contain.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


class Run(NamedTuple):
    """How an example is run: command-line arguments, environment variables, and what it must print."""

    argv: tuple[str, ...] = ()
    prints: str = ""
    env: tuple[tuple[str, str], ...] = ()


RUNS: dict[str, Run] = {
    "00_quickstart.py": Run(("--episodes", "3"), prints="3 texts: score"),
    "01_vector_loop.py": Run(("--tokens", "300", "--rows", "8", "--evaluate", "16"), prints="after:  score"),
    "02_sb3.py": Run(("--steps", "512", "--rows", "8", "--evaluate", "8"), prints="after:  score"),
    "03_cleanrl_ppo.py": Run(
        ("--total-timesteps", "256", "--num-envs", "8", "--num-steps", "16", "--evaluate", "16", "--track"),
        prints="after:  score",
    ),
    "04_torchrl.py": Run(("--tokens", "256", "--rows", "8", "--steps", "32"), prints="256 tokens: return"),
}


def test_every_example_is_run_and_every_run_has_its_example() -> None:
    assert set(RUNS) == {path.name for path in EXAMPLES.glob("*.py")}


@pytest.mark.parametrize("name", sorted(RUNS))
def test_example(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    run = RUNS[name]
    monkeypatch.chdir(tmp_path)  # what it writes goes there
    monkeypatch.setattr(sys, "argv", [name, *run.argv])
    for key, value in run.env:
        monkeypatch.setenv(key, value)
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert run.prints in capsys.readouterr().out


@pytest.mark.slow
def test_the_loop_of_ones_own_ends_where_ppo_does(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Mean rewards of 512 fresh samples after 60,000 tokens differ by less than .05, in the mean of 3 seeds."""
    import gymnasium as gym

    from lm_gym.agents import PPO

    def loop(seed: int) -> float:
        monkeypatch.setattr(sys, "argv", ["", "--tokens", "60000", "--evaluate", "512", "--seed", str(seed)])
        runpy.run_path(str(EXAMPLES / "01_vector_loop.py"), run_name="__main__")
        return float(capsys.readouterr().out.rsplit("after:  score ", 1)[1].split()[0])

    def ppo(seed: int) -> float:
        agent = PPO(gym.make("LMAlign-v0"), seed=seed).learn(60_000)
        return agent.evaluate(n=512)["objective/scores"]

    found = np.array([[loop(seed), ppo(seed)] for seed in range(3)])
    differences = found[:, 0] - found[:, 1]
    sem = differences.std(ddof=1) / 3**0.5
    print(f"loop {found[:, 0]}, PPO {found[:, 1]}, difference {differences.mean():+.3f} ± {sem:.3f}")
    assert abs(differences.mean()) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "argv", "behind", "least"),
    [
        ("03_cleanrl_ppo.py", ("--total-timesteps", "60000"), "after:  score ", 0.7),  # .835; .154 before
        ("04_torchrl.py", ("--tokens", "30000"), "32768 tokens: return ", 0.5),  # .598; .210 at first
    ],
)
def test_a_small_network_lifts_the_reward(
    name: str, argv: tuple[str, ...], behind: str, least: float, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", [name, *argv])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert float(capsys.readouterr().out.rsplit(behind, 1)[1].split()[0]) > least
