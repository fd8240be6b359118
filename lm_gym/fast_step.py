"""One decoding step of Llama- and GPT-2-class models written out over the cache, with no module on the path.

``transformers`` spends most of a small model's step in Python. :func:`fast_step` returns the same arithmetic as plain
tensor calls, or None for a model that it does not know; then the model itself does the step, which is the oracle in
the tests. Weights are read when it is made (LoRA adapters merged), so it is made anew whenever they change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from lm_gym.rows import ColumnCache

# tokens (n,), positions (n,), additive mask (n, 1, 1, columns in sight), cache -> last hidden states (n, d)
Step = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, "ColumnCache"], torch.Tensor]

LLAMA_LIKE = ("LlamaModel", "MistralModel", "Qwen2Model")


def fast_step(base: Any) -> Step | None:
    """The step of a trunk, or None if it holds anything that is not written out here."""
    if any(m._forward_hooks or m._forward_pre_hooks for m in base.modules()):
        return None
    kind, config = type(base).__name__, base.config
    if kind in LLAMA_LIKE:
        rope = getattr(base.rotary_emb, "rope_type", "default")
        known = config.hidden_act == "silu" and rope in ("default", "linear", "llama3")
        return _llama_step(base) if known and _linear(base) else None
    if kind == "GPT2Model":
        odd = config.scale_attn_by_inverse_layer_idx or config.reorder_and_upcast_attn or not config.scale_attn_weights
        known = config.activation_function == "gelu_new" and not odd and not config.add_cross_attention
        return _gpt2_step(base) if known and _linear(base) else None
    return None


def _linear(base: Any) -> bool:
    """Whether every projection is a plain one, or a plain one under LoRA."""
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "c_attn", "c_proj", "c_fc")
    for name, module in base.named_modules():
        if name.rsplit(".", 1)[-1] in names:
            inner = getattr(module, "base_layer", module)
            if type(inner).__name__ not in ("Linear", "Conv1D") or (
                inner is not module and not hasattr(module, "get_delta_weight")
            ):
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
            for name in lora.active_adapters if not lora.disable_adapters else []:
                weight = (weight + lora.get_delta_weight(name).detach()).to(weight.dtype)  # adapters are in float32
        rows.append(weight.T if type(inner).__name__ == "Conv1D" else weight)
        biases.append(None if inner.bias is None else inner.bias.detach())
    known = [b for b in biases if b is not None]
    bias = torch.cat(known) if len(known) == len(biases) else None
    if known and bias is None:
        bias = torch.cat([w.new_zeros(len(w)) if b is None else b for w, b in zip(rows, biases, strict=True)])
    return (rows[0] if len(rows) == 1 else torch.cat(rows)), bias


def _write(cache: ColumnCache, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    keys, values, c = cache.keys[layer], cache.values[layer], cache.column
    keys[:, :, c] = k
    values[:, :, c] = v
    return keys[:, :, cache.start : c + 1], values[:, :, cache.start : c + 1]


def _llama_step(base: Any) -> Step:
    config = base.config
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    eps, width = config.rms_norm_eps, config.hidden_size
    embed, norm = base.embed_tokens.weight, base.norm.weight
    at = torch.arange(config.max_position_embeddings, device=embed.device)[None]
    cos, sin = (x[0] for x in base.rotary_emb(embed[:1], at))
    half = size // 2
    # rotate_half as a product: (x1, x2)·cos + (−x2, x1)·sin
    sin = torch.cat([-sin[:, :half], sin[:, half:]], -1)
    blocks = [
        (
            b.input_layernorm.weight,
            *_weights(b.self_attn.q_proj, b.self_attn.k_proj, b.self_attn.v_proj),
            *_weights(b.self_attn.o_proj),
            b.post_attention_layernorm.weight,
            *_weights(b.mlp.gate_proj, b.mlp.up_proj),
            *_weights(b.mlp.down_proj),
        )
        for b in base.layers
    ]

    def step(tokens: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, cache: ColumnCache) -> torch.Tensor:
        n = len(tokens)
        h = embed[tokens]
        c, s = cos[positions][:, None], sin[positions][:, None]
        for i, (n1, wqkv, bqkv, wo, bo, n2, wgu, bgu, wd, bd) in enumerate(blocks):
            qkv = F.linear(F.rms_norm(h, (width,), n1, eps), wqkv, bqkv).view(n, heads + 2 * kv, size)
            qk, v = qkv[:, : heads + kv], qkv[:, heads + kv :]
            qk = qk * c + torch.cat([qk[..., half:], qk[..., :half]], -1) * s
            k_all, v_all = _write(cache, i, qk[:, heads:], v)
            y = F.scaled_dot_product_attention(
                qk[:, :heads, None], k_all, v_all, attn_mask=mask, enable_gqa=kv != heads
            )
            h = h + F.linear(y.reshape(n, heads * size), wo, bo)
            gate, up = F.linear(F.rms_norm(h, (width,), n2, eps), wgu, bgu).chunk(2, -1)
            h = h + F.linear(F.silu(gate) * up, wd, bd)
        return F.rms_norm(h, (width,), norm, eps)

    return step


def _gpt2_step(base: Any) -> Step:
    config = base.config
    heads, width, eps = config.n_head, config.n_embd, config.layer_norm_epsilon
    size = width // heads
    wte, wpe, end = base.wte.weight, base.wpe.weight, base.ln_f
    blocks = [
        (
            b.ln_1.weight,
            b.ln_1.bias,
            *_weights(b.attn.c_attn),
            *_weights(b.attn.c_proj),
            b.ln_2.weight,
            b.ln_2.bias,
            *_weights(b.mlp.c_fc),
            *_weights(b.mlp.c_proj),
        )
        for b in base.h
    ]

    def step(tokens: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor, cache: ColumnCache) -> torch.Tensor:
        n = len(tokens)
        h = wte[tokens] + wpe[positions]
        for i, (g1, b1, wa, ba, wp, bp, g2, b2, wf, bf, wo, bo) in enumerate(blocks):
            qkv = F.linear(F.layer_norm(h, (width,), g1, b1, eps), wa, ba).view(n, 3, heads, size)
            k_all, v_all = _write(cache, i, qkv[:, 1], qkv[:, 2])
            y = F.scaled_dot_product_attention(qkv[:, 0, :, None], k_all, v_all, attn_mask=mask)
            h = h + F.linear(y.reshape(n, width), wp, bp)
            f = F.gelu(F.linear(F.layer_norm(h, (width,), g2, b2, eps), wf, bf), approximate="tanh")
            h = h + F.linear(f, wo, bo)
        return F.layer_norm(h, (width,), end.weight, end.bias, eps)

    return step
