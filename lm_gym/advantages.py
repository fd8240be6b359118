"""Returns, advantages and masked statistics: tensors in, tensors out. All shapes are (B, T) unless said otherwise."""

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


def masked_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the True positions of ``mask``; a scalar tensor."""
    return (x * mask).sum() / mask.sum()


def whiten(x: torch.Tensor, mask: torch.Tensor, *, shift_mean: bool = True) -> torch.Tensor:
    """Divide by the standard deviation over the masked positions, with mean 0 or, without ``shift_mean``, the old mean.

    Advantages are shifted. Rewards are not: their mean is what they say of the text.
    """
    mean = masked_mean(x, mask)
    var = masked_mean((x - mean).square(), mask)
    out = (x - mean) * torch.rsqrt(var + 1e-8)
    if not shift_mean:
        out = out + mean
    return out * mask


def explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> float:
    """1 − Var(returns − values)/Var(returns) over the masked positions: 1 is perfect, 0 as good as a constant."""
    r, v = returns[mask], values[mask]
    var = r.var(unbiased=False)
    return float("nan") if var == 0 else float(1 - (r - v).var(unbiased=False) / var)
