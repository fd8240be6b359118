"""Ratios of probabilities from differences of log-probs, finite whatever comes.

e^x of float32 is infinite from x = 88.7 on, and the gradient of what is made of it NaN, also where a clip says that it
is 0. So beyond nine tenths of what a dtype can hold (79.8 in float32 and bfloat16, 638.7 in float64) e^x
goes on as its tangent: finite, rising, and with the slope that it had, up to 1,290 nats in float32, where it stays
with some room below the largest number. No sane policy is so many nats from another one at a token; one that is gets a
number, and a direction back.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def exp(x: torch.Tensor) -> torch.Tensor:
    """e^x of log-ratios in nats, any shape; see the module's docstring for large ones."""
    edge, room = _edge(x)
    return x.clamp(max=edge).exp() * (1 + (x - edge).clamp(max=room).relu())  # relu, because its slope at 0 is 0


def expm1(x: torch.Tensor) -> torch.Tensor:
    """e^x − 1, exact near 0 too; otherwise as :func:`exp`."""
    edge, room = _edge(x)
    return x.clamp(max=edge).expm1() + math.exp(edge) * (x - edge).clamp(max=room).relu()


def _edge(x: torch.Tensor) -> tuple[float, float]:
    """Where the tangent begins, and how far it goes."""
    import torch  # not for those who only want numpy's half of lm_gym.kl

    most = math.log(torch.finfo(x.dtype).max)
    return 0.9 * most, math.exp(0.08 * most) - 1
