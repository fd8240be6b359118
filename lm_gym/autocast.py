"""Matrix products of an update in 16 bits: whether a model and the machine that it is on can gain by them."""

from __future__ import annotations

import time
import warnings
from functools import cache

import torch

from lm_gym.choices import check_choice
from lm_gym.models import CausalLM


def check_autocast(autocast: str | None, lm: CausalLM) -> None:
    """Refuse ``autocast`` where it has no effect, and warn where products in 16 bits are the slower ones."""
    check_choice("autocast", autocast, (None, "bfloat16"))
    if autocast is None:
        return
    if lm.dtype != torch.float32:
        raise ValueError(f"autocast has no effect on a model in {lm.dtype}: leave it out")
    slower = bfloat16_cost(str(lm.device))
    if slower > 1.0:
        warnings.warn(
            f"autocast='bfloat16' expected a processor with products in bfloat16 (AVX512-BF16, AMX, a GPU): on "
            f"{lm.device} such a product takes {slower:.2g} times as long as in float32; leave it out",
            stacklevel=4,
        )


@cache
def bfloat16_cost(device: str) -> float:
    """Seconds of a matrix product in bfloat16 over those in float32, each the least of a few."""

    def least(dtype: torch.dtype) -> float:
        a, b = (torch.ones(256, 256, dtype=dtype, device=device) for _ in range(2))
        took = []
        for _ in range(4):
            started = time.perf_counter()
            float((a @ b)[0, 0])  # waits for a device
            took.append(time.perf_counter() - started)
        return min(took[1:])

    return least(torch.bfloat16) / least(torch.float32)
