"""What a reward model is called, and a hash that changes with what it computes."""

from __future__ import annotations

import dis
import hashlib
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lm_gym.reward_errors import PASSING, named_errors

RewardModel = Callable[..., Any]

USER_FILE = "__lm_gym_file__"
"""Attribute of a module that was loaded from a user's file: that file's name."""


def reward_model_name(reward_model: RewardModel) -> str:
    """The name that errors and `config.yaml` use: its `name` if that is a string, otherwise `module:qualified.name`."""
    try:
        name = getattr(reward_model, "name", None)
    except PASSING:
        raise
    except BaseException:  # a property that raises: errors need some name all the same
        name = None
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
    or class and of what it uses from its own folder, with the plain values that it holds: defaults, closure,
    attributes, constants of its file.

    Raises:
        RewardModelError: `fingerprint()` raised.
    """
    reward_model = getattr(reward_model, "stands_for", reward_model)  # one that only logs beside another
    fingerprint = getattr(reward_model, "fingerprint", None)
    parts: list[Any] = [reward_model_name(reward_model)]
    if callable(fingerprint):
        with named_errors(f"reward model {parts[0]}: its fingerprint()"):
            parts.append(str(fingerprint()))
    else:
        target = getattr(reward_model, "func", reward_model)
        held: dict[str, Any] = dict(getattr(reward_model, "keywords", None) or {})
        held |= {f"argument {i}": value for i, value in enumerate(getattr(reward_model, "args", None) or ())}
        target, owner = getattr(target, "__func__", target), getattr(target, "__self__", None)  # a bound method
        if inspect.isfunction(target):
            held |= dict(inspect.getclosurevars(target).nonlocals) | getattr(owner, "__dict__", {})
            held |= {f"default {i}": value for i, value in enumerate(target.__defaults__ or ())}
            held |= target.__kwdefaults__ or {}
            parts.append(_code(target, *([] if owner is None else [type(owner)])))
        else:
            held |= getattr(target, "__dict__", {})
            parts.append(_code(type(target)))
        parts.append({key: _plain(value) for key, value in sorted(held.items())})
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _code(*targets: Any) -> dict[str, Any]:
    """Sources of functions and classes, and of all that they use from files in the same folder; constants as values."""
    folder = _folder(targets[0])
    found: dict[str, Any] = {}
    waiting = list(targets)
    while waiting:
        target = waiting.pop()
        name = qualified_name(target)
        if name in found:
            continue
        found[name] = _source(target)
        for used, value in _used(target):
            value = inspect.unwrap(value) if hasattr(value, "__wrapped__") else value  # functools.lru_cache
            kind = value if inspect.isfunction(value) or inspect.isclass(value) else type(value)
            if folder is not None and _folder(kind) == folder:
                waiting.append(kind)
            if kind is not value and not inspect.ismodule(value) and not used.startswith("__"):
                held = getattr(value, "__dict__", None) if kind in waiting else None
                found[f"{name} uses {used}"] = _plain(value if held is None else held)
    return found


def _used(target: Any) -> Iterator[tuple[str, Any]]:
    """Names and values of the globals that a function, or the methods of a class, read but do not set."""
    if inspect.isclass(target):
        yield from ((base.__qualname__, base) for base in target.__bases__)
        for member in vars(target).values():
            inner = getattr(member, "__func__", getattr(member, "fget", member))  # static, class method, property
            if inspect.isfunction(inner):
                yield from _used(inner)
        return
    yield from inspect.getclosurevars(target).nonlocals.items()
    codes, names = [target.__code__], dict[str, None]()
    while codes:
        code = codes.pop()
        written = {i.argval for i in dis.get_instructions(code) if i.opname == "STORE_GLOBAL"}
        names |= dict.fromkeys(name for name in code.co_names if name not in written)
        codes += [constant for constant in code.co_consts if inspect.iscode(constant)]
    for name in names:
        if name in target.__globals__:
            value = target.__globals__[name]
            yield name, value
            if inspect.ismodule(value) and _folder(value) == _folder(target):  # helpers.score(…)
                yield from ((inner, vars(value)[inner]) for inner in names if inner in vars(value))


def _folder(target: Any) -> str | None:
    """The folder of the file that something is defined in."""
    module = target if inspect.ismodule(target) else sys.modules.get(getattr(target, "__module__", None) or "")
    file = getattr(module, "__file__", None)
    return None if file is None else os.path.dirname(os.path.abspath(file))


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
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, map(_plain, value)))
    if isinstance(value, re.Pattern):
        return [str(value.pattern), value.flags]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if callable(value) and hasattr(value, "__qualname__"):
        return qualified_name(value)
    return type(value).__qualname__
