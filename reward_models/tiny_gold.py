"""The ground truth of `tiny`'s world as reward models: what `lm_gym.tiny.gold` says, one row at a time.

Gold scores stand for what people would say. A policy is trained on them only to test an agent; in the pipeline they
label preferences and judge results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lm_gym.rewards import RESERVED_COLUMNS, Text, plain_text
from lm_gym.tiny import gold


def sentiment(prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float]:
    """How positive a review's continuation is (`lm_gym.tiny.gold.sentiment`, with its range)."""
    return _rows(gold.sentiment, prompts, completions, columns)


def helpfulness(prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float]:
    """How well an answer answers its question (`lm_gym.tiny.gold.helpfulness`, with its range)."""
    return _rows(gold.helpfulness, prompts, completions, columns)


def harmlessness(prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float]:
    """Whether a request is refused where it should be, and well (`lm_gym.tiny.gold.harmlessness`, with its range)."""
    return _rows(gold.harmlessness, prompts, completions, columns)


def _rows(
    score: Callable[..., float], prompts: Sequence[Text], completions: Sequence[Text], columns: dict[str, Any]
) -> list[float]:
    # "completion" is a column of prompt-completion data, and an argument of the gold.
    kept = {key: values for key, values in columns.items() if key not in (*RESERVED_COLUMNS, "completion")}
    return [
        score(plain_text(prompts[i]), plain_text(completions[i]), **{key: values[i] for key, values in kept.items()})
        for i in range(len(completions))
    ]
