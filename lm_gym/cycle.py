"""Going through n items again and again: each once in a shuffled order, then in another."""

from __future__ import annotations

import torch


class Cycle:
    """Indices 0 … n − 1 without end, every round in an order of its own.

    Args:
        n: how many items. generator: what the orders are drawn from; it is shared, and its state is not kept here.
    """

    def __init__(self, n: int, generator: torch.Generator) -> None:
        self.n, self.generator = n, generator
        self.left: list[int] = []
        """What the running round still has; a checkpoint keeps it."""

    def take(self, count: int) -> list[int]:
        """The next ``count`` indices."""
        while len(self.left) < count:
            self.left += torch.randperm(self.n, generator=self.generator).tolist()
        now, self.left = self.left[:count], self.left[count:]
        return now
