"""SIGKILL at random moments: a run that is started again ends as one that was never killed, bit for bit.

    python benchmarks/kill_resume.py                            # PPO, NLPO and DPO, 20 kills each
    python benchmarks/kill_resume.py --problem tiny --agents ppo

Every trial starts a run in a process of its own, kills it once, and starts it again until it is done.
Two of three trials are killed by the clock, at a moment drawn uniformly over the time that a whole run takes; the third
kills itself inside a checkpoint's write, at a drawn one of its flushes and renames. Compared are the last checkpoint
(every tensor's bytes, and state.json), metrics.jsonl without its seconds, and samples.jsonl.
"""

from __future__ import annotations

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

PRELOADED = ["torch._dynamo", "transformers", "lm_gym.agents.ppo", "lm_gym.agents.dpo", "lm_gym.exact.envs"]
"""What the processes begin with: they are forks of one that imported it. (torch's optimizers import _dynamo.)"""
CONFIG: dict[str, dict[str, Any]] = {
    "dpo": {"n_pairs": 64},
    "nlpo": {"minibatch_size": 16, "mask_every": 2},
    "ppo": {"minibatch_size": 16, "kl_target": 2.0, "kl_horizon": 500, "kl_reference": "ema"},
}
"""What gives an agent state of its own beside weights and optimizer."""


@dataclass
class Options:
    """Kill runs, go on with them, compare."""

    agents: tuple[str, ...] = ("ppo", "nlpo", "dpo")
    """Names of `lm-gym ls agents`."""
    problem: Literal["exact", "tiny"] = "exact"
    """The exact language (a table), or reviews of `tiny` (a transformer of 1.4 M parameters)."""
    trials: int = 20
    """Kills of each agent."""
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


def work(name: str, problem: str, out: Path, tokens: int, dies_at: int | None, started: Any = None) -> None:
    """A process: start the run, or go on with it. With ``dies_at`` it dies in that step of writing checkpoints."""
    import torch

    torch.set_num_threads(1)
    kind, env = agent_on(name, problem)
    if dies_at is not None:
        _die_at(dies_at)
    if started is not None:
        started.set()
    from lm_gym.checkpoints import numbered

    config = {"batch_size": 32, **CONFIG.get(name, {})}
    agent = kind.load(out, env) if numbered(out) else kind(env, **config)
    agent.learn(tokens, out=out, save_every=2, resume=out.exists())


def _die_at(step: int) -> None:
    """SIGKILL before the given call of those that bring a checkpoint to the disk: fsync and rename."""
    calls = 0

    def deadly(call: Any) -> Any:
        def wrapped(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args)

        return wrapped

    from lm_gym import checkpoints

    checkpoints.os = _Os(fsync=deadly(os.fsync), replace=deadly(os.replace))  # type: ignore[assignment]


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


def kill_runs(name: str, problem: str, trials: int, tokens: int, seed: int, where: Path) -> Counter[str]:
    """How many runs were "killed", of them "in a write" and "before a checkpoint", and how many end "equal"."""
    from lm_gym.checkpoints import latest, numbered

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)

    def run(out: Path, dies_at: int | None, after: float | None) -> tuple[int, float]:
        """Exit code, and seconds from the start of the work on."""
        started = context.Event()
        child = context.Process(target=work, args=(name, problem, out, tokens, dies_at, started))
        child.start()
        started.wait()
        began = time.monotonic()
        child.join(after)
        if child.is_alive():
            child.kill()
            child.join()
        assert child.exitcode is not None
        return child.exitcode, time.monotonic() - began

    code, seconds = run(where / "whole", None, None)
    if code != 0:
        raise RuntimeError(f"the run of {name} that nobody killed broke off")
    last = int(latest(where / "whole").name.removeprefix("step-"))
    count: Counter[str] = Counter()
    draw = random.Random(seed)
    while count["killed"] < trials:
        out = where / f"killed-{count['killed']}"
        shutil.rmtree(out, ignore_errors=True)
        in_write = count["killed"] % 3 == 2
        # a checkpoint is about six flushes and renames, and there is one every second update
        code, _ = run(
            out, draw.randint(1, 3 * last) if in_write else None, None if in_write else draw.random() * seconds
        )
        if code == 0:
            continue  # it was done before its moment came
        assert code == -signal.SIGKILL, code
        count["killed"] += 1
        count["in a write"] += in_write
        count["before a checkpoint"] += not numbered(out)
        if run(out, None, None)[0] != 0:
            raise RuntimeError(f"{out} could not go on")
        odd = differences(where / "whole", out)
        count["equal"] += not odd
        if odd:
            print(f"{name}, kill {count['killed']}: {', '.join(odd)} differ")
    return count


def main(options: Options) -> int:
    """Print a table; returns 1 where a run ended otherwise."""
    columns = ("killed", "in a write", "before a checkpoint", "equal")
    print(f"| agent, on {options.problem} | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    fine = True
    for name in options.agents:
        with tempfile.TemporaryDirectory() as where:
            count = kill_runs(name, options.problem, options.trials, options.tokens, options.seed, Path(where))
        print(f"| {name} | {' | '.join(str(count[column]) for column in columns)} |", flush=True)
        fine &= count["equal"] == count["killed"]
    return 0 if fine else 1


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # the processes import this file by its name
    import kill_resume

    raise SystemExit(kill_resume.main(tyro.cli(Options, description=__doc__)))
