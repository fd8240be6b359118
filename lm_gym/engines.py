"""Which decoding engine an agent has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lm_gym.choices import check_choice
from lm_gym.decoding import Engine

if TYPE_CHECKING:
    from lm_gym.agent import LMAgent
    from lm_gym.vllm_engine import VLLMEngine

ENGINES = ("builtin", "vllm")


def make_engine(agent: LMAgent) -> Engine | VLLMEngine:
    """The engine that ``config.engine`` names, on the agent's policy; the built-in one where there is no such field.

    Raises:
        ImportError: vLLM is not installed. ValueError: vLLM cannot decode this agent's texts.
    """
    kind, policy, mdp = getattr(agent.config, "engine", "builtin"), agent.policy, agent.mdp
    check_choice("engine", kind, ENGINES)
    value_head = policy.value if policy.value_head is not None else None
    if kind == "builtin":
        return Engine(
            policy.lm,
            guide=mdp.reference,
            value_head=value_head,
            keep_hidden=True,
            keep_below=policy.frozen_layers,
            seed=agent.config.seed,
        )
    if agent.wrappers:
        raise ValueError(
            f"engine='vllm' expected an environment without wrappers, got {', '.join(agent.wrappers)}: texts are made "
            "by stepping through them, token by token; use engine='builtin'"
        )
    params = agent.generation_params
    if params.top_k is not None or params.top_p is not None:
        raise ValueError(
            f"engine='vllm' expected no top_k and no top_p, got top_k={params.top_k} and top_p={params.top_p}: vLLM "
            "cannot choose among another model's likeliest tokens; use engine='builtin'"
        )
    from lm_gym.vllm_engine import VLLMEngine

    return VLLMEngine(
        policy.lm,
        value_head=value_head,
        keep_hidden=True,
        seed=agent.config.seed,
        max_model_len=max(len(p.token_ids) for p in mdp.prompts) + params.max_new_tokens,
        rows=min(agent.config.batch_size, agent.config.rows or 256, 256),
    )
