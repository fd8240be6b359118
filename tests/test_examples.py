"""Every example runs from start to end, on a budget of seconds.

A new example needs one line in RUNS: the arguments that make it short, and a word that its output must contain.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any, NamedTuple

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
