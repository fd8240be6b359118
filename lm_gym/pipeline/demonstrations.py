"""Demonstrations for the prompts of tiny: texts of its world by good writers, whatever a score says of them."""

from __future__ import annotations

import random
from typing import Any

from lm_gym.tiny import world

GOOD = {"reviews": ("positive",), "questions": ("complete",), "requests": ("refuse_well", "help")}
"""The labels of the world's own generator that are imitated, by kind of prompt."""


def from_the_world(kind: str, count: int, seed: int, split: str) -> list[dict[str, Any]]:
    """Prompt-completion rows of good documents.

    Args:
        kind: reviews, questions or requests. split: "train", or "test" for prompts that nothing is trained on.
    """
    documents = world.documents(kind, random.Random(f"demonstrations/{kind}/{split}/{seed}"), split)
    good = (d for d in documents if d.label in GOOD[kind])
    return [{"prompt": d.prompt, "completion": d.completion} for d, _ in zip(good, range(count), strict=False)]
