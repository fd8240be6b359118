"""Whether what makes the update fast changes what is learned: reward over 30 updates of PPO on the lexicon task.

    python benchmarks/learning_curve.py                     # five ways, 5 seeds each; goes on where it was stopped
    python benchmarks/learning_curve.py --figure docs/img/learning_curve.svg
    python benchmarks/learning_curve.py --ways plain default    # bfloat16 takes 17 times as long on a CPU without it

"plain" runs the modules of transformers over padded texts and torch's own log-softmax; "default" is what users get;
the others are options. Batches of 32 texts of 32 tokens, 4 passes of 4 minibatches, step size 3e-4, GPT-2 of 4x128, as
in race.py.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from race import assets, lexicon_agent

UPDATES = 30
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "default": {},
    "bfloat16": {"autocast": "bfloat16"},
    "2 of 4 layers frozen": {"frozen_layers": 2},
    "2 of 4 layers and the head frozen": {"frozen_layers": 2, "frozen_head": True},
}
FIXED = {"batch_size": 32, "minibatch_size": 8, "epochs": 4, "learning_rate": 3e-4, "lr_schedule": "constant"}


@contextmanager
def as_plain() -> Iterator[None]:
    """The modules of transformers over padded texts, and torch's own log-softmax and gather."""
    from lm_gym import flat_trunk, forward, policy_gradient

    known, chosen = flat_trunk.is_known, policy_gradient.chosen_logprobs
    flat_trunk.is_known = lambda base: False
    policy_gradient.chosen_logprobs = lambda z, a: forward.token_logprobs(z.log_softmax(-1), a)
    try:
        yield
    finally:
        flat_trunk.is_known, policy_gradient.chosen_logprobs = known, chosen


def curve(folder: Path, meta: dict[str, Any], way: str, seed: int) -> dict[str, Any]:
    """Mean reward and KL of every update's texts, and the CPU seconds of all."""
    seen: list[tuple[float, float, float]] = []

    def look(agent: Any, metrics: dict[str, float]) -> bool:
        seen.append(tuple(metrics[k] for k in ("objective/scores", "objective/kl", "val/first_ratio_error")))
        return len(seen) < UPDATES

    with as_plain() if way == "plain" else nullcontext():
        agent = lexicon_agent(folder, meta, "ppo", {**FIXED, **WAYS[way]}, seed)
        started = time.process_time()
        agent.learn(10**9, callback=look)
        cpu = time.process_time() - started
    rewards, kls, errors = zip(*seen)
    return {"way": way, "seed": seed, "reward": rewards, "kl": kls, "ratio_error": max(errors), "cpu": cpu}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Mean and spread over seeds of ten updates each, and how far each way's mean curve is from the plain one's."""
    of = {way: np.array([r["reward"] for r in rows if r["way"] == way]) for way in WAYS}
    head = "way | reward of updates 1 to 10 | 11 to 20 | 21 to 30 | largest distance of the mean curves"
    lines = [f"| {head} | spread of plain there |", "|---|---|---|---|---|---|"]
    for way, x in of.items():
        if not len(x) or not len(of["plain"]):
            continue
        tens = [x[:, i : i + 10].mean(1) for i in (0, 10, 20)]
        at = [f"{seeds.mean():.3f} ± {seeds.std(ddof=1):.3f}" for seeds in tens]
        gap = np.abs(x.mean(0) - of["plain"].mean(0))
        worst = int(gap.argmax())
        spread = of["plain"].std(0, ddof=1)[worst]
        error = max(r["ratio_error"] for r in rows if r["way"] == way)
        lines.append(
            f"| {way} (ratio off by at most {error:.1g}) | {' | '.join(at)} | {gap[worst]:.3f} | {spread:.3f} |"
        )
    return "\n".join(lines)


def figure(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Mean curves with bands of one standard deviation over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "lm-gym"
    import matplotlib.pyplot as plt

    axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")[1]
    for way, style in zip(WAYS, ("-", "--", ":", "-.", (0, (1, 3)))):
        x = np.array([r["reward"] for r in rows if r["way"] == way])
        mean, spread, steps = x.mean(0), x.std(0, ddof=1), np.arange(1, UPDATES + 1)
        [line] = axes.plot(steps, mean, linestyle=style, label=f"{way} ({len(x)} seeds)")
        axes.fill_between(steps, mean - spread, mean + spread, alpha=0.12, color=line.get_color(), linewidth=0)
    axes.set(xlabel="updates of 1,024 tokens", ylabel="mean reward of an update's texts", xlim=(1, UPDATES))
    axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1.0, 0.42))
    plt.savefig(out, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="what to run")
    parser.add_argument("--assets", type=Path, default=Path(tempfile.gettempdir()) / "lm_race_assets")
    parser.add_argument("--out", type=Path, default=Path("runs/learning_curve.jsonl"))
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    meta = assets(args.assets)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    done = {(r["way"], r["seed"]) for r in rows}
    for seed in range(args.seeds):
        for way in args.ways:
            if (way, seed) in done:
                continue
            rows.append(curve(args.assets, meta, way, seed))
            with args.out.open("a") as f:
                f.write(json.dumps(rows[-1]) + "\n")
            print(way, seed, [round(x, 2) for x in rows[-1]["reward"][4::5]], round(rows[-1]["cpu"], 1), flush=True)
    print(table(rows))
    if args.figure:
        figure(rows, args.figure)


if __name__ == "__main__":
    main()
