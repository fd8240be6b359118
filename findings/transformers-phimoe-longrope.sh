#!/usr/bin/env bash
# transformers 5.23.0: Phi-3.5-MoE (PhimoeForCausalLM) never uses the long factors of its longrope position encoding.
#
# PhimoeRotaryEmbedding.forward is decorated with dynamic_rope_update, which puts the long frequencies into self.inv_freq
# for a text beyond original_max_position_embeddings; but the forward computes its frequencies anew with
# self.rope_init_fn(self.config), without a length, and so always takes the short ones. Only the scale (long_mscale)
# switches. Phi3ForCausalLM with the same encoding is right. No warning speaks of it; texts beyond 4,096 tokens of the published
# Phi-3.5-MoE are encoded with factors that it was not trained with there.
#
# How much the logits change when long_factor is 32 in place of 2, original_max_position_embeddings being 16. Output seen:
#
#   phi3, 16 tokens: 0.00
#   phi3, 24 tokens: 6.68
#   phimoe, 16 tokens: 0.00
#   phimoe, 24 tokens: 0.00
#
# Exits non-zero if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PY'
import torch
from transformers import Phi3Config, Phi3ForCausalLM, PhimoeConfig, PhimoeForCausalLM

SIZES = dict(
    vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)


def logits(kind, factor, length):
    torch.manual_seed(0)
    rope = dict(rope_type="longrope", rope_theta=1e4, short_factor=[1.0] * 4, long_factor=[factor] * 4)
    rope["original_max_position_embeddings"] = 16
    if kind == "phimoe":
        rope |= dict(short_mscale=1.0, long_mscale=1.2)
        model = PhimoeForCausalLM(PhimoeConfig(**SIZES, num_local_experts=2, num_experts_per_tok=1, rope_parameters=rope))
    else:
        model = Phi3ForCausalLM(Phi3Config(**SIZES, original_max_position_embeddings=16, rope_parameters=rope))
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(3, 3 + length)[None], use_cache=False).logits


found = {}
for kind in ("phi3", "phimoe"):
    for length in (16, 24):
        change = float((logits(kind, 2.0, length) - logits(kind, 32.0, length)).abs().max())
        found[kind, length] = change
        print(f"{kind}, {length} tokens: {change:.2f}")
assert found["phi3", 16] == found["phimoe", 16] == 0 and found["phi3", 24] > 1, found
assert found["phimoe", 24] == 0, "the long factors are used"
PY
