"""Trains `tiny`, tokenizer and weights, from nothing: `python -m lm_gym.tiny.train --out folder`.

The same machine and the same number of threads give the same bytes. The folder is a complete Hugging Face model.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from lm_gym.tiny import world
from lm_gym.tiny.ngram import KneserNey

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
SPECIAL = (PAD, BOS, EOS)  # ids 0, 1, 2


@dataclass
class TrainConfig:
    """Everything that the weights depend on."""

    out: str = "tiny-trained"
    """Folder to write; made if it is not there."""
    seed: int = 0
    """Seed of the texts, of the initial weights and of the order of batches."""
    threads: int = 2
    """CPU threads. Another number rounds differently, so it gives other bytes."""
    steps: int = 1600
    """Optimizer steps."""
    batch_texts: int = 48
    """Texts a step, of about the same length, each in a row of its own."""
    lr: float = 4e-3
    """Peak learning rate; linear warm-up, then a cosine down to nothing."""
    warmup: int = 100
    """Steps of warm-up."""
    weight_decay: float = 0.05
    """AdamW's, on matrices only."""
    vocab_size: int = 1000
    """Tokens, the three special ones and the 256 bytes among them."""
    hidden_size: int = 160
    """Width of the model."""
    layers: int = 4
    """Depth of the model; a token's latency is nearly proportional to it."""
    heads: int = 5
    """Attention heads."""
    intermediate_size: int = 432
    """Width of the feed-forward layers."""
    ngram_texts: int = 0
    """Texts of training data for the 5-gram model to compare with; 0: all that the model saw, -1: no comparison."""


def make_tokenizer(vocab_size: int, seed: int) -> Tokenizer:
    """A byte-level BPE trained on generated texts: any Unicode text goes in and comes back as it was."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((d.text for d in world.corpus(seed, 40_000)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, out: Path) -> None:
    """tokenizer.json, and the few facts that transformers keeps beside it."""
    tokenizer.save(str(out / "tokenizer.json"))
    facts = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "padding_side": "left",
        "model_max_length": 256,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (out / "tokenizer_config.json").write_text(json.dumps(facts, indent=2) + "\n")


def make_model(config: TrainConfig) -> LlamaForCausalLM:
    """The untrained model."""
    torch.manual_seed(config.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            initializer_range=0.04,
            pad_token_id=SPECIAL.index(PAD),
            bos_token_id=SPECIAL.index(BOS),
            eos_token_id=SPECIAL.index(EOS),
        )
    )


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of whole texts: BOS, the text, EOS."""
    end = SPECIAL.index(EOS)
    return [[*e.ids, end] for e in tokenizer.encode_batch(texts)]


def batches(config: TrainConfig, tokenizer: Tokenizer) -> Iterator[list[list[int]]]:
    """One batch a step, of texts of similar length, never the same text twice on purpose."""
    pool_batches = 50
    texts = world.corpus(config.seed, config.steps * config.batch_texts)
    order = random.Random(config.seed)
    for start in range(0, config.steps, pool_batches):
        here = min(pool_batches, config.steps - start)
        pool = encode(tokenizer, [next(texts).text for _ in range(here * config.batch_texts)])
        pool.sort(key=len)
        rows = [pool[i * config.batch_texts : (i + 1) * config.batch_texts] for i in range(here)]
        order.shuffle(rows)
        yield from rows


def text_loss(model: LlamaForCausalLM, batch: list[list[int]]) -> tuple[torch.Tensor, int]:
    """Summed negative log-likelihood in nats of all tokens after BOS, and their number.

    Rows are padded on the right: causal attention never looks there, and every text starts at position 0.
    """
    longest = max(map(len, batch))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in batch])
    targets = torch.tensor([row[1:] + [-100] * (longest - len(row)) for row in batch])
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum"
    )
    return loss, int((targets >= 0).sum())


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, texts: list[list[int]], batch_texts: int = 128) -> float:
    """exp of the mean negative log-likelihood of every token after BOS."""
    model.eval()
    nats, tokens = 0.0, 0
    rows = sorted(texts, key=len)
    for i in range(0, len(rows), batch_texts):
        loss, count = text_loss(model, rows[i : i + batch_texts])
        nats, tokens = nats + loss.item(), tokens + count
    return math.exp(nats / tokens)


def held_out(tokenizer: Tokenizer, count: int) -> list[list[int]]:
    """Token ids of texts whose prompts are test prompts, which no training text has."""
    return encode(tokenizer, [d.text for d in world.corpus(1_000_003, count, split="test")])


def train(config: TrainConfig) -> dict[str, float]:
    """Trains and writes the model. Returns what docs/tiny.md reports."""
    torch.set_num_threads(config.threads)
    torch.use_deterministic_algorithms(True)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    tokenizer = make_tokenizer(config.vocab_size, config.seed)
    model = make_model(config)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=config.lr,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min((s + 1) / config.warmup, 0.5 * (1 + math.cos(math.pi * min(s / config.steps, 1.0)))),
    )
    tokens = 0
    for step, batch in enumerate(batches(config, tokenizer)):
        model.train()
        loss, count = text_loss(model, batch)
        tokens += count
        optimizer.zero_grad(set_to_none=True)
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step + 1 == config.steps:
            seconds = time.perf_counter() - start
            print(f"step {step:5d}  loss {loss.item() / count:.4f}  {tokens / seconds:,.0f} tokens/s", flush=True)
    seconds = time.perf_counter() - start

    texts = held_out(tokenizer, 2000)
    report = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "perplexity": round(perplexity(model, texts), 4),
    }
    save_tokenizer(tokenizer, out)
    special = {"bos_token_id": model.config.bos_token_id, "eos_token_id": model.config.eos_token_id}
    model.generation_config = GenerationConfig(pad_token_id=model.config.pad_token_id, do_sample=True, **special)
    model.half().save_pretrained(out)
    report["perplexity_float16_file"] = round(
        perplexity(LlamaForCausalLM.from_pretrained(out, dtype=torch.float32), texts), 4
    )
    if config.ngram_texts >= 0:
        count = config.ngram_texts or config.steps * config.batch_texts
        seen = encode(tokenizer, [d.text for d in world.corpus(config.seed, count)])
        report["perplexity_5gram"] = round(KneserNey(seen, vocab_size=config.vocab_size).perplexity(texts), 4)
    print(json.dumps(report, indent=2))
    return report


def main() -> None:
    """The command line: one flag for each field of `TrainConfig`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for field in fields(TrainConfig):
        assert isinstance(field.default, (int, float, str))
        parser.add_argument("--" + field.name.replace("_", "-"), type=type(field.default), default=field.default)
    train(TrainConfig(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
