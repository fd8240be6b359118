"""How an agent writes: texts for an update, completions of prompts, one token, and all that it says of a language."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lm_gym import blame, collect
from lm_gym.agent_config import whole
from lm_gym.cached_lm import CachedLM
from lm_gym.decoding import Completion, Engine, restrict, top_k_ids
from lm_gym.mdp import AlignmentMDP, Scored
from lm_gym.models import CausalLM
from lm_gym.prompts import Prompt, load_prompts
from lm_gym.reward_errors import RewardModelError, shown
from lm_gym.reward_identity import reward_model_name
from lm_gym.rollout import Rollout
from lm_gym.values import critic_values, values_after

if TYPE_CHECKING:
    from lm_gym.agent import LMAgent

LARGEST_TRAINED = 1e18
"""Of a score: the squares of 340 texts of it are the most that float32 adds up."""


def rollout_for_update(agent: LMAgent) -> tuple[Rollout, dict[str, float]]:
    """:meth:`LMAgent.collect`."""
    started = time.perf_counter()
    c, control, mdp = agent.config, agent.kl_control, agent.mdp
    mode = "reported" if control is None else control.reward_mode
    normalize = getattr(c, "normalize_scores", 0)
    if normalize and agent.score_scale is None:
        agent.score_scale = collect.reference_scale(mdp, normalize, seed=c.seed + 2)
    if agent.wrappers:
        grouped = agent.prompts_for_update() if getattr(c, "group_size", None) else None
        stepped = collect.step_texts(
            agent.env,
            agent.policy,
            c.batch_size,
            kl_mode=mode,
            kl_coef=agent.kl_coef,
            generator=agent.generator,
            seed=agent._reset_seed,
            prompts=grouped,
            hidden=True,
            trainer_state=agent.state,
        )
        agent._reset_seed = None
        completions, scored = stepped.completions, stepped.scored
        decoded = time.perf_counter()
    else:
        completions = collect.batched_texts(
            agent.engine, agent.prompts_for_update(), replace(agent.generation_params, rows=c.rows)
        )
        decoded = time.perf_counter()
        scored = mdp.score(
            completions,
            kl_mode=mode,
            kl_coef=agent.kl_coef,
            hidden=True,
            policy=agent.policy.lm,
            shared_blocks=agent.policy.frozen_layers if mdp.shares_model else 0,
            trainer_state=agent.state,
        )
    if agent.score_scale is None:
        _check_squares(mdp, completions, scored)
    rollout = Rollout.from_completions(
        completions, scored, pad_id=agent.policy.lm.pad_id, min_new_tokens=mdp.min_new_tokens
    )
    blame.check_rollout(rollout)
    metrics = agent.describe(rollout)
    if agent.policy.critic is not None:
        rollout.values = critic_values(agent.policy, rollout)
    if rollout.values is not None and "cut" in (rollout.finish_reasons or []):
        rollout.bootstrap = values_after(agent.policy, rollout)
    if agent.score_scale is not None:
        rollout.rescale_scores(*agent.score_scale, scored.kl_penalty)
    if control is not None and control.ema is not None:
        paid = control.repay(rollout)
        metrics |= {key: metrics[key] + paid for key in ("objective/rlhf_reward", "objective/non_score_reward")}
    metrics |= {f"reward/{k}": v for k, v in scored.metrics.items()}
    metrics |= {"perf/decode_seconds": decoded - started, "perf/score_seconds": time.perf_counter() - decoded}
    if scored.judge_seconds:
        metrics["perf/judged_per_second"] = len(rollout) / scored.judge_seconds
    return rollout, metrics


def predict(agent: LMAgent, observation: Any, deterministic: bool) -> Any:
    """The action of :meth:`LMAgent.predict`."""
    if agent._actor is None:
        agent._actor = CachedLM(agent.policy.lm, temperature=agent.mdp.temperature, seed=agent.config.seed)
    stepper, mask, ids = agent.base.stepper, None, None
    if agent.mdp.top_k is not None or agent.mdp.min_new_tokens:  # what may be chosen depends on the text so far
        if not np.array_equal(np.atleast_2d(observation["input_ids"]), stepper.input_ids):
            raise ValueError(
                "predict expected the current observation of the agent's own environment, got another one: top_k "
                "and min_new_tokens restrict the choice by its state; load the agent on the environment to step"
            )
        mask, ids = stepper.action_masks(), stepper.choice_ids()
    single = np.asarray(observation["input_ids"]).ndim == 1
    actions, _, _ = agent._actor.act(observation, action_mask=mask, action_tokens=ids, deterministic=deterministic)
    return int(actions) if single else actions


def complete(agent: LMAgent, prompts: Any, *, greedy: bool, max_new_tokens: int | None, seed: int) -> list[Completion]:
    """:meth:`LMAgent.complete`."""
    engine = Engine(agent.policy.lm, guide=agent.engine.guide, keep_hidden=True, seed=seed)
    params = replace(agent.generation_params, greedy=greedy, rows=256)
    if max_new_tokens is not None:
        params = replace(params, max_new_tokens=whole("max_new_tokens", max_new_tokens))
    return collect.batched_texts(engine, records_of(agent.mdp, prompts), params)


def records_of(mdp: AlignmentMDP, prompts: Any) -> list[Prompt]:
    """Prompts of a text, a list of them, records, or any prompt source."""
    if isinstance(prompts, (list, tuple)) and prompts and all(isinstance(p, Prompt) for p in prompts):
        return list(prompts)
    if isinstance(prompts, str) and not prompts.startswith("tiny:") and not Path(prompts).exists():
        prompts = [prompts]
    room = mdp.reference.max_positions - mdp.max_new_tokens
    return load_prompts(prompts, mdp.reference.tokenizer, max_tokens=room)


def exact_policy(agent: LMAgent, language: Any) -> np.ndarray:
    """:meth:`LMAgent.exact_policy`."""
    mdp, lm = agent.mdp, agent.policy.lm
    logits, allowed = state_logits(lm, language, mdp.temperature), None
    if mdp.top_k:
        allowed = top_k_ids(state_logits(mdp.reference, language), mdp.top_k, lm.eos_ids)
    return torch.softmax(restrict(logits, allowed=allowed).double(), -1).numpy()


@torch.no_grad()
def state_logits(lm: CausalLM, language: Any, temperature: float = 1.0) -> torch.Tensor:
    """(S, V) logits over the temperature in every state of an exact language, a one-hot hidden state each."""
    n_states = language.table().n_states
    if lm.hidden_size != n_states:
        raise ValueError(f"expected a policy of this language ({n_states} states), got one with {lm.hidden_size}")
    return lm.head(torch.eye(n_states, device=lm.device)) / temperature


def _check_squares(mdp: AlignmentMDP, completions: Sequence[Completion], scored: Scored) -> None:
    """Refuse scores whose squares float32 cannot add up: the loss would be no number, and would not name the judge."""
    row = int(scored.scores.abs().argmax())
    score, prompt = float(scored.scores[row]), completions[row].prompt
    if abs(score) > LARGEST_TRAINED:
        raise RewardModelError(
            f"reward model {reward_model_name(mdp.reward_model)} gave {score:g}, and what is trained on has at most "
            f"±{LARGEST_TRAINED:g}: float32 cannot add up the squares of more. Scale it, or set normalize_scores\n"
            f"  on completion {row} of {len(completions)}:\n"
            f"  prompt: {shown(prompt and prompt.text)}\n  completion: {shown(scored.texts[row])}",
            row=row,
        )
