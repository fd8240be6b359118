"""What changes of a text earn that should earn nothing: padding, repetition, words of certainty, no text at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lm_gym.judged_pairs import scores_of
from lm_gym.reward_measures import PROBES
from lm_gym.rewards import Text


def probe(
    texts: Sequence[tuple[Text, str, Any]],
    judges: Sequence[Any],
    spread: float,
    *,
    gold: Any = None,
    gold_spread: float = 1.0,
    tokenizer: Any = None,
) -> list[dict[str, Any]]:
    """A row a change: what the score of a text gains by it.

    Args:
        texts: rows of prompt, completion and the prompt's other columns. judges: their mean is what counts.
        spread: the standard deviation of their scores, the unit of what comes out. gold, gold_spread: a second judge
            and its standard deviation. tokenizer: for judges that read token ids.

    Returns:
        ``name`` of the change, ``judge`` (the mean gain in ``spread``), ``gains`` (the share of the texts whose score
        rises), and ``gold``, ``gold_gains`` likewise, None without a gold judge.
    """

    def scored(asked: Sequence[Any], rows: Sequence[tuple[Text, str, Any]]) -> np.ndarray:
        return np.asarray(np.mean([scores_of(judge, rows, tokenizer) for judge in asked], axis=0))

    found = []
    before = scored(judges, texts)
    gold_before = None if gold is None else scored([gold], texts)
    for name, change in PROBES.items():
        changed = [(prompt, change(text), columns) for prompt, text, columns in texts]
        moved = scored(judges, changed) - before
        row = {
            "name": name,
            "judge": float(moved.mean()) / (spread or 1.0),
            "gains": float((moved > 0).mean()),
            "gold": None,
            "gold_gains": None,
        }
        if gold_before is not None:
            true = scored([gold], changed) - gold_before
            row |= {"gold": float(true.mean()) / (gold_spread or 1.0), "gold_gains": float((true > 0).mean())}
        found.append(row)
    return found
