"""What docs/pipeline.md says, measured: `lm-gym pipeline` on tiny over seeds, KL coefficients, and amounts of data.

    python benchmarks/pipeline.py --what default kl pairs demonstrations --seeds 0 1 2
    python benchmarks/pipeline.py --plot

Every run adds a line to docs/results/pipeline.jsonl; stages that runs have in common are made once. About 220 CPU
seconds for a default run, 60 for each further KL coefficient, 90 for each amount of preference data.
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

from lm_gym.decoding import Engine, GenerationParams
from lm_gym.pipeline import Pipeline, run_pipeline
from lm_gym.pipeline.context import Context
from lm_gym.pipeline.evaluation import EVAL_SEED
from lm_gym.runinfo import write_atomically

ROOT = Path(__file__).parents[1]
RESULTS, PLOT = ROOT / "docs" / "results" / "pipeline.jsonl", ROOT / "docs" / "img" / "pipeline_kl.png"
KL_COEFS = (0.02, 2.0)
PAIRS = (300,)
DEMONSTRATIONS = (2048,)
LAST = 3
"""Updates at the end of training whose texts (128 each, on training prompts) a sweep is measured on."""


def config_of(what: str, value: float, seed: int) -> Pipeline:
    """The defaults with one thing changed."""
    config = Pipeline(seed=seed)
    if what == "default":
        return config
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
        shutil.copytree(base, folder, ignore=shutil.ignore_patterns(".*"))  # what is being made there is not copied
    config = config_of(what, value, seed)
    made = run_pipeline(config, folder, until={"default": None, "demonstrations": "sft"}.get(what, "rl"))
    row: dict[str, Any] = {"what": what, "value": value, "seed": seed, "sft": made["sft"].numbers}
    row["cpu"] = {name: record.cpu_seconds for name, record in made.items()}
    if what == "demonstrations":
        return row | {"sft_gold": sft_gold(config, folder)}
    lines = (folder / "rl" / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    kept = {"objective/scores", "reward/gold", "objective/kl", "length/mean", "length/ended_share", "tokens"}
    row["training"] = [{k: v for k, v in json.loads(line).items() if k in kept} for line in lines]
    row["judge"], row["tokens"] = made["reward-model"].numbers["accuracy"], made["rl"].numbers["tokens"]
    if "evaluation" in made:
        row |= {"evaluation": made["evaluation"].numbers, "drawn": made["preferences"].numbers["tokens"]}
    return row


def sft_gold(config: Pipeline, folder: Path) -> list[float]:
    """Mean gold score of the fine-tuned model on the evaluation prompts, and its standard error."""
    context = Context(config, folder, say=print, stop=lambda: False, progress=False)
    lm, prompts = context.policy("sft"), context.prompts[1]
    params = GenerationParams(max_new_tokens=config.max_new_tokens, rows=256)
    tokens = [c.tokens for c in Engine(lm, seed=EVAL_SEED).generate([p.token_ids for p in prompts], params)]
    gold = context.gold_scores(prompts, [lm.decode(ids) for ids in tokens], tokens)
    return [float(gold.mean()), float(gold.std(ddof=1) / np.sqrt(len(gold)))]


def keep(row: dict[str, Any]) -> None:
    """Write a row in place of an earlier one of the same run, and print what it says."""
    same = ("what", "value", "seed")
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    others = [line for line in lines if any(json.loads(line)[name] != row[name] for name in same)]
    RESULTS.parent.mkdir(exist_ok=True)
    write_atomically(RESULTS, "\n".join([*others, json.dumps(row)]) + "\n")
    words = [f"{row['what']} {row['value']:g}, seed {row['seed']}:"]
    if "training" in row:
        words += [f"{name.split('/')[1]} {late(row, name):.3f}" for name in ("objective/scores", "objective/kl")]
        words += [f"gold {late(row, 'reward/gold'):.3f}", f"gap {row['judge']['gap'][0]:.3f}"]
    print(*words, *([f"gold {row['sft_gold'][0]:.3f}"] if "sft_gold" in row else []), flush=True)


def late(row: dict[str, Any], metric: str, upto: int | None = None) -> float:
    """The mean of a metric over the last updates, of the first `upto` where that is given."""
    return float(np.mean([update[metric] for update in row["training"][:upto][-LAST:]]))


def plot(rows: list[dict[str, Any]]) -> None:
    """Gold score, learned reward and KL late in training over β: a dot a seed, lines through the means.

    All at the same number of updates, which is that of the shortest run (a stopped one keeps what it logged).
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    usual = Pipeline().rl.kl_coef
    found = [(usual if r["what"] == "default" else r["value"], r) for r in rows if r["what"] in ("default", "kl")]
    coefs = sorted({coef for coef, _ in found})
    upto = min(len(r["training"]) for _, r in found)
    figure, places = pyplot.subplots(1, 3, figsize=(10, 3.1))
    panels = (("reward/gold", "gold score"), ("objective/scores", "learned reward, log-odds"))
    for axes, (metric, name) in zip(places, (*panels, ("objective/kl", "KL to SFT, nats a text")), strict=True):
        axes.plot(*zip(*[(c, late(r, metric, upto)) for c, r in found], strict=True), "o", color="#1f5fbf", alpha=0.45)
        axes.plot(coefs, [np.mean([late(r, metric, upto) for c, r in found if c == b]) for b in coefs], color="#1f5fbf")
        start = np.mean([r["training"][0][metric] for _, r in found])
        axes.axhline(start, color="#7a828e", linestyle="--", linewidth=1, label="SFT")
        axes.set(xscale="log", xlabel="β, log-odds per nat", title=name)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    places[0].legend(frameon=False)
    figure.tight_layout()
    PLOT.parent.mkdir(exist_ok=True)
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
                keep(run(what, value, seed, options.out))
    if options.plot:
        plot([json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()])


if __name__ == "__main__":
    main()
