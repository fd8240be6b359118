"""The random state of a wrapped environment, which an agent steps through: part of a checkpoint.

A bare environment is not stepped while training and has no part in it. The environment inside the wrappers keeps a
generator that draws prompts. A wrapper's own state is kept if it has ``state_dict`` and ``load_state_dict`` (plain
data); Gymnasium's wrappers that only map what passes through have none; of any other it is not known, so that training
does not go on behind it.
"""

from __future__ import annotations

import json
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import wrappers

from lm_gym.collect import HARMLESS, Env

WITHOUT_STATE: tuple[type, ...] = (
    *HARMLESS,
    wrappers.TimeLimit,  # counts from every reset on
    wrappers.ClipReward,
    wrappers.TransformReward,
    wrappers.TransformObservation,
    wrappers.TransformAction,
    wrappers.DtypeObservation,
    wrappers.FilterObservation,
    wrappers.FlattenObservation,
    wrappers.vector.ClipReward,
    wrappers.vector.TransformReward,
    wrappers.vector.TransformObservation,
    wrappers.vector.TransformAction,
    wrappers.vector.DtypeObservation,
    wrappers.vector.FilterObservation,
    wrappers.vector.FlattenObservation,
)
"""Wrappers that carry nothing from one episode to the next. A subclass of one may, and does not count."""


def save(env: Env) -> dict[str, Any]:
    """Plain data: the generators' states, and what each wrapper says of itself, from the outside in."""
    found: list[Any] = []
    unknown: list[str] = []
    inner: Any = env
    while isinstance(inner, (gym.Wrapper, gym.vector.VectorWrapper)):
        state = None
        if _has_state(inner):
            state = json.loads(json.dumps(inner.state_dict(), allow_nan=False))  # type: ignore[union-attr]
        elif type(inner) not in WITHOUT_STATE:
            unknown.append(type(inner).__name__)
        found.append([type(inner).__name__, state])
        inner = inner.env
    return {"rngs": [_rng_state(rng) for rng in _rngs(inner)], "wrappers": found, "unknown": unknown}


def load(env: Env, state: Any) -> list[str]:
    """Put :func:`save`'s state back; the names of wrappers whose state it could not hold.

    Raises:
        ValueError: the environment is wrapped otherwise, or has another number of rows.
    """
    inner: Any = env
    names: list[Any] = []
    while isinstance(inner, (gym.Wrapper, gym.vector.VectorWrapper)):
        names.append(inner)
        inner = inner.env
    saved, rngs = state["wrappers"], _rngs(inner)
    if [name for name, _ in saved] != [type(w).__name__ for w in names]:
        raise ValueError(
            f"the checkpoint expected an environment in the wrappers {[name for name, _ in saved]}, got "
            f"{[type(w).__name__ for w in names]}"
        )
    if len(state["rngs"]) != len(rngs):
        raise ValueError(f"the checkpoint expected an environment of {len(state['rngs'])} rows, got {len(rngs)}")
    for wrapper, (name, own) in zip(names, saved, strict=True):
        if own is not None:
            if not _has_state(wrapper):
                raise ValueError(f"the checkpoint holds state of the wrapper {name}, which has no load_state_dict")
            wrapper.load_state_dict(own)
    made = [np.random.default_rng() for _ in rngs]
    for rng, kept in zip(made, state["rngs"], strict=True):
        rng.bit_generator.state = kept
    if isinstance(inner, gym.vector.VectorEnv):
        inner.rngs = made  # type: ignore[attr-defined]
    else:
        inner.np_random = made[0]
    return list(state["unknown"])


def refuse_unknown(unknown: list[str]) -> None:
    """An error where training would go on behind wrappers whose state a checkpoint could not hold."""
    if unknown:
        raise ValueError(
            f"training cannot go on exactly: the checkpoint does not hold what the wrapper {', '.join(unknown)} keeps "
            "between episodes. Give it state_dict() and load_state_dict(state) (plain data; an empty dict if it keeps "
            "nothing), or leave out resume=True: learn(...) then starts with the wrapper as it is"
        )


def _has_state(wrapper: Any) -> bool:
    return all(callable(getattr(type(wrapper), name, None)) for name in ("state_dict", "load_state_dict"))


def _rngs(base: Any) -> list[np.random.Generator]:
    vector = isinstance(base, gym.vector.VectorEnv)
    return list(getattr(base, "rngs", ())) if vector else [base.np_random]


def _rng_state(rng: np.random.Generator) -> dict[str, Any]:
    kept: dict[str, Any] = json.loads(json.dumps(rng.bit_generator.state))
    return kept
