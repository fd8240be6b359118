"""Target words as a reward: a lexicon of one's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lm_gym.rewards import Text, plain_text

WORD = re.compile(r"\w+(?:['’-]\w+)*")
MEASURES = ("coverage", "density")


class TargetWords:
    """How many of the words that are asked for stand in the completion, upper and lower case being the same.

    Range: [0, 1]. `coverage`: the share of the target words that occur at least once; repeating one earns nothing.
    `density`: the share of the completion's words that are target words; 0 for a completion without words, and 1 for
    one that says a single target word for ever, so that it needs a KL price or :class:`Repetition` beside it.

    A word is a run of letters, digits and underscores, with apostrophes and hyphens inside: "it's", "well-made".

    Args:
        words: the target words, a list, or one text with commas between them: `words?words=good,film`.
        measure: "coverage" or "density".
    """

    name = "words"
    __name__ = name  # TRL logs rewards/<__name__>

    def __init__(self, words: str | Sequence[str], measure: str = "coverage") -> None:
        listed = words.split(",") if isinstance(words, str) else list(words)
        wrong = [word for word in listed if not isinstance(word, str) or not WORD.fullmatch(word.strip())]
        if not listed or wrong:
            raise ValueError(
                f"words: {wrong[0] if wrong else words!r} is no word; expected single words with commas between them "
                "(for phrases take regex?pattern=...)"
            )
        if measure not in MEASURES:
            raise ValueError(f"words: measure is {measure!r}; expected one of {', '.join(MEASURES)}")
        self.words = sorted({word.strip().lower() for word in listed})
        self.measure = measure

    def __call__(self, completions: Sequence[Text], **_: Any) -> list[float]:
        return [self._score(WORD.findall(plain_text(text).lower())) for text in completions]

    def _score(self, said: list[str]) -> float:
        if self.measure == "coverage":
            return len(set(said) & set(self.words)) / len(self.words)
        return sum(word in self.words for word in said) / len(said) if said else 0.0
