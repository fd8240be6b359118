"""Every agent against the exact optimum: four languages, five seeds, thresholds that were stated before the runs.

    python benchmarks/optimum.py                          # all of it, two processes; goes on where it was stopped
    python benchmarks/optimum.py --agents ppo rloo --languages worked --seeds 2
    python benchmarks/optimum.py --table                  # what runs/optimum.jsonl holds, as Markdown

Each agent trains with its default configuration, its step size decayed to 0. Regret is J* − J(π), computed exactly.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path("runs/optimum.jsonl")
TRAINED = "ppo a2c reinforce rloo reinforce++ grpo dr-grpo nlpo raft online-dpo dpo kto sft best-of-n reference".split()
BIASED = {"grpo": 2, "dr-grpo": 2, "kto": 2}
"""Agents with another end point than the optimum have so many times the tokens: their noise does not vanish there."""


@dataclass(frozen=True)
class Task:
    """A language, how many tokens an agent has for it, and what share of the reference's regret may be left."""

    env: str
    tokens: int
    threshold: float
    what: str


TASKS = {
    "worked": Task(
        "LMAlignExact-v0", 100_000, 0.0026, "the worked example: .002 of regret, where the reference has .784"
    ),
    "scales": Task(
        "LMAlignExactScales-v0",
        100_000,
        0.02,
        "two prompts, the second's reward ten times the first's: 2 % of the reference's regret",
    ),
    "rare": Task(
        "LMAlignExactRare-v0",
        100_000,
        0.1,
        "a best text with p_ref = .001 and three quarters of the best policy: 10 % of the reference's regret",
    ),
    "long": Task("LMAlignExactLong-v0", 100_000, 0.75, "horizon 48: three quarters of the reference's regret"),
}


def ends(name: str, language: Any, agent: Any) -> Any:
    """The policy that an agent's training is known to end at, if it is not the optimum; None where it is not known."""
    from lm_gym import exact

    if name == "grpo":
        group = agent.config.group_size
        how = {"estimator": "k3", "std_normalize": "sample", "length_normalize": True, "group_size": group}
        return exact.endpoint(language, kl_in="loss", **how).policy
    if name == "dr-grpo":
        return exact.endpoint(language, kl_in="loss", estimator="k3", group_size=agent.config.group_size).policy
    if name == "kto":
        return exact.kto_endpoint(language).policy
    if name == "nlpo":
        return exact.optimal_policy(language, mask=agent.mask(language))
    if name == "best-of-n":
        return exact.best_of_n(language, agent.config.n).policy
    if name == "reference":
        return exact.reference_policy(language)
    return exact.optimal_policy(language)


def run(job: tuple[str, str, int]) -> dict[str, Any]:
    """Train one agent on one language with one seed; what it ended with."""
    import warnings

    import gymnasium as gym
    import torch

    import lm_gym  # noqa: F401  (registers the environments)
    from lm_gym import exact
    from lm_gym.cli.options import load_agent
    from lm_gym.compare.demonstrations import of_the_optimum

    name, on, seed = job
    torch.set_num_threads(1)
    task, kind = TASKS[on], load_agent(name)
    env = gym.make(task.env)
    language = env.unwrapped.language
    row: dict[str, Any] = {"agent": name, "language": on, "seed": seed, "tokens": task.tokens * BIASED.get(name, 1)}
    more = {"data": of_the_optimum(language, task.tokens // 3, seed).texts} if name == "sft" else {}
    started = time.process_time()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            agent = kind(env, seed=seed, **more).learn(row["tokens"])
            found = exact.evaluate(language, agent)
        except (ValueError, FloatingPointError) as error:
            return row | {"error": str(error).splitlines()[0]}
    row |= {"regret": found.regret, "reward": found.reward, "kl": found.kl, "cpu": time.process_time() - started}
    row["start"] = exact.evaluate(language, exact.reference_policy(language)).regret
    row["warnings"] = sorted({str(w.message)[:200] for w in seen})
    try:
        end = ends(name, language, agent)
    except (ValueError, TypeError) as error:
        return row | {"end_error": str(error).splitlines()[0]}
    if end is not None:
        row["end_regret"] = exact.evaluate(language, end).regret
        row["kl_to_end"] = exact.kl_between(language, agent, end)
    return row


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: for each language, the regrets of all seeds, mean, end point, nats to it, CPU seconds."""
    lines = []
    for on, task in TASKS.items():
        of = [r for r in rows if r["language"] == on]
        if not of:
            continue
        lines += [f"\n### {on}: {task.what}; {task.tokens:,} tokens ({', '.join(BIASED)}: twice that)\n"]
        lines += ["| agent | regret, seeds | mean | end point | KL to it, nats | CPU s |", "|---|---|---|---|---|---|"]
        for name in TRAINED:
            mine = sorted((r for r in of if r["agent"] == name), key=lambda r: r["seed"])
            good = [r for r in mine if "regret" in r]
            if mine and not good:
                lines.append(f"| `{name}` | {mine[0]['error']} | | | | |")
            if not good:
                continue
            regrets = " ".join(f"{r['regret']:.4f}" for r in good)
            end = f"{good[0]['end_regret']:.4f}" if "end_regret" in good[0] else "–"
            nats = f"{max(r['kl_to_end'] for r in good):.4f}" if "kl_to_end" in good[0] else "–"
            if name == "nlpo" and "end_regret" in good[0]:
                end = " ".join(f"{r['end_regret']:.4f}" for r in good)
            mean, cpu = np.mean([r["regret"] for r in good]), np.mean([r["cpu"] for r in good])
            lines.append(f"| `{name}` | {regrets} | {mean:.4f} | {end} | {nats} | {cpu:.0f} |")
        lines.append(f"\nThe reference's regret is {of[0].get('start', float('nan')):.4f}.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", nargs="+", default=TRAINED, choices=TRAINED)
    parser.add_argument("--languages", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only print what is there")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    if not args.table:
        done = {(r["agent"], r["language"], r["seed"]) for r in rows}
        jobs = [(a, on, s) for on in args.languages for s in range(args.seeds) for a in args.agents]
        todo = [job for job in jobs if job not in done]
        work: Callable[..., Any] = get_context("spawn").Pool(args.processes).imap_unordered
        for row in work(run, todo):
            with open(args.out, "a") as f:
                f.write(json.dumps(row) + "\n")
            rows.append(row)
            print({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
