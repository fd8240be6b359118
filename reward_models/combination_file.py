"""`combine:my_rewards.yaml`: reward models put together in a file, for the command line and for configs.

A mapping with `kind` is the call of a class, and everything else in it are the arguments; where an argument is a reward
model, or a list or mapping of them, a text means what it means everywhere (:mod:`lm_gym.reward_specs`), and a mapping
is the next call. Paths are those of the folder that the command runs in.

    kind: sum
    parts:
      taste: vader
      length: length?target=40&unit=words
      format:
        kind: cached
        reward: regex?pattern=\\d+
    weights: {taste: 1, length: 0.5, format: 0.2}
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

KINDS = {
    "sum": "combine:WeightedSum",
    "min": "combine:Minimum",
    "product": "combine:Product",
    "lexicographic": "combine:Lexicographic",
    "constrained": "constrained:Constrained",
    "ensemble": "ensemble:Ensemble",
    "judge-by-column": "by_column:JudgeByColumn",
    "weights-by-column": "by_column:WeightsByColumn",
    "normalised": "normalised:Normalised",
    "cached": "cached:Cached",
}
"""What `kind` may be -> the module of this folder, and its class."""
REWARDS = ("reward", "objective", "parts", "constraints", "judges")
"""Arguments that are a reward model, or a list or mapping of them."""

_open: list[Path] = []


def load_combination(path: str | Path) -> Callable[..., Any]:
    """The reward model that a YAML (or JSON) file describes.

    Raises:
        ValueError: no such file, no YAML, an unknown kind or argument, or a file that contains itself; names the place.
    """
    path = Path(path).expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"combine: there is no file {path}")
    if path in _open:
        raise ValueError(f"combine: {path} contains itself")
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        hint = '\na text with ? inside [...] or {...} needs quotes: "length?target=3"' if "'?'" in str(error) else ""
        raise ValueError(f"combine: {path} is no YAML: {error}{hint}") from error
    except RecursionError as error:
        raise ValueError(f"combine: {path} is nested too deeply to be read") from error
    if not isinstance(read, Mapping):
        raise ValueError(f"combine: {path} expected a mapping with kind: one of {', '.join(KINDS)}, got {read!r:.80}")
    _open.append(path)
    try:
        made: Callable[..., Any] = _made(read, str(path))
        return made
    finally:
        _open.pop()


def _made(node: Any, place: str) -> Any:
    """A reward model of the file: a text as it is, a mapping with `kind` as an object."""
    if isinstance(node, str):
        return node
    if not isinstance(node, Mapping) or "kind" not in node:
        raise ValueError(
            f"combine: {place} expected a reward model, a text such as vader or a mapping with kind: one of "
            f"{', '.join(KINDS)}; got {node!r:.80}"
        )
    kind = node["kind"]
    if kind not in KINDS:
        raise ValueError(f"combine: {place} has kind {kind!r}.{_nearest(kind, KINDS)} Kinds: {', '.join(KINDS)}")
    module, _, name = KINDS[kind].partition(":")
    target = getattr(importlib.import_module(f"lm_gym.reward_models.{module}"), name)
    known = list(inspect.signature(target).parameters)
    arguments: dict[str, Any] = {}
    for key, value in node.items():
        if key == "kind":
            continue
        if key not in known:
            raise ValueError(
                f"combine: {place} has the unknown argument {key!r}.{_nearest(key, known)} ({kind} takes "
                f"{', '.join(known)})"
            )
        arguments[key] = _judges(value, f"{place}, {key}") if key in REWARDS else value
    try:
        return target(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"combine: {place}: {error}") from error


def _judges(value: Any, place: str) -> Any:
    """A reward model, or each of a list or mapping of them."""
    if isinstance(value, list):
        return [_made(item, f"{place}, {number}") for number, item in enumerate(value)]
    if isinstance(value, Mapping) and "kind" not in value:
        return {name: _made(item, f"{place}, {name}") for name, item in value.items()}
    return _made(value, place)


def _nearest(name: Any, known: Any) -> str:
    near = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""
