"""KL against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch

from lm_gym import kl

# one state, three tokens: π = (1/2, 1/2, 0), π_ref = (1/4, 1/2, 1/4)
PI = torch.tensor([0.5, 0.5, 0.0])
REF = torch.tensor([0.25, 0.5, 0.25])


def test_exact_kl_of_a_masked_policy() -> None:
    # ½·log 2 + ½·log 1: the token of probability 0 adds nothing, and no NaN
    assert kl.exact(PI.log(), REF.log()).item() == pytest.approx(0.5 * math.log(2), abs=1e-7)
    assert kl.exact(REF.log(), REF.log()).item() == 0.0


def test_exact_kl_and_entropy_together() -> None:
    logp = torch.stack([PI.log(), REF.log()])
    found, entropy = kl.exact_and_entropy(logp, REF.log().expand(2, 3))
    assert found.tolist() == pytest.approx([0.5 * math.log(2), 0.0], abs=1e-7)
    assert entropy.tolist() == pytest.approx([math.log(2), 1.5 * math.log(2)], abs=1e-7)


def test_exact_kl_has_a_gradient_where_the_policy_is_masked() -> None:
    logits = torch.tensor([0.3, -0.2, 1.0], requires_grad=True)
    masked = logits.masked_fill(torch.tensor([False, False, True]), -torch.inf)
    kl.exact(torch.log_softmax(masked, -1), REF.log()).backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all() and logits.grad[2] == 0


@pytest.mark.parametrize(("estimator", "want"), [("k1", math.log(2)), ("k2", 0.5 * math.log(2) ** 2), ("k3", 0.193147)])
def test_estimators_by_hand(estimator: str, want: float) -> None:
    # a token that π takes twice as often as π_ref: k3 = exp(−log 2) − 1 + log 2 = log 2 − ½
    got = kl.estimate(PI[:1].log(), REF[:1].log(), estimator)
    assert got.item() == pytest.approx(want, abs=1e-6)


def test_k1_and_k3_are_unbiased_and_k2_is_not() -> None:
    pi, ref = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.2, 0.5, 0.3])
    truth = kl.exact(pi.log(), ref.log()).item()
    mean = {e: float((pi * kl.estimate(pi.log(), ref.log(), e)).sum()) for e in ("k1", "k2", "k3")}
    assert mean["k1"] == pytest.approx(truth, abs=1e-6)
    assert mean["k3"] == pytest.approx(truth, abs=1e-6)
    assert abs(mean["k2"] - truth) > 0.01


def test_gradients_of_the_estimators_as_losses() -> None:
    """E_π[∇ k1] = 0, E_π[∇ k2] = ∇KL(π‖π_ref), E_π[∇ k3] = ∇KL(π_ref‖π)."""
    ref = torch.tensor([0.2, 0.5, 0.3]).log()
    logits = torch.tensor([0.5, -0.3, 0.1], requires_grad=True)

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(loss, logits, retain_graph=True)[0]

    logp = torch.log_softmax(logits, -1)
    p = logp.exp().detach()
    expected = {e: gradient((p * kl.estimate(logp, ref, e)).sum()) for e in ("k1", "k2", "k3")}
    torch.testing.assert_close(expected["k1"], torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(expected["k2"], gradient(kl.exact(logp, ref)), atol=1e-6, rtol=0)
    torch.testing.assert_close(expected["k3"], gradient(kl.exact(ref, logp)), atol=1e-6, rtol=0)


def test_an_unknown_estimator_is_refused() -> None:
    with pytest.raises(ValueError, match="'k1', 'k2' or 'k3', got 'k4'"):
        kl.estimate(torch.zeros(1), torch.zeros(1), "k4")


def test_shape_adds_the_agents_half() -> None:
    rewards, logprobs = np.array([-0.2, -0.4, 1.0]), np.array([-1.0, -2.0, -0.5])
    np.testing.assert_allclose(kl.shape(rewards, logprobs, 0.1), [-0.1, -0.2, 1.05])
    assert kl.shape(-0.2, -1.0, 0.1) == pytest.approx(-0.1)
    torch.testing.assert_close(kl.shape(torch.ones(2), -torch.ones(2), 0.5), torch.full((2,), 1.5))
    with pytest.raises(ValueError, match=r"rewards' shape \(3,\), got \(2,\)"):
        kl.shape(rewards, logprobs[:2], 0.1)


def test_adaptive_kl_by_the_number_of_the_design() -> None:
    controller = kl.AdaptiveKL(0.15, target=6, horizon=10_000)
    assert controller.update(12.0, 512) == pytest.approx(0.151536, abs=1e-9)  # the error of +1 is clipped to +.2
    low = kl.AdaptiveKL(0.15, target=6, horizon=10_000)
    assert low.update(5.4, 512) == pytest.approx(0.15 * (1 - 0.1 * 0.0512), abs=1e-12)
    again = kl.AdaptiveKL(1.0, target=6, horizon=10_000)
    again.load_state_dict(controller.state_dict())
    assert again.value == controller.value


@pytest.mark.parametrize("kl_now", [0.0, 5.9, 6.1, math.inf])
@pytest.mark.parametrize(("n", "horizon"), [(128, 26), (64, 13), (1, 1), (512, 10_000)])
def test_the_coefficient_stays_above_0(n: int, horizon: int, kl_now: float) -> None:
    controller = kl.AdaptiveKL(0.05, target=6, horizon=horizon)
    assert all(controller.update(kl_now, n) > 0 for _ in range(20))


def test_the_coefficient_can_always_come_back() -> None:
    """Over 3,000 updates on one side it became 0, or infinite, from which no factor leads back."""
    for kl_now, back in ((0.0, 100.0), (100.0, 0.0)):
        controller = kl.AdaptiveKL(0.05, target=6, horizon=17)
        for _ in range(3000):
            controller.update(kl_now, 80)
        assert 0 < controller.value < math.inf
        edge = controller.value
        for _ in range(60):
            controller.update(back, 80)
        assert (controller.value - 0.05) * (edge - 0.05) < 0, "60 updates on the other side lead across"


@pytest.mark.parametrize(("n", "horizon"), [(128, 20), (128, 25), (64, 10), (5, 1)])
def test_updates_that_could_turn_the_coefficient_negative_are_refused(n: int, horizon: int) -> None:
    controller = kl.AdaptiveKL(0.05, target=6, horizon=horizon)
    with pytest.raises(
        ValueError, match=rf"kl_horizon expected above {n / 5:g} for updates of {n} texts .*counts texts"
    ):
        controller.update(0.0, n)
    with pytest.raises(ValueError, match="got NaN"):
        controller.update(math.nan, 1 if horizon > 1 else 4)


@pytest.mark.parametrize(
    "wrong", [{"init": 0.0}, {"target": 0.0}, {"horizon": -1}, {"horizon": 0}, {"init": math.nan}, {"target": math.inf}]
)
def test_adaptive_kl_refuses_what_would_never_move(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        kl.AdaptiveKL(**{"init": 0.1, "target": 6.0, "horizon": 100, **wrong})  # type: ignore[arg-type]
