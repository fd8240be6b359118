"""Losses per token and their weights against numbers worked out by hand, also where log-probs are far apart."""

import math

import pytest
import torch

from lm_gym.kl import estimate, exact, exact_and_entropy
from lm_gym.losses import AGGREGATIONS, entropy, policy_loss, weights

MASK = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
FAR = [79.0, 80.0, 88.0, 89.0, 100.0, 300.0, 1000.0]
"""Nats: float32 holds e^88."""


@pytest.mark.parametrize(
    ("aggregation", "words"),
    [
        ("token-mean", "aggregation expected one of .*got 'token-mean'; did you mean 'token_mean'"),
        ("seq_mean", "did you mean 'sequence_mean'"),
        ("", "got ''$"),
        (None, "got None$"),
        ("constant", "expected longest, the tokens that a text may have, got None"),
    ],
)
def test_an_aggregation_that_is_none_is_refused_and_not_taken_for_a_sum(aggregation: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        weights(MASK, aggregation)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_minibatch_without_tokens_weighs_nothing(aggregation: str) -> None:
    assert torch.equal(weights(torch.zeros(2, 3).bool(), aggregation, longest=5), torch.zeros(2, 3)), "0, and not NaN"


def loss_and_slope(log_ratio: float, advantage: float, clip: float | None = 0.2) -> tuple[float, float]:
    new = torch.tensor([log_ratio - 1.0], requires_grad=True)
    loss, _ = policy_loss(new, torch.tensor([-1.0]), torch.tensor([advantage]), clip)
    loss.sum().backward()
    assert new.grad is not None
    return float(loss.detach()), float(new.grad)


@pytest.mark.parametrize("log_ratio", FAR)
def test_the_clipped_loss_stays_a_number_however_far_the_policies_are_apart(log_ratio: float) -> None:
    assert loss_and_slope(log_ratio, 2.0) == (pytest.approx(-2.4), 0.0), (
        "the clip holds, and the slope is 0 and not NaN"
    )
    assert loss_and_slope(log_ratio, 0.0) == (0.0, 0.0)
    for clip in (0.2, None):
        loss, slope = loss_and_slope(log_ratio, -2.0, clip)
        assert 1e34 < loss < math.inf and 1e34 < slope < math.inf, (
            "the token is pushed down, as far as a number can say"
        )
    assert loss_and_slope(-log_ratio, 2.0) == (pytest.approx(0.0, abs=1e-30), pytest.approx(0.0, abs=1e-30))
    assert loss_and_slope(-log_ratio, -2.0) == (pytest.approx(1.6), 0.0)


@pytest.mark.parametrize("log_ratio", [-20.0, -1.0, 0.0, 1e-3, 1.0, 30.0, 75.0])
def test_below_that_it_is_the_exponential_to_the_bit(log_ratio: float) -> None:
    assert loss_and_slope(log_ratio, -1.0, None) == (float(torch.tensor(log_ratio - 1.0).add(1).exp()),) * 2


@pytest.mark.parametrize("log_ratio", [1e4, 6e4, 1e30, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_beyond_all_reason_it_is_a_number_still(dtype: torch.dtype, log_ratio: float) -> None:
    for advantage in (2.0, 0.0, -2.0) if dtype != torch.float16 else (0.0, -1.0):
        new = torch.tensor([log_ratio], dtype=dtype, requires_grad=True)
        loss, _ = policy_loss(new, torch.zeros(1, dtype=dtype), torch.tensor([advantage], dtype=dtype), None)
        loss.sum().backward()
        assert new.grad is not None and bool(loss.isfinite().all() and new.grad.isfinite().all())
        assert advantage or float(loss.detach()) == 0.0
    if log_ratio < math.inf and dtype != torch.float16:
        k3 = estimate(torch.tensor([-log_ratio], dtype=dtype), torch.zeros(1, dtype=dtype), "k3")
        assert bool(k3.isfinite() & (k3 > 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_k3_is_a_number_that_rises_and_pulls_back(dtype: torch.dtype) -> None:
    """A token that π all but excludes: k3 = e^x − 1 − x, and its slope 1 − e^x by log π, up to 79.8 nats."""
    values = []
    for x in [1.0, 5.0, 30.0, 75.0, *FAR]:
        logp = torch.tensor([-x], dtype=dtype, requires_grad=True)
        k3 = estimate(logp, torch.zeros(1, dtype=dtype), "k3")
        k3.backward()
        assert logp.grad is not None
        values.append(float(k3.detach()))
        assert math.isfinite(values[-1]) and -math.inf < float(logp.grad) <= 1 - math.exp(min(x, 75.0)) * 0.99
        if x <= 75.0:
            assert values[-1] == pytest.approx(math.expm1(x) - x, rel=1e-2 if dtype == torch.bfloat16 else 1e-6)
    assert values == sorted(set(values))
    small = estimate(torch.tensor([100.0]), torch.zeros(1), "k3")  # the other side never overflowed: e^−100 − 1 + 100
    assert float(small) == 99.0


def test_exact_values_where_a_probability_is_0_on_either_side() -> None:
    """The token that the reference excludes has probability e^−200 = 0 in float32: it adds nothing, and no NaN."""
    logp, ref = torch.tensor([[0.0, -200.0]]), torch.tensor([[-1.0, -math.inf]])
    assert float(exact(logp, ref)) == 1.0
    assert [float(x) for x in exact_and_entropy(logp, ref)] == [1.0, 0.0]
    assert float(entropy(torch.tensor([0.0, -math.inf]))) == 0.0
