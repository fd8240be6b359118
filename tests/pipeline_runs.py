"""A pipeline on tiny that takes seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

MINI: dict[str, Any] = {
    "model": "tiny",
    "prompts": "tiny:reviews",
    "max_new_tokens": 8,
    "sft": {"count": 16, "held_out": 8, "epochs": 1, "batch_size": 4, "save_every": 1},
    "preferences": {"pairs": 16, "test_pairs": 16, "annotators": {"temperature": 0.1}},
    "reward_model": {"layers": 1, "epochs": 1, "evals_per_epoch": 1},
    "rl": {
        "agent": "ppo", "total_tokens": 160, "batch_size": 8, "minibatch_size": 8, "epochs": 1, "save_every": 1,
    },
    "evaluation": {"texts": 8, "best_of_n": 2, "samples": 2},
}  # fmt: skip


def write(path: Path, **changes: dict[str, Any]) -> str:
    """MINI with changes to its sections, as a file."""
    config = {k: v | changes[k] if k in changes else v for k, v in MINI.items()}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return str(path)


def made(out: Path) -> dict[str, dict[str, Any]]:
    """stage.json of every finished stage."""
    return {path.parent.name: json.loads(path.read_text()) for path in out.glob("*/stage.json")}
