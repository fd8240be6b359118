#!/usr/bin/env bash
# TRL 1.16.0: GRPO with a reward that is the same for every text trains the model, if the reward is 0.9 and not 1.0.
#
# Equal rewards have advantage 0: nothing is to be learned. But the float32 mean of eight times 0.9 is off by 6e-8, which the
# division by (std + 1e-4) makes -6e-4 for all eight texts, and Adam divides a gradient by its own size: every step is
# a whole one. 15 of the 19 rewards .05, .10, ... .95 do it at 8 texts a prompt, which is the default. A format reward that
# is always earned is the usual end of such a run.
#
# A tiny Llama, 10 steps at a learning rate of .001, beta=0, AdamW without weight decay. Output seen:
#
#   reward always 1.0: the weight that moved most moved by 0.000000 in 10 steps of 0.001
#   reward always 0.9: the weight that moved most moved by 0.009423 in 10 steps of 0.001
#   advantage of each of eight rewards of 0.9: -5.96e-04
#
# Exits non-zero if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet trl==1.16.0 transformers==5.23.0 torch==2.13.0 datasets==5.2.0 accelerate==1.15.0
cd "$folder"
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - 2>"$folder/log" <<'PY' | grep -v '^{'
import sys
import tempfile

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import GRPOConfig, GRPOTrainer


def moved(score: float) -> float:
    set_seed(0)
    vocabulary = {"<pad>": 0, "<eos>": 1} | {f"w{i}": i for i in range(2, 64)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="w2"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = tempfile.mkdtemp()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    trainer = GRPOTrainer(
        model=folder,
        reward_funcs=lambda completions, **_: [score] * len(completions),
        train_dataset=Dataset.from_list([{"prompt": f"w{i}"} for i in range(3, 19)]),
        args=GRPOConfig(
            output_dir=folder, per_device_train_batch_size=8, num_generations=8, max_completion_length=8, max_steps=10,
            learning_rate=1e-3, lr_scheduler_type="constant", beta=0.0, weight_decay=0.0, report_to="none",
            save_strategy="no", use_cpu=True, bf16=False, disable_tqdm=True, seed=0,
        ),
    )
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    return max(float((p.detach() - q).abs().max()) for p, q in zip(trainer.model.parameters(), before))


found = {score: moved(score) for score in (1.0, 0.9)}
for score, distance in found.items():
    print(f"reward always {score}: the weight that moved most moved by {distance:.6f} in 10 steps of 0.001")
eight = torch.full((8,), 0.9)
print(f"advantage of each of eight rewards of 0.9: {float((eight - eight.mean())[0] / (eight.std() + 1e-4)):.2e}")
sys.exit(0 if found[1.0] == 0.0 and found[0.9] > 1e-3 else 1)
PY
