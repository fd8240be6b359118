"""What a reward model is called, and a hash that changes with what it computes."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

RewardModel = Callable[..., Any]

USER_FILE = "__lm_gym_file__"
"""Attribute of a module that was loaded from a user's file: that file's name."""


def reward_model_name(reward_model: RewardModel) -> str:
    """The name that errors and `config.yaml` use: its `name` if that is a string, otherwise `module:qualified.name`."""
    name = getattr(reward_model, "name", None)
    if isinstance(name, str) and name:
        return name
    target = getattr(reward_model, "func", reward_model)  # a functools.partial
    if not hasattr(target, "__qualname__"):
        target = type(target)
    return qualified_name(target)


def qualified_name(target: Any) -> str:
    """``module:qualified.name`` of a function or class; ``file.py:qualified.name`` where `py:./file.py:…` loaded it."""
    module = sys.modules.get(target.__module__)
    return f"{getattr(module, USER_FILE, target.__module__)}:{target.__qualname__}"


def reward_model_hash(reward_model: RewardModel) -> str:
    """16 hexadecimal digits that change with what the reward model computes, as far as can be seen from outside.

    `reward_model.fingerprint()` if there is one (a classifier hashes its weights); otherwise the source of the function
    or class, with the plain values that it holds: defaults, closure, attributes.
    """
    reward_model = getattr(reward_model, "stands_for", reward_model)  # one that only logs beside another
    fingerprint = getattr(reward_model, "fingerprint", None)
    parts: list[Any] = [reward_model_name(reward_model)]
    if callable(fingerprint):
        parts.append(str(fingerprint()))
    else:
        target = getattr(reward_model, "func", reward_model)
        held: dict[str, Any] = dict(getattr(reward_model, "keywords", None) or {})
        if inspect.isfunction(target):
            held |= dict(inspect.getclosurevars(target).nonlocals)
            held |= {f"default {i}": value for i, value in enumerate(target.__defaults__ or ())}
            held |= target.__kwdefaults__ or {}
            parts.append(_source(target))
        else:
            held |= getattr(target, "__dict__", {})
            parts.append(_source(type(target)))
        parts.append({key: _plain(value) for key, value in sorted(held.items())})
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _source(target: Any) -> str:
    try:
        return inspect.getsource(target)
    except (OSError, TypeError):  # typed into an interpreter, or written in C
        code = getattr(target, "__code__", None)
        name = getattr(target, "__qualname__", type(target).__qualname__)
        return f"{name} {code.co_code.hex()} {_plain(code.co_consts)} {code.co_names}" if code else str(name)


def _plain(value: Any) -> Any:
    """What JSON can hold, as it is; of anything else the type alone, since its repr may carry a memory address."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if callable(value) and hasattr(value, "__qualname__"):
        return qualified_name(value)
    return type(value).__qualname__
