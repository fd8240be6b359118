"""Returns and advantages against arrays written by hand."""

import pytest
import torch

from lm_gym.advantages import (
    explained_variance,
    gae,
    group_mean,
    group_std,
    leave_one_out,
    masked_mean,
    mean,
    returns_to_go,
    whiten,
)

REWARDS = torch.tensor([[1.0, 2.0, 4.0, 9.0], [3.0, 9.0, 9.0, 9.0]])  # 9 stands behind the end: it must not count
VALUES = torch.tensor([[0.5, 1.0, -1.0, 9.0], [2.0, 9.0, 9.0, 9.0]])
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]).bool()


def test_gae_by_hand() -> None:
    """γ = .5, λ = .25: δ = (1 + .5·1 − .5, 2 + .5·(−1) − 1, 4 − (−1)) = (1, .5, 5), and γλ = 1/8."""
    advantages, returns = gae(REWARDS, VALUES, MASK, gamma=0.5, lam=0.25)
    a2, a1 = 5.0, 0.5 + 5.0 / 8
    a0 = 1.0 + a1 / 8
    torch.testing.assert_close(advantages, torch.tensor([[a0, a1, a2, 0.0], [1.0, 0.0, 0.0, 0.0]]))
    torch.testing.assert_close(returns, torch.tensor([[a0 + 0.5, a1 + 1.0, a2 - 1.0, 0.0], [3.0, 0.0, 0.0, 0.0]]))


def test_lambda_1_is_the_return_less_the_value() -> None:
    advantages, returns = gae(REWARDS, VALUES, MASK, gamma=1.0, lam=1.0)
    torch.testing.assert_close(returns, torch.tensor([[7.0, 6.0, 4.0, 0.0], [3.0, 0.0, 0.0, 0.0]]))
    torch.testing.assert_close(advantages, (returns - VALUES) * MASK)


def test_lambda_0_is_the_one_step_error() -> None:
    advantages, _ = gae(REWARDS, VALUES, MASK, gamma=1.0, lam=0.0)
    torch.testing.assert_close(advantages, torch.tensor([[1.5, 0.0, 5.0, 0.0], [1.0, 0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_gae_is_the_double_sum(gamma: float, lam: float) -> None:
    """A_t = Σ_l (γλ)^l δ_{t+l}, summed as it is written, for random texts of random lengths."""
    g = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(5, 9, generator=g).double(), torch.randn(5, 9, generator=g).double()
    lengths, bootstrap = torch.tensor([9, 1, 4, 6, 8]), torch.randn(5, generator=g).double()
    mask = torch.arange(9)[None] < lengths[:, None]
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam, bootstrap=bootstrap)
    for i, n in enumerate(lengths.tolist()):
        v = [*values[i, :n].tolist(), float(bootstrap[i])]
        delta = [float(rewards[i, t]) + gamma * v[t + 1] - v[t] for t in range(n)]
        for t in range(n):
            want = sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, n))
            assert float(advantages[i, t]) == pytest.approx(want, abs=1e-12)
            assert float(returns[i, t]) == pytest.approx(want + v[t], abs=1e-12)
        assert not advantages[i, n:].any() and not returns[i, n:].any()


def test_a_text_cut_off_bootstraps_and_one_that_ended_does_not() -> None:
    ended, _ = gae(REWARDS, VALUES, MASK, lam=1.0)
    cut, returns = gae(REWARDS, VALUES, MASK, gamma=0.5, lam=1.0, bootstrap=torch.tensor([8.0, 0.0]))
    plain, _ = gae(REWARDS, VALUES, MASK, gamma=0.5, lam=1.0)
    torch.testing.assert_close(cut[0] - plain[0], torch.tensor([1.0, 2.0, 4.0, 0.0]))  # 8·γ^3, 8·γ², 8·γ
    torch.testing.assert_close(cut[1], plain[1])
    assert float(returns[0, 2]) == 4.0 + 0.5 * 8.0 and float(ended[1, 0]) == 1.0


def test_what_stands_behind_the_end_changes_nothing() -> None:
    noisy_r, noisy_v = REWARDS.clone(), VALUES.clone()
    noisy_r[~MASK], noisy_v[~MASK] = float("nan"), float("inf")
    for one, other in zip(gae(REWARDS, VALUES, MASK), gae(noisy_r, noisy_v, MASK), strict=True):
        torch.testing.assert_close(one, other)


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"one shape \(B, T\), got \(2, 4\), \(2, 3\), \(2, 4\)"):
        gae(REWARDS, VALUES[:, :3], MASK)


def test_whitening_with_and_without_the_mean() -> None:
    x = torch.tensor([[1.0, 3.0, 99.0], [5.0, 99.0, 99.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    std = (8.0 / 3.0) ** 0.5  # of 1, 3, 5 (population)
    torch.testing.assert_close(whiten(x, mask), torch.tensor([[-2.0, 0.0, 0.0], [2.0, 0.0, 0.0]]) / std)
    kept = whiten(x, mask, shift_mean=False)
    torch.testing.assert_close(kept, torch.tensor([[-2 / std + 3, 3.0, 0.0], [2 / std + 3, 0.0, 0.0]]))
    assert float(masked_mean(kept, mask)) == pytest.approx(3.0)
    assert float(masked_mean(whiten(x, mask), mask)) == pytest.approx(0.0, abs=1e-6)


# .05 to .95, of which float32 means of 8 miss 15 by up to 6e-8; and scores beside which 1e-3 and more is rounding
SCORES = [*(i / 20 for i in range(1, 20)), 1.0, -0.9, 1.7, 100.3, 10_000.1, 1e6 + 0.1, 3e38]


@pytest.mark.parametrize("size", [2, 3, 4, 7, 8, 16, 33, 64])
def test_equal_numbers_have_advantage_0_to_the_bit(size: int) -> None:
    mask = torch.arange(5)[None] < (1 + torch.arange(size) % 5)[:, None]
    for score in SCORES:
        x = torch.full((3 * size,), score)
        for baseline in (group_mean(x, size), leave_one_out(x, size), mean(x).expand(len(x))):
            assert torch.equal(baseline, x), score
        assert not group_std(x, size).any()
        wide = torch.full((size, 5), score).masked_fill(~mask, torch.nan)  # what stands behind the end is not looked at
        assert torch.equal(whiten(wide, mask), torch.zeros(size, 5)), score
        assert torch.equal(whiten(wide, mask, shift_mean=False), wide.masked_fill(~mask, 0.0)), score
        flat = explained_variance(torch.randn(size, 5), wide, mask)
        assert flat != flat, "the variance of equal numbers is 0, and not rounding that something is divided by"


def test_unequal_numbers_are_what_they_are_in_float64() -> None:
    """Also beside a large common part, of which float32 keeps three digits behind the point."""
    noise = torch.Generator().manual_seed(5)
    mask = torch.rand(8, 6, generator=noise) < 0.7
    for shift, atol in ((0.0, 1e-6), (10_000.0, 1e-3)):
        x = shift + torch.randn(48, generator=noise)
        exact, n = x.double().view(6, 8), 8
        torch.testing.assert_close(
            (x - group_mean(x, n)).double(), (exact - exact.mean(-1, True)).flatten(), atol=atol, rtol=0
        )
        others = (exact.sum(-1, keepdim=True) - exact) / (n - 1)
        torch.testing.assert_close((x - leave_one_out(x, n)).double(), (exact - others).flatten(), atol=atol, rtol=0)
        torch.testing.assert_close(group_std(x, n).double()[::n], exact.std(-1), atol=1e-6, rtol=1e-6)
        kept = x.double().view(8, 6)[mask]
        want = (kept - kept.mean()) / kept.var(unbiased=False).add(1e-8).sqrt()
        torch.testing.assert_close(whiten(x.view(8, 6), mask)[mask].double(), want, atol=2 * atol, rtol=0)


def test_whitening_holds_for_the_largest_numbers_and_says_nothing_of_none() -> None:
    both = torch.ones(1, 2).bool()
    torch.testing.assert_close(whiten(torch.tensor([[1e20, 2e20]]), both), torch.tensor([[-1.0, 1.0]]))
    assert not whiten(torch.ones(1, 2), ~both).any() and masked_mean(torch.ones(1, 2), ~both).isnan()


def test_explained_variance() -> None:
    returns = torch.tensor([[1.0, 2.0, 3.0, 99.0]])
    mask = torch.tensor([[1, 1, 1, 0]]).bool()
    assert explained_variance(returns, returns, mask) == pytest.approx(1.0)
    assert explained_variance(torch.zeros(1, 4), returns, mask) == pytest.approx(0.0)
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3.0)  # Var(2r) = 4·Var(r)
    flat = explained_variance(returns, torch.ones(1, 4), mask)
    assert flat != flat


GROUPS = torch.tensor([1.0, 2.0, 6.0, 4.0, 4.0, 4.0])  # two prompts, three texts each


def test_returns_to_go_by_hand() -> None:
    """(1, 2, 4 | behind the end 9) and (3 | 9, 9, 9)."""
    torch.testing.assert_close(returns_to_go(REWARDS, MASK), torch.tensor([[7.0, 6.0, 4.0, 0.0], [3.0, 0.0, 0.0, 0.0]]))
    with pytest.raises(ValueError, match=r"one shape \(B, T\), got \(2, 4\), \(2, 3\)"):
        returns_to_go(REWARDS, MASK[:, :3])


def test_statistics_of_groups_by_hand() -> None:
    """Of 1, 2, 6: mean 3, sample variance (4 + 1 + 9)/2 = 7; the others' means are 4, 3.5, 1.5."""
    torch.testing.assert_close(group_mean(GROUPS, 3), torch.tensor([3.0, 3.0, 3.0, 4.0, 4.0, 4.0]))
    torch.testing.assert_close(group_std(GROUPS, 3), torch.tensor([7**0.5, 7**0.5, 7**0.5, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(leave_one_out(GROUPS, 3), torch.tensor([4.0, 3.5, 1.5, 4.0, 4.0, 4.0]))


def test_a_leave_one_out_advantage_is_the_groups_one_stretched() -> None:
    """R_i − Σ_{j≠i} R_j/(n − 1) = n/(n − 1)·(R_i − mean): Dr. GRPO's, but for the constant."""
    torch.testing.assert_close(GROUPS - leave_one_out(GROUPS, 3), 1.5 * (GROUPS - group_mean(GROUPS, 3)))


@pytest.mark.parametrize("size", [1, 4])
def test_groups_that_do_not_come_out_even_are_refused(size: int) -> None:
    for of_group in (group_mean, group_std, leave_one_out):
        with pytest.raises(ValueError, match=f"group_size={size}"):
            of_group(GROUPS, size)
