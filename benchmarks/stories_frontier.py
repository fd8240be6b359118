"""stories260K towards positive stories: PPO's reward against KL, beside best-of-n and the best that is possible.

    python benchmarks/stories_frontier.py prompts   --model ../shared/data/stories260k/hf --out runs/stories
    python benchmarks/stories_frontier.py reference --model ../shared/data/stories260k/hf --out runs/stories
    python benchmarks/stories_frontier.py train     --model ../shared/data/stories260k/hf --out runs/stories \
        --kl-coef 0.03 0.1 0.3 --seeds 0 1 2
    python benchmarks/stories_frontier.py plot      --out runs/stories --docs docs

Prompts are openings of stories that the model itself wrote. All comparisons are on the same held-out prompts. See
docs/results.md for what came out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

TRAIN, HELD_OUT = 2000, 256
SHORTEST, LONGEST = 6, 16
"""Tokens of an opening, BOS not counted."""
NEW_TOKENS = 32
DRAWS = 128
"""Texts of the reference for each held-out prompt."""
EVAL_TEXTS, EVAL_SEED = 512, 12345
TOKENS = 250_000
FIELDS = {"learning_rate": 4e-5, "batch_size": 256, "minibatch_size": 64, "epochs": 1, "lam": 1.0, "vf_coef": 0.1}
"""PPO's fields. Small steps on fresh texts: the KL that a step adds by noise alone goes with its square."""
NS = (1, 2, 4, 8, 16, 32, 64)


def write_prompts(model: str, out: Path) -> None:
    """Openings of 6 to 16 tokens of stories sampled from BOS, all different, split into train and held-out ones."""
    from lm_gym.decoding import Engine, GenerationParams
    from lm_gym.loading import load_model

    lm = load_model(model)
    engine, rng = Engine(lm, seed=0), np.random.default_rng(0)
    found: dict[str, None] = {}
    while len(found) < TRAIN + HELD_OUT:
        for text in engine.generate([[lm.tokenizer.bos_token_id]] * 512, GenerationParams(LONGEST)):
            ids = text.tokens[: int(rng.integers(SHORTEST, LONGEST + 1))]
            opening = lm.tokenizer.decode([lm.tokenizer.bos_token_id, *ids], skip_special_tokens=True)
            # token ids are the truth: only openings that the tokenizer turns into these very tokens
            if lm.tokenizer(opening)["input_ids"] == [lm.tokenizer.bos_token_id, *ids]:
                found[opening] = None
    texts = list(found)
    out.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", texts[:TRAIN]), ("held_out", texts[TRAIN : TRAIN + HELD_OUT])):
        (out / f"{name}.jsonl").write_text("".join(json.dumps({"prompt": t}) + "\n" for t in part))
        print(f"{out / name}.jsonl: {len(part)} openings, such as {part[:3]}")


def best_of(scores: np.ndarray, n: int) -> np.ndarray:
    """(P,) unbiased estimate of E[max of n scores] for each row of scores (P, M): a mean over all subsets of size n.

    E = Σ_i s_(i)·C(i−1, n−1)/C(M, n), s_(1) ≤ … ≤ s_(M).
    """
    m = scores.shape[1]
    log_choose = [
        math.lgamma(i) - math.lgamma(n) - math.lgamma(i - n + 1) if i >= n else -math.inf for i in range(1, m + 1)
    ]
    total = math.lgamma(m + 1) - math.lgamma(n + 1) - math.lgamma(m - n + 1)
    return np.sort(scores, axis=1) @ np.exp(np.array(log_choose) - total)


def best_of_kl(scores: np.ndarray, n: int) -> np.ndarray:
    """(P,) KL of best-of-n to the reference, ties broken evenly, for the empirical scores of each row (P, M).

    A text of score r is ((F^n − F₋^n)/(F − F₋)) times as likely as under the reference, F = P(score ≤ r),
    F₋ = P(score < r). Below log n − (n−1)/n, which holds where no two texts tie.
    """
    out = np.zeros(len(scores))
    for i, row in enumerate(scores):
        _, counts = np.unique(row, return_counts=True)
        f = np.cumsum(counts) / len(row)
        mass = f**n - np.concatenate([[0.0], f[:-1]]) ** n
        out[i] = float((mass * np.log(np.maximum(mass, 1e-300) * len(row) / counts)).sum())
    return out


def optimum(scores: np.ndarray, beta: float) -> tuple[float, float, float]:
    """(reward, KL, smallest effective sample size) of π* ∝ π_ref·exp(R/β), reweighted from samples (P, M)."""
    logw = scores / beta
    w = np.exp(logw - logw.max(1, keepdims=True))
    w /= w.sum(1, keepdims=True)
    reward = (w * scores).sum(1)
    kl = (w * np.log(np.maximum(w, 1e-300) * scores.shape[1])).sum(1)
    return float(reward.mean()), float(kl.mean()), float((1 / (w**2).sum(1)).mean())


def reference(model: str, out: Path) -> None:
    """DRAWS texts of the reference for each held-out prompt, and what follows from their scores."""
    from dataclasses import replace

    from lm_gym.collect import batched_texts
    from lm_gym.decoding import Engine
    from lm_gym.mdp import AlignmentMDP

    started, cpu = time.perf_counter(), time.process_time()
    mdp = AlignmentMDP(model=model, prompts=str(out / "held_out.jsonl"), max_new_tokens=NEW_TOKENS)
    engine = Engine(mdp.reference, seed=777)
    rows = []
    for _ in range(DRAWS):
        texts = batched_texts(engine, mdp.prompts, replace(mdp.generation_params, rows=256))
        rows.append(mdp.judge(mdp.prompts, [t.tokens for t in texts], [t.finish_reason for t in texts])[0])
    scores = np.stack(rows, 1)
    np.save(out / "reference_scores.npy", scores.astype(np.float32))

    def sem(x: np.ndarray) -> float:
        return float(x.std(ddof=1) / math.sqrt(len(x)))

    result: dict[str, Any] = {"draws": DRAWS, "prompts": len(scores), "score_std": float(scores.std(1).mean())}
    result["best_of_n"] = [
        {
            "n": n,
            "reward": float(best_of(scores, n).mean()),
            "reward_sem": sem(best_of(scores, n)),
            "kl_bound": math.log(n) - (n - 1) / n,
            "kl": float(best_of_kl(scores, n).mean()),
        }
        for n in NS
    ]
    names, betas = ("beta", "reward", "kl", "effective_samples"), np.geomspace(0.12, 8, 24).tolist()
    result["optimum"] = [dict(zip(names, (b, *optimum(scores, b)), strict=True)) for b in betas]
    result["seconds"], result["cpu_seconds"] = time.perf_counter() - started, time.process_time() - cpu
    (out / "reference.json").write_text(json.dumps(result, indent=1))
    for row in result["best_of_n"]:
        print({k: round(v, 4) for k, v in row.items()})


def measure(agent: Any, prompts: str, texts: int = EVAL_TEXTS) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Metrics of the policy on held-out prompts (exact per-state KL), and its texts in order."""
    from lm_gym.prompts import load_prompts

    metrics = agent.evaluate(prompts, n=texts, seed=EVAL_SEED)
    records = load_prompts(prompts, agent.mdp.reference.tokenizer)
    completions = agent.complete([records[i % len(records)] for i in range(texts)], seed=EVAL_SEED)
    scored = agent.mdp.score(completions, kl_coef=agent.kl_coef)
    nats = -float((scored.ref_logprobs * scored.response_mask).sum() / scored.response_mask.sum())
    metrics["text/perplexity_ref"] = math.exp(nats)
    shown = zip(completions, scored.texts, scored.scores.tolist(), strict=True)
    return metrics, [{"prompt": c.prompt.text, "completion": t, "score": s} for c, t, s in shown]


def train(
    model: str, out: Path, kl_coef: float, seed: int, tokens: int, fields: dict[str, Any], tag: str
) -> dict[str, Any]:
    """One run; a row for docs/results/stories_frontier.jsonl."""
    import gymnasium as gym

    import lm_gym  # noqa: F401  registers LMAlign-v0
    from lm_gym.agents import PPO

    started, cpu = time.perf_counter(), time.process_time()
    env = gym.make(
        "LMAlign-v0", model=model, prompts=str(out / "train.jsonl"), max_new_tokens=NEW_TOKENS, kl_coef=kl_coef
    )
    agent = PPO(env, seed=seed, **fields)
    held_out = str(out / "held_out.jsonl")
    if (out / "untrained.json").exists():  # the same texts for every run: the untrained policy is the reference
        before, samples_before = json.loads((out / "untrained.json").read_text())
    else:
        before, samples_before = measure(agent, held_out)
        (out / "untrained.json").write_text(json.dumps([before, samples_before], indent=1))
    run = out / f"{tag}kl{kl_coef:g}-seed{seed}"
    begun, begun_cpu = time.perf_counter(), time.process_time()
    agent.learn(tokens, out=run)
    trained = {"train_seconds": time.perf_counter() - begun, "train_cpu_seconds": time.process_time() - begun_cpu}
    after, samples_after = measure(agent, held_out)
    row = {
        "kl_coef": kl_coef,
        "seed": seed,
        "tokens": agent.tokens,
        "updates": agent.updates,
        "fields": fields,
        "before": before,
        "after": after,
        **trained,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
    }
    (run / "result.json").write_text(json.dumps(row, indent=1))
    pairs = [{"before": b, "after": a} for b, a in zip(samples_before[:5], samples_after[:5], strict=True)]
    (run / "five.json").write_text(json.dumps(pairs, indent=1))
    (run / "held_out_texts.json").write_text(json.dumps(samples_after, indent=1))
    keys = ("objective/scores", "objective/kl", "text/distinct_2", "text/perplexity_ref", "length/mean")
    print(
        run.name, {k: f"{before[k]:.3f} -> {after[k]:.3f}" for k in keys}, f"{row['cpu_seconds']:.0f} CPU s", flush=True
    )
    return row


def table(rows: list[dict[str, Any]], reference: dict[str, Any]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds for each kl_coef, and what best-of-n reaches at that KL."""
    bound = [(row["kl"], row["reward"]) for row in reference["best_of_n"]]
    out = []
    for kl_coef in sorted({row["kl_coef"] for row in rows}):
        runs = [row for row in rows if row["kl_coef"] == kl_coef]
        line: dict[str, Any] = {"kl_coef": kl_coef, "seeds": [row["seed"] for row in runs]}
        for name, key in (
            ("reward", "objective/scores"),
            ("kl", "objective/kl"),
            ("j", "objective/j"),
            ("distinct_2", "text/distinct_2"),
            ("perplexity_ref", "text/perplexity_ref"),
            ("length", "length/mean"),
        ):
            values = np.array([row["after"][key] for row in runs])
            line[name] = [float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0]
        line["distinct_2_share"] = line["distinct_2"][0] / runs[0]["before"]["text/distinct_2"]
        at = np.interp(line["kl"][0], [kl for kl, _ in bound], [reward for _, reward in bound])
        line["best_of_n_at_this_kl"] = float(at) if line["kl"][0] <= bound[-1][0] else None
        line["cpu_seconds"] = float(np.mean([row["train_cpu_seconds"] for row in runs]))
        line["wall_seconds"] = float(np.mean([row["train_seconds"] for row in runs]))
        out.append(line)
    return out


def plot(out: Path, docs: Path) -> None:
    """docs/img/stories260k_frontier.png, and the rows behind it in docs/results/."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = json.loads((out / "reference.json").read_text())
    rows = [json.loads(p.read_text()) for p in sorted(out.glob("kl*-seed*/result.json"))]
    untrained = json.loads((out / "untrained.json").read_text())[0]
    figure, axes = plt.subplots(figsize=(7.2, 4.8))
    best = found["optimum"]
    axes.plot(
        [r["kl"] for r in best], [r["reward"] for r in best], color="#b0b0b0", lw=1.5, label="the best possible, π*"
    )
    points = found["best_of_n"]
    axes.plot(
        [r["kl"] for r in points], [r["reward"] for r in points], "o-", color="#444444", ms=4, lw=1, label="best-of-n"
    )
    for r in points[1:]:
        beside = (-26, 2) if r["n"] == 2 else (4, -11)
        axes.annotate(f"n={r['n']}", (r["kl"], r["reward"]), textcoords="offset points", xytext=beside, fontsize=8)
    axes.plot([0], [untrained["objective/scores"]], "s", color="black", ms=6, label="untrained")
    lines = table(rows, found)
    for line, colour in zip(lines, ("#c0392b", "#1f77b4", "#2a9d5c", "#8e44ad"), strict=False):
        runs = [row for row in rows if row["kl_coef"] == line["kl_coef"]]
        for row in runs:  # how each run went there: training batches of every update
            log = out / f"kl{row['kl_coef']:g}-seed{row['seed']}" / "metrics.jsonl"
            steps = [json.loads(text) for text in log.read_text().splitlines()]
            smooth = np.ones(5) / 5
            x, y = (np.convolve([s[k] for s in steps], smooth, "valid") for k in ("objective/kl", "objective/scores"))
            axes.plot(x, y, color=colour, lw=0.7, alpha=0.35)
        axes.errorbar(
            [row["after"]["objective/kl"] for row in runs],
            [row["after"]["objective/scores"] for row in runs],
            yerr=[row["after"]["objective/scores_sem"] for row in runs],
            fmt="D",
            ms=5,
            color=colour,
            capsize=2,
            label=f"PPO, kl_coef {line['kl_coef']:g}, {len(runs)} seeds",
        )
    axes.set_xlabel("KL to the reference, nats a text")
    axes.set_ylabel("VADER score of the completion")
    axes.set_title("stories260K, held-out openings, 32 new tokens", fontsize=11)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    figure.tight_layout()
    (docs / "img").mkdir(parents=True, exist_ok=True)
    figure.savefig(docs / "img" / "stories260k_frontier.png", dpi=110)
    (docs / "results").mkdir(exist_ok=True)
    (docs / "results" / "stories_frontier.jsonl").write_text("".join(json.dumps(_short(row)) + "\n" for row in rows))
    (docs / "results" / "stories_reference.json").write_text(json.dumps(_short(found), indent=1) + "\n")
    for line in lines:
        print(json.dumps(line))


def _short(x: Any) -> Any:
    """Numbers to six digits: files that are read."""
    if isinstance(x, float):
        return float(f"{x:.6g}")
    if isinstance(x, dict):
        return {k: _short(v) for k, v in x.items()}
    return [_short(v) for v in x] if isinstance(x, list) else x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("prompts", "reference", "train", "plot"))
    parser.add_argument("--model", default="../shared/data/stories260k/hf")
    parser.add_argument("--out", type=Path, default=Path("runs/stories"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    parser.add_argument("--kl-coef", type=float, nargs="+", default=[0.03, 0.1, 0.3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--total-tokens", type=int, default=TOKENS)
    parser.add_argument("--fields", type=json.loads, default=FIELDS, help="fields of PPOConfig as JSON")
    parser.add_argument("--tag", default="")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if args.command == "prompts":
        write_prompts(args.model, args.out)
    elif args.command == "reference":
        reference(args.model, args.out)
    elif args.command == "train":
        for kl_coef in args.kl_coef:
            for seed in args.seeds:
                train(args.model, args.out, kl_coef, seed, args.total_tokens, args.fields, args.tag)
    else:
        plot(args.out, args.docs)


if __name__ == "__main__":
    main()
