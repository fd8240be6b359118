"""Reward models: finding one by name, calling it as TRL calls its reward functions, and refusing what is no score.

A reward model is any callable, called by keyword with the names of this table, of which it takes those that it wants:

| keyword | value, for B completions |
|---|---|
| `prompts` | list of B texts, or of B lists of messages where the prompts are conversational |
| `completions` | list of B texts, or of B lists with one assistant message |
| `completion_ids` | list of B lists of token ids, end-of-text token included where one was chosen |
| `trainer_state` | whatever the agent hands through (an object or None) |
| `log_extra(column, values)` | B values that belong to the completions: they come back in `ScoreResult.extra` |
| `log_metric(name, value)` | one number: its mean over the calls comes back in `ScoreResult.metrics` |
| every other column of the prompt set | list of B values |

It returns B numbers, higher is better. An async function is awaited. `None` ("does not apply") is refused here, and
allowed (`allow_none`) for the parts of a combination.
"""

from __future__ import annotations

import asyncio
import difflib
import inspect
import itertools
import json
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lm_gym.reward_errors import PASSING, RewardModelError, short, told
from lm_gym.reward_identity import RewardModel, reward_model_hash, reward_model_name
from lm_gym.reward_scores import NO_SEQUENCE, NoScore, read_scores
from lm_gym.reward_specs import KEYWORDS, load_reward_model, parameters_of, reward_model_names
from lm_gym.reward_state import load_reward_state, prepare_reward_model, reward_state, update_reward_model
from lm_gym.terminal import printable

__all__ = [
    "RESERVED_COLUMNS",
    "RewardModelError",
    "ScoreResult",
    "load_reward_model",
    "load_reward_state",
    "plain_text",
    "prepare_reward_model",
    "reward_model_hash",
    "reward_model_name",
    "reward_model_names",
    "reward_state",
    "score_texts",
    "update_reward_model",
]

Text = str | Sequence[Mapping[str, Any]]
"""A text, or (conversational) a list of messages {"role": ..., "content": ...}."""

RESERVED_COLUMNS = KEYWORDS
"""Keywords that every call sets by itself; a column of a prompt set cannot have one of these names."""

PROBE_SECONDS = 1.0
"""A batch that raised within this time is halved and called again, to name the completion at fault."""


@dataclass(frozen=True)
class ScoreResult:
    """What a reward model said about B completions."""

    scores: np.ndarray
    """(B,) float64, finite; NaN stands for "does not apply", only with `allow_none`."""
    extra: dict[str, list[Any]] = field(default_factory=dict)
    """Columns given to `log_extra`, B values each."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Means of what was given to `log_metric` in this call."""
    seconds: float = 0.0
    """Wall-clock time of the reward model's call: B / seconds are its completions a second."""


def score_texts(
    reward_model: RewardModel,
    *,
    prompts: Sequence[Text],
    completions: Sequence[Text],
    completion_ids: Sequence[Sequence[int]],
    columns: Mapping[str, Sequence[Any]] | None = None,
    trainer_state: Any = None,
    log_metric: Callable[[str, float], None] | None = None,
    allow_none: bool = False,
) -> ScoreResult:
    """Score B completions in one call of the reward model.

    Args:
        prompts, completions, completion_ids: B each. The reward model gets copies, and may change them.
        columns: the other columns of the prompt set, B values each.
        trainer_state: handed through to a reward model that takes it.
        log_metric: also called for everything that the reward model logs.
        allow_none: let a score be None, NaN in the result (for the parts of a combination).

    Raises:
        RewardModelError: the reward model raised, or returned anything but B finite numbers.
        ValueError: arguments of different lengths, or a column with a reserved name.
    """
    columns = columns or {}
    size = len(completions)
    _check_sizes(prompts, completions, completion_ids, columns)
    name = reward_model_name(reward_model)
    batch = _Batch(prompts, completions, completion_ids, columns, trainer_state)
    if size == 0:
        return ScoreResult(np.zeros(0))
    collector = _Collector(name, size, log_metric)
    started = time.monotonic()
    try:
        scores = _scores(reward_model, name, batch, list(range(size)), collector, allow_none)
    except PASSING:
        raise
    except NoScore as wrong:
        raise _located(name, batch, wrong.row, str(wrong)) from wrong.__cause__
    except BaseException as error:
        row = None
        if isinstance(error, RewardModelError):
            if error.located:
                raise
            row = error.row if isinstance(error.row, int) and 0 <= error.row < size else None
        if row is None and size > 1 and time.monotonic() - started < PROBE_SECONDS:
            row = _find_row(reward_model, name, batch)
        raise _located(name, batch, 0 if size == 1 else row, f"raised {told(error)}") from error
    seconds = time.monotonic() - started
    metrics = {key: float(np.mean(seen)) for key, seen in collector.metrics.items()}
    return ScoreResult(scores, collector.extra, metrics, seconds)


def plain_text(text: Text) -> str:
    """The text of a prompt or completion for a judge without roles: of messages, their contents, a line each."""
    if isinstance(text, str):
        return text
    return "\n".join(_content(message["content"]) for message in text)


@dataclass(frozen=True)
class _Batch:
    prompts: Sequence[Text]
    completions: Sequence[Text]
    completion_ids: Sequence[Sequence[int]]
    columns: Mapping[str, Sequence[Any]]
    trainer_state: Any


class _Collector:
    """Receives `log_extra` and `log_metric` of one call."""

    def __init__(self, name: str, size: int, log_metric: Callable[[str, float], None] | None) -> None:
        self.name, self.size, self.forward = name, size, log_metric
        self.extra: dict[str, list[Any]] = {}
        self.metrics: dict[str, list[float]] = {}

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        if not isinstance(column, str):
            raise TypeError(f"log_extra({column!r}, values) of {self.name}: expected a text as the column's name")
        if isinstance(values, NO_SEQUENCE):  # a set's values would land on other completions
            raise TypeError(
                f"log_extra({column!r}, values) of {self.name} got a {type(values).__name__}, expected a sequence of "
                "one value a completion"
            )
        found = list(itertools.islice(values, self.size + 1))  # a generator may have no end
        if len(found) != self.size:
            got = len(values) if isinstance(values, Sized) else len(found)
            raise ValueError(
                f"log_extra({column!r}, values) of {self.name} got {got} values for {self.size} completions; give one "
                "value a completion"
            )
        self.extra[column] = found

    def log_metric(self, name: str, value: float) -> None:
        if not (isinstance(name, str) and name and name.isprintable()):  # before the update, and not behind it
            raise ValueError(f"log_metric({name!r}, …) of {self.name}: expected a name in printable characters")
        number = float(value)
        if not math.isfinite(number):
            raise ValueError(f"log_metric({name!r}, {value!r}) of {self.name}: expected a finite number")
        self.metrics.setdefault(name, []).append(number)
        if self.forward is not None:
            self.forward(name, number)


def _scores(
    reward_model: RewardModel, name: str, batch: _Batch, rows: list[int], collector: _Collector, allow_none: bool
) -> np.ndarray:
    """Call and read: of a generator or a GPU's tensor the work, and what it raises, may come with the reading."""
    keywords: dict[str, Any] = {column: [values[row] for row in rows] for column, values in batch.columns.items()}
    keywords |= {
        "prompts": [_copied(batch.prompts[row]) for row in rows],
        "completions": [_copied(batch.completions[row]) for row in rows],
        "completion_ids": [list(batch.completion_ids[row]) for row in rows],
        "trainer_state": batch.trainer_state,
        "log_extra": collector.log_extra,
        "log_metric": collector.log_metric,
    }
    values = reward_model(**_accepted(reward_model, name, keywords))
    return read_scores(_awaited(values) if inspect.isawaitable(values) else values, len(rows), allow_none=allow_none)


def _accepted(reward_model: RewardModel, name: str, keywords: dict[str, Any]) -> dict[str, Any]:
    """Those of the keywords that the reward model takes: all of them where it has **kwargs."""
    found = parameters_of(reward_model)
    if found is None:
        return keywords
    parameters = found.values()
    takes = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    for parameter in parameters:
        if parameter.default is not parameter.empty or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY or parameter.name not in keywords:
            near = difflib.get_close_matches(parameter.name, keywords, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise TypeError(
                f"{name} asks for {parameter.name!r}, which is no keyword of the call and no column of the prompts: "
                f"there are {', '.join(sorted(keywords))}.{hint} Rename it, give it a default, or add the column"
            )
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return keywords
    return {key: value for key, value in keywords.items() if key in takes}


def _awaited(values: Any) -> Any:
    async def wait() -> Any:
        return await values

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(wait())
    # A loop is running (a notebook): asyncio.run would refuse, so that the wait takes a thread of its own.
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            outcome.append(asyncio.run(wait()))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work, name="lm_gym-reward-model")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def _find_row(reward_model: RewardModel, name: str, batch: _Batch) -> int | None:
    """The first row that raises when the batch is halved; None if no half does so again."""

    def raises(rows: list[int]) -> bool:
        try:
            _scores(reward_model, name, batch, rows, _Collector(name, len(rows), None), True)
        except PASSING:
            raise
        except NoScore:
            return False
        except BaseException:
            return True
        return False

    rows = list(range(len(batch.completions)))
    while len(rows) > 1:
        half = len(rows) // 2
        if raises(rows[:half]):
            rows = rows[:half]
        elif raises(rows[half:]):
            rows = rows[half:]
        else:
            return None
    return rows[0]


def _located(name: str, batch: _Batch, row: int | None, what: str) -> RewardModelError:
    """An error that names the reward model and the text at fault, or the first of the batch where none is known."""
    size = len(batch.completions)
    which = f"completion {row} of {size}" if row is not None else f"a batch of {size}, of which the first is"
    at = row if row is not None else 0
    error = RewardModelError(
        f"reward model {printable(name)} {what}\n  on {which}:\n"
        f"  prompt: {_shown(batch.prompts[at])}\n  completion: {_shown(batch.completions[at])}",
        row=row,
    )
    error.located = True
    return error


def _check_sizes(
    prompts: Sequence[Text],
    completions: Sequence[Text],
    completion_ids: Sequence[Sequence[int]],
    columns: Mapping[str, Sequence[Any]],
) -> None:
    reserved = sorted(set(columns) & set(RESERVED_COLUMNS))
    if reserved:
        raise ValueError(f"columns {reserved} have names that the call of a reward model sets itself; rename them")
    sizes = {"prompts": len(prompts), "completions": len(completions), "completion_ids": len(completion_ids)}
    sizes |= {f"column {column!r}": len(values) for column, values in columns.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"expected one value a completion everywhere, got {sizes}")


def _content(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.get("text", "") for part in content)  # a list of typed parts


def _copied(text: Text) -> Any:
    return text if isinstance(text, str) else [dict(message) for message in text]


def _shown(text: Text) -> str:
    whole = repr(text) if isinstance(text, str) else json.dumps(text, ensure_ascii=False, default=str)
    return short(printable(whole))
