"""Reward models made of given numbers, and one call of any reward model: what the tests of combinations run on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_gym.rewards import ScoreResult, score_texts


class Says:
    """The score of a completion by its text; counts its calls and the texts that it was asked about."""

    def __init__(self, scores: dict[str, float | None], name: str = "says") -> None:
        self.scores, self.name = scores, name
        self.calls, self.asked = 0, []

    def fingerprint(self) -> str:
        return f"{self.name} {sorted(self.scores.items(), key=str)}"

    def __call__(self, completions: Sequence[str]) -> list[float | None]:
        self.calls += 1
        self.asked += completions
        return [self.scores[text] for text in completions]


class Learns:
    """A reward model with state: every update adds the metric `reward/own` of the rollout to its score."""

    name = "learns"

    def __init__(self) -> None:
        self.offset = 0.0

    def fingerprint(self) -> str:
        return self.name

    def __call__(self, completions: Sequence[str], log_metric: Any) -> list[float]:
        log_metric("own", 1.5)
        return [self.offset] * len(completions)

    def update(self, metrics: dict[str, float]) -> None:
        self.offset += metrics["reward/own"]

    def state_dict(self) -> dict[str, Any]:
        return {"offset": self.offset}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.offset = state["offset"]


def ask(reward_model: Any, completions: Sequence[Any] = ("a", "b"), *, ids: Any = None, **columns: Any) -> ScoreResult:
    """One call with made-up prompts; `ids` are the token ids, one for each letter if None."""
    return score_texts(
        reward_model,
        prompts=["prompt"] * len(completions),
        completions=completions,
        completion_ids=[[1] * len(text) for text in completions] if ids is None else ids,
        columns=columns,
        allow_none=True,
    )


def score(reward_model: Any, completions: Sequence[str] = ("one", "two two"), **options: Any) -> ScoreResult:
    """One call whose prompts and token ids tell the completions apart, where `options` do not give them."""
    size = len(completions)
    options.setdefault("prompts", [f"prompt {row}" for row in range(size)])
    options.setdefault("completion_ids", [[row, row + 1] for row in range(size)])
    return score_texts(reward_model, completions=list(completions), **options)


def by_length(completions: Sequence[str]) -> list[float]:
    """A reward model: characters."""
    return [float(len(text)) for text in completions]


def logged(metrics: dict[str, float]) -> dict[str, float]:
    """A call's metrics as an agent logs them, with those of other origin beside."""
    return {"objective/kl": 2.0, "reward/own": 100.0} | {f"reward/{name}": value for name, value in metrics.items()}
