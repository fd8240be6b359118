"""Adam on float32 copies of 16-bit weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn


def refuse_float16(module: nn.Module, name: str) -> None:
    """Training needs gradients that float16 cannot hold.

    The least number of float16 is 6e-8. Without a loss scale 3.5 to 5 % of the elements of a gradient became 0 on tiny.

    Raises:
        ValueError: a weight is in float16.
    """
    if any(p.dtype == torch.float16 for p in module.parameters()):
        raise ValueError(
            f"{name} expected a model in bfloat16 or float32 to train, got one in float16, where gradients below 6e-8 "
            "are 0: load it with dtype='bfloat16' or 'float32' (float16 will do for what is not trained)"
        )


class Adam32(torch.optim.AdamW):
    """AdamW without weight decay; a weight in 16 bits is moved as a float32 copy and rounded after every step.

    bfloat16 keeps 8 bits of a number: added to a weight of 1, a step of less than .004 would round to nothing, so a
    small step size would leave most weights where they are. Gradients add up in float32 for the same reason. Float32
    weights are moved as they are, without a copy.

    Args:
        params: weights by name. lr: the step size.
    """

    def __init__(self, params: Mapping[str, nn.Parameter], lr: float) -> None:
        self.names, self.weights = list(params), list(params.values())
        self.masters = [p if p.dtype == torch.float32 else nn.Parameter(p.detach().float()) for p in self.weights]
        # as a group, which may be empty: an agent that does not train has no weights
        super().__init__([{"params": self.masters}], lr=lr, weight_decay=0.0, fused=True)

    def __getstate__(self) -> dict[str, Any]:
        """For copy and pickle: an optimizer of PyTorch's keeps none of its own attributes."""
        return super().__getstate__() | {"names": self.names, "weights": self.weights, "masters": self.masters}

    def _copies(self) -> Iterable[tuple[nn.Parameter, nn.Parameter]]:
        return ((p, m) for p, m in zip(self.weights, self.masters, strict=True) if m is not p)

    @torch.no_grad()
    def gather(self) -> None:
        """Add the gradients of 16-bit weights to those of their copies: after every backward pass, one of several."""
        for p, m in self._copies():
            if p.grad is not None:
                m.grad = p.grad.float() if m.grad is None else m.grad.add_(p.grad)
                p.grad = None

    @torch.no_grad()
    def clip(self, max_norm: float) -> float:
        """The norm of the gradient of all weights, which is scaled to ``max_norm`` where it is above."""
        self.gather()
        grads = [p.grad for p in self.masters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        found = float(norm)
        if not found <= max_norm:  # most gradients are short enough: they need no pass over all of them
            torch.nn.utils.clip_grads_with_norm_(self.masters, max_norm, norm)
        return found

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        self.gather()
        out = super().step(closure)
        for p, m in self._copies():
            p.copy_(m)
        return out

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for p, _ in self._copies():
            p.grad = None

    def values(self) -> dict[str, torch.Tensor]:
        """The weights by name in full precision: what a checkpoint keeps."""
        return dict(zip(self.names, self.masters, strict=True))

    @torch.no_grad()
    def set_values(self, values: Mapping[str, torch.Tensor]) -> None:
        """Put :meth:`values` back."""
        for name, p, m in zip(self.names, self.weights, self.masters, strict=True):
            m.copy_(values[name])
            if m is not p:
                p.copy_(m)
