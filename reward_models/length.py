"""Length as a reward: the simplest one that is no lexicon, for tests and for length control."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_gym.rewards import Text, plain_text

UNITS = ("tokens", "words")


class LengthTarget:
    """How near the completion's length is to `target`: -|length - target| / target.

    Range: (-inf, 0]; 0 at the target, -1 for an empty completion and for one of twice the target.

    Args:
        target: the wanted length, in `unit`, at least 1.
        unit: "tokens" (of the policy, an end-of-text token counted) or "words" (separated by white space).
    """

    name = "length"
    __name__ = name  # TRL logs rewards/<__name__>

    def __init__(self, target: int, unit: str = "tokens") -> None:
        if isinstance(target, bool) or not isinstance(target, int) or target < 1:
            raise ValueError(f"length: target is {target!r}; expected a whole number of at least 1, such as target=40")
        if unit not in UNITS:
            raise ValueError(f"length: unit is {unit!r}; expected one of {', '.join(UNITS)}")
        self.target, self.unit = target, unit

    def __call__(
        self, completions: Sequence[Text], completion_ids: Sequence[Sequence[int]] | None = None, **_: Any
    ) -> list[float]:
        if self.unit == "tokens":
            if completion_ids is None:  # a server of texts has none
                raise ValueError(
                    "length: unit is tokens, and there are no completion_ids; take unit=words or send them"
                )
            lengths = [len(ids) for ids in completion_ids]
        else:
            lengths = [len(plain_text(text).split()) for text in completions]
        return [-abs(length - self.target) / self.target for length in lengths]
