"""Readability formulas as a reward, computed by textstat (the extra `readability`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from lm_gym.extras import install_command
from lm_gym.rewards import Text, plain_text

EASE = "flesch_reading_ease"
MEASURES = (EASE, "flesch_kincaid_grade", "automated_readability_index", "coleman_liau_index", "gunning_fog")


ABBREVIATIONS = tuple("Mr Mrs Ms Dr Prof St Sr Jr Gen Sen Rep Gov Capt Col Lt Sgt Rev vs e.g i.e cf approx".split())

_POINT_INSIDE = re.compile(r"\.(?=\w)")
_ABBREVIATED = re.compile(rf"\b({'|'.join(map(re.escape, ABBREVIATIONS))})\.(?=\s+\w)")
_NO_END = "·"
"""Stands for a point that ends no sentence: punctuation as well, so that it changes no count of words or characters."""


class Readability:
    """How easy the completion is to read, without its prompt, by a formula for English.

    Range: [0, 1] without a target: Flesch's reading ease / 100, cut to [0, 1]; 1 is easy. (-inf, 0] with a target:
    −|measure − target| / target, as `length` has it.

    A completion without a word has the measure 0: score 0 without, -1 with a target. On a text of a few words the
    formulas say little ("a" has ease 121). All but `flesch_reading_ease` are school grades of the US: about 5 is easy,
    12 is hard.

    A sentence ends at a point, exclamation or question mark, and one of one or two words is not counted, as in
    textstat; but not at the point of a number (0.5), of a name (example.com, Node.js) or of an abbreviation of
    `ABBREVIATIONS` (Dr. Jones, e.g. this one), where textstat ends one too: the numbers 0.5 and 1.5 in a sentence of 25
    words took it from grade 21.3 to 14.1. Other abbreviations and initials ("J. Jones") end a sentence, as in textstat,
    and the end of a line without a mark does not.

    Sources: Flesch, "A new readability yardstick", 1948: 206.835 − 1.015·words/sentences − 84.6·syllables/words.
    Kincaid et al., 1975: .39·words/sentences + 11.8·syllables/words − 15.59. Syllables are those of the CMU dictionary,
    or hyphenation points where a word is not in it.

    Args:
        measure: one of `MEASURES`. target: the wanted value of it, above 0; school grades need one.

    Raises:
        ImportError: textstat is not installed.
    """

    name = "readability"
    __name__ = name  # TRL logs rewards/<__name__>

    def __init__(self, measure: str = EASE, target: float | None = None) -> None:
        if measure not in MEASURES:
            raise ValueError(f"readability: measure is {measure!r}; expected one of {', '.join(MEASURES)}")
        if target is None and measure != EASE:
            raise ValueError(f"readability: {measure} is a school grade, and needs the one to aim at, such as target=6")
        if target is not None and not 0 < target < float("inf"):
            raise ValueError(f"readability: target is {target!r}; expected a number above 0, such as target=6")
        try:
            from textstat.textstat import textstatistics
        except ImportError as error:
            raise ImportError(
                f"readability needs textstat, which is an extra: {install_command('readability')}"
            ) from error
        self.measure, self.target = measure, target
        self._measured = getattr(textstatistics(), measure)  # of an object of our own: the shared one has settings

    def fingerprint(self) -> str:
        return f"textstat {version('textstat')} true-ends {self.measure} {self.target}"

    def __call__(self, completions: Sequence[Text], **_: Any) -> list[float]:
        values = [float(self._measured(_with_true_ends(plain_text(text)))) for text in completions]
        if self.target is None:
            return [min(max(value / 100, 0.0), 1.0) for value in values]
        return [-abs(value - self.target) / self.target for value in values]


def _with_true_ends(text: str) -> str:
    """`text` with the points that end no sentence replaced, since textstat ends one at every point."""

    def inside(point: re.Match[str]) -> str:
        before, following = text[: point.start()][-2:], text[point.end()]
        initial = before[-1:].isupper() and not before[:-1].isalpha()  # U.S, J.R.R
        # "fine.The" lacks a space, and yet it is an end.
        return "." if following.isupper() and not initial else _NO_END

    text = _ABBREVIATED.sub(rf"\1{_NO_END}", text)
    return _POINT_INSIDE.sub(inside, text)
