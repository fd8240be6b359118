"""Several judges of the same thing: their mean, the most pessimistic, or the mean less a price for disagreement.

Source: Coste et al., "Reward Model Ensembles Help Mitigate Overoptimization", ICLR 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lm_gym.reward_models.parts import Combination, named_parts, nones
from lm_gym.rewards import load_reward_model

HOWS = ("mean", "worst", "mean-variance")


class Ensemble(Combination):
    """One score of K judges: mean, min, or mean − penalty·variance (of the K scores, divided by K).

    Range: that of the members; without lower end for `mean-variance`. Members should be on one scale.

    Logged beside the members: `disagreement`, the standard deviation of the K scores (divided by K), for each
    completion and as a mean over them. A member that does not apply is left out.

    Args:
        parts: the members, at least two: by name, or a list, whose members are called 0, 1, ...
        how: "mean", "worst" or "mean-variance". penalty: λ ≥ 0 of the last one, in score per squared score.
    """

    kind = "ensemble"

    def __init__(
        self, parts: Mapping[str, Any] | Sequence[Any], how: str = "mean", penalty: float | None = None
    ) -> None:
        if isinstance(parts, (list, tuple)):
            parts = {str(number): load_reward_model(part) for number, part in enumerate(parts)}
        self.parts = named_parts(parts, self.kind, at_least=2)
        if how not in HOWS:
            raise ValueError(f"ensemble: how is {how!r}; expected one of {', '.join(HOWS)}")
        if (penalty is not None) != (how == "mean-variance") or (penalty is not None and not 0 <= penalty < np.inf):
            raise ValueError(
                f"ensemble: penalty is {penalty!r} with how={how!r}; expected a number of at least 0 with "
                "how='mean-variance', and none with the others"
            )
        self.how, self.penalty = how, penalty

    def combined(self, scores: np.ndarray, columns: Mapping[str, Sequence[Any]]) -> np.ndarray:
        if self.how == "worst":
            return np.nanmin(scores, axis=1)
        mean = np.nanmean(scores, axis=1)
        return mean if self.penalty is None else mean - self.penalty * np.nanvar(scores, axis=1)

    def log(self, log_extra: Callable[..., None], log_metric: Callable[..., None], scores: np.ndarray) -> None:
        disagreement = np.nanstd(scores, axis=1)
        log_extra("disagreement", nones(disagreement))
        log_metric("disagreement", float(disagreement.mean()))

    def settings(self) -> dict[str, Any]:
        return {"how": self.how, "penalty": self.penalty}
