"""SIGKILL and full disks at random moments: a run that is started again ends as one that nobody disturbed, bit for bit.

    python benchmarks/kill_resume.py                            # PPO, NLPO and DPO, 20 kills each
    python benchmarks/kill_resume.py --problem tiny --agents ppo

Every trial starts a run in a process of its own, disturbs it once, and starts it again until it is done. The kinds of
trials take turns:

- the clock: killed at a moment drawn uniformly over the time that a whole run takes;
- a write: it kills itself in a drawn one of the flushes and renames of its checkpoints and files;
- a start: killed by the clock, and killed again in one of those while it goes on (config.yaml is renewed there);
- a full disk: from a drawn flush, rename or row on everything that is written fails with ENOSPC, rows by half;
- two at once: killed by the clock, and two processes go on at the same moment: one of them must be refused.

Compared are the last checkpoint (every tensor's bytes, and state.json), metrics.jsonl without its seconds, and
samples.jsonl. An error of the full disk that names no file of the run ends the script.
"""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

import tyro

from lm_gym.folders import FolderInUse

PRELOADED = ["torch._dynamo", "transformers", "lm_gym.agents.ppo", "lm_gym.agents.dpo", "lm_gym.exact.envs"]
"""What the processes begin with: they are forks of one that imported it. (torch's optimizers import _dynamo.)"""
CONFIG: dict[str, dict[str, Any]] = {
    "dpo": {"n_pairs": 64},
    "nlpo": {"minibatch_size": 16, "mask_every": 2},
    "ppo": {"minibatch_size": 16, "kl_target": 2.0, "kl_horizon": 500, "kl_reference": "ema"},
}
"""What gives an agent state of its own beside weights and optimizer."""
KINDS = ("clock", "write", "start", "full disk", "two at once")
STARTING = 10
"""Flushes and renames of a run that goes on, before its first update."""
REFUSED, FULL, UNNAMED = 10, 11, 12
"""Exit codes: the folder is somebody else's; the disk is full, with a file of the run named; with none named."""


@dataclass
class Options:
    """Disturb runs, go on with them, compare."""

    agents: tuple[str, ...] = ("ppo", "nlpo", "dpo")
    """Names of `lm-gym ls agents`."""
    problem: Literal["exact", "tiny"] = "exact"
    """The exact language (a table), or reviews of `tiny` (a transformer of 1.4 M parameters)."""
    trials: int = 20
    """Disturbances of each agent."""
    tokens: int = 1000
    """Length of a run: about 12 updates on the exact language, 4 on tiny; every second one has a checkpoint."""
    seed: int = 0
    """Of the moments."""


def agent_on(name: str, problem: str) -> tuple[Any, Any]:
    """An agent's class, and an environment."""
    import gymnasium as gym

    import lm_gym  # noqa: F401  (registers the environments)

    (kind,) = (point.load() for point in entry_points(group="lm_gym.agents") if point.name == name)
    env = gym.make("LMAlignExact-v0") if problem == "exact" else gym.make("LMAlign-v0", max_new_tokens=8)
    return kind, env


def work(
    name: str,
    problem: str,
    out: Path,
    tokens: int,
    fault: tuple[str, int] | None,
    started: Any = None,
    gate: Any = None,
) -> None:
    """A process: start the run, or go on with it. ``fault``: what befalls it in which of its writes."""
    import torch

    from lm_gym.checkpoints import numbered

    torch.set_num_threads(1)
    kind, env = agent_on(name, problem)
    if fault is not None:
        _break(*fault)
    if started is not None:
        started.set()
    config = {"batch_size": 32, **CONFIG.get(name, {})}
    there = out.exists()
    agent = kind.load(out, env) if numbered(out) else kind(env, **config)
    if gate is not None:
        gate.wait()
    try:
        agent.learn(tokens, out=out, save_every=2, resume=there)
    except OSError as error:
        refused = isinstance(error, (FolderInUse, FileExistsError))
        raise SystemExit(REFUSED if refused else FULL if str(out) in str(error) else UNNAMED) from error


def _break(what: str, step: int) -> None:
    """SIGKILL before the given call of those that bring files to the disk, or ENOSPC from it on."""
    calls = 0

    def due() -> bool:
        nonlocal calls
        calls += 1
        if what == "kill" and calls == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return what == "full" and calls >= step

    def broken(call: Any) -> Any:
        def wrapped(*args: Any) -> Any:
            if due():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*args)

        return wrapped

    class Half(io.TextIOWrapper):
        def write(self, text: str) -> int:
            full = due()
            written = super().write(text[: len(text) // 2] if full else text)
            if full:
                self.flush()
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return written

    def opened(path: Any, mode: str = "r", **options: Any) -> Any:
        return Half(open(path, f"{mode}b"), **options) if mode == "a" else open(path, mode, **options)

    from lm_gym import checkpoints, run_files, run_folder, runinfo

    for module in (checkpoints, run_folder, runinfo):
        module.os = _Os(fsync=broken(os.fsync), replace=broken(os.replace))  # type: ignore[attr-defined]
    run_files.open = opened  # type: ignore[attr-defined]


class _Os:
    """The module os with other functions, for one module alone."""

    def __init__(self, **functions: Any) -> None:
        self.__dict__.update(functions)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def differences(one: Path, other: Path) -> list[str]:
    """What two runs' folders do not have in common."""
    from lm_gym import checkpoints

    found = []
    first, second = checkpoints.latest(one), checkpoints.latest(other)
    if first.name != second.name:
        return [f"{first.name} and {second.name}"]
    (a, state), (b, again) = checkpoints.load(first), checkpoints.load(second)
    if state != again:
        found.append("state.json")
    for group in sorted(set(a) | set(b)):
        x, y = ({k: t.numpy().tobytes() for k, t in groups.get(group, {}).items()} for groups in (a, b))
        if x != y:
            found.append(group)
    if _rows(one) != _rows(other):
        found.append("metrics.jsonl")
    if (one / "samples.jsonl").read_bytes() != (other / "samples.jsonl").read_bytes():
        found.append("samples.jsonl")
    return found


def _rows(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in lines]


def disturb_runs(name: str, problem: str, trials: int, tokens: int, seed: int, where: Path) -> Counter[str]:
    """Trials by kind, how often they came before a checkpoint, how many were refused, how many runs ended equal."""
    from lm_gym.checkpoints import latest, numbered

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)

    def start(out: Path, fault: tuple[str, int] | None, gate: Any = None) -> tuple[Any, Any]:
        started = context.Event()
        child = context.Process(target=work, args=(name, problem, out, tokens, fault, started, gate))
        child.start()
        return child, started

    def run(out: Path, fault: tuple[str, int] | None = None, after: float | None = None) -> tuple[int, float]:
        """Exit code, and seconds from the start of the work on."""
        child, started = start(out, fault)
        started.wait()
        began = time.monotonic()
        child.join(after)
        if child.is_alive():
            child.kill()
            child.join()
        assert child.exitcode is not None
        return child.exitcode, time.monotonic() - began

    code, seconds = run(where / "whole")
    if code != 0:
        raise RuntimeError(f"the run of {name} that nobody disturbed broke off")
    last = int(latest(where / "whole").name.removeprefix("step-"))
    count: Counter[str] = Counter()
    draw = random.Random(seed)
    while count["trials"] < trials:
        kind = KINDS[count["trials"] % len(KINDS)]
        out = where / f"trial-{count['trials']}"
        shutil.rmtree(out, ignore_errors=True)
        # a checkpoint is about six flushes and renames, and there is one every second update, which has five rows
        fault = {"write": ("kill", draw.randint(1, 3 * last)), "full disk": ("full", draw.randint(1, 5 * last))}.get(
            kind
        )
        code, _ = run(out, fault, None if fault else draw.random() * seconds)
        if code == 0 or not out.exists():
            continue  # it was done before its moment came, or had not begun
        if code != (FULL if kind == "full disk" else -signal.SIGKILL):
            raise RuntimeError(f"{out}, {kind}: ended with {code}")
        if kind == "start" and run(out, ("kill", draw.randint(1, STARTING)))[0] != -signal.SIGKILL:
            continue
        if kind == "two at once":
            gate = context.Barrier(2)
            pair = [start(out, None, gate) for _ in range(2)]
            for child, _ in pair:
                child.join()
            if sorted(child.exitcode for child, _ in pair) != [0, REFUSED]:
                raise RuntimeError(f"{out}: two at once ended with {[child.exitcode for child, _ in pair]}")
            count["refused"] += 1
        count["trials"] += 1
        count[kind] += 1
        count["before a checkpoint"] += not numbered(out)
        if kind != "two at once" and run(out)[0] != 0:
            raise RuntimeError(f"{out} could not go on")
        odd = differences(where / "whole", out)
        count["equal"] += not odd
        if odd:
            print(f"{name}, trial {count['trials']} ({kind}): {', '.join(odd)} differ")
    return count


def main(options: Options) -> int:
    """Print a table; returns 1 where a run ended otherwise."""
    columns = ("trials", *KINDS, "before a checkpoint", "refused", "equal")
    print(f"| agent, on {options.problem} | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    fine = True
    for name in options.agents:
        with tempfile.TemporaryDirectory() as where:
            count = disturb_runs(name, options.problem, options.trials, options.tokens, options.seed, Path(where))
        print(f"| {name} | {' | '.join(str(count[column]) for column in columns)} |", flush=True)
        fine &= count["equal"] == count["trials"] and count["refused"] == count["two at once"]
    return 0 if fine else 1


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # the processes import this file by its name
    import kill_resume

    raise SystemExit(kill_resume.main(tyro.cli(Options, description=__doc__)))
