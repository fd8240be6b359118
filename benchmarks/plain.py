"""GPT-2 written out over preallocated tensors: the floor that decoding and stepping are measured against.

``raw_loop`` of ../shared/bench/floor.py, which runs everything at import; so it is written out again here.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


class PlainGPT2:
    """One decode of ``n`` texts of up to ``length`` tokens: no module, mask or cache object on the path."""

    def __init__(self, model: Any, n: int, length: int) -> None:
        trunk, config = model.transformer, model.config
        self.heads, self.width = config.n_head, config.n_embd
        self.size, self.at = self.width // self.heads, 0
        self.wte, self.wpe = trunk.wte.weight, trunk.wpe.weight
        self.keys = self.wte.new_empty(config.n_layer, n, self.heads, length, self.size)
        self.values = torch.empty_like(self.keys)
        self.g, self.b = trunk.ln_f.weight, trunk.ln_f.bias
        self.blocks = [
            (b.ln_1.weight, b.ln_1.bias, b.attn.c_attn.weight, b.attn.c_attn.bias)
            + (b.attn.c_proj.weight, b.attn.c_proj.bias, b.ln_2.weight, b.ln_2.bias)
            + (b.mlp.c_fc.weight, b.mlp.c_fc.bias, b.mlp.c_proj.weight, b.mlp.c_proj.bias)
            for b in trunk.h
        ]

    def step(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """ids (n, t) to the last token's hidden states (n, d) and log-probs (n, V)."""
        (n, t), at, width = ids.shape, self.at, self.width
        h = (self.wte[ids] + self.wpe[at : at + t]).reshape(n * t, width)
        for i, (g1, b1, wa, ba, wp, bp, g2, b2, wf, bf, wo, bo) in enumerate(self.blocks):
            qkv = torch.addmm(ba, F.layer_norm(h, (width,), g1, b1), wa).view(n, t, 3, self.heads, self.size)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            self.keys[i, :, :, at : at + t] = k
            self.values[i, :, :, at : at + t] = v
            y = F.scaled_dot_product_attention(
                q, self.keys[i, :, :, : at + t], self.values[i, :, :, : at + t], is_causal=t > 1
            )
            h = h + torch.addmm(bp, y.transpose(1, 2).reshape(n * t, width), wp)
            f = F.gelu(torch.addmm(bf, F.layer_norm(h, (width,), g2, b2), wf), approximate="tanh")
            h = h + torch.addmm(bo, f, wo)
        self.at += t
        last = F.layer_norm(h.view(n, t, width)[:, -1], (width,), self.g, self.b)
        return last, torch.log_softmax((last @ self.wte.T).float(), -1)


@torch.no_grad()
def decode(model: Any, ids: torch.Tensor, new_tokens: int, head: Any) -> tuple[torch.Tensor, ...]:
    """Sampled texts (N, P + T), their log-probs (N, T) and values (N, T)."""
    loop, now = PlainGPT2(model, len(ids), ids.shape[1] + new_tokens), ids
    text, logprobs, values = [ids], [], []
    for _ in range(new_tokens):
        hidden, logp = loop.step(now)
        values.append(head(hidden))
        now = torch.multinomial(logp.exp(), 1)
        text.append(now)
        logprobs.append(logp.gather(-1, now))
    return torch.cat(text, 1), torch.cat(logprobs, 1), torch.cat(values, 1)


@torch.no_grad()
def decode_both(policy: Any, reference: Any, ids: torch.Tensor, new_tokens: int) -> tuple[torch.Tensor, ...]:
    """Sampled texts (N, P + T) with the log-probs (N, T) of policy and reference, both a token at a time."""
    loops = [PlainGPT2(m, len(ids), ids.shape[1] + new_tokens) for m in (policy, reference)]
    text, logprobs, now = [ids], [], ids
    for _ in range(new_tokens):
        both = [loop.step(now)[1] for loop in loops]
        now = torch.multinomial(both[0].exp(), 1)
        text.append(now)
        logprobs.append([logp.gather(-1, now) for logp in both])
    return torch.cat(text, 1), *(torch.cat(steps, 1) for steps in zip(*logprobs, strict=True))
