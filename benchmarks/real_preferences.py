"""Human preferences as pairs for `lm-gym train reward-model`: HH-harmless and OpenAssistant's ranked replies.

    python benchmarks/real_preferences.py hh    harmless-base.test.jsonl.gz  --out runs/real_preferences
    python benchmarks/real_preferences.py oasst en_100_tree.jsonl.gz         --out runs/real_preferences
    lm-gym train reward-model --data runs/real_preferences/hh_train.jsonl --out judge ...    (docs/preferences.md)

HH: github.com/anthropics/hh-rlhf (MIT; offensive dialogue), any of its .jsonl.gz files. OpenAssistant: message trees in
the format of its exports (Apache-2.0). What is written stays outside the repository: runs/ is ignored by git.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HELD_OUT = 0.2
"""Share of the groups (opening questions, trees) that is kept out."""
SEED = 0
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
ROLES = {"prompter": "user", "assistant": "assistant"}


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a .jsonl or .jsonl.gz file."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def messages(transcript: str) -> list[dict[str, str]] | None:
    """A transcript of HH as messages; None where speakers do not alternate from Human to Assistant."""
    parts = re.split(r"\n\n(Human|Assistant):", transcript)[1:]
    found = [
        {"role": SPEAKERS[who], "content": text.strip()} for who, text in zip(parts[::2], parts[1::2], strict=True)
    ]
    wanted = ["user", "assistant"] * (len(found) // 2)
    return found if found and [m["role"] for m in found] == wanted else None


def hh_pairs(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """(pairs, reasons for the rows that were left out); a group is an opening question."""
    pairs, left_out = [], []
    for row in read_rows(path):
        chosen, rejected = messages(row["chosen"]), messages(row["rejected"])
        if chosen is None or rejected is None:
            left_out.append("speakers do not alternate")
        elif chosen[:-1] != rejected[:-1]:
            left_out.append("differs before the last reply")
        elif chosen == rejected:
            left_out.append("both replies are the same")
        elif not all(m["content"] for m in chosen[:-1]):
            left_out.append("an empty message in the prompt")
        else:
            pair = {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}
            pairs.append({**pair, "group": chosen[0]["content"]})
    return pairs, left_out


def oasst_pairs(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Every two ranked replies of the assistant to the same message; a group is a tree."""
    pairs, left_out = [], []

    def visit(message: dict[str, Any], before: list[dict[str, str]], tree: str) -> None:
        talk = [*before, {"role": ROLES[message["role"]], "content": message["text"].strip()}]
        replies = message.get("replies") or []
        ranked = [r for r in replies if r["role"] == "assistant" and r.get("rank") is not None]
        for better, worse in itertools.combinations(sorted(ranked, key=lambda r: r["rank"]), 2):
            if better["rank"] == worse["rank"] or better["text"].strip() == worse["text"].strip():
                left_out.append("same rank or same text")
                continue
            texts = [[{"role": "assistant", "content": reply["text"].strip()}] for reply in (better, worse)]
            pairs.append({"prompt": talk, "chosen": texts[0], "rejected": texts[1], "group": tree})
        for reply in replies:
            visit(reply, talk, tree)

    for tree in read_rows(path):
        visit(tree["prompt"], [], tree["message_tree_id"])
    return pairs, left_out


def split(pairs: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(train, test): no group in both, so that no dialogue is met again at a later turn."""
    groups = sorted({pair["group"] for pair in pairs})
    held_out = set(random.Random(SEED).sample(groups, round(HELD_OUT * len(groups))))
    return [p for p in pairs if p["group"] not in held_out], [p for p in pairs if p["group"] in held_out]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("hh", "oasst"))
    parser.add_argument("path", type=Path, help="the file, .jsonl or .jsonl.gz")
    parser.add_argument("--out", type=Path, default=Path("runs/real_preferences"))
    args = parser.parse_args()
    pairs, left_out = (hh_pairs if args.kind == "hh" else oasst_pairs)(args.path)
    if not pairs:
        raise SystemExit(f"{args.path}: expected pairs of {args.kind}, found none")
    args.out.mkdir(parents=True, exist_ok=True)
    for name, part in zip(("train", "test"), split(pairs), strict=True):
        file = args.out / f"{args.kind}_{name}.jsonl"
        file.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in part), encoding="utf-8")
        print(f"{file}  {len(part)} pairs of {len({pair['group'] for pair in part})} groups")
    for reason in sorted(set(left_out)):
        print(f"left out: {left_out.count(reason)} ({reason})")


if __name__ == "__main__":
    main()
