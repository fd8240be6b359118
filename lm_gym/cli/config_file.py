"""Configuration files of the command line: YAML, every key known, every value of the type that its flag has.

The keys are the flags of `lm-gym train <agent>`, with underscores or dashes. The config.yaml that a run leaves is such
a file too: its section `agent` is taken apart, and its section `run` (where it came from) is passed over.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lm_gym.terminal import shorten

PASSED_OVER = ("run",)
"""Sections of a run's config.yaml that say where it came from and configure nothing."""


def read_options(path: str | Path, known: Mapping[str, Any], *, agent: str) -> dict[str, Any]:
    """The values of a configuration file, converted and checked.

    Args:
        known: option -> its type annotation.
        agent: the agent that they are for; a file whose section ``agent`` names another one is refused.

    Raises:
        ValueError: no YAML mapping, an unknown key (with the nearest known one), a key given twice, a value of another
            type (with the key), or another agent's file.
        OSError: the file cannot be read.
    """
    path = Path(path)
    values: dict[str, Any] = {}
    for key, value in _flat(path, load_mapping(path), agent):
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
            raise ValueError(f"{path}: unknown key {key!r}; {hint}")
        if key in values:
            raise ValueError(f"{path}: {key} is given twice")
        values[key] = checked(f"{path}: {key}", value, known[key])
    return values


def checked(name: str, value: Any, annotation: Any) -> Any:
    """`value` as YAML has it, as the type that `annotation` says: numbers, strings, booleans, None, tuples of these.

    Raises:
        ValueError: it is of another type; begins with `name`.
    """
    for kind in _alternatives(annotation):
        try:
            return _as_kind(value, kind)
        except (TypeError, ValueError):
            continue
    raise ValueError(f"{name} expected {type_text(annotation)}, got {shorten(repr(value), 80)}")


def type_text(annotation: Any) -> str:
    """A type annotation in words, for errors."""
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    parts = []
    for kind in _alternatives(annotation):
        if typing.get_origin(kind) is typing.Literal:
            parts.append(f"one of {', '.join(map(str, typing.get_args(kind)))}")
        elif typing.get_origin(kind) is tuple:
            parts.append(f"a list, each {type_text(typing.get_args(kind)[0])}")
        else:
            parts.append(words.get(kind, getattr(kind, "__name__", str(kind))))
    return " or ".join(parts)


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(typing.get_args(annotation))
    return (annotation,)


def _as_kind(value: Any, kind: Any) -> Any:
    if kind is Any:
        return value
    if typing.get_origin(kind) is tuple:
        items = value if isinstance(value, list) else [value]
        return tuple(checked("", item, typing.get_args(kind)[0]) for item in items)
    if typing.get_origin(kind) is typing.Literal:
        if value in typing.get_args(kind):
            return value
        raise ValueError
    if isinstance(value, bool) or kind is bool or value is None or kind is type(None):
        if isinstance(value, bool) and kind is bool or value is None and kind is type(None):
            return value
        raise TypeError
    if kind is float:
        return float(value)  # a text too: to YAML, 1e-4 (without a point) is one
    if kind is int:
        number = float(value)
        if not number.is_integer():
            raise ValueError
        return value if isinstance(value, int) else int(number)
    if kind is str and isinstance(value, str):
        return value
    raise TypeError


def load_mapping(path: Path) -> dict[Any, Any]:
    """The keys and values of a YAML file, none of them twice; {} of an empty one.

    Raises:
        ValueError: no YAML mapping, or a key that stands twice.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that stands twice in a mapping, where YAML takes the last one in silence."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            twice = [key for key in keys if keys.count(key) > 1]
            if twice:
                raise ValueError(f"{path}: {twice[0]} is given twice")
            return super().construct_mapping(node, deep)

    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply: expected keys with plain values") from error
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected keys and values (total_tokens: 100000), got a {type(config).__name__}")
    return config


def _flat(path: Path, config: Mapping[Any, Any], agent: str) -> Iterator[tuple[str, Any]]:
    """Keys and values of a file, those of its section ``agent`` among them."""
    for given, value in config.items():
        key = str(given).replace("-", "_")
        if key in PASSED_OVER and isinstance(value, dict):
            continue
        if key != "agent":
            yield key, value
            continue
        if not isinstance(value, dict):
            raise ValueError(f"{path}: agent expected a section with the agent's own keys, got {value!r}")
        if value.get("name", agent) != agent:
            raise ValueError(f"{path} is for the agent {value['name']!r}: lm-gym train {value['name']} --config {path}")
        for inner, item in value.items():
            name = str(inner).replace("-", "_")
            # kl_coef is the problem's; the agent's own stands as null in the config.yaml of every run
            if name != "name" and not (name == "kl_coef" and item is None):
                yield name, item
