"""A pretend device: tensors that say they are elsewhere, with their numbers on the CPU.

As on a GPU, an operation takes tensors of one device only (numbers, and what indexes, may be of the other), and numpy
sees nothing of them. So what would break on a GPU for a tensor that was left behind breaks here, on any machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.optim import optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

DEVICE = torch.device("meta")  # the one beside the CPU that every build has
aten = torch.ops.aten
CROSSES = (aten._to_copy.default, aten.copy_.default)
MATMUL = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)
INDEXES = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


class Far(torch.Tensor):
    """A tensor of :data:`DEVICE`; ``near`` has its numbers."""

    near: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> Far:
        shape = {"strides": near.stride(), "storage_offset": near.storage_offset(), "dtype": near.dtype}
        with torch.inference_mode(False):
            out = torch.Tensor._make_wrapper_subclass(cls, near.size(), **shape, device=DEVICE, requires_grad=False)
        out.near = near
        return out

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"Far({self.near})"


def _near(x: Any) -> Any:
    return x.near if isinstance(x, Far) else x


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


class _Numbers(TorchFunctionMode):
    """Python's numbers become tensors, and these become numbers, without an operation."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.Tensor.tolist, torch.Tensor.item) and isinstance(args[0], Far):
            return func(args[0].near)
        if func is torch.Tensor.__setitem__ and isinstance(args[0], Far):  # PyTorch writes nothing to a "meta" tensor
            into, where, value = args
            if isinstance(value, torch.Tensor) and value.dim() and not isinstance(value, Far):
                raise RuntimeError(f"a tensor on the CPU, {tuple(value.shape)}, is written into one of another device")
            with torch.no_grad():
                into.near[tree_map(_near, where)] = _near(value)
            return None
        if func is torch.Tensor.__getitem__ and isinstance(args[0], Far):  # lists would become "meta" tensors
            where = args[1] if isinstance(args[1], tuple) else (args[1],)
            args = (args[0], tuple(torch.tensor(i) if isinstance(i, list) else i for i in where))
        if func in MATMUL and isinstance(args[0], Far) and args[0].dim() == 1:  # it would be reshaped in place
            return (args[0][None] @ args[1])[0]
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


@contextmanager
def far_device() -> Iterator[torch.device]:
    """Inside, tensors may be made on and moved to the device that it gives."""
    autocast = torch.autocast
    elsewhere = lambda device, *args, **kwargs: autocast("cpu" if device == DEVICE.type else device, *args, **kwargs)
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch, "autocast", elsewhere))
        fused = lambda: ["cpu", DEVICE.type]
        stack.enter_context(mock.patch.object(optimizer, "_get_fused_kernels_supported_devices", fused))
        stack.enter_context(_Operations())
        stack.enter_context(_Numbers())
        yield DEVICE


def _call(func: Any, args: Any, kwargs: Any) -> Any:
    flat, spec = tree_flatten((args, kwargs))
    tensors = [x for x in flat if isinstance(x, torch.Tensor)]
    far = [x for x in tensors if isinstance(x, Far)]
    asked = kwargs.get("device")
    if far and func not in CROSSES:
        behind = [x for x in tensors if not isinstance(x, Far) and x.dim()]
        if behind and not (func in INDEXES and isinstance(args[0], Far)):
            raise RuntimeError(f"{func}: tensors of two devices, {[tuple(x.shape) for x in behind]} of them on the CPU")
    if isinstance(asked, (str, torch.device)):
        flat = [torch.device("cpu") if x is asked else x for x in flat]
    inner_args, inner_kwargs = tree_unflatten(list(map(_near, flat)), spec)
    out = func(*inner_args, **inner_kwargs)
    if func._schema.is_mutable and func is not aten._index_put_impl_.default:
        written = kwargs.get("out", args[0] if args else None)
        if isinstance(out, torch.Tensor) and isinstance(written, torch.Tensor):
            return written
    stays = bool(far) if asked is None else torch.device(asked).type == DEVICE.type
    return tree_map(lambda x: Far(x) if stays and isinstance(x, torch.Tensor) and not isinstance(x, Far) else x, out)
