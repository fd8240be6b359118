"""Reward models put together: a weighted sum, the minimum, a product, one after the other.

A part that says None of a completion ("does not apply") is left out of that completion's sum, minimum or product; the
weights of the others stay what they are. What every combination logs is said in :mod:`lm_gym.reward_models.parts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm_gym.reward_models.parts import Combination, numbers_for
from lm_gym.rewards import RewardModelError


class WeightedSum(Combination):
    """Σ_k w_k·R_k, over the parts that apply.

    Range: what weights and parts give; at most Σ_k |w_k|·max |R_k|. A part that does not apply counts as 0: where that
    is not its neutral value, move the part, for instance with :class:`Normalised`.

    Args:
        parts: reward models by name, or a list. weights: by the same names; 1 where none is given. Negative ones turn a
            reward into a cost.
    """

    kind = "sum"

    def __init__(self, parts: Mapping[str, Any] | Sequence[Any], weights: Mapping[str, float] | None = None) -> None:
        super().__init__(parts)
        self.weights = numbers_for(self.parts, weights, "sum: weight", 1.0)

    def combined(self, scores: np.ndarray, columns: Mapping[str, Sequence[Any]]) -> np.ndarray:
        return np.nansum(scores * np.array(list(self.weights.values())), axis=1)

    def settings(self) -> dict[str, Any]:
        return {"weights": self.weights}


class Minimum(Combination):
    """min_k R_k over the parts that apply: only what is worst pays, so that no part can be bought with another.

    Range: that of the parts, which should be on one scale (see :class:`Normalised`).
    """

    kind = "min"

    def combined(self, scores: np.ndarray, columns: Mapping[str, Sequence[Any]]) -> np.ndarray:
        return np.nanmin(scores, axis=1)


class Product(Combination):
    """∏_k R_k over the parts that apply, for parts that are never negative, such as probabilities and {0, 1} gates.

    Range: [0, ∏_k max R_k]. A negative score is an error: two of them would make a good one.
    """

    kind = "product"

    def combined(self, scores: np.ndarray, columns: Mapping[str, Sequence[Any]]) -> np.ndarray:
        if (scores < 0).any():
            row, part = np.argwhere(scores < 0)[0]
            raise RewardModelError(
                f"product: part {list(self.parts)[part]!r} is {scores[row, part]}, expected at least 0: the product of "
                "two negative scores would be positive. Move it to [0, 1], or take a sum or the minimum",
                row=int(row),
            )
        return np.nanprod(scores, axis=1)


class Lexicographic(Combination):
    """One part after the other: the first counts alone until it is satisfied, then the second, and so on.

    R = Σ_k (∏_{i<k} [u_i = 1])·u_k with u_k = clip((R_k − low_k)/(enough_k − low_k), 0, 1): how many parts in a row are
    satisfied, plus how far the next one is. Range: [0, K]. Of two completions the one with the higher R is the better
    one in the thresholded lexicographic order. A part that does not apply counts as satisfied.

    Source of the order: Gábor, Kalmár and Szepesvári, "Multi-criteria reinforcement learning", ICML 1998.

    Args:
        parts: reward models by name, the most important one first. ranges: for each of them (low, enough): the score
            that earns nothing, and the one from which the part is satisfied.
    """

    kind = "lexicographic"

    def __init__(self, parts: Mapping[str, Any] | Sequence[Any], ranges: Mapping[str, Sequence[float]]) -> None:
        super().__init__(parts)
        wrong = [name for name in ranges if not isinstance(ranges[name], (list, tuple)) or len(ranges[name]) != 2]
        missing = [name for name in self.parts if name not in ranges]
        if wrong or missing:
            raise ValueError(
                f"lexicographic: ranges of {(wrong or missing)[0]!r} expected two numbers, (low, enough): the score "
                "that earns nothing and the one that is enough"
            )
        low = numbers_for(self.parts, {name: pair[0] for name, pair in ranges.items()}, "lexicographic: low", 0.0)
        enough = numbers_for(self.parts, {name: pair[1] for name, pair in ranges.items()}, "lexicographic: enough", 0.0)
        self.ranges = {name: (low[name], enough[name]) for name in self.parts}
        for name, (bottom, top) in self.ranges.items():
            if not bottom < top:
                raise ValueError(f"lexicographic: ranges of {name!r} are ({bottom}, {top}); expected low below enough")

    def combined(self, scores: np.ndarray, columns: Mapping[str, Sequence[Any]]) -> np.ndarray:
        low, enough = np.array(list(self.ranges.values())).T
        progress = np.where(np.isnan(scores), 1.0, np.clip((scores - low) / (enough - low), 0.0, 1.0))
        satisfied = np.cumprod(progress == 1.0, axis=1)
        open_to = np.concatenate([np.ones((len(scores), 1)), satisfied[:, :-1]], axis=1)
        return (open_to * progress).sum(axis=1)

    def settings(self) -> dict[str, Any]:
        return {"ranges": self.ranges, "order": list(self.parts)}
