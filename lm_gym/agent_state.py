"""What a checkpoint of an agent holds, and how an agent is made from one."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from lm_gym import checkpoints, env_state, run_folder
from lm_gym.agent_config import plain_config, refuse_live
from lm_gym.rewards import load_reward_state, reward_model_name, reward_state

if TYPE_CHECKING:
    from lm_gym.agent import LMAgent

Agent = TypeVar("Agent", bound="LMAgent")
Groups = dict[str, dict[str, torch.Tensor]]
STATE_KEYS = (
    *(
        "agent",
        "config",
        "tokens",
        "episodes",
        "updates",
        "prompts",
        "order",
        "kl_coef",
        "step_size_factor",
        "schedule",
    ),
    *("engine_rng", "rng", "env", "reference", "score_scale", "kl_control", "reward_model", "guard", "extra"),
    "reward_model_hash",
)
"""What ``state.json`` of a checkpoint must hold."""
GUARD = "guard_"
"""Before the name of a group: the guard's last good one."""


def weights(agent: LMAgent) -> Groups:
    """What training moves: the policy (in full precision), the optimizer's state, and the models that follow it."""
    return {
        "policy": agent.optimizer.values(),
        "optimizer": checkpoints.optimizer_tensors(agent.optimizer, list(agent.params)),
        **agent.copies(),
    }


def set_weights(agent: LMAgent, groups: Mapping[str, Mapping[str, torch.Tensor]], where: str) -> None:
    """Put :func:`weights` back, after a look at all of it.

    Raises:
        ValueError: names, shapes, dtypes or numbers that this agent does not have; nothing was changed then.
    """
    policy = agent.optimizer.values()
    _check_group(f"{where}: policy", groups["policy"], policy)
    copies = agent.copies()
    for name, own in copies.items():
        _check_group(f"{where}: {name}", groups.get(name, {}), own)
    _check_optimizer(f"{where}: optimizer", groups["optimizer"], policy)
    agent.optimizer.set_values(groups["policy"])
    agent.optimizer.state.clear()
    checkpoints.set_optimizer_tensors(agent.optimizer, list(agent.params), groups["optimizer"])
    with torch.no_grad():
        for name, own in copies.items():
            for key, p in own.items():
                p.copy_(groups[name][key])
    agent.copies_were_set()
    agent.engine.update_weights(agent.policy.lm, agent.updates)


def _check_group(where: str, found: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> None:
    if set(found) != set(own):
        odd = sorted(set(found) ^ set(own))[:3]
        raise ValueError(f"{where} does not fit this agent's parameters: {odd} are on one side only")
    for key, tensor in found.items():
        expected, got = (tuple(own[key].shape), own[key].dtype), (tuple(tensor.shape), tensor.dtype)
        if expected != got:
            raise ValueError(f"{where}: {key} expected {expected[0]} {expected[1]}, got {got[0]} {got[1]}")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{where}: {key} holds a NaN or an infinity")


def _check_optimizer(where: str, found: Mapping[str, torch.Tensor], policy: Mapping[str, torch.Tensor]) -> None:
    slots: dict[str, set[str]] = {}
    for key, tensor in found.items():
        name, _, slot = key.rpartition("|")
        if name not in policy:
            raise ValueError(f"{where}: {key!r} is of no parameter that this agent trains")
        shape = () if slot == "step" else tuple(policy[name].shape)
        if tuple(tensor.shape) != shape or tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
            raise ValueError(
                f"{where}: {key} expected finite float32 {shape}, got {tensor.dtype} {tuple(tensor.shape)}"
            )
        slots.setdefault(name, set()).add(slot)
    for name, there in slots.items():
        if there != {"step", "exp_avg", "exp_avg_sq"}:
            raise ValueError(f"{where}: {name} expected step, exp_avg and exp_avg_sq, got {sorted(there)}")


def save(agent: LMAgent, folder: str | Path) -> Path:
    """Write a checkpoint: what is trained, the optimizer, every random state, counters. No pickle."""
    control = agent.kl_control
    guard = agent.saved_guard if agent.watch is None else agent.watch.state()
    state = {
        "agent": agent.name,
        "config": plain_config(agent.config),
        "tokens": agent.tokens,
        "episodes": agent.episodes,
        "updates": agent.updates,
        "prompts": agent.mdp.prompts_hash,
        "order": agent.prompt_order.left,
        "kl_coef": agent.kl_coef,
        "step_size_factor": agent.step_size_factor,
        "schedule": list(agent._schedule),
        "engine_rng": checkpoints.generator_state(agent.engine.generator),
        "rng": checkpoints.generator_state(agent.generator),
        # before the first reset there is nothing to keep: the agent's seed makes it
        "env": env_state.save(agent.env) if agent.wrappers and agent._reset_seed is None else None,
        "reference": agent.mdp.reference.fingerprint(),
        "score_scale": None if agent.score_scale is None else list(agent.score_scale),
        "kl_control": None if control is None else control.state_dict(),
        "reward_model": reward_state(agent.mdp.reward_model),
        "reward_model_hash": agent.mdp.reward_hash,
        "guard": None if guard is None else guard[0],
        "extra": agent.extra_state(),
    }
    good = {} if guard is None else {GUARD + name: group for name, group in guard[1].items()}
    return checkpoints.save(folder, {**weights(agent), **agent.extra_tensors(), **good}, state)


def load(kind: type[Agent], folder: str | Path, env: Any, overrides: dict[str, Any]) -> Agent:
    """An agent from a checkpoint, or from a run's folder (its newest checkpoint), on ``env``.

    Raises:
        ValueError: if it is damaged, of another agent, or does not fit this one's parameters.
    """
    path = checkpoints.latest(folder)
    try:
        groups, state = checkpoints.load(path)
    except ValueError as e:
        raise ValueError(f"{e}{checkpoints.older_whole(path)}") from e
    _check_state(state, groups, path, kind)
    config = {**state["config"], **overrides}
    refuse_live(config, kind.__name__)
    try:
        agent = kind(env, **config)
    except TypeError as e:
        raise ValueError(f"checkpoint {path}: its configuration is not one of {kind.__name__}: {e}") from e
    if state["reference"] != agent.mdp.reference.fingerprint():
        warnings.warn(
            "the environment's reference is not the one this checkpoint was trained against: KL is measured from "
            "another place",
            stacklevel=3,
        )
    known = {*weights(agent), *kind.extra_groups}
    if odd := sorted(name for name in groups if name not in known and name.removeprefix(GUARD) not in known):
        raise ValueError(f"checkpoint {path} holds the tensors {odd}, which {kind.__name__} does not save")
    agent.tokens, agent.episodes, agent.updates = state["tokens"], state["episodes"], state["updates"]
    set_weights(agent, groups, f"checkpoint {path}")
    agent._schedule = (state["schedule"][0], state["schedule"][1])
    agent.step_size_factor = float(state["step_size_factor"])
    scale = state["score_scale"]
    agent.score_scale = None if scale is None else (float(scale[0]), float(scale[1]))
    agent.other_judge = state["reward_model_hash"] != agent.mdp.reward_hash
    load_reward_state(agent.mdp.reward_model, state["reward_model"])
    try:
        if state["prompts"] == agent.mdp.prompts_hash:
            agent.prompt_order.restore(state["order"])
        else:  # to draw texts, as `lm-gym sample` does, other prompts will do
            agent.other_prompts = True
        checkpoints.set_generator_state(agent.engine.generator, state["engine_rng"])
        checkpoints.set_generator_state(agent.generator, state["rng"])
        _load_env(agent, state["env"])
        if agent.kl_control is not None:
            agent.kl_control.load_state_dict(state["kl_control"])
        agent.load_extra_state(state["extra"])
        agent.load_extra_tensors(groups)
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as e:
        raise ValueError(f"checkpoint {path}: its state is not what {kind.__name__} saves: {e!r}") from e
    if state["guard"] is not None:
        good = {name.removeprefix(GUARD): group for name, group in groups.items() if name.startswith(GUARD)}
        agent.saved_guard = (state["guard"], good)
    place = path.resolve()  # the path may be "." or a link
    if place.parent.name == "checkpoints":
        agent.run_mark = run_folder.mark(place.parent.parent)
    return agent


def _load_env(agent: LMAgent, state: Any) -> None:
    if state is None:
        return
    if not agent.wrappers:
        warnings.warn("the checkpoint was trained on a wrapped environment, and this one has no wrapper", stacklevel=4)
        return
    agent.unknown_wrappers = env_state.load(agent.env, state)
    agent._reset_seed = None


def _check_state(state: Mapping[str, Any], groups: Mapping[str, Any], path: Path, kind: type[LMAgent]) -> None:
    if state.get("agent") != kind.name:
        raise ValueError(
            f"{kind.__name__}.load expected a checkpoint of {kind.name!r}, got one of {state.get('agent')!r}"
        )
    missing: list[str] = [key for key in STATE_KEYS if key not in state]
    missing += [f"{name}.safetensors" for name in ("policy", "optimizer") if name not in groups]
    if missing:
        raise ValueError(f"checkpoint {path} is damaged: {missing} are missing")
    if odd := sorted(set(state) - set(STATE_KEYS)):
        raise ValueError(f"checkpoint {path}: state.json has {odd}, which no agent saves")

    def count(x: Any) -> bool:
        return isinstance(x, int) and not isinstance(x, bool) and x >= 0

    def numbers(x: Any, n: int) -> bool:
        return isinstance(x, list) and len(x) == n and all(type(y) in (int, float) for y in x)

    fine = {
        **{key: count(state[key]) for key in ("tokens", "episodes", "updates")},
        **{key: isinstance(state[key], dict) for key in ("config", "extra")},
        **{key: isinstance(state[key], str) for key in ("engine_rng", "rng", "reference", "prompts")},
        **{key: state[key] is None or isinstance(state[key], dict) for key in ("env", "kl_control", "reward_model")},
        "reward_model_hash": re.fullmatch("[0-9a-f]{16}", str(state["reward_model_hash"])) is not None,
        "guard": state["guard"] is None or isinstance(state["guard"], dict),
        "kl_coef": numbers([state["kl_coef"]], 1) and state["kl_coef"] >= 0,
        "step_size_factor": numbers([state["step_size_factor"]], 1) and 0 < state["step_size_factor"] <= 1,
        "schedule": numbers(state["schedule"], 2) and all(count(x) for x in state["schedule"]) and state["schedule"][1],
        "score_scale": state["score_scale"] is None or (numbers(state["score_scale"], 2) and state["score_scale"][1]),
    }
    if wrong := [key for key, ok in fine.items() if not ok]:
        raise ValueError(f"checkpoint {path}: state.json has {wrong[0]}={state[wrong[0]]!r:.60}, which no agent saves")


def check_resume(agent: LMAgent, guarded: bool) -> None:
    """Whether a loaded agent can go on as if nothing had happened.

    Raises:
        ValueError: it cannot, behind a wrapper whose state is lost, or without the guard that it had.
    """
    env_state.refuse_unknown(agent.unknown_wrappers)
    if agent.saved_guard is not None and not guarded:
        raise ValueError("the checkpoint was made under a guard: resume=True expected guard= again")
    if agent.other_prompts:
        warnings.warn(
            "the environment's prompts are not those of the checkpoint: a new round of them begins, and the run is not "
            "the one that it would have been",
            stacklevel=3,
        )
    if agent.other_judge:
        warnings.warn(
            f"the reward model {reward_model_name(agent.mdp.reward_model)} is not the one of the checkpoint (its code, "
            "weights or configuration is another): the optimizer's moments, a value head, and what a guard or a "
            "normalisation holds are of the old one's scores",
            stacklevel=3,
        )
