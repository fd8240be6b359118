"""Statistics against scipy, against numbers worked out by hand, and against their own promise (coverage)."""

import math

import numpy as np
import pytest
import scipy.stats

from lm_gym.compare.statistics import (
    improvement,
    improvement_interval,
    iqm,
    iqm_band,
    iqm_interval,
    pooled_iqm,
    profile,
    profile_band,
    stratified_resamples,
    tokens_to,
)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 10, 23])
def test_the_iqm_is_scipys_trimmed_mean(count: int) -> None:
    values = np.random.default_rng(count).lognormal(size=count)
    assert iqm(values) == pytest.approx(scipy.stats.trim_mean(values, 0.25), abs=1e-14)


def test_the_iqm_leaves_out_a_quarter_at_either_end() -> None:
    assert iqm([100.0, 1.0, 2.0, 3.0, -50.0]) == 2.0
    with pytest.raises(ValueError, match="at least one value"):
        iqm([])


def test_the_iqm_of_several_problems_pools_their_runs() -> None:
    assert pooled_iqm([[0.0, 1.0], [2.0, 9.0]]) == 1.5


def test_the_interval_of_one_problem_is_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(3).normal(size=12)
    interval = iqm_interval([values], resamples=40_000)
    theirs = scipy.stats.bootstrap(
        (values,), iqm, n_resamples=40_000, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    # Two random streams: an end of 40,000 resamples moves by less than a hundredth of the width.
    assert interval == pytest.approx((theirs.low, theirs.high), abs=0.02 * (theirs.high - theirs.low))


def test_seeds_are_drawn_within_their_problem() -> None:
    first, second = stratified_resamples([[1.0, 2.0], [10.0, 20.0, 30.0]], resamples=200)
    assert first.shape == (200, 2) and second.shape == (200, 3)
    assert set(first.ravel()) == {1.0, 2.0} and set(second.ravel()) == {10.0, 20.0, 30.0}
    # Between problems there is a distance of 100, and none of it reaches the interval: that is what strata are for.
    low, high = iqm_interval([[0.0, 0.1], [100.0, 100.1]])
    assert (low, high) == pytest.approx((50.0, 50.1))
    with pytest.raises(ValueError, match="at least one run"):
        stratified_resamples([[1.0], []])


def test_one_run_has_no_interval() -> None:
    assert iqm_interval([[1.0], [2.0]]) is None
    assert profile_band([[1.0]], [0.0]) is None
    assert improvement_interval([[1.0]], [[2.0]]) is None
    assert iqm_interval([[1.0], [2.0, 3.0]]) is not None


@pytest.mark.parametrize(("seeds", "at_least", "at_most"), [(20, 0.9, 0.97), (5, 0.83, 0.93), (2, 0.42, 0.58)])
def test_how_often_the_interval_holds_the_truth(seeds: int, at_least: float, at_most: float) -> None:
    """Normal runs, true IQM 0: .94 with 20 seeds; with two, half of the time (the chance that 0 is between them)."""
    rng = np.random.default_rng(11)
    intervals = [iqm_interval([rng.normal(size=seeds)], resamples=500) for _ in range(400)]
    held = np.mean([low <= 0 <= high for low, high in intervals])
    assert at_least < held < at_most


def test_a_profile_by_hand() -> None:
    # Two problems: above .5 are 1 of 2 and 2 of 3 runs; a run at τ is not above it.
    scores = [[0.2, 0.9], [0.5, 0.6, 1.0]]
    assert profile(scores, [0.0, 0.5, 0.95, 1.0]) == pytest.approx([1, (1 / 2 + 2 / 3) / 2, (0 + 1 / 3) / 2, 0])


def test_a_profile_band_by_hand() -> None:
    # Two runs, one above τ: the resampled share is 0, ½, 1 with chances ¼, ½, ¼.
    low, high = profile_band([[0.0, 1.0]], [-1.0, 0.5, 2.0], level=0.95)
    assert low == pytest.approx([1, 0, 0]) and high == pytest.approx([1, 1, 0])
    low, high = profile_band([[0.0, 1.0]], [0.5], level=0.4)
    assert (low, high) == (0.5, 0.5)


def test_the_probability_of_improvement_by_hand() -> None:
    # First problem: 2 beats 1 and ties with 2, 4 beats both: 3.5 of 4. Second: 0 loses to both.
    x, y = [[2.0, 4.0], [0.0]], [[1.0, 2.0], [1.0, 3.0]]
    assert improvement(x, y) == pytest.approx((3.5 / 4 + 0) / 2)
    assert improvement(x, y) + improvement(y, x) == 1
    wins = scipy.stats.mannwhitneyu([2.0, 4.0], [1.0, 2.0]).statistic
    assert improvement(x[:1], y[:1]) == wins / 4
    with pytest.raises(ValueError):
        improvement(x, y[:1])


def test_the_interval_of_improvement_resamples_both_agents() -> None:
    # x is (0, 2), y is (1, 1): the share of wins is that of twos among x, whatever happens to y.
    low, high = improvement_interval([[0.0, 2.0]], [[1.0, 1.0]])
    assert (low, high) == (0, 1)
    assert improvement_interval([[1.0, 1.0]], [[0.0, 2.0]]) == (0, 1)
    assert improvement_interval([[3.0, 2.0]], [[1.0, 0.0]]) == (1, 1)


def test_a_curve_is_drawn_or_left_out_as_a_whole() -> None:
    low, high = iqm_band([[0.0, 10.0, 1.0], [1.0, 0.0, 1.0]])
    assert low == pytest.approx([0, 0, 1]) and high == pytest.approx([1, 10, 1])


CURVE = ((0, 1.0), (100, 2.0), (200, 1.5), (300, 4.0))


@pytest.mark.parametrize(
    ("target", "tokens"),
    [(0.5, 0), (1.0, 0), (1.5, 50), (2.0, 100), (3.0, 260), (4.0, 300), (4.01, math.inf)],
)
def test_tokens_to_a_target_by_hand(target: float, tokens: float) -> None:
    """The first crossing counts, also where the curve falls again behind it."""
    assert tokens_to(CURVE, target) == pytest.approx(tokens)
