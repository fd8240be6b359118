"""A cache around a reward model: a completion that was judged before is not judged again."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from lm_gym.reward_models.parts import nones
from lm_gym.reward_specs import parameters_of
from lm_gym.rewards import (
    Text,
    load_reward_model,
    reward_model_hash,
    reward_model_name,
    reward_state,
    score_texts,
)

MISSES = "misses"


class Cached:
    """The same scores as the reward model within, each asked for once.

    An entry belongs to the hash of the reward model (`lm_gym.rewards.reward_model_hash`, taken when the cache is made),
    the prompt, the completion, and whatever else the reward model takes: token ids and columns that its signature
    names, all of them where it has `**kwargs`. Entries are scores, None ("does not apply") among them, and what the
    reward model gave to `log_extra`. What raised, or was refused as no score, is not kept.

    The reward model must say the same of the same text every time. So one with state is refused: `Normalised(Cached(
    judge))`, not the other way round; and `trainer_state` is None for it, since its scores may not depend on that.

    Range: that of the reward model. Logged for each call: `cache_hits`, `cache_misses` (completions; one that comes
    twice in a call is judged once, and the second is a hit), `cache_texts_per_second` (completions answered, hits and
    misses), and what the reward model gives to `log_metric` as `misses/<name>`, since it speaks of those alone.

    Args:
        reward: a reward model, an object or a string.
        path: a file of SQLite that outlives the process, and that several may share; it is made if it is not there.
            None: in memory, without limit, about 0.3 KB a completion.
    """

    def __init__(self, reward: Any, path: str | None = None) -> None:
        self.reward = load_reward_model(reward)
        if reward_state(self.reward) is not None:
            raise ValueError(
                f"cached: {reward_model_name(self.reward)} has state, so that its scores change; put the cache inside "
                "it, around the judge that costs the time"
            )
        self.path = None if path is None else Path(path).expanduser()
        self._takes = _keywords_of(self.reward)
        self._hash = reward_model_hash(self.reward)
        self._memory: dict[str, str] = {}
        if self.path is not None:
            with closing(self._connection()):
                pass

    @property
    def name(self) -> str:
        return f"cached({reward_model_name(self.reward)})"

    __name__ = name  # TRL logs rewards/<__name__>

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]],
        log_extra: Callable[[str, Sequence[Any]], None] = lambda column, values: None,
        log_metric: Callable[[str, float], None] = lambda name, value: None,
        **columns: Any,
    ) -> list[float | None]:
        started = time.monotonic()
        columns.pop("trainer_state", None)
        kept = {"completion_ids": completion_ids, **columns}
        kept = {name: values for name, values in kept.items() if self._takes is None or name in self._takes}
        keys = [
            self._key(prompts[row], completions[row], {name: values[row] for name, values in kept.items()})
            for row in range(len(completions))
        ]
        known = self._read(keys)
        first: dict[str, int] = {}
        for row, key in enumerate(keys):
            if key not in known:
                first.setdefault(key, row)
        rows = list(first.values())
        if rows:
            result = score_texts(
                self.reward,
                prompts=[prompts[row] for row in rows],
                completions=[completions[row] for row in rows],
                completion_ids=[completion_ids[row] for row in rows],
                columns={name: [values[row] for row in rows] for name, values in columns.items()},
                allow_none=True,
            )
            fresh = {}
            for place, (row, score) in enumerate(zip(rows, nones(result.scores), strict=True)):
                extra = {column: values[place] for column, values in result.extra.items()}
                fresh[keys[row]] = _written(score, extra, self.name)
            self._write(fresh)
            known |= fresh
            for metric, value in result.metrics.items():
                log_metric(f"{MISSES}/{metric}", value)
        entries = [json.loads(known[key]) for key in keys]
        for column in dict.fromkeys(name for entry in entries for name in entry["extra"]):
            log_extra(column, [entry["extra"].get(column) for entry in entries])
        log_metric("cache_hits", len(keys) - len(rows))
        log_metric("cache_misses", len(rows))
        log_metric("cache_texts_per_second", len(keys) / max(time.monotonic() - started, 1e-9))
        return [entry["score"] for entry in entries]

    def fingerprint(self) -> str:
        return self._hash  # the scores are those of the reward model within

    def _key(self, prompt: Text, completion: Text, more: Mapping[str, Any]) -> str:
        try:
            text = json.dumps([self._hash, prompt, completion, more], sort_keys=True, default=_listed)
        except TypeError as error:
            raise TypeError(
                f"{self.name}: a column is no plain data, and cannot be told apart ({error}); name the columns that "
                "the reward model reads in its signature in place of **kwargs, or drop the column"
            ) from error
        return hashlib.sha256(text.encode()).hexdigest()

    def _connection(self) -> sqlite3.Connection:
        assert self.path is not None
        try:
            connection = sqlite3.connect(self.path, timeout=60)
            connection.execute("CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, entry TEXT NOT NULL)")
        except sqlite3.Error as error:
            raise ValueError(
                f"cached: path is {str(self.path)!r}; expected a file of SQLite, or a new one: {error}"
            ) from error
        return connection

    def _read(self, keys: list[str]) -> dict[str, str]:
        if self.path is None:
            return {key: self._memory[key] for key in keys if key in self._memory}
        with closing(self._connection()) as connection:
            found = {}
            for key in keys:
                row = connection.execute("SELECT entry FROM scores WHERE key = ?", (key,)).fetchone()
                if row is not None:
                    found[key] = row[0]
            return found

    def _write(self, entries: Mapping[str, str]) -> None:
        if self.path is None:
            self._memory.update(entries)
            return
        with closing(self._connection()) as connection, connection:
            connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", list(entries.items()))


def _keywords_of(reward_model: Callable[..., Any]) -> set[str] | None:
    """The keywords that a reward model names; None where it takes all."""
    parameters = parameters_of(reward_model)
    if parameters is None or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return set(parameters)


def _written(score: float | None, extra: Mapping[str, Any], name: str) -> str:
    try:
        return json.dumps({"score": score, "extra": extra}, default=_listed)
    except TypeError as error:
        raise TypeError(f"{name}: what the reward model gave to log_extra is no plain data: {error}") from error


def _listed(value: Any) -> Any:
    """Numbers and arrays of numpy and torch as JSON can hold them."""
    if isinstance(value, np.generic) or hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__qualname__} {value!r:.60}")
