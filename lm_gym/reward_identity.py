"""What a reward model is called, and a hash that changes with what it computes."""

from __future__ import annotations

import dis
import hashlib
import importlib.util
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

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
    or class and of what it uses from its own folder and those below, with the plain values and arrays that it holds:
    defaults, closure, attributes, constants of its file.

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
    """Sources of functions and classes, and of all that they use from files beside or below; constants as values."""
    folder = _folder(targets[0])
    found: dict[str, Any] = {}
    waiting, seen = list(targets), set[int]()
    while waiting:
        target = waiting.pop()
        if id(target) in seen:
            continue
        seen.add(id(target))
        name = qualified_name(target)
        name = name if name not in found else f"{name} {len(found)}"  # functools.wraps gives both one name
        found[name] = _source(target)
        for used, value in _used(target):
            for inner in _inside(value):
                kind = inner if inspect.isfunction(inner) or inspect.isclass(inner) else type(inner)
                if folder is not None and _is_below(_folder(kind), folder):
                    waiting.append(kind)
            kind = value if inspect.isfunction(value) or inspect.isclass(value) else type(value)
            if kind is not value and not inspect.ismodule(value) and not used.startswith("__"):
                held = getattr(value, "__dict__", None) if kind in waiting else None
                found[f"{name} uses {used}"] = _plain(value if held is None else held)
    return found


def _inside(value: Any, depth: int = 3) -> Iterator[Any]:
    """A value, or what a container of functions and objects holds; of what a decorator wraps also that."""
    if isinstance(value, Mapping) and depth:
        value = list(value.values())
    if isinstance(value, (list, tuple, set, frozenset)) and depth:
        for item in value:
            yield from _inside(item, depth - 1)
        return
    yield value
    if hasattr(value, "__wrapped__") and not inspect.isfunction(value):  # functools.lru_cache; functions close over it
        yield inspect.unwrap(value)


def _used(target: Any) -> Iterator[tuple[str, Any]]:
    """Names and values of what a function, or a class with its methods, reads but does not set."""
    if inspect.isclass(target):
        yield from ((base.__qualname__, base) for base in target.__bases__)
        for name, member in vars(target).items():
            inner = getattr(member, "__func__", getattr(member, "fget", member))  # static, class method, property
            if inspect.isfunction(inner):
                yield from _used(inner)
            elif not name.startswith("__"):
                yield name, inner
        return
    yield from inspect.getclosurevars(target).nonlocals.items()
    yield from ((f"default {i}", value) for i, value in enumerate(target.__defaults__ or ()))
    yield from (target.__kwdefaults__ or {}).items()
    codes, names = [target.__code__], dict[str, None]()
    imported = dict[str, Any]()
    while codes:
        code = codes.pop()
        read = list(dis.get_instructions(code))
        written = {i.argval for i in read if i.opname == "STORE_GLOBAL"}
        names |= dict.fromkeys(name for name in code.co_names if name not in written)
        for name in (i.argval for i in read if i.opname == "IMPORT_NAME"):
            imported |= _imported(name, target)
        codes += [constant for constant in code.co_consts if inspect.iscode(constant)]
    for name in (*names, *imported):
        value = imported.get(name, target.__globals__.get(name, dis))
        if value is not dis:  # no global: an attribute, a name of a library
            yield name, value
            yield from _read_of(value, names, _folder(target))


def _read_of(module: Any, names: Mapping[str, None], folder: str | None, depth: int = 3) -> Iterator[tuple[str, Any]]:
    """Of a module beside or below what is there under some names: helpers.score(…), package.helpers.score(…)."""
    if depth and inspect.ismodule(module) and _is_below(_folder(module), folder):
        for name in names:
            if name in vars(module):
                yield name, vars(module)[name]
                yield from _read_of(vars(module)[name], names, folder, depth - 1)


def _imported(name: str, target: Any) -> dict[str, Any]:
    """A module that a function imports when it is called, by its name, where it lies beside or below the function."""
    try:
        spec = importlib.util.find_spec(name)
        origin = None if spec is None or spec.origin is None else os.path.dirname(os.path.abspath(spec.origin))
        return {name: importlib.import_module(name)} if _is_below(origin, _folder(target)) else {}
    except PASSING:
        raise
    except BaseException:  # it is not there, or raises: the call says so
        return {}


def _is_below(folder: str | None, top: str | None) -> bool:
    """Whether a file's folder is `top` or below it, and is no environment of installed packages in there."""
    if folder is None or top is None:
        return False
    if not f"{folder}{os.sep}".startswith(f"{top}{os.sep}"):
        return False
    below = folder[len(top) :].split(os.sep)
    return not any(part.startswith(".") or part in ("site-packages", "lm_gym") for part in below)


def _folder(target: Any) -> str | None:
    """The folder of the file that something is defined in."""
    module = target if inspect.ismodule(target) else sys.modules.get(getattr(target, "__module__", None) or "")
    if file := getattr(module, "__file__", None):
        return os.path.dirname(os.path.abspath(file))
    folders = list(getattr(module, "__path__", ()))  # a folder without __init__.py
    return os.path.abspath(folders[0]) if folders else None


def _source(target: Any) -> str:
    try:
        return inspect.getsource(getattr(target, "__code__", target))  # of a decorated function its own, not the inner
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
    if hasattr(value, "detach"):  # a torch tensor
        value = np.asarray(value.detach().cpu().double().numpy()) if str(value.layout) == "torch.strided" else None
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufcSU":
        return [str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, re.Pattern):
        return [str(value.pattern), value.flags]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if callable(value) and hasattr(value, "__qualname__"):
        return qualified_name(value)
    return type(value).__qualname__
