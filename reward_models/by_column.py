"""Per-user rewards: a column of the prompts (user, group, language) chooses the judge, or the weights of a sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lm_gym.reward_models.parts import (
    Combination,
    Parts,
    fingerprint_of,
    log_part,
    named_parts,
    nones,
    numbers_for,
)
from lm_gym.rewards import (
    RewardModelError,
    ScoreResult,
    Text,
    score_texts,
)


class JudgeByColumn(Parts):
    """The judge that the completion's prompt names in a column; each judge is asked about its own rows, in one call.

    Range: that of the judges, which should be on one scale: β is the same for all.

    Logged for each judge that had rows: `<value>`, its scores (None in the rows of others) and their mean, and
    `<value>/<name>` for what it logs itself.

    Args:
        column: of the prompt set, such as "user". judges: reward models, objects or strings, by the column's values; a
            value is looked up as text, so that 7 and "7" are the same.
    """

    def __init__(self, column: str, judges: Mapping[str, Any]) -> None:
        if not isinstance(judges, Mapping):
            raise TypeError(f"judge-by-column: judges are {judges!r}; expected reward models by value of {column!r}")
        self.column, self.parts = column, named_parts(judges, "judge-by-column")

    @property
    def name(self) -> str:
        return f"judge-by-column({self.column}: {', '.join(self.parts)})"

    __name__ = name  # TRL logs rewards/<__name__>

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]],
        trainer_state: Any = None,
        log_extra: Callable[[str, Sequence[Any]], None] = lambda column, values: None,
        log_metric: Callable[[str, float], None] = lambda name, value: None,
        **columns: Any,
    ) -> list[float | None]:
        chosen = choices(columns, self.column, self.parts)
        scores = np.full(len(completions), np.nan)
        for value, judge in self.parts.items():
            rows = [row for row, choice in enumerate(chosen) if choice == value]
            if not rows:
                continue
            result = score_texts(
                judge,
                prompts=[prompts[row] for row in rows],
                completions=[completions[row] for row in rows],
                completion_ids=[completion_ids[row] for row in rows],
                columns={name: [values[row] for row in rows] for name, values in columns.items()},
                trainer_state=trainer_state,
                allow_none=True,
            )
            scores[rows] = result.scores
            log_part(value, _spread(result, rows, len(completions)), log_extra, log_metric)
        return nones(scores)

    def fingerprint(self) -> str:
        return fingerprint_of("judge-by-column", self.column, self.hashes())


class WeightsByColumn(Combination):
    """Σ_k w_k(u)·R_k, over the parts that apply: a weighted sum whose weights are those of the prompt's user u.

    Range: what weights and parts give.

    Source: personalised rewards as mixtures of attributes, Jang et al., "Personalized Soups", 2023.

    Args:
        parts: reward models by name, or a list. column: of the prompt set, such as "user".
        weights: for each value of the column a weight for every part, 0 for one that does not count; values are looked
            up as text.
    """

    kind = "weights-by-column"

    def __init__(
        self, parts: Mapping[str, Any] | Sequence[Any], column: str, weights: Mapping[str, Mapping[str, float]]
    ) -> None:
        super().__init__(parts)
        if not isinstance(weights, Mapping) or not weights:
            raise ValueError(f"weights-by-column: expected weights by value of the column {column!r}, got {weights!r}")
        self.column = column
        self.weights: dict[str, dict[str, float]] = {}
        for value, given in weights.items():
            missing = [name for name in self.parts if name not in given]
            if missing:
                raise ValueError(
                    f"weights-by-column: {value!r} has no weight for {missing[0]!r}; expected one for every part, 0 "
                    "for one that does not count"
                )
            self.weights[str(value)] = numbers_for(self.parts, given, f"weights-by-column: weight for {value!r}", 0.0)

    def combined(self, scores: np.ndarray, columns: Mapping[str, Sequence[Any]]) -> np.ndarray:
        chosen = choices(columns, self.column, self.weights)
        return np.nansum(scores * np.array([list(self.weights[value].values()) for value in chosen]), axis=1)

    def settings(self) -> dict[str, Any]:
        return {"column": self.column, "weights": self.weights}


def choices(columns: Mapping[str, Sequence[Any]], column: str, known: Mapping[str, Any]) -> list[str]:
    """The column's values as texts.

    Raises:
        RewardModelError: there is no such column, or a value that is not known.
    """
    if column not in columns:
        raise RewardModelError(
            f"the prompts have no column {column!r}, by which this reward model chooses; they have "
            f"{', '.join(sorted(columns)) or 'no column'}"
        )
    for row, value in enumerate(columns[column]):
        if str(value) not in known:
            raise RewardModelError(f"unknown {column} {value!r}; expected one of {', '.join(known)}", row=row)
    return [str(value) for value in columns[column]]


def _spread(result: ScoreResult, rows: list[int], size: int) -> ScoreResult:
    """What a judge said of some rows, as a result of all of them."""
    scores = np.full(size, np.nan)
    scores[rows] = result.scores
    extra: dict[str, list[Any]] = {}
    for column, values in result.extra.items():
        extra[column] = [None] * size
        for row, value in zip(rows, values, strict=True):
            extra[column][row] = value
    return ScoreResult(scores, extra, result.metrics, result.seconds)
