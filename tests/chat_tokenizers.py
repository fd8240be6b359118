"""Tokenizers and chat templates with the shape of well-known ones: small, and written for these tests."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from lm_gym.reward_models.classifier import Classifier

SPECIAL = ("<unk>", "<s>", "</s>", "<eot>", "<user>", "<model>", "<think>", "</think>")
UNK, BOS, EOS, EOT, USER, MODEL, THINK, THOUGHT = range(8)
WORDS = ("good", "bad", "day", "hi", "yes", "no", "so")


def sentencepiece(kind: str = "legacy") -> Any:
    """Words with and without a space before, letters beside them; "legacy" begins every piece of text between special
    tokens with a space, "first" only the very first, as the two kinds of SentencePiece tokenizers in use do."""
    letters = sorted({*"abcdefghijklmnopqrstuvwxyz[]/:.{}()\\\"'_<|>\n0123456789"})
    pieces = ["▁", *letters]
    merges = []
    for word in WORDS:
        for i in range(2, len(word) + 1):
            merges.append((word[: i - 1], word[i - 1]))
            pieces.append(word[:i])
        merges.append(("▁", word))
        pieces.append("▁" + word)
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys([*SPECIAL, *pieces]))}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=list(dict.fromkeys(merges)), unk_token="<unk>"))
    if kind == "legacy":
        raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )


def with_template(template: str, kind: str = "legacy") -> Any:
    tok = sentencepiece(kind)
    tok.chat_template = template
    return tok


LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token }}[{{ m['content'] }} ]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
"""The question in brackets, the answer behind a space; no marker of an answer beside the bracket."""

ZEPHYR = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""The answer begins a line."""

GEMMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<user>' if m['role'] == 'user' else '<model>' }}{{ m['content'] }}<eot>"
    "\n{% endfor %}{% if add_generation_prompt %}<model>{% endif %}"
)
"""Turns end in <eot>, which is not the tokenizer's EOS, and a line break."""

PHI3 = (
    "{% for m in messages %}{{ '<user>' if m['role'] == 'user' else '<model>' }}{{ m['content'] }}<eot>\n{% endfor %}"
    "{% if add_generation_prompt %}<model>{% else %}{{ eos_token }}{% endif %}"
)
"""As Gemma's, and the whole ends in EOS."""

QWEN3 = (
    "{% set asked = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set asked.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}"
    "{% if m['role'] == 'user' %}<user>{{ m['content'] }}<eot>\n{% else %}"
    "{% set parts = m['content'].split('</think>') %}<model>{% if loop.index0 > asked.last %}"
    "<think>{{ parts[0].split('<think>')[-1] if parts | length > 1 }}</think>{% endif %}{{ parts[-1] }}<eot>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<model>{% endif %}"
)
"""The last answer has a block of reasoning, empty where it has none; earlier answers have none."""

R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<user>{{ m['content'] }}"
    "{% elif m['role'] == 'assistant' %}<model>{{ m['content'].split('</think>')[-1] }}{{ eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<model><think>\n{% endif %}"
)
"""The marker of an answer opens the reasoning, which every answer that is written loses."""

NEMOTRON = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<user>{{ m['content'] }}<eot>\n"
    "{% else %}<model>{{ m['content'] if '</think>' in m['content'] else '<think></think>' + m['content'] }}<eot>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<model><think>\n{% endif %}"
)
"""The marker of an answer opens the reasoning with a line break, which an answer without reasoning does not have."""

TEMPLATES = {
    "llama2": LLAMA2,
    "zephyr": ZEPHYR,
    "gemma": GEMMA,
    "phi3": PHI3,
    "qwen3": QWEN3,
    "r1": R1,
    "nemotron": NEMOTRON,
}


def judge_of(tok: Any) -> Classifier:
    """A random classifier of one label that reads texts with a tokenizer."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tok), num_labels=1, pad_token_id=tok.pad_token_id, **sizes)
    return Classifier(LlamaForSequenceClassification(config).eval(), tokenizer=tok)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
