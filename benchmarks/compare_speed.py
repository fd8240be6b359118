"""`lm-gym compare`: its wall-clock seconds beside the CPU seconds of what it cannot do without.

    python benchmarks/compare_speed.py                                # lines of the table in docs/compare.md
    git clone -q . /tmp/before && git -C /tmp/before checkout -q 010d764
    ln -s ../agents ../reward_models /tmp/before/lm_gym/
    PYTHONPATH=/tmp/before python <checkout>/benchmarks/compare_speed.py   # the same before; outside the checkout

3 agents, 3 seeds, 2 processes, on a machine that does nothing else: 8,000 tokens on the worked language and
LMAlign-v0, and 100,000 on the worked language alone, where measuring costs next to nothing. Counted once, in CPU
seconds: training (what the rows say), measuring (of one seed, in this process, times the seeds), and the reference.
Then all runs again in the same folder, where the reference is already known.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

import lm_gym
from lm_gym.cli.options import load_agent
from lm_gym.compare import problems, training
from lm_gym.compare.settings import Job
from lm_gym.runinfo import git_revision

AGENTS, SEEDS, PROCESSES, EVAL_TEXTS, POINTS = ("ppo", "rloo", "grpo"), 3, 2, 256, 12
CASES = ((("LMAlignExact-v0", "LMAlign-v0"), 8000), (("LMAlignExact-v0",), 100_000))


def wall(folder: Path, environments: Sequence[str], tokens: int) -> tuple[float, float]:
    """Wall seconds of the command, and the CPU seconds of training in its rows."""
    call = [sys.executable, "-m", "lm_gym", "compare", "--env", ",".join(environments), "--agents", ",".join(AGENTS)]
    call += ["--seeds", str(SEEDS), "--total-tokens", str(tokens), "--processes", str(PROCESSES)]
    call += ["--results", str(folder), "--out", str(folder / "fig.svg")]
    began = time.perf_counter()
    subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
    took = time.perf_counter() - began
    return took, sum(json.loads(line)["cpu_seconds"] for line in (folder / "rows.jsonl").open())


class Spent:
    """CPU seconds of the calls of some functions."""

    def __init__(self, module: Any, *names: str) -> None:
        self.seconds, self.module = 0.0, module
        self.real = {name: getattr(module, name) for name in names}

    def __enter__(self) -> Spent:
        for name, call in self.real.items():
            setattr(self.module, name, self.around(call))
        return self

    def __exit__(self, *_: object) -> None:
        for name, call in self.real.items():
            setattr(self.module, name, call)

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            before = time.process_time()
            try:
                return call(*args, **options)
            finally:
                self.seconds += time.process_time() - before

        return timed


def reference(environments: Sequence[str]) -> float:
    """CPU seconds of the reference's texts and of the exact languages."""
    with Spent(problems, "reference_scores", "_exact") as spent:
        for env in environments:
            beta = problems.default_kl_coef(env)
            if hasattr(problems, "problem_jobs"):
                for job in problems.problem_jobs(env, (beta,), EVAL_TEXTS):
                    problems.measure_reference(job)
            else:  # at 010d764
                problems.make_problems(problems.ProblemJob(env, (beta,), EVAL_TEXTS))
    return spent.seconds


def measuring(folder: Path, tokens: int) -> float:
    """CPU seconds of measuring policies, at the points of curves and at the end."""
    known = {r["env"]: {t: tuple(s) for t, s in r["scores"].items()} for r in lines(folder / "reference.jsonl")}
    with Spent(training, "measure", "worth") as spent:
        for problem in lines(folder / "problems.jsonl"):
            for agent in AGENTS:
                options = {"seed": 0, "total_tokens": tokens, "eval_texts": EVAL_TEXTS, "points": POINTS}
                options |= {"reference": known.get(problem["env"]), "j_ref": problem["j_ref"]}
                options = {f.name: options[f.name] for f in fields(Job) if f.name in options}
                training.train(Job(agent, load_agent(agent), problem["env"], problem["kl_coef"], **options))
    return spent.seconds * SEEDS


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.open(encoding="utf-8")] if path.exists() else []


def row(environments: Sequence[str], tokens: int) -> str:
    """A line of the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first, trained = wall(folder, environments, tokens)
        (folder / "rows.jsonl").unlink()
        again, trained_again = wall(folder, environments, tokens)
        drawn, measured = reference(environments), measuring(folder, tokens)
    least, alone = (trained + measured + drawn) / PROCESSES, trained_again / PROCESSES
    revision = (git_revision(Path(lm_gym.__file__).parent) or lm_gym.__version__)[:7]
    numbers = f"{trained:.1f} | {measured:.1f} | {drawn:.1f} | {first:.0f} | {first / least:.2f}"
    return f"| {revision} | {', '.join(environments)}, {tokens:,} | {numbers} | {again:.0f} | {again / alone:.2f} |"


def main() -> None:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    heads = ["revision", "runs", "training, CPU s", "measuring", "reference", "wall, s", "÷ least", "known reference"]
    print("| " + " | ".join([*heads, "÷ training"]) + " |")
    print("|" + "---|" * 9, flush=True)
    for environments, tokens in CASES:
        print(row(environments, tokens), flush=True)


if __name__ == "__main__":
    main()
