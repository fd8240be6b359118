"""The cells of the table of layouts: what is read from a row, and from which of its columns.

A cell that finds something else than its layout has raises a ValueError that begins with a verb, so that the row can
stand before it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_gym.chat import OTHER_NAMES, ROLES

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """Something that is read from a row."""

    columns: tuple[str, ...]
    """By which its layout is told."""
    read: Callable[[Row], Any]
    optional: tuple[str, ...] = ()
    """Columns that it reads as well where they are there."""

    @property
    def all_columns(self) -> tuple[str, ...]:
        return self.columns + self.optional


# ---- prompts, answers and scores -----
def text(path: str) -> Cell:
    """What stands at a place such as `question.full_text`."""
    return Cell((path.partition(".")[0],), lambda row: at(row, path))


def texts(*paths: str) -> Cell:
    """What stands at several places."""
    columns = tuple(dict.fromkeys(path.partition(".")[0] for path in paths))
    return Cell(columns, lambda row: [at(row, path) for path in paths])


def task(instruction: str, more: str) -> Cell:
    """An instruction, and what it is about in a line below; messages where there is a system prompt or a history."""

    def read(row: Row) -> Any:
        parts = [name for name in (instruction, more) if not missing(row.get(name))]
        for name in parts:
            if not isinstance(row[name], (str, int, float)):
                raise ValueError(f"has the {name} {row[name]!r:.60}; expected a text")
        said = "\n".join(str(row[name]) for name in parts)
        if not {"system", "history"} & set(row):
            return said
        turns: list[tuple[str, Any]] = []
        for two in () if missing(row.get("history")) else _list(row, "history"):
            if not isinstance(two, (list, tuple)) or len(two) != 2:
                raise ValueError(f"has the history {two!r:.60}; expected pairs of an instruction and an answer")
            turns += zip(("user", "assistant"), two)
        return _messages(row.get("system"), *turns, ("user", said))

    return Cell((instruction,), read, optional=(more, "system", "history"))


def question(*names: str) -> Cell:
    """A system prompt and a question as messages."""
    return Cell(("system", *names), lambda row: _messages(row["system"], ("user", row[names[0]])))


def spoken(column: str) -> Cell:
    """Messages with `role` and `content`, or `from` and `value` as in ShareGPT."""
    return Cell((column,), lambda row: _conversation(row, column), optional=("system",))


def nested(column: str, name: str) -> Cell:
    """Messages that stand under a name of a column, which may be JSON text."""

    def read(row: Row) -> Any:
        return [message(said) for said in _list({name: at(row, f"{column}.{name}")}, name)]

    return Cell((column,), read)


def asked(column: str) -> Cell:
    """The messages before the assistant's last answer."""
    return Cell((column,), lambda row: _conversation(row, column)[: _last_answer(row, column)], optional=("system",))


def last_answer(column: str) -> Cell:
    """The assistant's last answer; what others say behind it is left out."""

    def read(row: Row) -> Any:
        return [[_conversation(row, column)[_last_answer(row, column)]]]

    return Cell((column,), read)


def replies(*names: str) -> Cell:
    """Single messages or lists of them, which may be JSON text, or texts."""

    def one(said: Any) -> Any:
        said = _unwritten(said)
        if isinstance(said, str) or said is None:
            return said
        if not isinstance(said, (Mapping, list, tuple)):
            raise ValueError(f"has the answer {said!r:.40}; expected a text, a message or a list of them")
        return [message(part) for part in ([said] if isinstance(said, Mapping) else said)]

    return Cell(names, lambda row: [one(row[name]) for name in names])


def shared(*names: str) -> Cell:
    """The messages that two conversations begin with."""
    return Cell(names, lambda row: _conversation(row, names[0])[: _same(row, *names)])


def parted(*names: str) -> Cell:
    """The rest of two conversations."""
    return Cell(names, lambda row: [_conversation(row, name)[_same(row, *names) :] for name in names])


def first_turn(column: str) -> Cell:
    """The first of the user's turns, which are a JSON list."""
    return Cell((column,), lambda row: _messages(None, ("user", _turns(row, column)[0])))


def answered(said: str, *names: str) -> Cell:
    """Turns of the assistant, which are JSON lists, with those of the user behind the first between them."""

    def one(row: Row, name: str) -> list[dict[str, str]]:
        users, answers = _turns(row, said), _turns(row, name)
        if len(users) != len(answers):
            raise ValueError(f"has {len(users)} turns in {said!r} and {len(answers)} in {name!r}")
        turns = [(role, what) for two in zip(users, answers) for role, what in zip(("user", "assistant"), two)]
        return _messages(None, *turns[1:])

    return Cell(names, lambda row: [one(row, name) for name in names])


def post(info: str) -> Cell:
    """A post to be summarised, or an article, as the comparisons of Stiennon et al. (2020) were written."""

    def read(row: Row) -> str:
        title = at(row, f"{info}.title")
        try:
            written = at(row, f"{info}.post")
        except ValueError:  # an article
            written = None
        if written is not None:
            return f"SUBREDDIT: r/{at(row, f'{info}.subreddit')}\n\nTITLE: {title}\n\nPOST: {written}\n\nTL;DR:"
        return f"TITLE: {title}\n\n{at(row, f'{info}.article')}\n\nTL;DR:"

    return Cell((info,), read)


def elements(column: str, name: str) -> Cell:
    """What the elements of a list have under a name."""
    return Cell((column,), lambda row: [at(element, name) for element in _list(row, column)])


def others(column: str, *names: str) -> Cell:
    """What else the elements of a list have."""
    return Cell((column,), lambda row: [{k: v for k, v in e.items() if k not in names} for e in _list(row, column)])


def choice(column: str, *values: str, ties: tuple[str, ...] = ()) -> Cell:
    """A column with a value for each answer that may be the better one, and values for a tie."""

    def read(row: Row) -> list[float]:
        said = as_written(row[column])
        if said not in (*values, *ties):
            raise ValueError(f"has the {column} {row[column]!r:.40}; expected {', '.join((*values, *ties))}")
        return [float(said == value) for value in values]

    return Cell((column,), read)


def higher(*names: str) -> Cell:
    """A score an answer; equal ones are a tie."""
    return Cell(names, lambda row: [number(row[name], name) for name in names])


def flags(*names: str, tie: str) -> Cell:
    """A 1 for the better answer or for a tie, and 0 elsewhere."""

    def read(row: Row) -> list[float]:
        numbers = {"true": "1", "false": "0"}
        given = {name: as_written(row[name]) for name in (*names, tie) if name in row}
        given = {name: numbers.get(said, said) for name, said in given.items()}
        ones = sum(said == "1" for said in given.values())
        if not {"0", "1"} >= set(given.values()) or ones > 1 or (tie in given and not ones):
            raise ValueError(f"has {', '.join(f'{k}={row[k]!r:.20}' for k in given)}; expected one 1, and 0 elsewhere")
        return [float(given[name] == "1") for name in names]

    return Cell(names, read)


def signed(column: str) -> Cell:
    """How much better the second answer is; below 0 the first one is, and 0 is a tie."""

    def read(row: Row) -> list[float]:
        strength = number(row[column], column)
        return [max(-strength, 0.0), max(strength, 0.0)]

    return Cell((column,), read)


def ranks(column: str, name: str) -> Cell:
    """Elements of a list with a rank, 1 for the best."""
    return Cell((column,), lambda row: [-number(at(element, name), name) for element in _list(row, column)])


def first_is_better() -> Cell:
    return Cell((), lambda row: [1.0, 0.0])


def good(column: str) -> Cell:
    """Whether the answer is good."""

    def read(row: Row) -> list[float]:
        said = {"true": 1.0, "1": 1.0, "false": 0.0, "0": 0.0}.get(as_written(row[column]))
        if said is None:
            raise ValueError(f"has the {column} {row[column]!r:.40}; expected true (good) or false")
        return [said]

    return Cell((column,), read)


def nothing() -> Cell:
    return Cell((), lambda row: [])


# ---- values -----
def at(row: Row, path: str) -> Any:
    """The value at a place such as `summaries.0.text`; what it stands in may be JSON text.

    Raises:
        ValueError: there is none.
    """
    value: Any = row
    for part in path.split("."):
        try:
            value = json.loads(value) if isinstance(value, str) else value
            value = value[int(part)] if isinstance(value, (list, tuple)) else value[part]
        except (KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"has nothing at {path}") from error
    return value


def number(value: Any, name: str) -> float:
    """A finite number, also one that is written out.

    Raises:
        ValueError: it is none.
    """
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"has the {name} {value!r:.40}; expected a number")
    return found


def message(said: Any) -> dict[str, Any]:
    """A message with `role` and `content` of one that may have `from` and `value` instead.

    Raises:
        ValueError: it has neither, or a role that is not known (those of `role` are as they are).
    """
    if isinstance(said, Mapping) and said.get("role") is not None:
        return {key: value for key, value in said.items() if value is not None or key == "content"}
    if not isinstance(said, Mapping) or not {"from", "value"} <= set(said):
        raise ValueError(f"has the message {said!r:.80}; expected one with from and value, or role and content")
    name = str(said["from"]).strip().lower()
    role = OTHER_NAMES.get(name, name)
    if role not in ROLES:
        known = ", ".join((*ROLES, *OTHER_NAMES))
        raise ValueError(f"has a message from {said['from']!r:.40}; expected one of {known}")
    return {"role": role, "content": said["value"]}


def missing(value: Any) -> bool:
    """Whether nothing stands there: None, an empty text, or the NaN of a table's empty field."""
    return value is None or (isinstance(value, (str, float)) and (value == "" or value != value))


def _messages(system: Any, *turns: tuple[str, Any]) -> list[dict[str, Any]]:
    """Messages of turns (role, content), behind a system prompt where there is one."""
    spoken = list(turns) if missing(system) else [("system", system), *turns]
    return [{"role": role, "content": content} for role, content in spoken]


def _conversation(row: Row, column: str) -> list[dict[str, Any]]:
    """The messages of a column, behind the column `system` where they have no system prompt of their own."""
    found = [message(said) for said in _list(row, column)]
    return found if found and found[0]["role"] == "system" else _messages(row.get("system")) + found


def _last_answer(row: Row, column: str) -> int:
    answers = [i for i, said in enumerate(_conversation(row, column)) if said["role"] == "assistant"]
    if not answers:
        raise ValueError(f"has {column} without an answer of the assistant")
    return answers[-1]


def _same(row: Row, *names: str) -> int:
    """How many messages two conversations begin with together."""
    one, other = (_conversation(row, name) for name in names)
    return next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def _list(row: Row, name: str) -> Sequence[Any]:
    """A list, which may be JSON text."""
    value = row[name]
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"has {name} that is no list, nor JSON of one: {value!r:.40}") from error
    if not isinstance(found, (list, tuple)):
        raise ValueError(f"has {name} that is no list: {value!r:.40}")
    return found


def _unwritten(said: Any) -> Any:
    """A message or a list of them that was given as JSON text; anything else as it is."""
    if not isinstance(said, str) or said.lstrip()[:1] not in ("{", "["):
        return said
    try:
        found = json.loads(said)
    except (ValueError, RecursionError):
        return said
    parts = found if isinstance(found, list) else [found]
    keys = ({"from", "value"}, {"role", "content"})
    known = parts and all(isinstance(part, Mapping) and any(key <= set(part) for key in keys) for part in parts)
    return found if known else said


def _turns(row: Row, name: str) -> list[str]:
    """A list of texts, null for an empty one."""
    found = ["" if turn is None else turn for turn in _list(row, name)]
    if not found:
        raise ValueError(f"has {name} without a turn")
    return found


def as_written(value: Any) -> str:
    """A value as a table may have it: 1.0 and True are "1" and "true"."""
    said = str(value).strip()
    whole = said.removesuffix(".0")
    return whole if whole.isdecimal() else said.lower() if said in ("True", "False") else said
