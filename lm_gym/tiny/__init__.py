"""`tiny`: the language model, the prompts and the gold scores that ship inside the package.

- `tiny_path()`: the folder of the model and its tokenizer, for `AutoModelForCausalLM.from_pretrained`
- `prompts(kind, split)`: the rows of a prompt set, with the columns that the gold scores need
- `lm_gym.tiny.gold`: what is true about a completion (sentiment, helpfulness, harmlessness)
- `lm_gym.tiny.world`: the generator of everything above; `lm_gym.tiny.train`: what made the weights

The bytes are frozen under `LMAlign-v0`: `SHA256` names them, and a test compares.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["KINDS", "SHA256", "SPLITS", "prompts", "tiny_path"]

KINDS = ("reviews", "questions", "requests")
SPLITS = ("train", "test")

SHA256: dict[str, str] = {
    "model/config.json": "2b050b9ac9cc63f4196f45729314ce4ee458f61cd9771015d8910f91a7e7d7e2",
    "model/generation_config.json": "7f58c28f9b7efba3779daed124680ff8b3feee93d34466a34cd3a93e6a30e09c",
    "model/model.safetensors": "951021473ddda5f1e3b4a4d9132cb65461162470900213e11760e69aaced0ab0",
    "model/tokenizer.json": "bce160188efc548aee071b7f18b98050a10594af5e9a8146dc3876193cde5b92",
    "model/tokenizer_config.json": "3413130cabe4fb71b2281440dc4c64a406a74a80870d828e398262b8d0cf625a",
    "prompts/questions.test.jsonl": "54993abb7cf3ffad342607e8e4f6cf1cade297649737be52e1af175a8c1ca027",
    "prompts/questions.train.jsonl": "6846dab555f8511a0309c4c637f15e818d8e9238398dfdd90f1a72f6c8ddd574",
    "prompts/requests.test.jsonl": "676de86e0f5f6a17d32fe91620fdf9089dd4288160d8f497bf8e787dd0982c26",
    "prompts/requests.train.jsonl": "e443d250c1e3f7d99ff23f8c951a13544688013b1d81d314e9af622a12600c2d",
    "prompts/reviews.test.jsonl": "d2ca191378757f67becbe5010922205c5bef2079fead02b9b54861f902289cae",
    "prompts/reviews.train.jsonl": "940852388c0e2e4caf4e7726fd64177f2c04db424418cd18bb2fed378aa59861",
}
"""sha256 of every data file of the package, by its path below lm_gym/tiny."""


def tiny_path() -> Path:
    """The folder with config.json, model.safetensors and the tokenizer of `tiny`."""
    return Path(__file__).parent / "model"


def prompts(kind: str = "reviews", split: str = "train") -> list[dict[str, Any]]:
    """The rows of a prompt set; each call reads them anew, so a caller may change them.

    Args:
        kind: "reviews", "questions", "requests", or "all", which is the three one after the other.
        split: "train" (1,024 rows a kind) or "test" (512 rows a kind). No prompt is in both, and the model has seen
            no test prompt in training.

    Returns:
        dicts with `prompt`, `kind`, `topic`, `subject` (words that stay on topic), `answer` (groups of words; a
        complete answer has one of each), `rivals` (words that would be wrong) and `unsafe`.

    Raises:
        ValueError: the kind or the split does not exist.
    """
    if kind not in (*KINDS, "all"):
        raise ValueError(f"tiny prompts: expected a kind of {', '.join(KINDS)} or all, got {kind!r}")
    if split not in SPLITS:
        raise ValueError(f"tiny prompts: expected the split 'train' or 'test', got {split!r}")
    rows: list[dict[str, Any]] = []
    for name in KINDS if kind == "all" else (kind,):
        path = Path(__file__).parent / "prompts" / f"{name}.{split}.jsonl"
        rows += [json.loads(line) for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n")]
    return rows
