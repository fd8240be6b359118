"""Live objects as environment arguments, without Gymnasium ever copying them.

Gymnasium deep-copies ``spec.kwargs`` whenever a wrapper's ``spec`` is read. So a live model, tokenizer, dataset or
function stays out of it: the spec holds a string such as ``live:LlamaForCausalLM:3``, which names the object for as
long as the environment that holds it exists in this process. ``gym.make(env.spec)`` finds the same object again.
"""

from __future__ import annotations

import enum
import itertools
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

PREFIX = "live:"
_counter = itertools.count(1)


class Live:
    """Holds one object; the environment holds this."""

    def __init__(self, value: Any) -> None:
        self.value = value


_known: weakref.WeakValueDictionary[str, Live] = weakref.WeakValueDictionary()


def is_plain(value: Any) -> bool:
    """Whether JSON can hold it as it is."""
    if isinstance(value, (list, tuple)):
        return all(is_plain(v) for v in value)
    if isinstance(value, dict):
        return all(isinstance(k, str) and is_plain(v) for k, v in value.items())
    return value is None or isinstance(value, (str, int, float, bool))


def as_plain(value: Any) -> Any:
    """Small values in the form that JSON has for them: arrays, paths, enum members, dtypes and devices."""
    if isinstance(value, enum.Enum):
        return as_plain(value.value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if type(value).__module__ == "torch" and type(value).__name__ in ("dtype", "device"):
        return str(value).removeprefix("torch.")
    return value


def to_spec(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], list[Live]]:
    """Keyword arguments with a name in the place of every live object, and what keeps those names good."""
    plain: dict[str, Any] = {}
    held: list[Live] = []
    for key, given in kwargs.items():
        value = as_plain(given)
        if isinstance(value, str) and value in _known:
            held.append(_known[value])  # made from another environment's spec, which may go first
        if is_plain(value):
            plain[key] = value
            continue
        live = Live(value)
        name = f"{PREFIX}{type(value).__name__}:{next(_counter)}"
        _known[name] = live
        held.append(live)
        plain[key] = name
    return plain, held


def resolve(name: str, value: Any) -> Any:
    """The object behind a ``live:`` name; any other value as it is."""
    if not isinstance(value, str) or not value.startswith(PREFIX):
        return value
    live = _known.get(value)
    if live is None:
        raise ValueError(
            f"{name}={value!r} names a live object of an environment that is gone or of another process: pass the "
            "object itself, or a string that can be loaded"
        )
    return live.value
