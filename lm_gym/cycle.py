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

    def restore(self, left: list[int]) -> None:
        """Take back what a checkpoint kept of ``left``."""
        if not isinstance(left, list) or not all(type(i) is int and 0 <= i < self.n for i in left):
            raise ValueError(f"the order of {self.n} items expected numbers from 0 to {self.n - 1}, got {left!r:.60}")
        self.left = list(left)

    def take(self, count: int) -> list[int]:
        """The next ``count`` indices."""
        while len(self.left) < count:
            self.left += torch.randperm(self.n, generator=self.generator).tolist()
        now, self.left = self.left[:count], self.left[count:]
        return now
