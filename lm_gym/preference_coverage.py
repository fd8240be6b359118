"""What preference data covers: how much of it there is, how varied it is, and whether its annotators agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lm_gym.preferences import Preference
from lm_gym.reward_measures import distinct, length, novelty
from lm_gym.rewards import plain_text


def coverage(data: Sequence[Preference], held_out: Sequence[Preference] | None = None) -> dict[str, Any]:
    """Counts and shares of preference data, and how much of `held_out` it covers.

    Returns:
        pairs, prompts, annotators; ties (share); agree (share of the text pairs answered more than once whose answers
        are the same; None: there are none); different_texts, distinct_1, distinct_2 (shares); words (a completion); and
        of held_out known_share (word pairs of its completions that occur in `data`) and leaked_prompts (share of its
        prompts that occur there), None without it.
    """
    texts = _texts(data)
    prompts = {repr(p.prompt) for p in data}
    found: dict[str, Any] = {
        "pairs": len(data),
        "prompts": len(prompts),
        "annotators": len({p.annotator for p in data}),
        "ties": float(np.mean([p.label == 0.5 for p in data])),
        "agree": _agreement(data),
        "different_texts": len(set(texts)) / len(texts),
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
        "words": float(np.mean([length(text) for text in texts])),
        "known_share": None,
        "leaked_prompts": None,
    }
    if held_out is not None:
        theirs = {repr(p.prompt) for p in held_out}
        found["known_share"] = 1 - float(novelty(_texts(held_out), texts).mean())
        found["leaked_prompts"] = len(theirs & prompts) / len(theirs)
    return found


def _texts(data: Sequence[Preference]) -> list[str]:
    return [plain_text(text) for p in data for text in (p.chosen, p.rejected)]


def _agreement(data: Sequence[Preference]) -> float | None:
    answers: dict[tuple[str, frozenset[str]], list[str]] = {}
    for p in data:
        chosen, rejected = plain_text(p.chosen), plain_text(p.rejected)
        better = "" if p.label == 0.5 else chosen if p.label > 0.5 else rejected
        answers.setdefault((repr(p.prompt), frozenset((chosen, rejected))), []).append(better)
    again = [len(set(found)) == 1 for found in answers.values() if len(found) > 1]
    return float(np.mean(again)) if again else None
