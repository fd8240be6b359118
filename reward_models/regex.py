"""A regular expression as a reward: a format, a word, a pattern that should be there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lm_gym.rewards import Text, plain_text


class Regex:
    """Whether the completion, without its prompt, matches a regular expression of Python.

    Range: {0, 1}; with `limit` above 1 the matches up to that many, divided by it: {0, 1/limit, ..., 1}.

    In a string, as `regex?pattern=\\d+`, the characters & # % are written %26 %23 %25. For a pattern that should not be
    there, give the judge a negative weight in a sum.

    Args:
        pattern: as for `re.compile`; flags stand inside it, as in `(?s)` for a dot that matches a line's end.
        whole: the whole completion must match, white space around it left out.
        limit: how many matches (that do not overlap) earn the full score. Without a limit, a policy would repeat one.
        ignore_case: upper and lower case are the same.
    """

    name = "regex"
    __name__ = name  # TRL logs rewards/<__name__>

    def __init__(self, pattern: str, whole: bool = False, limit: int = 1, ignore_case: bool = False) -> None:
        try:
            self._compiled = re.compile(pattern, re.IGNORECASE if ignore_case else 0)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"regex: pattern is {pattern!r}; expected a regular expression of Python: {error}"
            ) from error
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ValueError(f"regex: limit is {limit!r}; expected a whole number of at least 1")
        if whole and limit > 1:
            raise ValueError(f"regex: whole=true matches once, and limit is {limit}; leave one of them out")
        if not whole and self._compiled.search("") is not None:
            raise ValueError(
                f"regex: pattern {pattern!r} matches the empty text, so that every completion would score 1; write + "
                "for *, or whole=true"
            )
        self.pattern, self.whole, self.limit, self.ignore_case = pattern, whole, limit, ignore_case

    def __call__(self, completions: Sequence[Text], **_: Any) -> list[float]:
        return [self._score(plain_text(text)) for text in completions]

    def _score(self, text: str) -> float:
        if self.whole:
            return float(self._compiled.fullmatch(text.strip()) is not None)
        found = 0
        for _ in self._compiled.finditer(text):
            found += 1
            if found == self.limit:
                break
        return found / self.limit
