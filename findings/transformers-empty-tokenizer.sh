#!/usr/bin/env bash
# transformers 5.23.0: AutoTokenizer makes a tokenizer out of a folder that has none, and it encodes every text as nothing.
#
# A folder with config.json and weights but without a tokenizer's files (a model that was saved without its tokenizer) is
# an error for Llama and Mistral. For Qwen2, GPT-2, Gemma, BERT, RoBERTa, T5 and others AutoTokenizer.from_pretrained
# returns a tokenizer of special tokens alone, without an error or a warning: text becomes no token, or unknown ones.
#
# What "hello world" is. Output seen:
#
#   LlamaConfig: ValueError
#   Qwen2Config: 1 tokens in all, []
#   GPT2Config: 1 tokens in all, []
#   GemmaConfig: 5 tokens in all, [3]
#   BertConfig: 5 tokens in all, [2, 1, 1, 3]
#
# Exits non-zero if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 numpy
"$folder/venv/bin/python" - <<'PY'
import tempfile

from transformers import AutoTokenizer, BertConfig, GemmaConfig, GPT2Config, LlamaConfig, Qwen2Config

found = {}
for config in (LlamaConfig, Qwen2Config, GPT2Config, GemmaConfig, BertConfig):
    with tempfile.TemporaryDirectory() as folder:
        config().save_pretrained(folder)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            said = f"{len(tokenizer)} tokens in all, {tokenizer('hello world')['input_ids']}"
        except ValueError as error:
            said = type(error).__name__
        found[config.__name__] = said
        print(f"{config.__name__}: {said}")
assert found == {
    "LlamaConfig": "ValueError",
    "Qwen2Config": "1 tokens in all, []",
    "GPT2Config": "1 tokens in all, []",
    "GemmaConfig": "5 tokens in all, [3]",
    "BertConfig": "5 tokens in all, [2, 1, 1, 3]",
}, found
PY
