"""Which pairs held back to ask about next: at random, where the margin is uncertain, or where an ensemble differs."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from lm_gym.annotate.store import Store, StoreError
from lm_gym.rewards import Text, load_reward_model, reward_model_name, score_texts

By = Literal["random", "margin", "disagreement"]
BATCH = 64


def uncertainty(margins: np.ndarray) -> np.ndarray:
    """(N,) how uncertain the mean margin leaves the answer: the entropy in nats of σ(mean of (members, N) margins)."""
    return _entropy(_sigmoid(margins.mean(0)))


def disagreement(margins: np.ndarray) -> np.ndarray:
    """(N,) what an answer would tell about the members, in nats: H(mean p) − mean H(p) with p = σ(margin).

    Houlsby et al., Bayesian active learning for classification and preference learning (2011), equation 2.

    Args:
        margins: (members, N), at least two members.
    """
    if len(margins) < 2:
        raise StoreError(f"disagreement expected at least two score columns or reward models, got {len(margins)}")
    p = _sigmoid(margins)
    return np.maximum(_entropy(p.mean(0)) - _entropy(p).mean(0), 0.0)


def select(
    store: Store,
    n: int,
    *,
    by: By = "random",
    columns: Sequence[str] = (),
    rewards: Sequence[Any] = (),
    seed: int = 0,
) -> list[int]:
    """Ask about `n` more of the pairs held back; returns their ids, the most wanted first.

    Args:
        columns: columns of the rows with scores, each one member of the ensemble: a margin (score of a minus score of
            b), or a list of the two scores.
        rewards: reward models, as `lm_gym.rewards.load_reward_model` takes them, each one member.

    Raises:
        StoreError: no pairs held back, no scores (or scores that `random` has no use for), or a row without them.
    """
    if by not in get_args(By):
        raise StoreError(f"by expected one of {', '.join(get_args(By))}, got {by!r}")
    if n < 1:
        raise StoreError(f"expected at least 1 pair to ask about, got {n}")
    rows = store.rows("SELECT id, prompt, a, b, columns FROM items WHERE NOT asked ORDER BY id")
    if not rows:
        raise StoreError("no pairs are held back; `lm-gym annotate import --hold` adds some")
    if by == "random":
        if columns or rewards:
            raise StoreError("random looks at no scores: leave them out, or say --by margin or --by disagreement")
        chosen = random.Random(seed).sample([row["id"] for row in rows], min(n, len(rows)))
    else:
        members = [_column(name, rows) for name in columns] + [_scored(reward, rows) for reward in rewards]
        if not members:
            raise StoreError(f"{by} needs scores: name columns that hold them, or reward models")
        margins = np.array(members, dtype=np.float64)
        value = uncertainty(margins) if by == "margin" else disagreement(margins)
        order = np.argsort(-value, kind="stable")[:n]
        chosen = [rows[int(at)]["id"] for at in order]
    with store.transaction() as connection:
        connection.executemany("UPDATE items SET asked = 1 WHERE id = ?", [(item,) for item in chosen])
    return chosen


def _column(name: str, rows: Sequence[Any]) -> list[float]:
    margins = []
    for row in rows:
        columns: Mapping[str, Any] = json.loads(row["columns"])
        if name not in columns:
            there = ", ".join(map(repr, columns)) or "none"
            raise StoreError(f"a pair has no column {name!r} with scores; its columns are {there:.200}")
        value = columns[name]
        try:
            margin = float(value[0]) - float(value[1]) if isinstance(value, list) and len(value) == 2 else float(value)
        except (TypeError, ValueError):
            margin = np.nan
        if not np.isfinite(margin):
            raise StoreError(f"the score {name!r} expected a margin or two scores, got {value!r:.60}")
        margins.append(margin)
    return margins


def _scored(reward: Any, rows: Sequence[Any]) -> list[float]:
    """The margins of a reward model: score of a minus score of b."""
    model: Callable[..., Any] = load_reward_model(reward)
    prompts: list[Text] = [json.loads(row["prompt"]) for row in rows]
    keys = sorted({key for row in rows for key in json.loads(row["columns"])})
    columns = {key: [json.loads(row["columns"]).get(key) for row in rows] for key in keys}
    sides = []
    for side in ("a", "b"):
        texts: list[Text] = [json.loads(row[side]) for row in rows]
        scores: list[float] = []
        for at in range(0, len(rows), BATCH):
            part = slice(at, at + BATCH)
            result = score_texts(
                model,
                prompts=prompts[part],
                completions=texts[part],
                completion_ids=[[] for _ in texts[part]],
                columns={key: values[part] for key, values in columns.items()},
            )
            scores += result.scores.tolist()
        sides.append(scores)
    margins = [a - b for a, b in zip(*sides, strict=True)]
    if not any(margins):
        raise StoreError(
            f"{reward_model_name(model)} gives both completions of every pair the same score; one that looks at token "
            "ids cannot be used here, as the store holds texts"
        )
    return margins


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -x))


def _entropy(p: np.ndarray) -> np.ndarray:
    """H(p) of a coin in nats."""
    q = np.clip(p, 1e-300, 1 - 1e-16)
    return -(q * np.log(q) + (1 - q) * np.log1p(-q))
