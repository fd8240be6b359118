"""Constrained reward: one reward is maximised while others stay above thresholds, by Lagrange multipliers that learn.

Sources: Dai et al., "Safe RLHF", ICLR 2024 (the update of ln λ, and the division by 1 + λ); Moskovitz et al.,
"Confronting Reward Model Overoptimization with Constrained RLHF", ICLR 2024 (several rewards, each with a threshold).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lm_gym.reward_models.parts import PREFIX, Combination, numbers_for

OBJECTIVE = "objective"


class Constrained(Combination):
    """max E[R_0] subject to E[R_j] ≥ d_j: the reward is (R_0 + Σ_j λ_j·(R_j − d_j)) / (1 + Σ_j λ_j).

    After every rollout, with the mean R̄_j over its completions: ln λ_j ← ln λ_j + lr·λ_j·(d_j − R̄_j), within `limits`.
    So λ_j grows while its constraint is violated, and shrinks while there is room. The division keeps the reward on one
    scale, so that β keeps its meaning while λ moves. A cost is a constraint on its negative, with the threshold −d.

    A part that does not apply is left out: its term is 0, and the mean is over the completions that it applies to.

    Range: that of R_0 and of all R_j − d_j together, since it is their mean with the weights 1 and λ_j.

    State: the multipliers. Logged beside the parts: `multiplier/<constraint>` and `violation/<constraint>`, d_j − R̄_j,
    which :meth:`update` reads.

    Args:
        objective: R_0. constraints: R_j by name. at_least: d_j by the same names.
        lr: step size, above 0. start: λ_j at the beginning, above 0.
        limits: the least and the largest λ_j; the least is above 0, since a multiplier of 0 would never move again.
    """

    kind = "constrained"

    def __init__(
        self,
        objective: Any,
        constraints: Mapping[str, Any],
        at_least: Mapping[str, float],
        *,
        lr: float = 0.1,
        start: float = 1.0,
        limits: Sequence[float] = (1e-3, 10.0),
    ) -> None:
        if not isinstance(constraints, Mapping) or not constraints or OBJECTIVE in constraints:
            raise ValueError(
                f"constrained: constraints are {constraints!r}; expected reward models by name, none of them named "
                f"{OBJECTIVE!r}"
            )
        super().__init__({OBJECTIVE: objective, **constraints})
        names = [name for name in self.parts if name != OBJECTIVE]
        missing = [name for name in names if name not in at_least]
        if missing:
            raise ValueError(f"constrained: {missing[0]!r} has no threshold; expected at_least={{{missing[0]!r}: ...}}")
        self.at_least = numbers_for(dict.fromkeys(names), at_least, "constrained: at_least", 0.0)
        low, high = limits
        if not (0 < low <= start <= high < math.inf and 0 < lr < math.inf):
            raise ValueError(
                f"constrained: expected lr above 0 and 0 < limits[0] <= start <= limits[1], got lr={lr!r}, "
                f"start={start!r}, limits={tuple(limits)!r}"
            )
        self.lr, self.start, self.limits = float(lr), float(start), (float(low), float(high))
        self.multipliers = dict.fromkeys(names, float(start))

    def combined(self, scores: np.ndarray, columns: Mapping[str, Sequence[Any]]) -> np.ndarray:
        weights = np.array([1.0, *self.multipliers.values()])
        room = scores - np.array([0.0, *self.at_least.values()])
        return np.nansum(room * weights, axis=1) / weights.sum()

    def log(self, log_extra: Callable[..., None], log_metric: Callable[..., None], scores: np.ndarray) -> None:
        for column, (name, threshold) in enumerate(self.at_least.items(), start=1):
            seen = scores[:, column][~np.isnan(scores[:, column])]
            log_metric(f"violation/{name}", float(threshold - seen.mean()) if len(seen) else 0.0)
            log_metric(f"multiplier/{name}", self.multipliers[name])

    def update(self, metrics: Mapping[str, float]) -> None:
        """Move the multipliers by a rollout's metrics, `reward/violation/<constraint>` among them.

        Raises:
            ValueError: that metric is not there.
        """
        super().update(metrics)
        for name, multiplier in self.multipliers.items():
            key = f"{PREFIX}violation/{name}"
            if key not in metrics:
                raise ValueError(
                    f"constrained: update expected the rollout's metric {key!r}, which every call logs, got "
                    f"{', '.join(sorted(metrics)) or 'none'}"
                )
            low, high = map(math.log, self.limits)
            moved = math.log(multiplier) + self.lr * multiplier * metrics[key]
            self.multipliers[name] = math.exp(min(max(moved, low), high))

    def state_dict(self) -> dict[str, Any]:
        return {"multipliers": dict(self.multipliers), "parts": super().state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if set(state["multipliers"]) != set(self.multipliers):
            raise ValueError(
                f"the checkpoint holds multipliers of {', '.join(state['multipliers'])}, expected those of "
                f"{', '.join(self.multipliers)}"
            )
        super().load_state_dict(state["parts"])
        self.multipliers = {name: float(state["multipliers"][name]) for name in self.multipliers}

    def settings(self) -> dict[str, Any]:
        return {"at_least": self.at_least, "lr": self.lr, "start": self.start, "limits": self.limits}
