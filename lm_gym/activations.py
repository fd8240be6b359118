"""GPT-2's activation, made of operations that a CPU is fast at.

    gelu_new(x) = ½·x·(1 + tanh(u)) = x·σ(2u),    u = √(2/π)·(x + .044715·x³)

PyTorch's kernel for it takes four times as long as its sigmoid, and its backward pass takes that once more. Here the
forward pass leaves the derivative, so that the backward pass is one product.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

LINEAR = 2.0 * math.sqrt(2.0 / math.pi)
CUBIC = LINEAR * 0.044715
_LINEAR = torch.tensor(LINEAR, device="cpu")  # whatever the default device is
FEW = 4096
"""Numbers below which one operation is faster than four."""


def gelu_new(x: torch.Tensor) -> torch.Tensor:
    """GELU in its tanh approximation (Hendrycks and Gimpel 2016, arXiv:1606.08415, eq. 3), (...) to (...).

    Computed in float32 whatever comes in; what it returns has the type of ``x``.
    """
    if x.device.type != "cpu" or x.numel() < FEW:
        return F.gelu(x, approximate="tanh")
    if torch.is_grad_enabled() and x.requires_grad:
        return _Gelu.apply(x)  # type: ignore[no-any-return, no-untyped-call]
    wide = x.float()
    return _exponent(wide).sigmoid_().mul_(wide).to(x.dtype)


def _exponent(x: torch.Tensor) -> torch.Tensor:
    return torch.addcmul(_LINEAR, x, x, value=CUBIC).mul_(x)


class _Gelu(torch.autograd.Function):
    """x·σ(v) with v = 2u; its derivative is σ·(1 + (1 − σ)·x·v'), and x·v' = 3·v − 2·LINEAR·x."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        v = _exponent(wide)
        s = v.sigmoid()
        slope = v.sub_(wide, alpha=2.0 / 3.0 * LINEAR)  # a third of x·v'
        slope = torch.addcmul(s, s, slope.addcmul_(slope, s, value=-1.0), value=3.0)
        ctx.save_for_backward(slope.to(x.dtype))
        return s.mul_(wide).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (slope,) = ctx.saved_tensors
        return grad * slope
