#!/usr/bin/env bash
# transformers 5.23.0: with rope_type "dynamic" a model's answer depends on the longest text that it has read before.
#
# Dynamic NTK is to compute its frequencies from the length of the text. dynamic_rope_update computes them anew only where
# a text is longer than every one before (max_seq_len_cached), and goes back only for a text within the trained length. A
# text between the two lengths is encoded with the frequencies of the longest earlier one: the same 20 tokens get other
# log-probs after a text of 60 tokens, in eval mode, without a cache, and the old ones again after a text of 8.
#
# Largest difference of the last token's log-probs (trained length 16). Output seen:
#
#   20 tokens, again: 0.00 nats
#   20 tokens, after a text of 60: 2.78 nats
#   20 tokens, after a text of 60 and one of 8: 0.00 nats
#
# Exits non-zero if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PY'
import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=16, initializer_range=0.3,
    rope_parameters=dict(rope_type="dynamic", factor=4.0, rope_theta=1e4),
)
model = LlamaForCausalLM(config).eval()


@torch.no_grad()
def read(length):
    return model(input_ids=torch.arange(length)[None], use_cache=False).logits[0, -1].log_softmax(-1)


first, found = read(20), {}
found["again"] = read(20)
read(60)
found["after a text of 60"] = read(20)
read(8)
found["after a text of 60 and one of 8"] = read(20)
apart = {name: float((logp - first).abs().max()) for name, logp in found.items()}
for name, nats in apart.items():
    print(f"20 tokens, {name}: {nats:.2f} nats")
assert apart["again"] == apart["after a text of 60 and one of 8"] == 0, apart
assert apart["after a text of 60"] > 1, "the frequencies are of the text's own length"
PY
