"""Agreement figures equal those of `krippendorff` and scikit-learn; intervals cover what they should."""

import krippendorff
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from lm_gym.annotate.agreement import SCALE, cohen_kappa, ordinal_alpha, wilson


def ratings(seed: int, *, annotators: int = 5, items: int = 60, noise: float = 1.0, missing: float = 0.4) -> np.ndarray:
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 1.5, items)
    given = np.clip(np.rint(truth + rng.normal(0, noise, (annotators, items))), -3, 3)
    given[rng.random((annotators, items)) < missing] = np.nan
    return given


@pytest.mark.parametrize("noise", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("seed", range(4))
def test_alpha_is_that_of_krippendorff(seed: int, noise: float) -> None:
    data = ratings(seed, noise=noise)
    found = ordinal_alpha(data, resamples=200)
    assert found is not None
    assert found.value == pytest.approx(krippendorff.alpha(data, level_of_measurement="ordinal"), abs=1e-12)
    assert found.low <= found.value <= found.high
    assert found.items == int(((~np.isnan(data)).sum(0) >= 2).sum())


def test_alpha_where_levels_are_unused_and_by_hand() -> None:
    data = np.array([[-3, 3, 3, -3], [-3, 3, -3, -3]], dtype=float)
    found = ordinal_alpha(data)
    # Two levels: coincidences 4 and 2 on the diagonal, 1 + 1 beside it; D_o = 2/8, D_e = 2*5*3/(8*7).
    assert found is not None and found.value == pytest.approx(1 - (2 / 8) / (30 / 56))
    perfect = ordinal_alpha(np.array([[1, 2, -3], [1, 2, -3]], dtype=float))
    assert perfect is not None and perfect.value == perfect.high == 1


@pytest.mark.parametrize("data", [[[1, 2, 3]], [[1, 1], [1, 1]], [[np.nan, 1], [2, np.nan]], [[np.nan]]])
def test_alpha_is_none_where_it_is_not_defined(data: list) -> None:
    assert ordinal_alpha(np.array(data, dtype=float)) is None


def test_a_rating_off_the_scale_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected the levels .* got 2.5"):
        ordinal_alpha(np.array([[2.5, 1], [1, 1]]))


def test_the_interval_of_alpha_covers_the_value_of_many_items() -> None:
    many = ordinal_alpha(ratings(99, items=20_000, missing=0.0), resamples=10)
    assert many is not None
    found = [ordinal_alpha(ratings(seed, items=80, missing=0.0), resamples=300) for seed in range(60)]
    covered = [a.low <= many.value <= a.high for a in found if a is not None]
    assert len(covered) == 60 and 0.85 <= np.mean(covered) <= 1.0


@pytest.mark.parametrize("weights", ["none", "linear", "quadratic"])
@pytest.mark.parametrize("seed", range(4))
def test_kappa_is_that_of_scikit_learn(seed: int, weights: str) -> None:
    first, second = ratings(seed, annotators=2, missing=0.0)
    expected = cohen_kappa_score(first, second, labels=list(SCALE), weights=None if weights == "none" else weights)
    assert cohen_kappa(list(first), list(second), levels=SCALE, weights=weights) == pytest.approx(expected, abs=1e-12)  # type: ignore[arg-type]


def test_kappa_is_none_where_it_is_not_defined() -> None:
    assert cohen_kappa([], [], levels=SCALE) is None
    assert cohen_kappa([1, 1], [1, 1], levels=SCALE) is None
    with pytest.raises(ValueError, match="the same items"):
        cohen_kappa([1], [1, 2], levels=SCALE)


def test_wilson_by_hand() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775328), abs=1e-6)
