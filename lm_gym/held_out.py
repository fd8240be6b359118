"""Prompts that are kept out of training, to evaluate on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from lm_gym.prompts import Prompt

Item = TypeVar("Item")

MOST_HELD_OUT = 512


def split_prompts(prompts: Sequence[Prompt], held_out: Sequence[Prompt] | None) -> tuple[list[Prompt], list[Prompt]]:
    """(train, test) with no text in both.

    Args:
        prompts: all that there are to train on.
        held_out: what to evaluate on; None: the last tenth of the different prompts, at least 1 and at most 512.

    Returns:
        Prompts whose text is held out are taken from training. Where none would be left, all of them stay, and the
        evaluation is on training prompts.
    """
    if held_out is None:
        texts = list(dict.fromkeys(p.text for p in prompts))
        count = min(MOST_HELD_OUT, max(1, round(len(texts) / 10)))
        last = set(texts[-count:])
        found = {p.text: p for p in reversed(prompts) if p.text in last}
        held_out = [found[text] for text in texts[-count:]]
    tested = {p.text for p in held_out}
    train = [p for p in prompts if p.text not in tested]
    return (train or list(prompts)), list(held_out)


def spread(items: Sequence[Item], n: int) -> list[Item]:
    """``n`` of some items (prompts, rows) at equal distances; where there are fewer, each several times."""
    return [items[i * len(items) // n] for i in range(n)]
