"""Reward models with state: a Lagrange multiplier, a normalisation. Agents call these four, whatever the reward model.

State is plain data (numbers, strings, lists, mappings with string keys): it stands in a checkpoint's `state.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from lm_gym.reward_errors import RewardModelError, UnusableRewardModel, named_errors
from lm_gym.reward_identity import reward_model_name as name_of
from lm_gym.reward_specs import is_module

METHODS = ("state_dict", "load_state_dict")


def update_reward_model(reward_model: Callable[..., Any], metrics: Mapping[str, float]) -> None:
    """Tell a reward model what a rollout's metrics were: `reward_model.update(metrics)` if it has that method.

    Called between rollouts, once each: within a rollout a reward model must not change.

    Args:
        metrics: as logged: what the reward model gave to `log_metric` is `reward/<name>`.

    Raises:
        RewardModelError: it raised.
    """
    update = getattr(reward_model, "update", None)
    if callable(update):
        with named_errors(f"reward model {name_of(reward_model)}: its update(metrics)"):
            update(metrics)


def prepare_reward_model(reward_model: Callable[..., Any], mdp: Any) -> None:
    """Let a reward model measure what it needs before training: `reward_model.prepare(mdp)` if it has that method.

    A normalisation without numbers is fitted on the reference's samples by it. Called once, before the first rollout; a
    checkpoint's state, loaded afterwards, takes the place of what was measured.

    Args:
        mdp: the :class:`lm_gym.AlignmentMDP` that the reward model is used in.

    Raises:
        RewardModelError: it raised.
    """
    prepare = getattr(reward_model, "prepare", None)
    if callable(prepare):
        with named_errors(f"reward model {name_of(reward_model)}: its prepare(mdp)"):
            prepare(mdp)


def reward_state(reward_model: Callable[..., Any]) -> dict[str, Any] | None:
    """What a checkpoint keeps of a reward model; None where there is nothing to keep.

    A torch module without `update` is a judge with frozen weights, and its `state_dict` no state in this sense.

    Raises:
        UnusableRewardModel: it has one of `state_dict` and `load_state_dict` only, or `update` and neither.
        RewardModelError: `state_dict()` raised, or its state is no plain data.
    """
    if not _is_stateful(reward_model):
        return None
    with named_errors(f"reward model {name_of(reward_model)}: its state_dict()"):
        state = reward_model.state_dict()  # type: ignore[attr-defined]
    if not isinstance(state, Mapping):
        raise RewardModelError(
            f"state_dict() of {name_of(reward_model)} expected a mapping, got {type(state).__name__}"
        )
    try:
        kept = json.loads(json.dumps(dict(state), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise RewardModelError(
            f"state_dict() of {name_of(reward_model)} expected plain data (finite numbers, strings, lists, mappings), "
            f"which a checkpoint writes as JSON: {error}"
        ) from error
    return kept or None


def load_reward_state(reward_model: Callable[..., Any], state: Mapping[str, Any] | None) -> None:
    """Give a reward model what :func:`reward_state` said of it.

    Raises:
        ValueError: there is state for a reward model that has none, or none for one that has some.
        UnusableRewardModel: `load_state_dict(state)` raised; it is a ValueError too.
    """
    if state:
        if not _is_stateful(reward_model):
            raise ValueError(
                f"the checkpoint holds state of a reward model ({', '.join(state)}), and {name_of(reward_model)} has "
                "none: give the reward model that the checkpoint was made with"
            )
        with named_errors(f"reward model {name_of(reward_model)}: its load_state_dict(state)", UnusableRewardModel):
            reward_model.load_state_dict(state)  # type: ignore[attr-defined]
    elif reward_state(reward_model) is not None:
        raise ValueError(
            f"{name_of(reward_model)} has state, and the checkpoint holds none for it: it was made with another reward "
            "model"
        )


def _is_stateful(reward_model: Callable[..., Any]) -> bool:
    updates = callable(getattr(reward_model, "update", None))
    if is_module(reward_model) and not updates:
        return False
    has = [name for name in METHODS if callable(getattr(reward_model, name, None))]
    if len(has) == len(METHODS):
        return True
    if has or updates:
        lacks = " and ".join(name for name in METHODS if name not in has)
        there = ", ".join([*has, *(["update"] if updates else [])])
        raise UnusableRewardModel(
            f"{name_of(reward_model)} has {there} but no {lacks}: what it "
            "learns would be lost in a checkpoint. A reward model with state has all of update, "
            "state_dict and load_state_dict"
        )
    return False
