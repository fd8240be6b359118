"""What the benchmarks time with: seconds of a call, cases that take turns, what the machine itself can do.

On a CPU seconds are those of the process, which hardly move when other programs use the machine. On a GPU they are the
clock's, taken once the device has done what it was given.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def now(device: str) -> tuple[float, float]:
    """Wall and CPU seconds, once the device has done what it was given."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def seconds(device: str) -> float:
    """The seconds that count on a device: of the process on a CPU, of the clock elsewhere."""
    return now(device)[device == "cpu"]


def unit(device: str) -> str:
    return "CPU s" if device == "cpu" else "s"


class Clock:
    """Wall and CPU seconds of the calls of a function."""

    def __init__(self, device: str = "cpu") -> None:
        self.device, self.wall, self.cpu = device, 0.0, 0.0

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            wall, cpu = now(self.device)
            out = call(*args, **kwargs)
            then = now(self.device)
            self.wall += then[0] - wall
            self.cpu += then[1] - cpu
            return out

        return timed

    def take(self) -> tuple[float, float]:
        out = self.wall, self.cpu
        self.wall, self.cpu = 0.0, 0.0
        return out


def machine(device: str, dtype: Any) -> tuple[float, float]:
    """Bytes a second of a copy, and multiply-adds a second of a matrix product, on a device in a precision."""
    import torch

    x = torch.ones(32_000_000 if device == "cpu" else 512_000_000, dtype=torch.float32, device=device)
    y, side = torch.empty_like(x), 1024 if device == "cpu" else 8192
    a = torch.randn(side, side, device=device).to(dtype)
    rates = []
    for work, call in ((2 * x.numel() * x.element_size(), lambda: y.copy_(x)), (side**3, lambda: a @ a)):
        call()
        took = []
        for _ in range(5):
            start = now(device)[0]
            call()
            took.append(now(device)[0] - start)
        rates.append(work / min(took))
    return rates[0], rates[1]


def take_turns(work: dict[str, Callable[[], Any]], rounds: int, repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds a call of every case, by round; each round in the other order. A first round warms up."""
    spent: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 1):
        for name in sorted(work, reverse=bool(turn % 2)):
            started = seconds(device)
            for _ in range(repeats):
                work[name]()
            spent[name].append((seconds(device) - started) / repeats)
    return {name: each[1:] for name, each in spent.items()}


def table(spent: dict[str, list[float]], tokens: int, *bases: str) -> dict[str, dict[str, Any]]:
    """Print every case's tokens a second and its speed relative to the bases' in the same round."""
    rows: dict[str, dict[str, Any]] = {}
    for name, each in spent.items():
        rows[name] = {"tokens_per_second": tokens / statistics.median(each)}
        line = f"  {name:20s} {rows[name]['tokens_per_second']:8.0f}"
        for base in bases:
            ratios = [b / s for b, s in zip(spent[base], each, strict=True)]
            key = "of_" + base.replace(" ", "_")
            rows[name] |= {key: statistics.median(ratios), f"{key}_rounds": ratios}
            line += f"   {rows[name][key]:5.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
        print(line, flush=True)
    return rows
