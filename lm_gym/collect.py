"""Texts for an agent to train on, from whatever environment it was given.

The batched view decodes with the fast engine and scores whole texts. It is taken where nothing stands between the agent
and the problem. A wrapper that may change observations, rewards or endings is never bypassed: then every token goes
through ``env.step``.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import wrappers

from lm_gym.decoding import Completion, Engine, GenerationParams, sample
from lm_gym.env import LMAlignEnv
from lm_gym.forward import pad_rows
from lm_gym.mdp import STEP_LIMIT, AlignmentMDP, Scored
from lm_gym.policy import Policy
from lm_gym.prompts import Prompt
from lm_gym.reference_pass import reference_pass
from lm_gym.vector_env import LMAlignVectorEnv

Env = gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any]

HARMLESS: tuple[type, ...] = (
    wrappers.PassiveEnvChecker,
    wrappers.OrderEnforcing,
    wrappers.RecordEpisodeStatistics,
    wrappers.vector.RecordEpisodeStatistics,
)
"""Wrappers that change nothing an agent trains on. A subclass of one may, and does not count."""


def unwrap(env: Env) -> tuple[LMAlignEnv | LMAlignVectorEnv, list[str]]:
    """The LM Gym environment inside, and the names of the wrappers that may change what an agent trains on."""
    found: list[str] = []
    inner: Any = env
    while isinstance(inner, (gym.Wrapper, gym.vector.VectorWrapper)):
        harmless = type(inner) in HARMLESS
        if type(inner) is wrappers.TimeLimit:
            harmless = inner._max_episode_steps >= STEP_LIMIT
        if not harmless:
            found.append(type(inner).__name__)
        inner = inner.env
    if not isinstance(inner, (LMAlignEnv, LMAlignVectorEnv)):
        raise ValueError(
            f"env expected an LM Gym environment (gym.make('LMAlign-v0') or gym.make_vec), got {type(inner).__name__}"
        )
    return inner, found


def warn_of_wrappers(names: Sequence[str]) -> None:
    """Says once that wrappers make training slower."""
    warnings.warn(
        f"the environment is wrapped in {', '.join(names)}, which may change rewards or endings: training steps "
        "through it token by token (slower, and what the wrapper returns is what is trained on)",
        stacklevel=3,
    )


@dataclass
class Stepped:
    """Texts that were made by stepping; ``rewards`` (B, T) are what the wrapped environment returned."""

    completions: list[Completion]
    rewards: torch.Tensor
    scored: Scored


@torch.no_grad()
def step_texts(
    env: Env,
    policy: Policy,
    count: int,
    *,
    kl_mode: str,
    kl_coef: float,
    generator: torch.Generator,
    seed: int | None = None,
    prompts: Sequence[Prompt] | None = None,
    hidden: bool = False,
    trainer_state: Any = None,
) -> Stepped:
    """At least ``count`` whole texts by stepping a wrapped environment with the policy.

    Every row makes the same number of texts and what it does beyond is thrown away: taking the first texts to end would
    favour short ones.

    Args:
        kl_mode, kl_coef: what the environment inside pays while it is stepped; set back afterwards.
        seed: of the environment's first reset.
        prompts: ``count`` prompts, in the order that the texts come back in; the rows must share them evenly. None:
            the environment draws them.
        hidden: also the reference's hidden states, the exact KL and the entropy.
        trainer_state: handed to the reward model.
    """
    base, _ = unwrap(env)
    stepper = base.stepper
    before = stepper.named_kl_mode, stepper.kl_coef
    stepper.named_kl_mode, stepper.kl_coef, stepper.trainer_state = kl_mode, kl_coef, trainer_state
    if prompts is not None:
        rows = getattr(env, "num_envs", 1)
        if len(prompts) % rows:
            raise ValueError(
                f"batch_size expected a multiple of num_envs={rows} for groups of texts, got {len(prompts)}"
            )
        share = len(prompts) // rows
        stepper.plans = {i: deque(prompts[i * share : (i + 1) * share]) for i in range(rows)}
    try:
        inside = env if isinstance(env, gym.vector.VectorEnv) else _OneRow(env)
        stepped = _Collection(inside, policy, generator).run(count, seed)
    finally:
        stepper.named_kl_mode, stepper.kl_coef = before
        stepper.plans, stepper.trainer_state = {}, None
    if prompts is not None and [c.prompt for c in stepped.completions] != list(prompts):
        raise ValueError("a wrapper reset the environment between episodes: groups of texts expected their own prompts")
    if hidden:
        done, scored = stepped.completions, stepped.scored
        ids, tokens = [c.prompt_ids for c in done], [c.tokens for c in done]
        found = reference_pass(base.mdp, ids, tokens, hidden=True, policy=policy.lm, drawn=done)
        scored.ref_hidden, scored.exact_kl, scored.entropy = found.hidden, found.exact_kl, found.entropy
    return stepped


@torch.no_grad()
def reference_scale(mdp: AlignmentMDP, n: int, *, seed: int) -> tuple[float, float]:
    """Mean and standard deviation of the scores of n samples of the reference, for prompts drawn from all there are.

    Raises:
        ValueError: if they are all the same.
    """
    engine = Engine(mdp.reference, guide=mdp.reference, seed=seed)
    order = np.random.default_rng(seed).permutation(len(mdp.prompts))  # sets are often sorted by source or difficulty
    prompts = [mdp.prompts[order[i % len(order)]] for i in range(n)]
    completions = batched_texts(engine, prompts, replace(mdp.generation_params, rows=256))
    scores = mdp.judge(prompts, [c.tokens for c in completions], [c.finish_reason for c in completions])[0]
    if np.ptp(scores) == 0:  # their std is rounding: 64 scores of .1 have one of 1.4e-17
        raise ValueError(
            f"normalize_scores expected scores that differ, got {scores[0]} for {n} samples of the reference"
        )
    return float(scores.mean()), float(scores.std())


class _OneRow:
    """A single environment with the shape of a vector environment of one row, reset in the step that ends it."""

    num_envs = 1

    def __init__(self, env: Any) -> None:
        self.env, self.unwrapped = env, env.unwrapped

    def reset(self, *, seed: int | None = None) -> Any:
        return self.env.reset(seed=seed)

    def step(self, actions: np.ndarray) -> Any:
        _, reward, terminated, truncated, info = self.env.step(int(actions[0]))
        if terminated or truncated:
            info = {"final_info": {k: np.array([v], dtype=object) for k, v in info.items()}}
            self.env.reset()
        return None, np.array([reward]), np.array([terminated]), np.array([truncated]), info


class _Collection:
    def __init__(self, env: Any, policy: Policy, generator: torch.Generator) -> None:
        self.env, self.policy, self.generator = env, policy, generator
        self.stepper, self.mdp = env.unwrapped.stepper, env.unwrapped.mdp
        mode = getattr(env.unwrapped, "metadata", {}).get("autoreset_mode")
        if mode is not None and mode is not gym.vector.AutoresetMode.SAME_STEP:
            raise ValueError(f"agents expected a vector environment with same-step autoreset, got {mode}")

    def run(self, count: int, seed: int | None) -> Stepped:
        env, stepper, lm = self.env, self.stepper, self.policy.lm
        n = env.num_envs
        quota = -(-count // n)
        env.reset(seed=seed)
        rows = lm.rows(n, stepper.width)
        hidden = rows.insert(range(n), [p.token_ids for p in stepper.prompts])
        open_texts = [_Text(p) for p in stepper.prompts]
        finished: list[list[_Text]] = [[] for _ in range(n)]
        while min(map(len, finished)) < quota:
            allowed = stepper.choices
            ages = torch.tensor([len(t) for t in stepper.tokens])
            no_eos = ages < self.mdp.min_new_tokens
            logp = self.mdp.distribution(lm, hidden, allowed=allowed, no_eos=no_eos).cpu()
            tokens = sample(logp, torch.rand(n, generator=self.generator))
            chosen = logp.gather(-1, tokens[:, None]).squeeze(-1)
            values = self.policy.value(hidden).cpu() if self.policy.value_head is not None else torch.zeros(n)
            actions = tokens
            if allowed is not None:
                actions = (allowed == tokens[:, None]).long().argmax(-1)
            if stepper.kl_mode == "reported":
                env.unwrapped.report_logprob(chosen.numpy())
            ref = stepper.logp.gather(-1, tokens[:, None]).squeeze(-1)
            kept = hidden.float().cpu()
            _, rewards, terminated, truncated, infos = env.step(actions.numpy())
            done = terminated | truncated
            self._check_in_step(tokens.tolist(), done)
            if not done.all():
                if done.any():
                    rows.park(np.flatnonzero(done).tolist())
                hidden = rows.step(tokens.to(lm.device))
            for i in range(n):
                text = open_texts[i]
                text.add(
                    tokens[i],
                    chosen[i],
                    values[i],
                    rewards[i],
                    ref[i],
                    kept[i],
                    allowed[i] if allowed is not None else None,
                )
                if done[i]:
                    self._close(text, i, bool(truncated[i]) and not bool(terminated[i]), infos)
                    finished[i].append(text)
                    open_texts[i] = _Text(stepper.prompts[i])
            ended = np.flatnonzero(done).tolist()
            if ended:
                fresh = rows.insert(ended, [stepper.prompts[i].token_ids for i in ended])
                if len(ended) == n:
                    hidden = fresh
                else:
                    hidden[ended] = fresh
        return self._gather([t for row in finished for t in row[:quota]])

    def _check_in_step(self, tokens: Sequence[int], done: np.ndarray) -> None:
        """The environment inside must hold the texts that the policy's cache holds."""
        for i, (held, token) in enumerate(zip(self.stepper.tokens, tokens, strict=True)):
            if done[i] and held:
                raise ValueError(
                    f"a wrapper ended the text of row {i}, but the environment inside goes on with it: a vector "
                    "environment's rows reset themselves at their own ends only; cut texts off with max_new_tokens"
                )
            if not done[i] and held[-1:] != [token]:
                raise ValueError(
                    f"a wrapper changed the action in row {i}: the policy chose token {token}, and {held[-1:]} was "
                    "appended; agents of lm_gym expected their own tokens in the text"
                )

    def _close(self, text: _Text, row: int, cut: bool, infos: dict[str, Any]) -> None:
        final = infos.get("final_info", {})
        text.score = 0.0 if cut else float(final["score"][row])
        text.text = self.mdp.reference.decode(text.tokens)
        text.reason = "cut" if cut else str(final["finish_reason"][row])

    def _gather(self, texts: list[_Text]) -> Stepped:
        completions = [
            Completion(
                prompt_ids=t.prompt.token_ids,
                tokens=t.tokens,
                finish_reason=t.reason,
                logprobs=torch.stack(t.logprobs),
                values=torch.stack(t.values) if self.policy.value_head is not None else None,
                hidden=torch.stack(t.hidden),
                allowed=torch.stack(t.allowed) if t.allowed else None,
                prompt=t.prompt,
            )
            for t in texts
        ]
        width = max(len(t.tokens) for t in texts)
        rewards = pad_rows([torch.tensor(t.rewards, dtype=torch.float32) for t in texts], width)
        ref = pad_rows([torch.stack(t.ref) for t in texts], width)
        mask = torch.arange(width)[None] < torch.tensor([len(t.tokens) for t in texts])[:, None]
        scores = torch.tensor([t.score for t in texts])
        scored = Scored([t.text for t in texts], mask, scores, ref, torch.zeros_like(ref), rewards)
        return Stepped(completions, rewards, scored)


class _Text:
    def __init__(self, prompt: Any) -> None:
        self.prompt, self.tokens, self.rewards = prompt, [], []  # type: ignore[var-annotated]
        self.logprobs: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.ref: list[torch.Tensor] = []
        self.hidden: list[torch.Tensor] = []
        self.allowed: list[torch.Tensor] = []
        self.score, self.text, self.reason = 0.0, "", ""

    def add(
        self,
        token: torch.Tensor,
        logprob: torch.Tensor,
        value: torch.Tensor,
        reward: float,
        ref: torch.Tensor,
        hidden: torch.Tensor,
        allowed: torch.Tensor | None,
    ) -> None:
        self.tokens.append(int(token))
        self.logprobs.append(logprob)
        self.values.append(value)
        self.rewards.append(float(reward))
        self.ref.append(ref)
        self.hidden.append(hidden)
        if allowed is not None:
            self.allowed.append(allowed)


def batched_texts(engine: Any, prompts: Sequence[Prompt], params: GenerationParams) -> list[Completion]:
    """Completions of an engine for prompt records, in their order, each with its record attached."""
    completions: list[Completion] = engine.generate([p.token_ids for p in prompts], params)
    for completion, prompt in zip(completions, prompts, strict=True):
        completion.prompt = prompt
    return completions
