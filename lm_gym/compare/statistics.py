"""Statistics of a few runs a problem: interquartile means, bootstrap intervals, profiles, probability of improvement.

The definitions are those of Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical
Precipice" (arXiv:2108.13264). ``scores`` are everywhere a sequence of arrays, one a problem (a stratum), with a value a
run; the problems may have different numbers of runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
Interval = tuple[float, float]

RESAMPLES = 5000
"""Bootstrap samples behind an interval: its ends move by about 1 % of its width from one random stream to another."""


def iqm(values: ArrayLike) -> FloatArray:
    """The interquartile mean: of the sorted values, ⌊n/4⌋ at either end are left out (§4.3 of the paper).

    Args:
        values: (..., n), n ≥ 1. With n ≤ 3 nothing is left out: it is the mean.

    Returns:
        (...), the same unit.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64), axis=-1)
    if not ordered.shape[-1]:
        raise ValueError("expected at least one value for an interquartile mean, got none")
    cut = ordered.shape[-1] // 4
    return np.asarray(ordered[..., cut : ordered.shape[-1] - cut].mean(axis=-1))


def stratified_resamples(scores: Sequence[ArrayLike], resamples: int = RESAMPLES, seed: int = 0) -> list[FloatArray]:
    """Bootstrap samples: within each problem as many runs as there are, drawn with replacement (§4.1 of the paper).

    Args:
        scores: one array of n_k values a problem. resamples: R. seed: of the random stream; the same gives the same.

    Returns:
        One array (R, n_k) a problem.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for runs in scores:
        values = np.asarray(runs, dtype=np.float64)
        if values.ndim != 1 or not len(values):
            raise ValueError(f"expected at least one run a problem, in an array (n,), got the shape {values.shape}")
        drawn.append(values[rng.integers(0, len(values), (resamples, len(values)))])
    return drawn


def pooled_iqm(scores: Sequence[ArrayLike]) -> float:
    """The interquartile mean over all runs of all problems: one with more runs weighs more."""
    return float(iqm(np.concatenate([np.asarray(runs, dtype=np.float64) for runs in scores])))


def iqm_interval(scores: Sequence[ArrayLike], level: float = 0.95, resamples: int = RESAMPLES) -> Interval | None:
    """The percentile interval of :func:`pooled_iqm` under :func:`stratified_resamples`.

    Returns:
        (low, high); None where no problem has two runs: then there is nothing to resample.
    """
    if not _can_vary(scores):
        return None
    return _percentiles(iqm(np.concatenate(stratified_resamples(scores, resamples), axis=-1)), level)


def iqm_band(values: ArrayLike, level: float = 0.95, resamples: int = 1000) -> tuple[FloatArray, FloatArray]:
    """Pointwise intervals of the IQM over runs of a curve.

    Args:
        values: (n, G), a run a row. level, resamples: as everywhere.

    Returns:
        (G,) lower and (G,) upper ends. A run is drawn or left out as a whole.
    """
    runs = np.asarray(values, dtype=np.float64)
    (drawn,) = stratified_resamples([np.arange(len(runs))], resamples)
    middles = iqm(np.moveaxis(runs[drawn.astype(int)], 1, -1))
    low, high = np.quantile(middles, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def mean_band(values: ArrayLike, level: float = 0.95, resamples: int = 1000) -> tuple[FloatArray, FloatArray]:
    """Percentile intervals of the mean over runs of several numbers each.

    Args:
        values: (n, G), a run a row. level, resamples: as everywhere.

    Returns:
        (G,) lower and (G,) upper ends.
    """
    runs = np.asarray(values, dtype=np.float64)
    (drawn,) = stratified_resamples([np.arange(len(runs))], resamples)
    means = runs[drawn.astype(int)].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def profile(scores: Sequence[ArrayLike], thresholds: ArrayLike) -> FloatArray:
    """The run-score distribution P(score > τ), the mean over problems of the share of runs above τ (§4.2).

    Args:
        scores: (n_k,) a problem. thresholds: (T,) values of τ.

    Returns:
        (T,) shares, 1 to 0.
    """
    tau = np.asarray(thresholds, dtype=np.float64)
    above = [(np.asarray(runs, dtype=np.float64)[:, None] > tau).mean(axis=0) for runs in scores]
    return np.asarray(np.mean(above, axis=0))


def profile_band(
    scores: Sequence[ArrayLike], thresholds: ArrayLike, level: float = 0.95, resamples: int = 2000
) -> tuple[FloatArray, FloatArray] | None:
    """Pointwise percentile bands of :func:`profile`, (T,) lower and upper ends; None as in :func:`iqm_interval`."""
    if not _can_vary(scores):
        return None
    tau = np.asarray(thresholds, dtype=np.float64)
    above = [(runs[:, :, None] > tau).mean(axis=1) for runs in stratified_resamples(scores, resamples)]
    low, high = np.quantile(np.mean(above, axis=0), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def improvement(x: Sequence[ArrayLike], y: Sequence[ArrayLike]) -> float:
    """P(X > Y), the mean over problems of the share of pairs of runs that X wins, ties one half (§4.3).

    Args:
        x, y: (n_k,) and (m_k,) scores of two agents on the same problems, in the same order.
    """
    return float(np.mean([_wins(np.asarray(a)[None], np.asarray(b)[None])[0] for a, b in zip(x, y, strict=True)]))


def improvement_interval(
    x: Sequence[ArrayLike], y: Sequence[ArrayLike], level: float = 0.95, resamples: int = 2000
) -> Interval | None:
    """The percentile interval of :func:`improvement`; both agents are resampled. None as in :func:`iqm_interval`."""
    if not _can_vary(x) and not _can_vary(y):
        return None
    pairs = zip(stratified_resamples(x, resamples, 0), stratified_resamples(y, resamples, 1), strict=True)
    return _percentiles(np.mean([_wins(a, b) for a, b in pairs], axis=0), level)


def tokens_to(curve: Sequence[tuple[float, float]], target: float) -> float:
    """Tokens until J first reaches the target, linear between the curve's points.

    Args:
        curve: (tokens, J), tokens growing. target: of J.

    Returns:
        Tokens; ``inf`` where no point reaches the target.
    """
    before: tuple[float, float] | None = None
    for tokens, j in curve:
        if j >= target:
            if before is None:
                return float(tokens)
            share = (target - before[1]) / (j - before[1])
            return float(before[0] + share * (tokens - before[0]))
        before = (tokens, j)
    return float("inf")


def _wins(x: FloatArray, y: FloatArray) -> FloatArray:
    """(R,) shares of pairs with x above y, ties one half, from (R, n) and (R, m)."""
    difference = x[:, :, None] - y[:, None, :]
    return np.asarray((np.sign(difference) * 0.5 + 0.5).mean(axis=(1, 2)))


def _can_vary(scores: Sequence[ArrayLike]) -> bool:
    return any(np.size(runs) > 1 for runs in scores)


def _percentiles(values: FloatArray, level: float) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
