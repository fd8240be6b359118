"""The advantage that a group gives a text, in expectation over the rest of the group.

GRPO normalises a score within its group of n texts, A_i = (R_i − mean)/(std + ε). The mean and the std contain R_i and
n − 1 independent draws, so the expected advantage of a text with score r is a nonlinear function w(r) of r and of the
policy's score distribution. Training follows E[w(R)·∇log π], which is why the end point depends on n.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations_with_replacement
from math import comb

import numpy as np
from numpy.typing import NDArray

from lm_gym.exact.states import FloatArray, IntArray

MAX_MULTISETS = 20_000
MAX_GRID = 4_000_000
MAX_NUMBER = 10_000
MONTE_CARLO_GROUPS = 20_000


def group_advantage(scores: FloatArray, probs: FloatArray, group_size: int, ddof: int, eps: float) -> FloatArray:
    """(K,) w(r_k) = E[(r_k − mean)/(std + eps)] over groups of r_k and `group_size` − 1 draws from `probs`.

    Args:
        scores: (K,) distinct scores. probs: (K,) how likely each is.
        ddof: 1 for the sample standard deviation (as GRPO's code has it), 0 for the population's.

    Exact where it can be: by listing the multisets of n − 1 draws, or, for scores that are multiples of one number,
    from the joint distribution of sum and sum of squares (powers of a 2-D Fourier transform; error about 1e-11).
    Otherwise Monte Carlo over 20,000 groups from a fixed seed (standard error below .01 std).
    """
    others = group_size - 1
    if comb(len(scores) + others - 1, others) <= MAX_MULTISETS:
        sums, squares, weights = _by_multisets(scores, probs, others)
    else:
        lattice = _lattice(scores)
        if lattice is not None and _grid_size(lattice[0], others) <= MAX_GRID:
            sums, squares, weights = _by_fourier(*lattice, probs, others)
            scores = scores - lattice[2]
        else:
            sums, squares, weights = _by_sampling(scores, probs, others)
    out = np.empty(len(scores))
    for k, r in enumerate(scores):
        mean = (sums + r) / group_size
        variance = squares + r * r - group_size * mean**2
        # rounding leaves 1e-16 where all scores are equal, and its root would be felt beside eps
        variance[variance < 1e-13 * (1 + r * r)] = 0.0
        out[k] = np.sum(weights * (r - mean) / (np.sqrt(variance / (group_size - ddof)) + eps))
    return out


def _by_multisets(scores: FloatArray, probs: FloatArray, others: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(M,) sum, sum of squares and probability of every multiset of `others` draws."""
    draws, orders = _multisets(len(scores), others)
    drawn = scores[draws]
    return drawn.sum(axis=1), (drawn**2).sum(axis=1), orders * probs[draws].prod(axis=1)


@lru_cache(maxsize=8)
def _multisets(kinds: int, size: int) -> tuple[IntArray, FloatArray]:
    """(M, size) every multiset of `size` out of `kinds`, sorted, and (M,) in how many orders it can be drawn."""
    draws = np.array(list(combinations_with_replacement(range(kinds), size)), dtype=np.int64)
    orders, run = np.ones(len(draws)), np.ones(len(draws))
    for i in range(1, size):  # size!/Π count!, one draw at a time
        run = np.where(draws[:, i] == draws[:, i - 1], run + 1, 1)
        orders *= (i + 1) / run
    return draws, orders


def _lattice(scores: FloatArray) -> tuple[IntArray, float, float] | None:
    """(K,) whole numbers around 0, unit and origin with scores = origin + unit·number; None where there are none."""
    low = scores.min()
    unit = 0.0
    for difference in scores - low:
        a, b = max(unit, difference), min(unit, difference)
        while b > 1e-7 * a:
            a, b = b, a % b if a % b < b * (1 - 1e-7) else 0.0
        unit = a
    numbers = np.rint((scores - low) / unit).astype(np.int64) if unit > 0 else np.zeros(len(scores), dtype=np.int64)
    if numbers.max() > MAX_NUMBER or np.abs(low + unit * numbers - scores).max() > 1e-9 * (1 + np.abs(scores).max()):
        return None
    middle = int(numbers.max()) // 2
    return numbers - middle, unit, float(low + unit * middle)


def _grid_size(numbers: IntArray, others: int) -> int:
    return int((others * int(np.ptp(numbers)) + 1) * (others * int((numbers**2).max()) + 1))


def _by_fourier(
    numbers: IntArray, unit: float, _origin: float, probs: FloatArray, others: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(M,) sum, sum of squares (of scores less their origin) and probability, from the n-th power of a transform."""
    n_sums, n_squares = others * int(np.ptp(numbers)) + 1, others * int((numbers**2).max()) + 1
    grid = np.zeros((n_sums, n_squares))
    np.add.at(grid, (numbers % n_sums, numbers**2), probs)
    joint = np.fft.irfft2(np.fft.rfft2(grid) ** others, s=grid.shape)
    at: tuple[NDArray[np.intp], ...] = np.nonzero(joint > 1e-15)
    wrapped = at[0] > others * int(numbers.max())
    sums = np.where(wrapped, at[0] - n_sums, at[0]).astype(np.float64)
    weights = joint[at]
    return unit * sums, unit**2 * at[1].astype(np.float64), np.asarray(weights / weights.sum())


def _by_sampling(scores: FloatArray, probs: FloatArray, others: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(M,) sum, sum of squares and weight of sampled groups; the same uniforms at every call."""
    uniforms = np.random.default_rng(0).random((MONTE_CARLO_GROUPS, others))
    index = np.minimum(np.searchsorted(np.cumsum(probs), uniforms, side="right"), len(scores) - 1)
    draws = scores[index]
    sums = np.asarray(draws.sum(axis=1), dtype=np.float64)
    return sums, np.asarray((draws**2).sum(axis=1), dtype=np.float64), np.full(len(draws), 1.0 / len(draws))
