#!/usr/bin/env bash
# transformers 5.23.0: YoutuForCausalLM.from_pretrained sets the embedding row of the padding token to zeros, whatever the
# file holds, and with tied weights the output head's row too, so that a saved and loaded model gives other logits.
#
# Every module's _init_weights runs in from_pretrained and is meant to leave loaded tensors alone: transformers.initialization
# looks at a flag on the parameter. Youtu's own _init_weights zeroes `module.weight.data[module.padding_idx]`: a view, which
# has no flag. The file is right (.1), the loaded row is 0, and log-probs of all tokens move, as the padding token's logit is
# in the denominator. Llama, with the same padding token, comes back as it was. Output seen:
#
#   YoutuForCausalLM: the file's row 0.1, the loaded model's 0.0, logits differ by 0.68
#   LlamaForCausalLM: the file's row 0.1, the loaded model's 0.1, logits differ by 0.00
#
# Exits non-zero if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PY'
import tempfile

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, YoutuConfig, YoutuForCausalLM

sizes = {
    "vocab_size": 16,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
}
latent = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "embedding_initializer_range": 0.3,
}
ids, seen = torch.tensor([[3, 4, 5]]), {}
for cls, config in ((YoutuForCausalLM, YoutuConfig(**sizes, **latent)), (LlamaForCausalLM, LlamaConfig(**sizes))):
    torch.manual_seed(0)
    model = cls(config).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight[0] = 0.1
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        saved = float(load_file(f"{folder}/model.safetensors")["model.embed_tokens.weight"][0, 0])
        loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    row = float(loaded.get_input_embeddings().weight[0, 0])
    with torch.no_grad():
        off = float((model(ids).logits - loaded(ids).logits).abs().max())
    print(f"{cls.__name__}: the file's row {saved:.1f}, the loaded model's {row:.1f}, logits differ by {off:.2f}")
    seen[cls] = saved > 0.09, row > 0.09, off > 0.1
assert seen == {YoutuForCausalLM: (True, False, True), LlamaForCausalLM: (True, True, False)}, seen
PY
