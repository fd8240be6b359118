"""Losses per token and how they are averaged: tensors in, tensors out. Shapes are (n,) or (B, T), whatever comes."""

from __future__ import annotations

import torch

from lm_gym.choices import check_choice
from lm_gym.ratios import exp

AGGREGATIONS = ("token_mean", "sequence_mean", "sequence_sum", "constant")


def policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    clip_range: float | None,
    clip_range_high: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clipped surrogate per token (Schulman et al. 2017, arXiv:1707.06347, eq. 7), and where the clip took hold.

        −min(ρ·A, clip(ρ, 1 − ε, 1 + ε_high)·A),    ρ = π(a_t|s_t)/π_old(a_t|s_t)

    ρ is :func:`lm_gym.ratios.exp` of the log-ratio: however large that is, loss and gradient are finite.

    Args:
        logprobs, old_logprobs, advantages: one number a token, one shape.
        clip_range: ε; None: −ρ·A, whose gradient where ρ = 1 is REINFORCE's, that of −A·log π.
        clip_range_high: ε_high (DAPO's clip-higher, arXiv:2503.14476); None: ε.
    """
    ratio = exp(logprobs - old_logprobs)
    free = -advantages * ratio
    if clip_range is None:
        return free, torch.zeros_like(free, dtype=torch.bool)
    high = clip_range if clip_range_high is None else clip_range_high
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + high)
    return torch.maximum(free, clipped), clipped > free


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, clip_range: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """½·max((V − ret)², (clip(V, V_old ± ε) − ret)²) per token, and where the clip took hold."""
    free = (values - returns).square()
    if clip_range is None:
        return 0.5 * free, torch.zeros_like(free, dtype=torch.bool)
    near = old_values + (values - old_values).clamp(-clip_range, clip_range)
    clipped = (near - returns).square()
    return 0.5 * torch.maximum(free, clipped), clipped > free


def weights(mask: torch.Tensor, aggregation: str, longest: int | None = None) -> torch.Tensor:
    """(B, T) weights w with loss = Σ w·token loss, for a minibatch's response mask (B, T).

    token_mean: 1/Σ_i T_i.  sequence_mean: 1/(B·T_i).  sequence_sum: 1/B.  constant: 1/(B·longest), ``longest`` being
    the tokens that a text may have at most.

    Raises:
        ValueError: an aggregation of another name, or "constant" without ``longest``.
    """
    check_choice("aggregation", aggregation, AGGREGATIONS)
    m = mask.float()
    if aggregation == "token_mean":
        return m / m.sum().clamp(min=1)
    if aggregation == "sequence_mean":
        return m / m.sum(-1, keepdim=True).clamp(min=1) / len(m)
    if aggregation == "sequence_sum":
        return m / len(m)
    if longest is None or longest < 1:
        raise ValueError(f"aggregation='constant' expected longest, the tokens that a text may have, got {longest}")
    return m / (len(m) * longest)


def entropy(logp: torch.Tensor) -> torch.Tensor:
    """−Σ_a π(a|s)·log π(a|s), (...) in nats, of log-probs (..., V); −inf where π may not choose."""
    p = logp.exp()
    return -(p * logp.masked_fill(p == 0, 0.0)).sum(-1)
