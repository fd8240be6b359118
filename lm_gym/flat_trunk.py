"""The trunk of Llama- and GPT-2-class models over whole texts without padding.

A batch of texts is one row of tokens: projections, norms and activations see every token once, a prompt that several
texts share is computed once for all of them, and only attention lays texts side by side. The last block's output is
computed at the states that are asked for alone. The same numbers as the model's own forward pass up to rounding, which
is the oracle in the tests and what models that are not known here fall back to.

The model's own modules do the projections and norms, so that adapters (LoRA) and hooks inside them count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lm_gym.activations import gelu_new
from lm_gym.hooks import has_hooks

LLAMA_LIKE = ("LlamaModel", "MistralModel", "Qwen2Model")
KNOWN = ("GPT2Model", *LLAMA_LIKE)

# flat queries (n, heads, size), keys and values (n, kv heads, size), the layer's window -> (n, heads·size)
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int | None], torch.Tensor]


def is_known(base: Any) -> bool:
    """Whether :func:`run` computes what this trunk does."""
    config = base.config
    if type(base).__name__ not in KNOWN or base.training or getattr(base, "gradient_checkpointing", False):
        return False
    passed_by = [base]
    for b in blocks_of(base):
        passed_by += [b, b.mlp, b.attn if _gpt2(base) else b.self_attn]
    if any(map(has_hooks, passed_by)) or not getattr(config, "is_causal", True):
        return False
    if _gpt2(base):
        odd = config.scale_attn_by_inverse_layer_idx or config.reorder_and_upcast_attn or config.add_cross_attention
        return bool(config.scale_attn_weights and not odd)
    return True


def blocks_of(base: Any) -> Any:
    """The layers of a known trunk."""
    return base.h if _gpt2(base) else base.layers


def windows_of(base: Any) -> list[int | None]:
    """How many tokens each layer of a known trunk sees, the one that asks among them; None: all before it."""
    count, window = len(blocks_of(base)), getattr(base.config, "sliding_window", None)
    if type(base).__name__ == "MistralModel":
        return [window] * count
    if type(base).__name__ == "Qwen2Model":
        return [window if kind == "sliding_attention" else None for kind in base.config.layer_types[:count]]
    return [None] * count  # Llama and GPT-2 have none, whatever stands in their config


def _gpt2(base: Any) -> bool:
    return type(base).__name__ == "GPT2Model"


class _Rows:
    """Texts of some lengths (B,), side by side from their first token on, and in one row.

    ``longest``: tokens that there is room for side by side, a multiple of 8, since attention over 48 tokens
    takes two thirds of the time of 47 on a CPU with AVX-512.
    """

    def __init__(self, lengths: torch.Tensor) -> None:
        self.count, self.length = len(lengths), int(lengths.max()) if len(lengths) else 0
        self.longest = self.length if self.length < 16 else -(-self.length // 8) * 8
        self.slot: torch.Tensor | None = None  # None: all are of one length
        self.total = int(lengths.sum())
        if self.total != self.count * self.length:
            self.slot = (torch.arange(self.longest, device=lengths.device) < lengths[:, None]).flatten().nonzero()[:, 0]

    def to(self, device: torch.device) -> None:
        self.slot = None if self.slot is None else self.slot.to(device)

    def side_by_side(self, x: torch.Tensor) -> torch.Tensor:
        """(n, ...) to (B, longest, ...), zeros behind."""
        if self.slot is None:
            rows = x.view(self.count, self.length, *x.shape[1:])
            behind = self.longest - self.length
            return F.pad(rows, [0, 0] * (x.dim() - 1) + [0, behind]) if behind else rows
        room = x.new_zeros(self.count * self.longest, *x.shape[1:])
        return room.index_copy_(0, self.slot, x).view(self.count, self.longest, *x.shape[1:])

    def in_a_row(self, x: torch.Tensor) -> torch.Tensor:
        """(B, longest, ...) to (n, ...)."""
        return x[:, : self.length].flatten(0, 1) if self.slot is None else x.flatten(0, 1).index_select(0, self.slot)


class FlatTexts:
    """Where the tokens of some texts stand when all are in one row.

    Args:
        input_ids, attention_mask: (B, L); padding may stand anywhere. wanted: (B, L) bool, the states asked for.
        prompt_width: leading columns that are computed once for rows in which they are equal; no state before the
            last of them may be asked for. 0: every row is computed for itself.

    Attributes:
        ids, positions: (n,) of the tokens in a row. out: (m,) where in it the wanted states stand, row by row.
        source: (n,) where in the flattened (B, L) each token was taken from.
    """

    def __init__(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, wanted: torch.Tensor, prompt_width: int = 0
    ) -> None:
        # nothing behind the last wanted state changes one
        seen = attention_mask.bool() & (wanted.flip(-1).cumsum(-1).flip(-1) > 0)
        places = torch.arange(seen.numel(), device=seen.device).view_as(seen)
        self.prompts: _Rows | None = None
        if prompt_width:
            prompts = input_ids[:, :prompt_width].masked_fill(~seen[:, :prompt_width], -1)
            unique, which = torch.unique(prompts, dim=0, return_inverse=True)
            if len(unique) < len(prompts):
                self._shared(seen, places, wanted, prompt_width, unique, which)
        if self.prompts is None:
            self.texts = _Rows(seen.sum(-1))
            self.source = places[seen]
            self.positions = (seen.cumsum(-1) - 1)[seen]
            self.out = (seen.flatten().cumsum(0) - 1).view_as(seen)[wanted]
        self.longest = int(self.positions.max()) + 1 if len(self.positions) else 0
        self.windowed: dict[int, torch.Tensor] = {}
        self.ids = input_ids.flatten()[self.source]

    def _shared(
        self,
        seen: torch.Tensor,
        places: torch.Tensor,
        wanted: torch.Tensor,
        width: int,
        unique: torch.Tensor,
        which: torch.Tensor,
    ) -> None:
        first = torch.zeros(len(unique), dtype=torch.long, device=seen.device)
        first[which.flip(0)] = torch.arange(len(which) - 1, -1, -1, device=seen.device)  # a row that has the prompt
        head, tail = seen[first, :width], seen[:, width:]
        self.which, self.prompts, self.texts = which, _Rows(head.sum(-1)), _Rows(tail.sum(-1))
        lengths = head.sum(-1)
        self.source = torch.cat([places[first, :width][head], places[:, width:][tail]])
        positions = (lengths[which][:, None] + tail.cumsum(-1) - 1)[tail]
        self.positions = torch.cat([(head.cumsum(-1) - 1)[head], positions])
        at = torch.zeros_like(places)
        at[:, width - 1] = (lengths.cumsum(0) - 1)[which]
        at[:, width:] = self.prompts.total + (tail.flatten().cumsum(0) - 1).view_as(tail)
        self.out = at[wanted]
        p, t = self.prompts.longest, self.texts.longest
        mask = torch.ones(len(which), 1, t, p + t, dtype=torch.bool, device=seen.device)
        mask[..., :p] = (torch.arange(p, device=seen.device) < lengths[which][:, None])[:, None, None]
        mask[..., p:] = torch.ones(t, t, dtype=torch.bool, device=seen.device).tril()
        self.mask, self.heads = mask, lengths[which]

    def to(self, device: torch.device) -> FlatTexts:
        """Move what the forward pass needs."""
        self.ids, self.positions, self.out = (x.to(device) for x in (self.ids, self.positions, self.out))
        self.texts.to(device)
        if self.prompts is not None:
            self.prompts.to(device)
            self.which, self.mask, self.heads = (x.to(device) for x in (self.which, self.mask, self.heads))
        return self

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None = None) -> torch.Tensor:
        """Causal attention of every text to itself: flat (n, heads, size) to (n, heads·size).

        ``window``: every token sees so many, itself and those before it; None: all of them.
        """
        if window is not None and window >= self.longest:
            window = None
        if q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):  # the backward pass of bfloat16 takes 8 times that of float32
                return self._attend(q.float(), k.float(), v.float(), window)
        return self._attend(q, k, v, window)

    def _attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> torch.Tensor:
        if self.prompts is None:
            mask = None if window is None else _band(self.texts.longest, window, q.device)
            keys, values = self.texts.side_by_side(k), self.texts.side_by_side(v)
            return _attention(self.texts, q, keys, values, mask)
        n, p = self.prompts.total, self.prompts.longest
        k_head, v_head = (self.prompts.side_by_side(x[:n]) for x in (k, v))
        mask = None if window is None else _band(p, window, q.device)
        head = _attention(self.prompts, q[:n], k_head, v_head, mask)
        if not self.texts.total:
            return head
        keys, values = (
            torch.cat([shared.index_select(0, self.which), self.texts.side_by_side(x[n:])], 1)
            for shared, x in ((k_head, k), (v_head, v))
        )
        mask = self.mask if window is None else self._within(window)
        return torch.cat([head, _attention(self.texts, q[n:], keys, values, mask)])

    def _within(self, window: int) -> torch.Tensor:
        """``mask`` without what lies before the window; the places of a shared prompt's keys come first."""
        if window not in self.windowed:
            assert self.prompts is not None
            p, t = self.prompts.longest, self.texts.longest
            column = torch.arange(p + t, device=self.mask.device)
            places = torch.where(column < p, column, self.heads[:, None] + column - p)  # (B, p + t)
            self.windowed[window] = self.mask & (places[:, None, None] > places[:, None, p:, None] - window)
        return self.windowed[window]


def _band(length: int, window: int, device: torch.device) -> torch.Tensor:
    """(length, length) bool: which tokens before it and itself each one sees."""
    place = torch.arange(length, device=device)
    return (place <= place[:, None]) & (place > place[:, None] - window)


def _attention(
    rows: _Rows, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    # padding stands behind every text, so that a causal mask alone keeps it out of sight
    y = F.scaled_dot_product_attention(
        rows.side_by_side(q).transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=q.shape[1] != keys.shape[2],
    )
    return rows.in_a_row(y.transpose(1, 2)).flatten(1)


def run(base: Any, texts: FlatTexts, *, below: torch.Tensor | None = None, first: int = 0) -> torch.Tensor:
    """Last hidden states (m, d) of the states that ``texts`` asks for, of a trunk that :func:`is_known`.

    Args:
        below: (n, d) what enters block ``first``, where the blocks before it were run already (:func:`lower`).
    """
    h, block = _start(base, texts, below)
    blocks = list(zip(blocks_of(base), windows_of(base), strict=True))[first:]
    for b, window in blocks[:-1]:
        h = block(b, h, window, None)
    h = block(blocks[-1][0], h, blocks[-1][1], texts.out) if blocks else h.index_select(0, texts.out)
    return _norm(base.ln_f if _gpt2(base) else base.norm, h)


def lower(base: Any, texts: FlatTexts, layers: int) -> torch.Tensor:
    """(n, d) what enters block ``layers``."""
    h, block = _start(base, texts, None)
    for b, window in list(zip(blocks_of(base), windows_of(base), strict=True))[:layers]:
        h = block(b, h, window, None)
    return h


# a block, what enters it, its window, the places whose output is wanted (None: all) -> what comes out
Block = Callable[[Any, torch.Tensor, int | None, torch.Tensor | None], torch.Tensor]


def _start(base: Any, texts: FlatTexts, below: torch.Tensor | None) -> tuple[torch.Tensor, Block]:
    if _gpt2(base):
        h = base.wte(texts.ids) + base.wpe(texts.positions) if below is None else below
        heads, gelu = base.config.n_head, base.config.activation_function == "gelu_new"
        return h, lambda b, h, window, out: _gpt2_block(b, h, texts.attend, out, heads, gelu)
    h = base.embed_tokens(texts.ids) if below is None else below
    cos, sin = (x[0][:, None] for x in base.rotary_emb(h[None], texts.positions[None]))
    half = cos.shape[-1] // 2
    # rotate_half as a product: (x1, x2)·cos + (x2, x1)·(−sin, sin)
    sin = torch.cat([-sin[..., :half], sin[..., half:]], -1)
    return h, lambda b, h, window, out: _llama_block(b, h, texts.attend, window, out, cos, sin)


def _gpt2_block(
    b: Any, h: torch.Tensor, attend: Attend, out: torch.Tensor | None, heads: int, gelu: bool
) -> torch.Tensor:
    [qkv] = _projected(b.ln_1, [b.attn.c_attn], h)
    q, k, v = qkv.view(len(h), 3, heads, -1).unbind(1)
    y = attend(q, k, v, None)
    if out is not None:
        h, y = h.index_select(0, out), y.index_select(0, out)
    h = h + b.attn.c_proj(y)
    inner = b.mlp.c_fc(b.ln_2(h))
    return h + b.mlp.c_proj(gelu_new(inner) if gelu else b.mlp.act(inner))


def _llama_block(
    b: Any,
    h: torch.Tensor,
    attend: Attend,
    window: int | None,
    out: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> torch.Tensor:
    a, half = b.self_attn, cos.shape[-1] // 2
    projected = _projected(b.input_layernorm, [a.q_proj, a.k_proj, a.v_proj], h)
    q, k, v = (x.view(len(h), -1, a.head_dim) for x in projected)

    def turned(y: torch.Tensor) -> torch.Tensor:
        return (y * cos + torch.cat([y[..., half:], y[..., :half]], -1) * sin).to(v.dtype)

    y = attend(turned(q), turned(k), v, window)
    if out is not None:
        h, y = h.index_select(0, out), y.index_select(0, out)
    h = h + a.o_proj(y)
    x = _norm(b.post_attention_layernorm, h)
    return h + b.mlp.down_proj(b.mlp.act_fn(b.mlp.gate_proj(x)) * b.mlp.up_proj(x))


def _projected(norm: Any, projections: list[Any], h: torch.Tensor) -> list[torch.Tensor]:
    """Projections of a norm's output (n, d). Where nothing below ``h`` is trained, its scale and shift are folded in:

        (γ·x + β)·W + b = x·(γ·W) + (β·W + b)

    ``h`` needs no gradient there, and that of x, a product as large as the projection's own, would serve γ and β alone.
    """
    folds = torch.is_grad_enabled() and not h.requires_grad and h.dtype == torch.float32
    plain = all((type(p) is nn.Linear or _conv1d(p)) and not has_hooks(p) for p in projections)
    if not folds or not plain or has_hooks(norm):
        x = _norm(norm, h)
        return [p(x) for p in projections]
    rms, width = type(norm).__name__.endswith("RMSNorm"), (h.shape[-1],)
    x = F.rms_norm(h, width, eps=norm.variance_epsilon) if rms else F.layer_norm(h, width, eps=norm.eps)
    out = []
    for p in projections:
        weight = p.weight if _conv1d(p) else p.weight.T  # (d, out)
        bias = p.bias if rms else p.bias + norm.bias @ weight
        weight = norm.weight[:, None] * weight
        out.append(x @ weight if bias is None else torch.addmm(bias, x, weight))
    return out


def _conv1d(module: Any) -> bool:
    """GPT-2's projections, which hold their weights as (in, out)."""
    return type(module).__name__ == "Conv1D"


def _norm(module: Any, x: torch.Tensor) -> torch.Tensor:
    if type(module).__name__.endswith("RMSNorm") and x.dtype == torch.float32:
        return F.rms_norm(x, (x.shape[-1],), module.weight, module.variance_epsilon)
    return module(x)  # type: ignore[no-any-return]
