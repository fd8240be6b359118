"""What becomes of rows that cannot be used or are too long: an error, or left out or cut, and counted."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from lm_gym.layout_rows import layout_rows
from lm_gym.prompt_sources import read_items
from lm_gym.prompts import SHOWN

T = TypeVar("T")

UNUSABLE = ("error", "drop")
TOO_LONG = ("error", "cut", "drop")


class Rows:
    """The rows of one data set on their way to what is trained on.

    Args:
        what: what they are ("preference data"). name: what messages call them; None: that.
        unusable: what is done with rows that cannot be used: "error" refuses the whole, "drop" leaves them out.
        too_long: the same for rows that are too long; "cut" shortens them, as :func:`shorten` does.
        max_length: the longest prompt and answer together, in tokens; None: no limit beside the problem's.
    """

    def __init__(
        self,
        what: str,
        *,
        name: str | None = None,
        unusable: str = "error",
        too_long: str = "error",
        max_length: int | None = None,
    ) -> None:
        for option, value, known in (("unusable", unusable, UNUSABLE), ("too_long", too_long, TOO_LONG)):
            if value not in known:
                raise ValueError(f"{option} expected one of {known}, got {value!r}")
        if max_length is not None and max_length < 2:
            raise ValueError(f"max_length expected at least 2, one token of prompt and one of answer, got {max_length}")
        self.what, self.name = what, name or what
        self.unusable, self.too_long, self.max_length = unusable, too_long, max_length
        self.total = 0
        self.wrong: list[str] = []
        """Rows that cannot be used, and why."""
        self.long: list[str] = []
        """Rows that are too long, and how long."""
        self.notes: Counter[str] = Counter()
        """What else is said of rows, and of how many."""

    def read(self, source: Any, read: Callable[[Mapping[str, Any]], T], kind: type[T]) -> list[tuple[str, T]]:
        """Where each usable row is, and what ``read`` makes of it; a row that is a ``kind`` already stays."""
        broken: Callable[[str, str], None] = lambda where, why: self.wrong.append(f"{where} {why}")
        items = read_items(source, what=self.what, broken=None if self.unusable == "error" else broken)
        if not items and not self.wrong:
            raise ValueError(f"the {self.name} {source!r:.80} has no rows; expected at least one")
        self.total = len(items) + len(self.wrong)
        found: list[tuple[str, T]] = []
        rows, unread = layout_rows(self.what, items)
        self.wrong += [f"{where} {why}" for where, why in unread]
        for where, item in rows:
            with self.row(where):
                if isinstance(item, kind):
                    found.append((where, item))
                elif isinstance(item, Mapping):
                    found.append((where, read(item)))
                else:
                    raise ValueError(f"is of type {type(item).__name__}, expected named columns")
        return found

    @contextmanager
    def row(self, where: str) -> Iterator[None]:
        """A ValueError in here makes a row one that cannot be used."""
        try:
            yield
        except ValueError as error:
            self.wrong.append(f"{where} {error}")

    def keep_long(self, where: str, how: str) -> bool:
        """Take down a row that is too long; whether it stays, cut."""
        self.long.append(f"{where} {how}")
        return self.too_long == "cut"

    def note(self, notes: Iterable[str]) -> None:
        self.notes.update(set(notes))

    def finish(self, kept: int, limits: str = "") -> None:
        """Refuse the data where that is asked for, or say in a warning what was left out, cut and noted.

        Args:
            kept: rows that are left. limits: what else could be done about long ones, for the error.

        Raises:
            ValueError: rows that cannot be used or are too long, or none are left.
        """
        rows = f"of {self.total} rows of the {self.name}"
        if self.wrong and (self.unusable == "error" or not kept):
            raise ValueError(
                f"{len(self.wrong)} {rows} cannot be used: {shown(self.wrong)}. To do: repair or drop them "
                "(unusable=drop leaves them out)"
            )
        if self.long and (self.too_long == "error" or not kept):
            raise ValueError(
                f"{len(self.long)} {rows} are too long: {shown(self.long)}. To do: {limits}shorten or drop them "
                "(too_long=cut or too_long=drop does it)"
            )
        lines = [f"{count} {rows} {note}" for note, count in self.notes.items()]
        if self.long:
            lines.append(
                f"{len(self.long)} {rows} are too long and {self._done()}: {shown(self.long)}. {kept} rows are left"
            )
        if self.wrong:
            lines.append(
                f"{len(self.wrong)} {rows} cannot be used and are left out: {shown(self.wrong)}. {kept} rows are left"
            )
        for line in lines:
            warnings.warn(line, stacklevel=3)

    def _done(self) -> str:
        return "were cut" if self.too_long == "cut" else "are left out"

    def counts(self) -> dict[str, int]:
        """For a run's record: the rows of the source, and how many were left out and cut."""
        long = {("cut" if self.too_long == "cut" else "too_long_dropped"): len(self.long)}
        return {"rows": self.total, "unusable_dropped": len(self.wrong)} | long


def shown(lines: Sequence[str]) -> str:
    more = f", and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return "; ".join(lines[:SHOWN]) + more


def shorten(
    prompt: Sequence[int], answers: Sequence[Sequence[int]], room: int, bos: int | None
) -> tuple[list[int], list[list[int]]]:
    """A prompt and its answers, each pair of at most ``room`` tokens, 2 or more.

    First the prompt loses its beginning (:func:`end_of`) until half of the room is left of it; then the answers lose
    their ends.
    """
    longest = max(map(len, answers))
    start = end_of(prompt, max(room - longest, room // 2), bos)
    return start, [list(answer[: room - len(start)]) for answer in answers]


def end_of(prompt: Sequence[int], length: int, bos: int | None) -> list[int]:
    """The last ``length`` tokens of a prompt; BOS stays before them, as models have always seen it."""
    if len(prompt) <= length:
        return list(prompt)
    if length > 1 and prompt[0] == bos:
        return [prompt[0], *prompt[len(prompt) - length + 1 :]]
    return list(prompt[len(prompt) - length :])
