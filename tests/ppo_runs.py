"""A small alignment problem that trains in a second: more letters 'a', from a random model of two layers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from small_models import small_lm, small_mdp

from lm_gym.agents import PPO
from lm_gym.env import LMAlignEnv
from lm_gym.mdp import AlignmentMDP


def count_a(completions: Sequence[Any], **_: Any) -> list[float]:
    """Letters 'a' in a completion, plain or conversational."""
    return [float((c if isinstance(c, str) else c[-1]["content"]).count("a")) for c in completions]


def problem(kind: str = "llama", *, dtype: torch.dtype = torch.float32, **options: Any) -> AlignmentMDP:
    lm = small_lm(kind)
    lm.model.to(dtype)
    return small_mdp(lm, **{"reward_model": count_a, "kl_coef": 0.1, **options})


def environment(mdp: AlignmentMDP, **view: Any) -> LMAlignEnv:
    return LMAlignEnv(mdp=mdp, action_mode="full" if mdp.top_k is None else "top_k", top_k=mdp.top_k, **view)


def ppo(env: Any, **config: Any) -> PPO:
    return PPO(env, **{"batch_size": 64, "minibatch_size": 32, "learning_rate": 3e-3, **config})


@dataclass
class Run:
    """A training run: the agent, what it logged, its score on fresh texts before and after."""

    agent: PPO
    before: float
    after: float
    logs: list[dict[str, float]] = field(default_factory=list)


def train(mdp: AlignmentMDP, tokens: int = 4000, *, wrap: Callable[[Any], Any] | None = None, **config: Any) -> Run:
    env = environment(mdp)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if wrap is not None:
            warnings.filterwarnings("ignore", message="the environment is wrapped")
        if config.get("whiten_rewards"):
            warnings.filterwarnings("ignore", message="whitening")
        warnings.filterwarnings("ignore", category=FutureWarning)
        agent = ppo(env if wrap is None else wrap(env), **config)
        run = Run(agent, agent.evaluate(n=256)["objective/scores"], 0.0)
        agent.learn(tokens, callback=lambda _, metrics: run.logs.append(metrics))
        run.after = agent.evaluate(n=256)["objective/scores"]
    return run
