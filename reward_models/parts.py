"""The parts of a combination: finding them, asking them all, logging what they say, keeping their state.

Every combination is a :class:`Combination`: it has named parts, and says how their scores become one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lm_gym.rewards import (
    RewardModelError,
    ScoreResult,
    Text,
    load_reward_model,
    load_reward_state,
    prepare_reward_model,
    reward_model_hash,
    reward_model_name,
    reward_state,
    score_texts,
    update_reward_model,
)

PREFIX = "reward/"
"""What agents put before the name of a metric that a reward model logs."""


class Parts:
    """Reward models within one, by name: what agents tell it, and what a checkpoint keeps of it, is handed on."""

    parts: dict[str, Any]

    def prepare(self, mdp: Any) -> None:
        """Hand the problem on to the parts, before training."""
        for part in self.parts.values():
            prepare_reward_model(part, mdp)

    def update(self, metrics: Mapping[str, float]) -> None:
        """Hand a rollout's metrics on to the parts, each its own names: `reward/<part>/x` is its `reward/x`."""
        update_parts(self.parts, metrics)

    def state_dict(self) -> dict[str, Any]:
        """The state of the parts that have one, by name."""
        states = {name: reward_state(part) for name, part in self.parts.items()}
        return {name: state for name, state in states.items() if state is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give every part what :meth:`state_dict` said of it."""
        unknown = [name for name in state if name not in self.parts]
        if unknown:
            raise ValueError(
                f"the checkpoint holds state of {unknown[0]!r}, which is no part; the parts are {', '.join(self.parts)}"
            )
        for name, part in self.parts.items():
            load_reward_state(part, state.get(name))

    def hashes(self) -> dict[str, str]:
        """The hash of every part, by name."""
        return {name: reward_model_hash(part) for name, part in self.parts.items()}


class Combination(Parts):
    """Several reward models as one: subclasses say in `combined` how the scores of the parts become one score.

    A part may say None of a completion: it does not apply to it. Where no part applies, the combination is an error.

    Logged for every part: `<part>`, its score, for each completion (None where it does not apply) and as a mean over
    those that it applies to; and `<part>/<name>` for what the part itself logs.

    Args:
        parts: reward models, objects or strings, by name; or a list of them, which have their own names then.
    """

    kind = "combination"

    def __init__(self, parts: Mapping[str, Any] | Sequence[Any]) -> None:
        self.parts = named_parts(parts, self.kind)

    @property
    def name(self) -> str:
        return f"{self.kind}({', '.join(self.parts)})"

    __name__ = name  # TRL logs rewards/<__name__>

    def combined(self, scores: np.ndarray, columns: Mapping[str, Sequence[Any]]) -> np.ndarray:
        """(B,) from the parts' scores (B, K), in the order of `parts`: NaN where one does not apply, no row all NaN."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """What the score depends on beside the parts, as plain data: a part of the fingerprint."""
        return {}

    def log(self, log_extra: Callable[..., None], log_metric: Callable[..., None], scores: np.ndarray) -> None:
        """What is logged beside the parts."""

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]],
        trainer_state: Any = None,
        log_extra: Callable[[str, Sequence[Any]], None] = lambda column, values: None,
        log_metric: Callable[[str, float], None] = lambda name, value: None,
        **columns: Any,
    ) -> list[float]:
        results = {
            name: score_texts(
                part,
                prompts=prompts,
                completions=completions,
                completion_ids=completion_ids,
                columns=columns,
                trainer_state=trainer_state,
                allow_none=True,
            )
            for name, part in self.parts.items()
        }
        scores = np.stack([result.scores for result in results.values()], axis=1)
        nothing = np.isnan(scores).all(axis=1)
        if nothing.any():
            raise RewardModelError(
                f"no part of {self.name} applies: all of them returned None", row=int(nothing.argmax())
            )
        for name, result in results.items():
            log_part(name, result, log_extra, log_metric)
        self.log(log_extra, log_metric, scores)
        return [float(score) for score in self.combined(scores, columns)]

    def fingerprint(self) -> str:
        return fingerprint_of(self.kind, self.hashes(), self.settings())


def named_parts(parts: Mapping[str, Any] | Sequence[Any], kind: str, *, at_least: int = 1) -> dict[str, Any]:
    """Reward models by name, those that were given as strings loaded."""
    if isinstance(parts, Mapping):
        loaded = {str(name): load_reward_model(part) for name, part in parts.items()}
    elif isinstance(parts, (list, tuple)):
        judges = [load_reward_model(part) for part in parts]
        names = [reward_model_name(judge) for judge in judges]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"{kind}: {twice[0]!r} is there {names.count(twice[0])} times; give the parts names, as in "
                f"{{'first': ..., 'second': ...}}, which the logs use"
            )
        loaded = dict(zip(names, judges, strict=True))
    else:
        raise TypeError(
            f"{kind}: parts are {parts!r}; expected reward models by name, as in {{'taste': 'vader'}}, or a list"
        )
    if len(loaded) < at_least:
        raise ValueError(f"{kind}: expected at least {at_least} part{'s' if at_least > 1 else ''}, got {len(loaded)}")
    if "" in loaded:
        raise ValueError(f"{kind}: a part has the empty name; give it one, which the logs use")
    return loaded


def numbers_for(
    parts: Mapping[str, Any], values: Mapping[str, Any] | None, what: str, default: float
) -> dict[str, float]:
    """A finite number a part, `default` where none is given; a name that is no part is refused."""
    given = dict(values or {})
    unknown = [name for name in given if name not in parts]
    if unknown:
        raise ValueError(f"{what} of {unknown[0]!r}, which is no part; the parts are {', '.join(parts)}")
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
            raise ValueError(f"{what} of {name!r} is {value!r}; expected a finite number")
    return {name: float(given.get(name, default)) for name in parts}


def log_part(name: str, result: ScoreResult, log_extra: Callable[..., None], log_metric: Callable[..., None]) -> None:
    """Log a part's scores under its name, and what it logged itself behind it."""
    applies = ~np.isnan(result.scores)
    log_extra(name, nones(result.scores))
    if applies.any():
        log_metric(name, float(result.scores[applies].mean()))
    for column, values in result.extra.items():
        log_extra(f"{name}/{column}", values)
    for metric, value in result.metrics.items():
        log_metric(f"{name}/{metric}", value)


def nones(scores: np.ndarray) -> list[float | None]:
    """(B,) scores as a list, None where they are NaN."""
    return [None if np.isnan(score) else float(score) for score in scores]


def update_parts(parts: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    """Call `update` of every part with the metrics as that part named them; those of other origin stay."""
    for name, part in parts.items():
        own = f"{PREFIX}{name}/"
        seen = {key: value for key, value in metrics.items() if not key.startswith(PREFIX)}
        seen |= {PREFIX + key.removeprefix(own): value for key, value in metrics.items() if key.startswith(own)}
        update_reward_model(part, seen)


def fingerprint_of(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
