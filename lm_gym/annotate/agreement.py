"""How far annotators agree beyond chance: Krippendorff's α with an interval, Cohen's κ, Wilson's interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

SCALE = tuple(range(-3, 4))
DRAWS_AT_ONCE = 2_000_000
"""Numbers of one array of resampled items: 16 MB."""


@dataclass(frozen=True)
class Alpha:
    """Krippendorff's α: 1 full agreement, 0 what chance gives, below 0 systematic disagreement."""

    value: float
    low: float
    high: float
    """Percentile interval over resampled items."""
    items: int
    """Items with at least two answers: the others say nothing about agreement."""


def ordinal_alpha(
    ratings: np.ndarray,
    *,
    levels: Sequence[float] = SCALE,
    resamples: int = 1000,
    seed: int = 0,
    coverage: float = 0.95,
) -> Alpha | None:
    """Krippendorff's α for ordinal data, with a bootstrap interval over items.

    α = 1 − D_o/D_e with δ²(c, k) = (Σ_{g=c..k} n_g − (n_c + n_k)/2)², where n_g counts the pairable values of level g
    (Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011, section E). The interval resamples items, as the
    answers to one item belong together; a resample in which every value is the same has no α and is left out.

    Args:
        ratings: (annotators, items), NaN where there is no answer.
        levels: the values that the scale has, in order.

    Returns:
        None where α is not defined: no item with two answers, or all of them the same.

    Raises:
        ValueError: a rating that is not one of `levels`.
    """
    ratings = np.asarray(ratings, dtype=np.float64)
    order = np.asarray(levels, dtype=np.float64)
    known = ~np.isnan(ratings)
    if not np.isin(ratings[known], order).all():
        odd = ratings[known][~np.isin(ratings[known], order)][0]
        raise ValueError(f"ratings expected the levels {list(levels)}, got {odd}")
    counts = np.stack([(ratings == level).sum(0) for level in order], axis=1).astype(np.float64)  # (items, levels)
    counts = counts[counts.sum(1) >= 2]
    if len(counts) == 0:
        return None
    sizes = counts.sum(1)
    # Coincidences of one item: ordered pairs of values of different annotators, weighted by 1/(m_u - 1).
    together = counts[:, :, None] * counts[:, None, :] - np.einsum("uc,cd->ucd", counts, np.eye(len(order)))
    together /= (sizes - 1)[:, None, None]
    value = _alpha(together.sum(0)[None])[0]
    if math.isnan(value):
        return None
    rng = np.random.default_rng(seed)
    flat = together.reshape(len(counts), -1)
    shares = np.full(len(counts), 1 / len(counts))
    part = max(1, DRAWS_AT_ONCE // len(counts))
    sums = [
        rng.multinomial(len(counts), shares, size=min(part, resamples - start)) @ flat
        for start in range(0, resamples, part)
    ]
    alphas = _alpha(np.concatenate(sums).reshape(resamples, len(order), len(order)))
    alphas = alphas[~np.isnan(alphas)]
    tail = (1 - coverage) / 2
    low, high = np.quantile(alphas, [tail, 1 - tail])
    return Alpha(float(value), float(low), float(high), len(counts))


def _alpha(coincidences: np.ndarray) -> np.ndarray:
    """α of (B, levels, levels) coincidence matrices, NaN where all values are the same."""
    n = coincidences.sum(2)  # (B, levels)
    total = n.sum(1)
    upto = np.cumsum(n, axis=1)
    # Σ_{g=c..k} n_g − (n_c + n_k)/2 for c <= k, and its mirror image: the distance between the levels' middle ranks.
    middle = upto - n / 2
    distance = (middle[:, :, None] - middle[:, None, :]) ** 2
    observed = (coincidences * distance).sum((1, 2))
    expected = (n[:, :, None] * n[:, None, :] * distance).sum((1, 2)) / (total - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected > 0, 1 - observed / expected, np.nan)


def cohen_kappa(
    first: Sequence[float],
    second: Sequence[float],
    *,
    levels: Sequence[float],
    weights: Literal["none", "linear", "quadratic"] = "none",
) -> float | None:
    """Cohen's κ of two annotators over the items that both answered (Cohen 1960; weighted: Cohen 1968).

    κ = 1 − Σ w·o / Σ w·e, with o the observed and e the expected shares of pairs of levels, and w 0 on the diagonal, 1
    elsewhere, or the (squared) distance of the levels' places.

    Returns:
        None where κ is not defined: no items, or both annotators always gave the same level.
    """
    if len(first) != len(second):
        raise ValueError(f"expected answers to the same items, got {len(first)} and {len(second)}")
    places = {level: place for place, level in enumerate(levels)}
    observed = np.zeros((len(places), len(places)))
    for x, y in zip(first, second):
        observed[places[x], places[y]] += 1
    apart = np.abs(np.subtract.outer(np.arange(len(places)), np.arange(len(places)))).astype(np.float64)
    weight = {"none": (apart > 0).astype(np.float64), "linear": apart, "quadratic": apart**2}[weights]
    total = observed.sum()
    expected = np.outer(observed.sum(1), observed.sum(0)) / total if total else observed
    chance = (weight * expected).sum()
    return None if chance == 0 else float(1 - (weight * observed).sum() / chance)


def wilson(hits: int, n: int, *, z: float = 1.959964) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927); (0, 1) without a case."""
    if n == 0:
        return 0.0, 1.0
    share = hits / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)
