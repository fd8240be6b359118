"""What a finished run is to a comparison: one JSON object on a line, written by `lm-gym compare` or by anybody else."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any

from lm_gym.runinfo import write_atomically


@dataclass(frozen=True)
class Row:
    """One run: an agent on a problem with a seed, measured at its last checkpoint (never at its best one).

    Attributes:
        agent: its name in tables. env: environment id. kl_coef: β. seed: of the run.
        tokens: response tokens generated for training (trained on, for agents that are given their texts).
        reward: E[R] of the task alone. kl: nats a text, KL(π‖π_ref) of whole sequences. Exact on exact languages,
            means over fresh texts elsewhere. J is ``reward − kl_coef·kl``.
        length: mean tokens a text. distinct_2: share of different bigrams. win_rate: P(R > R of a reference text of the
            same prompt), ties one half. None: not measured.
        curve: (tokens, J) at points of the training, from (0, J at the start) to the end; None: not measured.
        curve_sem: the standard error of J − J_ref at each of these points; None: exact, or not known.
        prompts: drawn in training, counted each time, and once for all texts of a group. reward_calls: texts judged in
            training.
        offline_pairs: given or offline preference pairs, demonstrations or labelled texts that it trained on.
        cpu_seconds: of training alone, without imports, loading and evaluation.
        config: the fields of the agent's configuration that differ from its defaults.
        source: "lm-gym", or who else made the row.
    """

    agent: str
    env: str
    kl_coef: float
    seed: int
    tokens: int
    reward: float
    kl: float
    length: float | None = None
    distinct_2: float | None = None
    win_rate: float | None = None
    curve: tuple[tuple[int, float], ...] | None = None
    curve_sem: tuple[float, ...] | None = None
    prompts: int | None = None
    reward_calls: int | None = None
    offline_pairs: int | None = None
    cpu_seconds: float | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    source: str = "lm-gym"

    @property
    def j(self) -> float:
        """J(π) = E[R] − β·KL."""
        return self.reward - self.kl_coef * self.kl


@dataclass(frozen=True)
class Problem:
    """What the rows of one environment at one β are measured against.

    Attributes:
        env, kl_coef: as in :class:`Row`. j_ref: J of the reference, its E[R]. j_star: the optimum's; None: not known.
        frontier: (kl, reward) points that no policy of that KL is above (exact: π* over many β; ``exact`` is True), or
            those of best-of-n sampling of the reference, n = 1, 2, 4, … (``exact`` is False).
    """

    env: str
    kl_coef: float
    j_ref: float
    j_star: float | None
    frontier: tuple[tuple[float, float], ...]
    exact: bool


REQUIRED = ("agent", "env", "kl_coef", "seed", "tokens", "reward", "kl")

_COUNTS = ("seed", "tokens", "prompts", "reward_calls", "offline_pairs")
_SHARES = ("distinct_2", "win_rate")
_NOT_NEGATIVE = ("kl_coef", "length", "cpu_seconds")
_NAMES = ("agent", "env", "source")


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSONL file, one JSON object a line; empty lines are passed over.

    A row that does not say its ``source`` gets the file's name: what `lm-gym compare` writes always says it.

    Raises:
        ValueError: what is no row, or two of the same (agent, env, kl_coef, seed); it names file and line.
    """
    rows: list[Row] = []
    places: list[str] = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            rows.append(row_from(_parsed(line, where), where, source=path.name))
            places.append(where)
    check_distinct(rows, places)
    return rows


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Writes the rows as JSONL, whole or not at all: to a temporary name first, then renamed.

    Raises:
        ValueError: a row that :func:`read_rows` would refuse, or two of the same run.
    """
    rows = list(rows)
    check_distinct(rows)
    text = "".join(row_line(row) for row in rows)
    write_atomically(path, text)


def row_line(row: Row) -> str:
    """The row as one line of JSON with its line end; what it cannot hold (NaN, a negative count) is refused here."""
    where = f"the row of {row.agent} on {row.env}, seed {row.seed}"
    line = json.dumps(asdict(row), ensure_ascii=False)
    row_from(_parsed(line, where), where)
    return f"{line}\n"


def row_from(record: object, where: str, source: str = "lm-gym") -> Row:
    """A row from a parsed JSON object, every field checked.

    Args:
        record: the object. where: what error messages begin with. source: of a row that does not say.

    Raises:
        ValueError: an unknown or missing key, or a value that a run cannot have; with what was expected and what came.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"{where}: expected a JSON object with the fields of a run, got {_shown(record)}")
    known = [entry.name for entry in fields(Row)]
    for key in record:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"a row has {', '.join(known)}."
            raise ValueError(f"{where}: unknown key {key!r}: {hint} What else a run has to say goes into 'config'.")
    missing = [key for key in REQUIRED if record.get(key) is None]
    if missing:
        raise ValueError(f"{where}: expected {', '.join(REQUIRED)}; there is no {' and no '.join(missing)}")
    values = {key: _value(key, value, where) for key, value in record.items() if value is not None}
    row = Row(**{"source": source, **values})
    if row.curve is not None and row.curve[-1][0] > row.tokens:
        raise ValueError(f"{where}: 'curve' goes on to {row.curve[-1][0]} tokens, but the run has {row.tokens}")
    if row.curve_sem is not None and len(row.curve_sem) != len(row.curve or ()):
        raise ValueError(
            f"{where}: expected a number in 'curve_sem' for each of the {len(row.curve or ())} points of 'curve', got "
            f"{len(row.curve_sem)}"
        )
    return row


def check_distinct(rows: Iterable[Row], places: Iterable[str] | None = None) -> None:
    """Refuses two rows of the same (agent, env, kl_coef, seed): which of them counts, nobody can tell.

    Args:
        rows: the rows. places: where each of them stands, for the message; None: their sources.
    """
    rows = list(rows)
    seen: dict[tuple[str, str, float, int], str] = {}
    for row, place in zip(rows, places or [f"source {row.source!r}" for row in rows], strict=True):
        key = (row.agent, row.env, row.kl_coef, row.seed)
        if key in seen:
            raise ValueError(
                f"{place}: expected one row a run, got a second one of {row.agent} on {row.env} at kl_coef "
                f"{row.kl_coef:g}, seed {row.seed} (the first: {seen[key]}). Leave one out, or rename one's agent."
            )
        seen[key] = place


def _value(key: str, value: object, where: str) -> Any:
    """A field's value as :class:`Row` holds it."""
    if key in _NAMES:
        if isinstance(value, str) and value.strip() and value.isprintable():
            return value
        raise ValueError(f"{where}: expected a name in one line for {key!r}, got {_shown(value)}")
    if key == "config":
        if isinstance(value, Mapping):
            return dict(value)
        raise ValueError(f"{where}: expected an object of the agent's options for 'config', got {_shown(value)}")
    if key == "curve":
        return _curve(value, where)
    if key == "curve_sem":
        return _errors(value, where)
    if key in _COUNTS:
        return _count(value, key, where)
    number = _number(value, key, where)
    if key in _NOT_NEGATIVE and number < 0:
        raise ValueError(f"{where}: expected {key!r} to be 0 or more, got {number:g}")
    if key in _SHARES and not 0 <= number <= 1:
        raise ValueError(f"{where}: expected {key!r} between 0 and 1, got {number:g}")
    return number


def _curve(value: object, where: str) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{where}: expected [tokens, J] pairs for 'curve' (or null), got {_shown(value)}")
    points = []
    for point in value:
        if not isinstance(point, list | tuple) or len(point) != 2:
            raise ValueError(f"{where}: expected a pair [tokens, J] in 'curve', got {_shown(point)}")
        points.append((_count(point[0], "curve", where), _number(point[1], "curve", where)))
    tokens = [point[0] for point in points]
    if tokens[0] != 0 or any(after <= before for before, after in pairwise(tokens)):
        raise ValueError(
            f"{where}: expected the tokens of 'curve' to grow from 0 (J before training) to the end, "
            f"got {_shown(tokens)}"
        )
    return tuple(points)


def _errors(value: object, where: str) -> tuple[float, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where}: expected a list of numbers for 'curve_sem' (or null), got {_shown(value)}")
    numbers = tuple(_number(number, "curve_sem", where) for number in value)
    if any(number < 0 for number in numbers):
        raise ValueError(f"{where}: expected standard errors of 0 or more for 'curve_sem', got {_shown(value)}")
    return numbers


def _number(value: object, key: str, where: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf:
        with contextlib.suppress(OverflowError):  # a whole number of 400 digits
            return float(value)
    raise ValueError(f"{where}: expected a finite number for {key!r}, got {_shown(value)}")


def _count(value: object, key: str, where: str) -> int:
    number = _number(value, key, where)
    if number < 0 or number != int(number):
        raise ValueError(f"{where}: expected a whole number from 0 on for {key!r}, got {_shown(value)}")
    return value if isinstance(value, int) else int(number)  # a seed may have more digits than a float


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text with a JSON object a line, but {error}") from None


def _parsed(line: str, where: str) -> object:
    def refused(constant: str) -> float:
        raise ValueError(f"{where}: expected finite numbers, got {constant} (a value that is not known is null)")

    def finite(digits: str) -> float:
        return float(digits) if math.isfinite(float(digits)) else refused(digits)

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        keys = [key for key, _ in pairs]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"{where}: expected every key once, got {key!r} {keys.count(key)} times")
        return dict(pairs)

    try:
        return json.loads(line, parse_constant=refused, parse_float=finite, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where}: expected a JSON object (a run a line), got {_shown(line)}: {error.msg} at column {error.colno}"
        ) from None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
