"""What a checkpoint of an agent holds, and how an agent is made from one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from lm_gym import checkpoints
from lm_gym.agent_config import plain_config, refuse_live
from lm_gym.rewards import load_reward_state, reward_state

if TYPE_CHECKING:
    from lm_gym.agent import LMAgent

Agent = TypeVar("Agent", bound="LMAgent")
STATE_KEYS = ("config", "tokens", "episodes", "updates", "order", "schedule", "engine_rng", "rng", "reference", "extra")
"""What ``state.json`` of a checkpoint must hold."""


def save(agent: LMAgent, folder: str | Path) -> Path:
    """Write a checkpoint: what is trained, the optimizer, every random state, counters. No pickle."""
    control = agent.kl_control
    state = {
        "agent": agent.name,
        "config": plain_config(agent.config),
        "tokens": agent.tokens,
        "episodes": agent.episodes,
        "updates": agent.updates,
        "order": agent.prompt_order.left,
        "kl_coef": agent.kl_coef,
        "schedule": list(agent._schedule),
        "engine_rng": checkpoints.generator_state(agent.engine.generator),
        "rng": checkpoints.generator_state(agent.generator),
        "reference": agent.mdp.reference.fingerprint(),
        "score_scale": None if agent.score_scale is None else list(agent.score_scale),
        "kl_control": None if control is None else control.state_dict(),
        "reward_model": reward_state(agent.mdp.reward_model),
        "extra": agent.extra_state(),
    }
    tensors: dict[str, dict[str, torch.Tensor]] = {
        "policy": agent.optimizer.values(),
        "optimizer": checkpoints.optimizer_tensors(agent.optimizer, list(agent.params)),
        **({} if control is None else control.tensors()),
        **agent.extra_tensors(),
    }
    return checkpoints.save(folder, tensors, state)


def load(kind: type[Agent], folder: str | Path, env: Any, overrides: dict[str, Any]) -> Agent:
    """An agent from a checkpoint, or from a run's folder (its newest checkpoint), on ``env``.

    Raises:
        ValueError: if it is damaged, of another agent, or does not fit this one's parameters.
    """
    groups, state = checkpoints.load(checkpoints.latest(folder))
    if state.get("agent") != kind.name:
        raise ValueError(
            f"{kind.__name__}.load expected a checkpoint of {kind.name!r}, got one of {state.get('agent')!r}"
        )
    missing = [key for key in STATE_KEYS if key not in state]
    missing += [f"{name}.safetensors" for name in ("policy", "optimizer") if name not in groups]
    if missing:
        raise ValueError(f"checkpoint {folder} is damaged: {missing} are missing")
    config = {**state["config"], **overrides}
    refuse_live(config, kind.__name__)
    agent = kind(env, **config)
    if state["reference"] != agent.mdp.reference.fingerprint():
        warnings.warn(
            "the environment's reference is not the one this checkpoint was trained against: KL is measured from "
            "another place",
            stacklevel=3,
        )
    saved = groups["policy"]
    if set(saved) != set(agent.params):
        odd = sorted(set(saved) ^ set(agent.params))[:3]
        raise ValueError(f"checkpoint {folder} does not fit this agent's parameters: {odd} are on one side only")
    for key, p in agent.params.items():
        if p.shape != saved[key].shape:
            raise ValueError(f"checkpoint {folder}: {key} expected {tuple(p.shape)}, got {tuple(saved[key].shape)}")
    agent.optimizer.set_values(saved)
    checkpoints.set_optimizer_tensors(agent.optimizer, list(agent.params), groups["optimizer"])
    agent.tokens, agent.episodes, agent.updates = state["tokens"], state["episodes"], state["updates"]
    agent.prompt_order.left = list(state["order"])
    agent._schedule = (state["schedule"][0], state["schedule"][1])
    checkpoints.set_generator_state(agent.engine.generator, state["engine_rng"])
    checkpoints.set_generator_state(agent.generator, state["rng"])
    scale = state.get("score_scale")
    agent.score_scale = None if scale is None else (float(scale[0]), float(scale[1]))
    load_reward_state(agent.mdp.reward_model, state.get("reward_model"))
    if agent.kl_control is not None:
        agent.kl_control.load_state_dict(state.get("kl_control"))
        agent.kl_control.load_tensors(groups)
    agent.load_extra_state(state["extra"])
    agent.load_extra_tensors(groups)
    agent.engine.update_weights(agent.policy.lm, agent.updates)
    return agent
