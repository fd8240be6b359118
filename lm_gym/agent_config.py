"""The configuration fields that every agent has, and how they are checked."""

from __future__ import annotations

import dataclasses
import difflib
import numbers
import sys
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from lm_gym.choices import check_choice

Config = TypeVar("Config", bound="AgentConfig")


@dataclasses.dataclass
class AgentConfig:
    """Fields that every agent has. Lengths are in tokens, KL in nats."""

    batch_size: int = 128
    """Texts an update."""
    learning_rate: float | None = None
    """Adam's step size; None: 3e-4·sqrt(1.5e6/parameters), ten times that for LoRA, .02 for a table; all of it
    times the agent's `step_scale`, above 1 where fewer steps follow a rollout than PPO's 16."""
    lr_schedule: str = "linear"
    """"linear" (to 0 at the end of `learn`), "cosine" or "constant"."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    kl_coef: float | None = None
    """β, reward per nat; None: the environment's."""
    lora_rank: int = 0
    """Above 0: train LoRA adapters of this rank; the weights below stay the reference's own tensors."""
    lora_alpha: float | None = None
    """LoRA's scale; None: twice the rank."""
    frozen_layers: int = 0
    """The embeddings and so many lower layers stay frozen, the reference's own tensors."""
    frozen_head: bool = False
    """With frozen_layers: the output head is frozen too (learns less); False: trained, untied from the embeddings."""
    rows: int | None = None
    """Texts that decode at once, the rest refilling finished rows; None: all."""
    seed: int = 0
    """Of every draw the agent makes."""


BOUNDS: dict[str, tuple[float, float]] = {
    "batch_size": (1, float("inf")),
    "learning_rate": (0, float("inf")),
    "max_grad_norm": (1e-12, float("inf")),
    "kl_coef": (0, float("inf")),
    "lora_rank": (0, float("inf")),
    "frozen_layers": (0, float("inf")),
    "rows": (1, float("inf")),
    "micro_batch_size": (1, float("inf")),
    "epochs": (1, float("inf")),
    "max_length": (2, float("inf")),
    "gamma": (0, 1),
    "lam": (0, 1),
    "clip_range": (1e-9, float("inf")),
    "clip_range_high": (1e-9, float("inf")),
    "clip_range_value": (1e-9, float("inf")),
    "vf_coef": (0, float("inf")),
    "ema_decay": (0, 1),
    "ent_coef": (0, float("inf")),
    "normalize_scores": (0, float("inf")),
    "ratio_tolerance": (0, float("inf")),
    "group_size": (2, float("inf")),
    "seed": (-(2**62), 2**62),
}
"""Smallest and largest value of a field, in whatever config it stands; None is always allowed where it is a default."""


def make_config(kind: type[Config], given: Mapping[str, Any], owner: str) -> Config:
    """A config from keyword arguments, each checked on its own.

    Raises:
        ValueError: an unknown field (with the nearest known one), or a value out of its bounds.
    """
    known = {f.name for f in dataclasses.fields(kind)}
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
            raise ValueError(f"{owner} has no field {key!r}; {hint}")
    config = kind(**given)
    for f in dataclasses.fields(config):
        if isinstance(f.default, bool) and not isinstance(getattr(config, f.name), bool):
            raise ValueError(f"{f.name} expected True or False, got {getattr(config, f.name)!r}")
    _check_numbers(config)
    for key in known & set(BOUNDS):
        value, (low, high) = getattr(config, key), BOUNDS[key]
        if value is not None and not low <= value <= high:
            raise ValueError(f"{key} expected {low:g} to {high:g}, got {value!r}")
    if config.frozen_head and not config.frozen_layers:
        raise ValueError("frozen_head has no effect with frozen_layers=0: freeze lower layers with it, or leave it out")
    check_choice("lr_schedule", config.lr_schedule, ("linear", "cosine", "constant"))
    minibatch = getattr(config, "minibatch_size", None)
    if minibatch is not None and not 1 <= minibatch <= config.batch_size:
        raise ValueError(f"minibatch_size expected 1 to batch_size={config.batch_size}, got {minibatch}")
    group = getattr(config, "group_size", None) or 1
    if config.batch_size % group:
        raise ValueError(f"batch_size expected a multiple of group_size={group}, got {config.batch_size}")
    return config


def _check_numbers(config: AgentConfig) -> None:
    """Refuse what is no number in a field of numbers, and a fraction in one of whole numbers."""
    for key, hint in typing.get_type_hints(type(config)).items():
        kinds, value = set(typing.get_args(hint) or [hint]), getattr(config, key)
        if not kinds <= {int, float, type(None)} or (value is None and type(None) in kinds):
            continue
        if kinds & {float}:
            if not isinstance(value, numbers.Real) or isinstance(value, bool) or value != value:
                raise ValueError(f"{key} expected a number, got {value!r}")
        else:
            setattr(config, key, whole(key, value, -sys.maxsize))


def whole(name: str, value: Any, low: int = 1) -> int:
    """A whole number from ``low``; 1e5 is one, 100.5 and True are not.

    Raises:
        ValueError: names the argument and what came.
    """
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or value % 1 != 0 or value < low:
        least = f"at least {low}, a whole number" if low > -sys.maxsize else "a whole number"
        raise ValueError(f"{name} expected {least}, got {value!r}")
    return int(value)


LIVE = "live:"
"""How a field that holds an object and not a name is written down."""


def plain_config(config: AgentConfig) -> dict[str, Any]:
    """A config as plain values; a live object (a list of data, a dataset) is written as ``live:<its type>``."""
    out: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        plain = value is None or isinstance(value, (str, bool, int, float))
        out[f.name] = value if plain else f"{LIVE}{type(value).__name__}"
    return out


def refuse_live(config: Mapping[str, Any], kind: str) -> None:
    """An error where a config that was written down held a live object, which must be given again."""
    for key, value in config.items():
        if isinstance(value, str) and value.startswith(LIVE):
            raise ValueError(
                f"the checkpoint was trained with {key}= a live {value.removeprefix(LIVE)}, which no file holds: "
                f"{kind}.load(folder, env, {key}=...)"
            )
