"""Returns, advantages and masked statistics: tensors in, tensors out. All shapes are (B, T) unless said otherwise.

Means and deviations are taken of the differences to one of the numbers. Of equal numbers the mean is then that number
and the deviation 0, to the bit. Summed as they stand, eight float32 scores of .9 have a mean that is off by 6e-8, and
what is left of each is an advantage: nothing for a gradient, but Adam divides a gradient by its own size, and takes
full steps on rounding alone.
"""

from __future__ import annotations

import torch


def gae(
    rewards: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    bootstrap: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438, eq. 16).

        δ_t = r_t + γ·V(s_{t+1}) − V(s_t);    A_t = Σ_l (γλ)^l·δ_{t+l};    return_t = A_t + V(s_t)

    Args:
        rewards, values: (B, T). mask: (B, T) bool, True on the T_i tokens of each text, which stand in front.
        bootstrap: (B,) V of the state after the last token, for texts cut off at the edge of a rollout; None: 0, there
            is no value beyond the end.

    Returns:
        advantages and returns, both zero behind the end.
    """
    if not rewards.shape == values.shape == mask.shape:
        raise ValueError(
            f"gae expected rewards, values and mask of one shape (B, T), got {tuple(rewards.shape)}, "
            f"{tuple(values.shape)}, {tuple(mask.shape)}"
        )
    rewards, values = rewards.masked_fill(~mask, 0.0), values.masked_fill(~mask, 0.0)
    last = mask.sum(-1) - 1
    after = torch.zeros_like(values)
    after[:, :-1] = values[:, 1:]
    if bootstrap is not None:
        after[torch.arange(len(last), device=last.device), last] = bootstrap
    deltas = rewards + gamma * after - values
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        running = (deltas[:, t] + gamma * lam * running) * mask[:, t]
        advantages[:, t] = running
    return advantages, (advantages + values) * mask


def returns_to_go(rewards: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, T) G_t = Σ_{i≥t} r_i, zero behind the end: what was earned from token t on, γ = 1.

    Sutton and Barto, Reinforcement Learning, 2nd ed., eq. 3.8.

    Args:
        rewards: (B, T). mask: (B, T) bool, True on the T_i tokens of each text, which stand in front.
    """
    if rewards.shape != mask.shape:
        raise ValueError(
            f"returns_to_go expected rewards and mask of one shape (B, T), got {tuple(rewards.shape)}, "
            f"{tuple(mask.shape)}"
        )
    return rewards.masked_fill(~mask, 0.0).flip(-1).cumsum(-1).flip(-1) * mask


def in_groups(x: torch.Tensor, group_size: int) -> torch.Tensor:
    """(B/n, n) from numbers of texts (B,), of which each n in a row have one prompt."""
    if x.dim() != 1 or group_size < 2 or len(x) % group_size:
        raise ValueError(
            "groups expected numbers of shape (B,), B a multiple of a group_size of at least 2, got shape "
            f"{tuple(x.shape)} and group_size={group_size}"
        )
    return x.reshape(-1, group_size)


def mean(x: torch.Tensor) -> torch.Tensor:
    """(...) the mean over the last dimension of numbers (..., n): where all n are equal, exactly that number."""
    first = x[..., :1]
    return (first + (x - first).mean(-1, keepdim=True)).squeeze(-1)


def group_mean(x: torch.Tensor, group_size: int) -> torch.Tensor:
    """(B,) the mean of each text's group, the text itself included, of (B,) numbers."""
    return mean(in_groups(x, group_size)).repeat_interleave(group_size)


def group_std(x: torch.Tensor, group_size: int) -> torch.Tensor:
    """(B,) the sample standard deviation (n − 1) of each text's group, of (B,) numbers."""
    groups = in_groups(x, group_size)
    return (groups - groups[:, :1]).std(-1).repeat_interleave(group_size)


def leave_one_out(x: torch.Tensor, group_size: int) -> torch.Tensor:
    """(B,) the mean of the other n − 1 texts of each text's group, of (B,) numbers.

    b_i = Σ_{j≠i} x_j/(n − 1), independent of text i, so that x_i − b_i is without bias (Kool et al. 2019, "Buy 4
    REINFORCE samples, get a baseline for free!"; Ahmadian et al. 2024, arXiv:2402.14740, eq. 8).
    """
    groups = in_groups(x, group_size)
    first = groups[:, :1]
    apart = groups - first
    return (first + (apart.sum(-1, keepdim=True) - apart) / (group_size - 1)).reshape(-1)


def masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the True positions of ``mask``; a scalar tensor, NaN where there are none."""
    mask = mask.bool()
    return mean(x[mask]) if mask.any() else x.new_full((), torch.nan)


def whiten(x: torch.Tensor, mask: torch.Tensor, *, shift_mean: bool = True) -> torch.Tensor:
    """Divide by the standard deviation over the masked positions, with mean 0 or, without ``shift_mean``, the old mean.

    Advantages are shifted. Rewards are not: their mean is what they say of the text.
    """
    mask = mask.bool()
    centre = masked_mean(x, mask)
    # in float64, where the square of any float32 is finite
    out = (x - centre) * torch.rsqrt(masked_mean((x - centre).double().square(), mask) + 1e-8).to(x.dtype)
    return (out if shift_mean else out + centre).masked_fill(~mask, 0.0)


def explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> float:
    """1 − Var(returns − values)/Var(returns) over the masked positions: 1 is perfect, 0 as good as a constant."""
    mask = mask.bool()
    r, error = returns[mask], (returns - values)[mask]
    if not len(r) or bool((r == r[0]).all()):
        return float("nan")
    return float(1 - (error - error[0]).var(unbiased=False) / (r - r[0]).var(unbiased=False))
