"""What docs/pipeline.md says, measured: `lm-gym pipeline` on tiny over seeds, KL coefficients, and amounts of data.

    python benchmarks/pipeline.py --what default kl pairs demonstrations --seeds 0 1 2
    python benchmarks/pipeline.py --plot

Every run adds a line to docs/results/pipeline.jsonl; stages that runs have in common are made once. About 200 CPU
seconds for a default run, 60 for each further KL coefficient, 110 for each amount of preference data.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lm_gym.pipeline import Pipeline, run_pipeline

ROOT = Path(__file__).parents[1]
RESULTS, PLOT = ROOT / "docs" / "results" / "pipeline.jsonl", ROOT / "docs" / "img" / "pipeline_kl.png"
KL_COEFS = (0.02, 2.0)
PAIRS = (300,)
DEMONSTRATIONS = (2048,)
FEW = {"texts": 256, "best_of_n": 2, "samples": 4}
"""An evaluation for sweeps; its prompts are among those of the default."""


def config_of(what: str, value: float, seed: int) -> Pipeline:
    """The defaults with one thing changed."""
    config = Pipeline(seed=seed)
    if what == "default":
        return config
    config = replace(config, evaluation=replace(config.evaluation, **FEW))
    if what == "kl":
        return replace(config, rl=replace(config.rl, kl_coef=float(value)))
    if what == "pairs":
        return replace(config, preferences=replace(config.preferences, pairs=int(value)))
    return replace(config, sft=replace(config.sft, count=int(value)))


def run(what: str, value: float, seed: int, out: Path) -> dict[str, Any]:
    """One pipeline, with the stages that it shares with the default one taken from there."""
    base, folder = out / f"seed-{seed}", out / f"seed-{seed}-{what}-{value:g}"
    if what == "default":
        folder = base
    elif base.exists() and not folder.exists():
        shutil.copytree(base, folder)
    made = run_pipeline(config_of(what, value, seed), folder)
    results, judge = made["evaluation"].numbers, made["reward-model"].numbers
    policies = results["policies"]
    last = [json.loads(line) for line in (folder / "rl" / "run" / "metrics.jsonl").read_text().splitlines()]
    return {
        "what": what, "value": value, "seed": seed,
        "gold": {name: found["gold"] for name, found in policies.items()},
        "kl": policies["rl"]["kl"], "length": policies["rl"]["length"], "different": policies["rl"]["different"],
        "reward": {name: [found["reward"][0], found["reward_std"]] for name, found in policies.items()},
        "gold_std": policies["sft"]["gold_std"], "agreement": {n: f["correlation"] for n, f in policies.items()},
        "win": results["wins"]["rl"]["sft"], "win_best_of_n": results["wins"]["rl"]["best-of-n"],
        "sft_win": results["wins"]["sft"]["base"], "bon_win": results["wins"]["best-of-n"]["sft"],
        "judge": judge["accuracy"], "ece": judge["ece"], "sft": made["sft"].numbers,
        "cpu": {name: record.cpu_seconds for name, record in made.items()},
        "tokens": {"sft": made["sft"].numbers["tokens"], "preferences": made["preferences"].numbers["tokens"],
                   "rl": made["rl"].numbers["tokens"]},
        "training": [[row["tokens"], row["objective/scores"], row["reward/gold"], row["objective/kl"]] for row in last],
    }  # fmt: skip


def plot(rows: list[dict[str, Any]]) -> None:
    """Gold score and learned reward of the trained policy over β, in deviations of SFT's texts; a dot a seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    usual = Pipeline().rl.kl_coef
    found = [(usual if r["what"] == "default" else r["value"], r) for r in rows if r["what"] in ("default", "kl")]
    coefs = sorted({coef for coef, _ in found})
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4))

    def learned(r: dict[str, Any]) -> float:
        return float((r["reward"]["rl"][0] - r["reward"]["sft"][0]) / r["reward"]["sft"][1])

    def gold(r: dict[str, Any]) -> float:
        return float((r["gold"]["rl"][0] - r["gold"]["sft"][0]) / r["gold_std"])

    for name, measure, colour, mark in (("learned reward", learned, "#1f5fbf", "o"), ("gold", gold, "#c2571a", "s")):
        left.plot(*zip(*[(c, measure(r)) for c, r in found]), mark, color=colour, alpha=0.5, markersize=5)
        means = [np.mean([measure(r) for c, r in found if c == coef]) for coef in coefs]
        left.plot(coefs, means, color=colour, label=name)
    left.set(xscale="log", xlabel="β, log-odds per nat", ylabel="above SFT, standard deviations")
    left.legend(frameon=False)
    right.plot(*zip(*[(c, r["kl"]) for c, r in found]), "o", color="#1f5fbf", alpha=0.5, markersize=5)
    right.plot(coefs, [np.mean([r["kl"] for c, r in found if c == coef]) for coef in coefs], color="#1f5fbf")
    right.set(xscale="log", xlabel="β, log-odds per nat", ylabel="KL to SFT, nats a text")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.tight_layout()
    figure.savefig(PLOT, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", default=[], choices=["default", "kl", "pairs", "demonstrations"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--values", nargs="+", type=float, help="in place of the sweep's own")
    parser.add_argument("--out", type=Path, default=Path("runs/pipeline-benchmark"))
    parser.add_argument("--plot", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    values = {"default": (0,), "kl": KL_COEFS, "pairs": PAIRS, "demonstrations": DEMONSTRATIONS}
    for what in options.what:
        for value in options.values or values[what]:
            for seed in options.seeds:
                row = run(what, value, seed, options.out)
                with open(RESULTS, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    if options.plot:
        plot([json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()])


if __name__ == "__main__":
    main()
