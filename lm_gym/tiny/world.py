"""The little world that `tiny` knows: documents from a seed, and which prompts nobody trains on.

    from lm_gym.tiny import world
    for document in world.corpus(seed=0, count=3):
        print(document.text)

Only the standard library, and the same texts on every machine: `random.Random` draws everything, and no set or hash of
a string decides anything.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path

from lm_gym.tiny.document import Document
from lm_gym.tiny.world_questions import question
from lm_gym.tiny.world_requests import request
from lm_gym.tiny.world_reviews import review

KINDS = ("reviews", "questions", "requests")
MAKERS = {"reviews": review, "questions": question, "requests": request}
TEST_SHARE = 8  # one prompt in eight is a test prompt


def split_of(prompt: str) -> str:
    """ "test" or "train": a property of the prompt's text, so that the two can never share one."""
    return "test" if hashlib.sha256(prompt.encode()).digest()[0] % TEST_SHARE == 0 else "train"


def documents(kind: str, rng: random.Random, split: str = "train") -> Iterator[Document]:
    """Endless documents of one kind whose prompts belong to the split."""
    if kind not in MAKERS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    if split not in ("train", "test"):
        raise ValueError(f"split: expected 'train' or 'test', got {split!r}")
    while True:
        document = MAKERS[kind](rng)
        if split_of(document.prompt) == split:
            yield document


def corpus(seed: int, count: int, split: str = "train") -> Iterator[Document]:
    """`count` documents of all kinds, four reviews to three questions and three requests."""
    rng = random.Random(seed)
    streams = {kind: documents(kind, rng, split) for kind in KINDS}
    for kind in rng.choices(KINDS, (4, 3, 3), k=count):
        yield next(streams[kind])


def prompt_rows(kind: str, split: str, count: int, seed: int = 0) -> list[dict[str, object]]:
    """`count` rows with different prompts of one kind, as the prompt files hold them."""
    rng = random.Random(f"prompts/{kind}/{split}/{seed}")
    rows: dict[str, dict[str, object]] = {}
    old = 0  # draws since the last new prompt
    for document in documents(kind, rng, split):
        old = old + 1 if document.prompt in rows else 0
        rows.setdefault(document.prompt, document.columns())
        if len(rows) == count:
            break
        if old > 1000:
            raise ValueError(
                f"prompt_rows: expected {count} different {split} prompts of {kind}, the world has hardly more than "
                f"{len(rows)}: ask for fewer"
            )
    return list(rows.values())


def write_prompts(folder: Path, train: int = 1024, test: int = 512) -> None:
    """Writes the prompt files that ship with the package: `<kind>.<split>.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        for split, count in (("train", train), ("test", test)):
            lines = [json.dumps(row) + "\n" for row in prompt_rows(kind, split, count)]
            (folder / f"{kind}.{split}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write_prompts(Path(__file__).parent / "prompts")
