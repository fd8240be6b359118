"""A policy's weights by the names that vLLM knows them under."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from lm_gym.models import CausalLM, TransformersLM


def plain_model(lm: TransformersLM) -> Any:
    """The policy as a plain ``transformers`` model: itself, or a copy with its LoRA adapters merged."""
    return copy.deepcopy(lm.model).merge_and_unload() if hasattr(lm.model, "merge_and_unload") else lm.model


def named_weights(lm: TransformersLM) -> dict[str, torch.Tensor]:
    """Every parameter by its name in a checkpoint, tied ones under each of their names, LoRA merged."""
    return {key: p.detach() for key, p in plain_model(lm).named_parameters(remove_duplicate=False)}


def save(lm: TransformersLM, folder: Path) -> dict[str, tuple[int, ...]]:
    """Write the policy as a plain ``transformers`` folder; the shapes of :func:`named_weights`.

    Raises:
        ValueError: its files name weights otherwise than the model does, so that they cannot be pushed by name.
    """
    from safetensors import safe_open

    model = plain_model(lm)
    model.save_pretrained(folder)
    own = dict(model.named_parameters(remove_duplicate=False))
    written: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(str(file), "pt") as f:  # type: ignore[no-untyped-call]
            written.update(f.keys())
    there = {id(own[key]) for key in written if key in own}  # of tied weights the file has one name
    if odd := sorted(written - set(own)) + sorted(key for key, p in own.items() if id(p) not in there):
        raise ValueError(
            f"VLLMEngine expected a model whose parameters are named as in its files, got {lm.name!r} "
            f"({type(lm.causal_lm()).__name__}) with {odd[:3]}: use engine='builtin'"
        )
    return {key: tuple(p.shape) for key, p in own.items()}


def checksum(lm: CausalLM) -> int:
    """Of all parameters' bits, exact in any order of summing. (A fused optimizer leaves a tensor's version alone.)"""
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [p.detach().contiguous().view(bits[p.element_size()]).sum(dtype=torch.int64) for p in lm.parameters()]
    return int(torch.stack(sums).sum())
