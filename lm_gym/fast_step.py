"""Llama- and GPT-2-class trunks written out over the cache, with no module on the path: prompts and single tokens.

``transformers`` spends most of a small model's step in Python. :func:`fast_trunk` returns the same arithmetic as plain
tensor calls, or None for a model that it does not know; then the model itself does it, which is the oracle in the
tests. Weights are read when it is made (LoRA adapters merged), so it is made anew whenever they change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from lm_gym.activations import gelu_new
from lm_gym.flat_trunk import KNOWN, LLAMA_LIKE, windows_of
from lm_gym.hooks import has_hooks

if TYPE_CHECKING:
    from lm_gym.rows import ColumnCache


class FastTrunk(Protocol):
    """A trunk that reads and writes a cache.

    ids (n, t); positions (n, t), or a slice of t positions that all rows share; mask: additive, (n, 1, t, columns in
    sight), or None where every token sees all of its own text and nothing else. Last hidden states (n, d) of the last
    tokens; the others are only computed as far as later tokens see them.
    """

    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor | slice, mask: torch.Tensor | None, cache: ColumnCache
    ) -> torch.Tensor: ...


def fast_trunk(base: Any, longest: int | None = None) -> FastTrunk | None:
    """The trunk written out, or None if it holds anything that is not written out here.

    ``longest``: of the texts, in tokens; None: the model's positions, for which a table of angles is made.
    """
    if hooked(base):
        return None
    kind, config = type(base).__name__, base.config
    longest = longest or config.max_position_embeddings
    if kind in KNOWN and any(window is not None and window < longest for window in windows_of(base)):
        return None  # masks by layer are for the modules
    if kind in LLAMA_LIKE:
        rope = getattr(base.rotary_emb, "rope_type", "default")
        known = config.hidden_act == "silu" and rope in ("default", "linear", "llama3")
        return _llama(base, longest) if known and _linear(base) else None
    if kind == "GPT2Model":
        odd = config.scale_attn_by_inverse_layer_idx or config.reorder_and_upcast_attn or not config.scale_attn_weights
        known = config.activation_function == "gelu_new" and not odd and not config.add_cross_attention
        return _gpt2(base) if known and _linear(base) else None
    return None


def hooked(base: Any) -> bool:
    """Whether somebody listens to what goes through the modules."""
    return any(map(has_hooks, base.modules()))


def _linear(base: Any) -> bool:
    """Whether every projection is a plain one, or a plain one under LoRA, and nothing else under an adapter."""
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "c_attn", "c_proj", "c_fc")
    for name, module in base.named_modules():
        if name.rsplit(".", 1)[-1] in names:
            inner = getattr(module, "base_layer", module)
            if type(inner).__name__ not in ("Linear", "Conv1D") or (
                inner is not module and not hasattr(module, "get_delta_weight")
            ):
                return False
        elif hasattr(module, "base_layer") or hasattr(module, "original_module"):  # PEFT's embeddings and norms
            return False
    return True


def _weights(*modules: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(out, in) weight and bias of projections side by side, LoRA's difference added."""
    rows, biases = [], []
    for module in modules:
        inner: Any = getattr(module, "base_layer", module)
        weight = inner.weight.detach()
        if inner is not module:
            lora: Any = module
            # an adapter need not reach every projection, and one that was merged is in the weight already
            active = [] if lora.disable_adapters or lora.merged else lora.active_adapters
            for name in (name for name in active if name in lora.lora_A):
                weight = (weight + lora.get_delta_weight(name).detach()).to(weight.dtype)  # adapters are in float32
        rows.append(weight.T if type(inner).__name__ == "Conv1D" else weight)
        biases.append(None if inner.bias is None else inner.bias.detach())
    known = [b for b in biases if b is not None]
    bias = torch.cat(known) if len(known) == len(biases) else None
    if known and bias is None:
        bias = torch.cat([w.new_zeros(len(w)) if b is None else b for w, b in zip(rows, biases, strict=True)])
    return (rows[0] if len(rows) == 1 else torch.cat(rows)), bias


def _llama(base: Any, longest: int) -> FastTrunk:
    config = base.config
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    eps, width = config.rms_norm_eps, config.hidden_size
    embed, norm = base.embed_tokens.weight.detach(), base.norm.weight.detach()
    at = torch.arange(longest, device=embed.device)[None]
    cos, sin = (x[0] for x in base.rotary_emb(embed[:1], at))
    half, last = size // 2, len(base.layers) - 1
    # rotate_half as a product: (x1, x2)·cos + (−x2, x1)·sin
    sin = torch.cat([-sin[:, :half], sin[:, half:]], -1)
    blocks = [
        (
            b.input_layernorm.weight.detach(),
            *_weights(b.self_attn.q_proj, b.self_attn.k_proj, b.self_attn.v_proj),
            *_weights(b.self_attn.o_proj),
            b.post_attention_layernorm.weight.detach(),
            *_weights(b.mlp.gate_proj, b.mlp.up_proj),
            *_weights(b.mlp.down_proj),
        )
        for b in base.layers
    ]

    def run(
        ids: torch.Tensor, positions: torch.Tensor | slice, mask: torch.Tensor | None, cache: ColumnCache
    ) -> torch.Tensor:
        n, t = ids.shape
        h = F.embedding(ids, embed).view(n * t, width)
        c, s = cos[positions].unsqueeze(-2), sin[positions].unsqueeze(-2)  # (n or 1, t, 1, size)
        for i, (n1, wqkv, bqkv, wo, bo, n2, wgu, bgu, wd, bd) in enumerate(blocks):
            if i == cache.tap:
                cache.keep(h.view(n, t, width))
            qkv = F.linear(F.rms_norm(h, (width,), n1, eps), wqkv, bqkv).view(n, t, heads + 2 * kv, size)
            qk, v = qkv[:, :, : heads + kv], qkv[:, :, heads + kv :]
            qk = qk * c + torch.cat([qk[..., half:], qk[..., :half]], -1) * s
            keys, values = cache.update(qk[:, :, heads:].transpose(1, 2), v.transpose(1, 2), i)
            q, causal, seen = qk[:, :, :heads].transpose(1, 2), mask is None and t > 1, mask
            if i == last and t > 1:
                h, q, causal, seen = h.view(n, t, width)[:, -1], q[:, :, -1:], False, _of_last(mask)
            y = F.scaled_dot_product_attention(
                q, keys, values, attn_mask=seen, is_causal=causal, enable_gqa=kv != heads
            )
            h = h + F.linear(y.transpose(1, 2).reshape(len(h), heads * size), wo, bo)
            gate, up = F.linear(F.rms_norm(h, (width,), n2, eps), wgu, bgu).chunk(2, -1)
            h = h + F.linear(F.silu(gate) * up, wd, bd)
        return F.rms_norm(h, (width,), norm, eps)

    return run


def _of_last(mask: torch.Tensor | None) -> torch.Tensor | None:
    return None if mask is None else mask[:, :, -1:]


def _gpt2(base: Any) -> FastTrunk:
    config = base.config
    heads, width, eps = config.n_head, config.n_embd, config.layer_norm_epsilon
    size, last = width // heads, len(base.h) - 1
    wte, wpe = base.wte.weight.detach(), base.wpe.weight.detach()
    g, b = base.ln_f.weight.detach(), base.ln_f.bias.detach()
    blocks = [
        (
            block.ln_1.weight.detach(),
            block.ln_1.bias.detach(),
            *_weights(block.attn.c_attn),
            *_weights(block.attn.c_proj),
            block.ln_2.weight.detach(),
            block.ln_2.bias.detach(),
            *_weights(block.mlp.c_fc),
            *_weights(block.mlp.c_proj),
        )
        for block in base.h
    ]
    norm, linear = torch.layer_norm, F.linear

    def run(
        ids: torch.Tensor, positions: torch.Tensor | slice, mask: torch.Tensor | None, cache: ColumnCache
    ) -> torch.Tensor:
        n, t = ids.shape
        h = (F.embedding(ids, wte) + wpe[positions]).view(n * t, width)
        for i, (g1, b1, wa, ba, wp, bp, g2, b2, wf, bf, wo, bo) in enumerate(blocks):
            if i == cache.tap:
                cache.keep(h.view(n, t, width))
            qkv = linear(norm(h, (width,), g1, b1, eps), wa, ba).view(n, t, 3, heads, size)
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()
            keys, values = cache.update(k, v, i)
            causal, seen = mask is None and t > 1, mask
            if i == last and t > 1:
                h, q, causal, seen = h.view(n, t, width)[:, -1], q[:, :, -1:], False, _of_last(mask)
            y = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen, is_causal=causal)
            h = h + linear(y.transpose(1, 2).reshape(len(h), width), wp, bp)
            h = h + linear(gelu_new(linear(norm(h, (width,), g2, b2, eps), wf, bf)), wo, bo)
        return norm(h, (width,), g, b, eps)

    return run
