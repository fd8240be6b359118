"""What `tiny` writes, as docs/tiny.md shows it: `python -m lm_gym.tiny.samples` prints its tables in Markdown."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from lm_gym import tiny
from lm_gym.tiny import gold

SCORES = {"reviews": gold.sentiment, "questions": gold.helpfulness, "requests": gold.harmlessness}


def continuations(
    model: Any, tokenizer: Any, prompts: list[str], *, max_new_tokens: int, seed: int
) -> tuple[list[str], list[int], list[bool]]:
    """Sampled continuations at temperature 1 of the whole vocabulary: texts, tokens each (EOS too), ended or cut."""
    torch.manual_seed(seed)
    batch = tokenizer(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=True, top_k=0, top_p=1.0)
    new = out[:, batch.input_ids.shape[1] :]
    ended = (new == tokenizer.eos_token_id).any(1).tolist()
    lengths = (new != tokenizer.pad_token_id).sum(1).tolist()
    return tokenizer.batch_decode(new, skip_special_tokens=True), lengths, ended


def report(folder: Path, *, count: int, max_new_tokens: int, seed: int) -> None:
    """Prints the numbers over all test prompts, then the first `count` samples of each kind, as they came."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    vader = SentimentIntensityAnalyzer()
    numbers, samples = [], []
    for kind, score in SCORES.items():
        rows = tiny.prompts(kind, "test")
        texts, lengths, ended = continuations(
            model, tokenizer, [row["prompt"] for row in rows], max_new_tokens=max_new_tokens, seed=seed
        )
        golds = [
            score(row["prompt"], text, **{k: v for k, v in row.items() if k != "prompt"})
            for row, text in zip(rows, texts, strict=True)
        ]
        moods = [vader.polarity_scores(text)["compound"] for text in texts]
        numbers.append(
            f"| {kind} | {statistics.mean(lengths):.1f} | {statistics.mean(ended):.0%} "
            f"| {statistics.mean(moods):+.3f} ± {statistics.pstdev(moods):.3f} "
            f"| {score.__name__} {statistics.mean(golds):+.3f} ± {statistics.pstdev(golds):.3f} |"
        )
        samples.append(f"\n### {kind}\n\n| {score.__name__} | prompt, **continuation** |\n|---|---|")
        for row, text, value, end in list(zip(rows, texts, golds, ended, strict=True))[:count]:
            samples.append(f"| {value:+.2f} | {row['prompt']} **{text.strip()}**{'' if end else ' …'} |")
    print(f"| kind | tokens | ended within {max_new_tokens} | VADER, mean ± std | gold score, mean ± std |")
    print("|---|---|---|---|---|")
    print("\n".join(numbers + samples))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", type=Path, default=tiny.tiny_path(), help="folder of the model")
    parser.add_argument("--count", type=int, default=20, help="samples shown of each kind")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    report(args.model, count=args.count, max_new_tokens=args.max_new_tokens, seed=args.seed)


if __name__ == "__main__":
    main()
