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

from lm_gym.cuda_graph_step import StaticStep
from lm_gym.fast_step import fast_trunk, hooked
from lm_gym.positions import because

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

    def keep_below(self, blocks: int) -> None:
        """Keep what comes out of the lowest ``blocks`` for every token, from the next :meth:`insert` on."""

    def below(self, row: int) -> torch.Tensor | None:
        """(length, d) what came out of the lowest blocks for the tokens of a row so far; None: it was not kept."""
        return None

    def fix_shapes(self, *, record: bool = True) -> None:
        """Step with fixed shapes from now on: recorded once as a CUDA graph and replayed, or not recorded.

        Raises:
            ValueError: these rows cannot.
        """
        raise ValueError(f"CUDA graphs expected rows of a transformers model, got {type(self).__name__}")


class ColumnCache(Cache):
    """Preallocated keys and values, written at the current columns; the ``Cache`` a transformers model is handed.

    Memory is taken as it comes: the columns from ``clean`` to the current one hold numbers in every row, others may
    hold anything.
    """

    def __init__(self, n: int, capacity: int) -> None:
        super().__init__(layers=[])
        self.n, self.capacity = n, capacity
        self.start = 0  # first column that attention needs to see
        self.column = 0
        self.clean = 0
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.tap: int | None = None  # the block whose input is kept, if any is
        self.below: list[torch.Tensor] = []  # that input (rows, 1, columns, d), once there is one

    @property
    def stores(self) -> tuple[list[torch.Tensor], ...]:
        """All that columns are made of; tensors (rows, heads, columns, size)."""
        return self.keys, self.values, self.below

    def allocate(self, store: list[torch.Tensor], layer: int, like: torch.Tensor) -> None:
        """Room for a layer of a store, of the heads, size and type of ``like``."""
        with torch.inference_mode(False):  # tensors that may be written to everywhere
            while len(store) <= layer:
                store.append(like.new_empty(self.n, like.shape[1], self.capacity, like.shape[3]))

    def keep(self, states: torch.Tensor) -> None:
        """Keep what enters the block ``tap`` at the current columns: (rows, tokens, d)."""
        self.allocate(self.below, 0, states[:, None])
        self.below[0][:, 0, self.column : self.column + states.shape[1]] = states

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if len(self.keys) <= layer_idx:
            self.allocate(self.keys, layer_idx, key_states)
            self.allocate(self.values, layer_idx, value_states)
        k, v, end = self.keys[layer_idx], self.values[layer_idx], self.column + key_states.shape[2]
        k[:, :, self.column : end] = key_states
        v[:, :, self.column : end] = value_states
        return k[:, :, self.start : end], v[:, :, self.start : end]

    def open(self, start: int) -> None:
        """Make the columns from ``start`` hold numbers: what is masked must not be NaN, which stays one."""
        for store in self.stores if start < self.clean else ():
            for old in store:
                old[:, :, start : self.clean] = 0
        self.clean = min(self.clean, start)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.column - self.start

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.column - self.start + query_length, 0


class AttentionRows(Rows):
    """Rows of a ``transformers`` model over one :class:`ColumnCache`.

    Args:
        lm: the model, whose weights do not change while the rows live. n: rows. capacity: longest text in tokens.
        fast: :func:`lm_gym.fast_step.fast_trunk` where it knows the model (the same numbers up to rounding).
    """

    def __init__(self, lm: TransformersLM, n: int, capacity: int, *, fast: bool = True) -> None:
        if capacity > lm.max_positions:
            raise ValueError(
                f"model {lm.name!r} takes texts of up to {lm.max_positions} tokens{because(lm.max_positions)}, got "
                f"prompts and max_new_tokens of {capacity} together: shorten the prompts or lower max_new_tokens"
            )
        self.lm, self.n, self.longest = lm, n, capacity
        self.base = lm._base()
        kind = getattr(self.base.config, "_attn_implementation", "sdpa")
        if kind not in ("sdpa", "eager"):
            raise ValueError(f"model {lm.name!r} expected sdpa or eager attention, got {kind!r}: load it with 'sdpa'")
        self.fast = fast_trunk(self.base, capacity) if fast and kind == "sdpa" else None
        # room to walk before the live columns must move to the front; more room costs nothing, dead columns are cut off
        self.cache = ColumnCache(n, 2 * capacity + 32)
        self.births: list[int | None] = [None] * n  # each row's first column; None where it is parked
        self.first = torch.zeros(n, dtype=torch.long, device=lm.device)  # the same for the model
        # made when rows of two ages step: additive (n, 1, 1, capacity) where the model is written out here, else (n,
        # capacity) of 1 for tokens
        self.mask: torch.Tensor | None = None
        self.fixed: bool | None = None  # whether steps of fixed shapes are recorded; None: shapes follow the texts
        self.static: StaticStep | None = None
        self._survey()

    def __getstate__(self) -> dict[str, Any]:
        """For copy and pickle. The trunk that is written out reads these weights and not a copy's: it is made anew."""
        return self.__dict__ | {"fast": self.fast is not None, "static": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, fast=fast_trunk(state["base"]) if state["fast"] else None)

    def fix_shapes(self, *, record: bool = True) -> None:
        if self.fast is None:
            raise ValueError(
                f"CUDA graphs expected a model that is written out here (Llama, Mistral, Qwen2 or GPT-2 with sdpa "
                f"attention and no hooks), got {self.lm.name!r}"
            )
        if record and self.lm.device.type != "cuda":
            raise ValueError(f"CUDA graphs expected a model on a CUDA device, got {self.lm.name!r} on {self.lm.device}")
        self.fixed = record

    def keep_below(self, blocks: int) -> None:
        self.cache.tap = blocks

    def below(self, row: int) -> torch.Tensor | None:
        birth, kept = self.births[row], self.cache.below
        if birth is None or not kept or self.fixed is not None:  # steps of fixed shapes keep nothing
            return None
        return kept[0][row, 0, birth : self.cache.column].clone()

    def _survey(self) -> None:
        """How old the oldest row is, and whether all are of one age: known here, so that no step asks the device."""
        live = [b for b in self.births if b is not None]
        self.oldest = min(live, default=self.cache.column)
        self.even = not live or max(live) == self.oldest

    @torch.no_grad()
    def insert(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        self.lm.check_ids(prompts, "prompt")
        unique: dict[tuple[int, ...], int] = {}
        places = [unique.setdefault(tuple(p), len(unique)) for p in prompts]
        lengths = [len(p) for p in unique]
        width, m, device, cache = max(lengths), len(unique), self.lm.device, self.cache
        padded = [[self.lm.pad_id] * (width - len(p)) + list(p) for p in unique]
        ids = torch.tensor(padded, device=device)
        if cache.column < width:
            self._move(width - cache.column)
        at, rows = slice(cache.column - width, cache.column), list(rows)
        if m == self.n and rows == list(range(m)):  # all rows, and no two alike: nothing to copy
            cache.start = cache.column = at.start
            hidden = self._prefill(ids, lengths, cache)
            cache.column, cache.clean = at.stop, at.start
        else:
            where, copy_of = torch.tensor(rows, device=device), torch.tensor(places, device=device)
            fresh = ColumnCache(m, width)
            fresh.tap = cache.tap
            hidden = self._prefill(ids, lengths, fresh)[copy_of]
            both = list(zip(cache.stores, fresh.stores, strict=True))
            for store, new in both:
                for layer, x in enumerate(new):
                    cache.allocate(store, layer, x)
            cache.open(at.start)
            for store, new in both:
                for old, x in zip(store, new, strict=True):
                    old[where, :, at] = x[copy_of]
        for row, place in zip(rows, places, strict=True):
            self.births[row] = cache.column - lengths[place]
        self._changed()
        return hidden

    def _prefill(self, ids: torch.Tensor, lengths: Sequence[int], cache: ColumnCache) -> torch.Tensor:
        """Last hidden states (m, d) of left-padded prompts (m, width), their keys and values in ``cache``."""
        width = ids.shape[1]
        fast = self.fast is not None and not hooked(self.base)
        if fast and min(lengths) == width:
            return self._written_out(ids, slice(0, width), None, cache)
        column, length = torch.arange(width, device=ids.device), torch.tensor(lengths, device=ids.device)[:, None]
        positions = (column - (width - length)).clamp(min=0)
        real = column >= width - length
        if not fast:
            self.cache.tap = cache.tap = None  # modules keep nothing below them
            self.cache.below.clear()
            out = self.base(
                input_ids=ids,
                attention_mask=real.long(),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
            return out.last_hidden_state[:, -1]  # type: ignore[no-any-return]
        # a pad sees itself, so that no row of the mask is empty
        seen = (real[:, None, :] | (column[:, None] == column)) & (column[:, None] >= column)
        return self._written_out(ids, positions, self._additive(~seen[:, None]), cache)

    def _written_out(
        self, ids: torch.Tensor, positions: torch.Tensor | slice, mask: torch.Tensor | None, cache: ColumnCache
    ) -> torch.Tensor:
        assert self.fast is not None
        with torch.inference_mode():  # without the bookkeeping of views: 8% of a step of one row
            hidden = self.fast(ids, positions, mask, cache)
        return hidden.clone()  # out of it again: callers may train on it

    def _additive(self, hidden: torch.Tensor) -> torch.Tensor:
        dtype = self.base.dtype
        return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, torch.finfo(dtype).min)

    def park(self, rows: Sequence[int]) -> None:
        if any(self.births[row] is not None for row in rows):
            for row in rows:
                self.births[row] = None
            self._survey()

    @torch.no_grad()
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        cache = self.cache
        longest = cache.column - self.oldest
        if longest >= self.longest:
            raise RuntimeError(f"a row grew past the {self.longest} tokens it was made for")
        if cache.column >= cache.capacity:
            self._move(longest - cache.column)
        cache.start = self.oldest
        if self.fixed is not None:
            hidden = self._fixed_step(tokens)
        elif self.fast is not None and self.even:  # parked rows see whatever there is
            hidden = self._written_out(tokens[:, None], slice(longest, longest + 1), None, cache)
        else:
            if self.mask is None:
                hide = torch.arange(cache.capacity, device=self.first.device) < self.first[:, None]
                self.mask = (~hide).long() if self.fast is None else self._additive(hide)[:, None, None]
            mask = self.mask[..., cache.start : cache.column + 1]
            positions = (cache.column - self.first).clamp_(max=self.longest - 1)[:, None]  # a parked row's mean nothing
            if self.fast is not None:
                hidden = self._written_out(tokens[:, None], positions, mask, cache)
            else:
                out = self.base(
                    input_ids=tokens[:, None],
                    attention_mask=mask,  # of tokens: what else a model makes of it (ALiBi, windows) is its own affair
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                )
                hidden = out.last_hidden_state[:, -1]
        cache.column += 1
        return hidden

    def _fixed_step(self, tokens: torch.Tensor) -> torch.Tensor:
        assert self.fast is not None and self.fixed is not None
        if self.static is None:
            self.static = StaticStep(self.fast, self.cache, self.longest, self.base.dtype, record=self.fixed)
        with torch.inference_mode():
            hidden = self.static(tokens, self.first)
        return hidden.clone()

    def keep(self, rows: Sequence[int]) -> None:
        where = torch.tensor(list(rows), dtype=torch.long, device=self.lm.device)
        cache = self.cache
        self.n, self.static = len(rows), None
        cache.n = self.n
        self.births = [self.births[row] for row in rows]
        live = slice(min((b for b in self.births if b is not None), default=cache.column), cache.column)
        for store in cache.stores:
            for layer, old in enumerate(store):
                store[layer] = old.new_empty(len(rows), *old.shape[1:])
                store[layer][:, :, live] = old[:, :, live].index_select(0, where)
        cache.clean = max(cache.clean, live.start)
        self._changed()

    def _changed(self) -> None:
        """Rows began, moved or were dropped."""
        # of a parked row anything may be read, from columns that hold numbers
        births = [self.cache.column if b is None else b for b in self.births]
        self.first = torch.tensor(births, device=self.lm.device)
        self.mask = None
        self._survey()

    def _move(self, by: int) -> None:
        """Move all columns left of the current one by ``by`` columns (negative: to the front)."""
        cache, end = self.cache, self.cache.column
        width = min(end, end + by)  # columns that are kept
        src, dst = slice(end - width, end), slice(end - width + by, end + by)
        for store in cache.stores:
            for old in store:
                old[:, :, dst] = old[:, :, src].clone()
        cache.column, cache.clean = end + by, max(cache.clean, src.start) + by
        self.births = [None if b is None else b + by for b in self.births]
        self._changed()
