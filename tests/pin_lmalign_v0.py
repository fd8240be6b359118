"""Writes tests/data/lmalign_v0.json: what LMAlign-v0 pays for 20 fixed texts. Only ever run to make a new version.

python tests/pin_lmalign_v0.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym

import lm_gym

PINNED = Path(__file__).parent / "data" / "lmalign_v0.json"


def write_texts(count: int) -> list[dict[str, Any]]:
    """Texts of the reference, as prompt id and token ids: every reward follows from these."""
    env = gym.make("LMAlign-v0")
    agent, texts = lm_gym.reference_agent(env, seed=20), []
    for i in range(count):
        obs, _ = env.reset(options={"prompt_id": 50 * i})
        tokens, done = [], False
        while not done:
            action, _ = agent.predict(obs)
            tokens.append(action)
            obs, _, done, _, _ = env.step(action)
        texts.append({"prompt_id": 50 * i, "tokens": tokens})
    return texts


def paid(text: dict[str, Any], env: gym.Env[Any, Any]) -> dict[str, Any]:
    """A text, stepped through LMAlign-v0 as it comes: what it says and every reward."""
    _, info = env.reset(options={"prompt_id": text["prompt_id"]})
    prompt, rewards, done = info["prompt"], [], False
    for token in text["tokens"]:
        assert not done, "the text ends before its last token"
        _, reward, done, _, info = env.step(token)
        rewards.append(round(float(reward), 6))
    assert done, "the text does not end with its last token"
    ending = {key: info[key] for key in ("text", "finish_reason", "score")}
    return {**text, "prompt": prompt, **ending, "rewards": rewards}


if __name__ == "__main__":
    env = gym.make("LMAlign-v0")
    lines = [json.dumps(paid(text, env), ensure_ascii=False) for text in write_texts(20)]
    PINNED.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
