"""Repetition as a penalty: the share of n-grams that were there before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_gym.rewards import Text, plain_text

UNITS = ("words", "tokens")


class Repetition:
    """How much a completion repeats itself: −(1 − distinct n-grams / n-grams), which is distinct-n less 1.

    Range: (-1, 0]; 0 where no n-gram comes twice, which holds for every completion of n units or fewer; near -1 where
    one is repeated without end. In words, upper and lower case are the same.

    Source: distinct-n is of Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models", NAACL
    2016; here within one text.

    Args:
        n: units in an n-gram, at least 1.
        unit: "words" (separated by white space) or "tokens" (of the policy, an end-of-text token counted).
    """

    name = "repetition"
    __name__ = name  # TRL logs rewards/<__name__>

    def __init__(self, n: int = 3, unit: str = "words") -> None:
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"repetition: n is {n!r}; expected a whole number of at least 1, such as n=3")
        if unit not in UNITS:
            raise ValueError(f"repetition: unit is {unit!r}; expected one of {', '.join(UNITS)}")
        self.n, self.unit = n, unit

    def __call__(self, completions: Sequence[Text], completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        if self.unit == "tokens":
            return [self._score(ids) for ids in completion_ids]
        return [self._score(plain_text(text).lower().split()) for text in completions]

    def _score(self, units: Sequence[Any]) -> float:
        grams = [tuple(units[start : start + self.n]) for start in range(len(units) - self.n + 1)]
        return len(set(grams)) / len(grams) - 1.0 if grams else 0.0
