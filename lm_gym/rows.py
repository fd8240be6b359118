"""Rows of different age that decode together: one cache for all, each row reset on its own.

Layout of the key/value cache: (rows, heads, columns, head size) a layer. All rows share the current column ``c``; a
row of length n holds its tokens in the columns [c − n, c) and sees only those, with positions 0 … n − 1. A new prompt
is prefilled apart and copied in left of the current column, so no other row is touched. When the columns run out, the
live ones move to the front.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import Cache

from lm_gym.fast_step import fast_step

if TYPE_CHECKING:
    from lm_gym.models import TransformersLM


class Rows:
    """What decodes row by row. A row is given a prompt with :meth:`insert`; then every row takes one token a step."""

    n: int

    def insert(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Let ``rows`` start anew with ``prompts``; last hidden states (m, d) at each prompt's last token.

        Equal prompts are computed once.
        """
        raise NotImplementedError

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append one token to every row: ids (n,) to last hidden states (n, d)."""
        raise NotImplementedError

    def park(self, rows: Sequence[int]) -> None:
        """Empty rows that have ended: what :meth:`step` feeds them until their next :meth:`insert` means nothing."""
        raise NotImplementedError

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these, in this order."""
        raise NotImplementedError


class ColumnCache(Cache):
    """Preallocated keys and values, written at the current columns; the ``Cache`` a transformers model is handed."""

    def __init__(self, n: int, capacity: int) -> None:
        super().__init__(layers=[])
        self.n, self.capacity = n, capacity
        self.start = 0  # first column that attention needs to see
        self.column = 0
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def allocate(self, layer: int, like: torch.Tensor, value_like: torch.Tensor) -> None:
        # zeros, not empty: a masked NaN is still a NaN
        while len(self.keys) <= layer:
            self.keys.append(like.new_zeros(self.n, like.shape[1], self.capacity, like.shape[3]))
            self.values.append(value_like.new_zeros(self.n, value_like.shape[1], self.capacity, value_like.shape[3]))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if len(self.keys) <= layer_idx:
            self.allocate(layer_idx, key_states, value_states)
        k, v, end = self.keys[layer_idx], self.values[layer_idx], self.column + key_states.shape[2]
        k[:, :, self.column : end] = key_states
        v[:, :, self.column : end] = value_states
        return k[:, :, self.start : end], v[:, :, self.start : end]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.column - self.start

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.column - self.start + query_length, 0


class AttentionRows(Rows):
    """Rows of a ``transformers`` model over one :class:`ColumnCache`.

    Args:
        lm: the model, whose weights do not change while the rows live. n: rows. capacity: longest text in tokens.
        fast: decode with :func:`lm_gym.fast_step.fast_step` where it knows the model (the same numbers up to rounding).
    """

    def __init__(self, lm: TransformersLM, n: int, capacity: int, *, fast: bool = True) -> None:
        if capacity > lm.max_positions:
            raise ValueError(
                f"model {lm.name!r} takes texts of up to {lm.max_positions} tokens, got prompts and max_new_tokens of "
                f"{capacity} together: shorten the prompts or lower max_new_tokens"
            )
        self.lm, self.n, self.longest = lm, n, capacity
        self.base = lm._base()
        kind = getattr(self.base.config, "_attn_implementation", "sdpa")
        if kind not in ("sdpa", "eager"):
            raise ValueError(f"model {lm.name!r} expected sdpa or eager attention, got {kind!r}: load it with 'sdpa'")
        self.additive_mask = kind == "eager"
        self.fast = fast_step(self.base) if fast else None
        # room to walk before the live columns must move to the front; more room costs nothing, dead columns are cut off
        self.cache = ColumnCache(n, 2 * capacity + 32)
        self.lengths = torch.zeros(n, dtype=torch.long, device=lm.device)
        self.visible = torch.zeros(n, self.cache.capacity, dtype=torch.bool, device=lm.device)

    @torch.no_grad()
    def insert(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        unique: dict[tuple[int, ...], int] = {}
        copy_of = torch.tensor([unique.setdefault(tuple(p), len(unique)) for p in prompts], device=self.lm.device)
        where = torch.tensor(list(rows), dtype=torch.long, device=self.lm.device)
        lengths = [len(p) for p in unique]
        width, m = max(lengths), len(unique)
        ids = torch.full((m, width), self.lm.pad_id, dtype=torch.long)
        mask = torch.zeros(m, width, dtype=torch.long)
        for i, p in enumerate(unique):
            ids[i, width - len(p) :] = torch.tensor(p, dtype=torch.long)
            mask[i, width - len(p) :] = 1
        ids, mask = ids.to(self.lm.device), mask.to(self.lm.device)
        fresh = ColumnCache(m, width)
        out = self.base(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
            past_key_values=fresh,
            use_cache=True,
        )
        cache = self.cache
        if cache.column < width:
            self._move(width - cache.column)
        at = slice(cache.column - width, cache.column)
        for layer, (k, v) in enumerate(zip(fresh.keys, fresh.values, strict=True)):
            cache.allocate(layer, k, v)
            cache.keys[layer][where, :, at] = k[copy_of]
            cache.values[layer][where, :, at] = v[copy_of]
        self.lengths[where] = torch.tensor(lengths, device=self.lm.device)[copy_of]
        self.visible[where] = False
        self.visible[where, at] = mask.bool()[copy_of]
        return out.last_hidden_state[copy_of, -1]  # type: ignore[no-any-return]

    def park(self, rows: Sequence[int]) -> None:
        where = torch.tensor(list(rows), dtype=torch.long, device=self.lm.device)
        self.lengths[where] = 0
        self.visible[where] = False

    @torch.no_grad()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        cache = self.cache
        longest = int(self.lengths.max())
        if longest >= self.longest:
            raise RuntimeError(f"a row grew past the {self.longest} tokens it was made for")
        if cache.column >= cache.capacity:
            self._move(longest - cache.column)
        cache.start = cache.column - longest
        self.visible[:, cache.column] = True
        mask = self.visible[:, None, None, cache.start : cache.column + 1]
        if self.additive_mask or self.fast is not None:
            mask = torch.zeros_like(mask, dtype=self.base.dtype).masked_fill(~mask, torch.finfo(self.base.dtype).min)
        if self.fast is not None and cache.keys:
            hidden = self.fast(tokens, self.lengths, mask, cache)
        else:
            out = self.base(
                input_ids=tokens[:, None],
                attention_mask=mask,
                position_ids=self.lengths[:, None],
                past_key_values=cache,
                use_cache=True,
            )
            hidden = out.last_hidden_state[:, -1]
        cache.column += 1
        self.lengths += 1
        return hidden

    def keep(self, rows: Sequence[int]) -> None:
        where = torch.tensor(list(rows), dtype=torch.long, device=self.lm.device)
        self.n = self.cache.n = len(rows)
        self.lengths, self.visible = self.lengths[where], self.visible[where]
        for store in (self.cache.keys, self.cache.values):
            for layer, old in enumerate(store):
                store[layer] = old.index_select(0, where)

    def _move(self, by: int) -> None:
        """Move all columns left of the current one by ``by`` columns (negative: to the front)."""
        cache, end = self.cache, self.cache.column
        width = min(end, end + by)  # columns that are kept
        src, dst = slice(end - width, end), slice(end - width + by, end + by)
        for store in (cache.keys, cache.values):
            for old in store:
                old[:, :, dst] = old[:, :, src].clone()
        moved = self.visible[:, src].clone()
        self.visible.zero_()
        self.visible[:, dst] = moved
        cache.column = end + by
