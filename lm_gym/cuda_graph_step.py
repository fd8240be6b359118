"""A decoding step of fixed shapes and addresses, which a CUDA graph can record once and replay for every token.

A small model's step on a GPU is a hundred launches of microseconds each; a graph launches them together. That needs
every tensor to stay where it is: attention looks at all columns of the cache under a mask, and what differs between
steps (tokens, the current column, each row's first one) is in tensors that are written to before a replay.

The arithmetic is that of :class:`lm_gym.fast_step.FastTrunk`. The shapes and the order of writes are tested on the CPU,
where nothing is recorded; the recording itself has not been run on a GPU yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from lm_gym.fast_step import FastTrunk

if TYPE_CHECKING:
    from lm_gym.rows import ColumnCache

WARM_UP = 3
"""Steps before the recording, on a stream of their own, as PyTorch asks for."""


class _AllColumns:
    """The cache as the recorded step sees it: writes at the column in a tensor, reads everything."""

    tap = None

    def __init__(self, cache: ColumnCache, column: torch.Tensor) -> None:
        self.cache, self.column = cache, column

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys.index_copy_(2, self.column, key_states)
        values.index_copy_(2, self.column, value_states)
        return keys, values


class StaticStep:
    """One step of n rows over a cache that keeps its tensors.

    Args:
        trunk: the trunk written out. cache: with room allocated in every layer. longest: positions end before it.
        record: record a CUDA graph at the first step; False runs the same calls one by one, on any device.
    """

    def __init__(self, trunk: FastTrunk, cache: ColumnCache, longest: int, dtype: torch.dtype, *, record: bool) -> None:
        device = cache.keys[0].device
        self.trunk, self.cache, self.longest, self.record = trunk, cache, longest, record
        self.tokens = torch.zeros(cache.n, 1, dtype=torch.long, device=device)
        self.first = torch.zeros(cache.n, dtype=torch.long, device=device)
        self.column = torch.zeros(1, dtype=torch.long, device=device)
        self.columns = torch.arange(cache.capacity, device=device)
        self.nothing = torch.zeros((), dtype=dtype, device=device)
        self.hide = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=device)
        self.seen = cast("ColumnCache", _AllColumns(cache, self.column))
        self.graph: torch.cuda.CUDAGraph | None = None
        self.hidden: torch.Tensor | None = None
        # attention reads what is masked, and a masked NaN is still one: there must be none
        for x in (*cache.keys, *cache.values):
            x[:, :, : cache.clean] = 0
            x[:, :, cache.column :] = 0
        cache.clean = 0

    def __call__(self, tokens: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """Last hidden states (n, d) after tokens (n,) at the cache's current column; ``first`` (n,) of each text."""
        self.tokens.copy_(tokens[:, None])
        self.first.copy_(first)
        self.column.fill_(self.cache.column)
        if not self.record:
            return self._run()
        if self.graph is None:
            self._capture()
        assert self.graph is not None and self.hidden is not None
        self.graph.replay()
        return self.hidden  # the next replay writes over it

    def _run(self) -> torch.Tensor:
        hidden = (self.columns < self.first[:, None]) | (self.columns > self.column)
        mask = torch.where(hidden, self.hide, self.nothing)[:, None, None]
        positions = (self.column - self.first).clamp(0, self.longest - 1)[:, None]
        return self.trunk(self.tokens, positions, mask, self.seen)

    def _capture(self) -> None:
        # running the step several times writes the same keys and values to the same column
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._run()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.hidden = self._run()
