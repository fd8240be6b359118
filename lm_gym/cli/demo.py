"""`lm-gym demo`: `tiny` learns to write good reviews, in about a minute of one core."""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_gym.cli.errors import refusing
from lm_gym.cli.options import ProblemOptions, RunOptions, TrainOptions, load_agent
from lm_gym.folders import LOCK, locked

PRESET = "demo"

PROBLEM: dict[str, Any] = {"kl_coef": 0.05, "max_new_tokens": 32}
AGENT: dict[str, Any] = {"epochs": 2}
"""Half of PPO's default: most of the time goes into gradient steps (14 of 20 s an update with 4 epochs)."""

GUARD_EVERY, GUARD_PROMPTS = 5, 32
"""Looks at the policy: as many texts as a fourth of an update, every fifth update."""


@dataclass
class Demo:
    """Align tiny to positive reviews in under 3 minutes on 2 cores, and show it: the main job in small."""

    out: str = "runs/demo"
    """The run's folder. An earlier demo in it is replaced; anything else is refused."""
    total_tokens: int = 40_000
    """Tokens to train on."""
    seed: int = 0
    """Of every draw."""
    threads: int = 1
    """Threads of torch. One: on a busy machine two would wait for each other in every operation."""
    debug: bool = False
    """Show the traceback of an error."""


def demo(options: Demo) -> int:
    """Run the demo; returns the exit code of the training."""
    started = time.monotonic()
    out = Path(options.out)
    with contextlib.ExitStack() as stack:
        with refusing():
            if out.exists() and not out.is_dir():
                raise ValueError(f"--out expected a folder, and {out} is a file")
            stack.enter_context(locked(out))
            replaced = make_room(out)
        code = _demo(options, replaced)
    print(f"took        {time.monotonic() - started:.0f} s")
    return code


def _demo(options: Demo, replaced: bool) -> int:
    from lm_gym.cli.train import train

    with refusing():
        agent_class = load_agent("ppo")
        agent = agent_class.config_class(**AGENT, seed=options.seed)
    problem = ProblemOptions(**PROBLEM)
    print(
        "LM Gym demo: the language model `tiny` continues reviews, VADER scores how positive they are, and PPO raises\n"
        f"the score at a price of {problem.kl_coef} a nat of KL from the untrained model."
    )
    if replaced:
        print(f"(the earlier demo in {options.out} is replaced)")
    run = RunOptions(
        total_tokens=options.total_tokens,
        out=options.out,
        threads=options.threads,
        save_every=None,
        guard_every=GUARD_EVERY,
        guard_prompts=GUARD_PROMPTS,
        debug=options.debug,
    )
    return train(TrainOptions(agent_class, "ppo", problem, agent, run), preset=PRESET)


def make_room(out: Path) -> bool:
    """Remove an earlier demo from `out`; whether there was one.

    Raises:
        ValueError: something else is in the folder.
    """
    if not out.exists() or (out.is_dir() and not [path for path in out.iterdir() if path.name != LOCK]):
        return False
    if not _is_demo(out):
        raise ValueError(f"{out} holds something that is no earlier demo: choose another --out, or move it away")
    for path in sorted(out.iterdir(), key=lambda path: path.name == "config.yaml"):  # last what says that it is a demo
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()
    return True


def _is_demo(out: Path) -> bool:
    from lm_gym.runinfo import read_config

    if not (out / "config.yaml").is_file():
        return False
    try:
        run = read_config(out / "config.yaml").get("run")
    except (ValueError, OSError):
        return False
    return isinstance(run, dict) and run.get("preset") == PRESET
