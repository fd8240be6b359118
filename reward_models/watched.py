"""A judge with a second one beside it: the first alone is trained on, and the second says what that is worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lm_gym.rewards import (
    Text,
    load_reward_model,
    load_reward_state,
    prepare_reward_model,
    reward_model_name,
    reward_state,
    score_texts,
    update_reward_model,
)


class Watched:
    """A reward model, and another in the logs that nothing is trained on (the gold score, a judge held back).

    Name, hash, state and everything that the first one logs are its own: training with and without the second gives the
    same run. Logged beside: ``<name>``, the second's score of each text and its mean, and ``<name>_correlation``,
    Pearson's of the two scores over the texts of a batch, left out where one of them is constant.

    Args:
        judge: what is trained on. watch: the second one. Objects, or strings as ``reward_model=`` takes them.
        name: what the second is called in the logs, ``reward/<name>``.
    """

    def __init__(self, judge: Any, watch: Any, name: str = "watch") -> None:
        self.judge, self.watch, self.watch_name = load_reward_model(judge), load_reward_model(watch), name

    @property
    def name(self) -> str:
        return reward_model_name(self.judge)

    __name__ = name  # TRL logs rewards/<__name__>

    @property
    def stands_for(self) -> Any:
        """The reward model whose hash this one has: the second changes nothing."""
        return self.judge

    def prepare(self, mdp: Any) -> None:
        """Hand the problem on to both, before training."""
        prepare_reward_model(self.judge, mdp)
        prepare_reward_model(self.watch, mdp)

    def update(self, metrics: Mapping[str, float]) -> None:
        """Hand a rollout's metrics on to the first: the second learns nothing."""
        update_reward_model(self.judge, metrics)

    def state_dict(self) -> dict[str, Any]:
        """The state of the first."""
        return reward_state(self.judge) or {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give the first its state."""
        load_reward_state(self.judge, state)

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
        texts: dict[str, Any] = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
        own = score_texts(self.judge, **texts, columns=columns, trainer_state=trainer_state)
        other = score_texts(self.watch, **texts, columns=columns, trainer_state=trainer_state).scores
        taken = {self.watch_name, f"{self.watch_name}_correlation"} & (set(own.extra) | set(own.metrics))
        if taken:
            raise ValueError(
                f"{self.name} logs {sorted(taken)[0]!r} itself, which is what the second judge's score is called: "
                "rename it there, or give Watched another name="
            )
        for column, values in own.extra.items():
            log_extra(column, values)
        for metric, value in own.metrics.items():
            log_metric(metric, value)
        log_extra(self.watch_name, other.tolist())
        log_metric(self.watch_name, float(other.mean()))
        if np.ptp(own.scores) > 0 and np.ptp(other) > 0:
            log_metric(f"{self.watch_name}_correlation", float(np.corrcoef(own.scores, other)[0, 1]))
        return [float(score) for score in own.scores]
