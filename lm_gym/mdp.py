"""The problem itself: prompts, a frozen reference, a judge, a price per nat of KL, and limits. No Gymnasium in it.

    J(π) = E[R(x, y)] − β·KL(π‖π_ref)
    r_t  = −β·(log π(a_t|s_t) − log π_ref(a_t|s_t)),  plus R(x, y) on the last action

The environments are the step-by-step view of it; :meth:`AlignmentMDP.score` is the batched view, and pays the same
rewards for the same tokens.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from lm_gym.decoding import Completion, GenerationParams, finish_reason, restrict
from lm_gym.export import warn_of_origin
from lm_gym.forward import pad_rows
from lm_gym.loading import load_model, tokenizer_of
from lm_gym.models import Below, CausalLM, different_tokens
from lm_gym.positions import because
from lm_gym.prompts import Prompt, load_prompts
from lm_gym.reference_pass import reference_pass
from lm_gym.rewards import load_reward_model, reward_model_hash, score_texts

KL_MODES = ("reference", "reported", "none")
STEP_LIMIT = 100_000
"""``max_episode_steps`` of the registered ids; ``max_new_tokens`` stays below it, so a TimeLimit never truncates."""


@dataclass
class Scored:
    """What the problem says of B finished completions; T is the longest, shorter ones are zero behind their end.

    Attributes:
        texts: B completion texts, special tokens left out. response_mask: (B, T) bool.
        scores: (B,) R(x, y): the reward model's number, less ``missing_eos_penalty`` where the text ran into the limit.
        ref_logprobs: (B, T) log π_ref(a_t|s_t), whole vocabulary, at the problem's temperature.
        kl_penalty: (B, T) what step t pays for KL. rewards: (B, T) ``kl_penalty`` plus R on the last token.
        extra: columns that the reward model logged, B values each. metrics: numbers that it logged.
        ref_hidden: (B, T, d) the reference's hidden states, if asked for. judge_seconds: what the reward model took.
        exact_kl, entropy: (B, T) KL(π‖π_ref) and the entropy of π in each state, nats, where the policy was given.
    """

    texts: list[str]
    response_mask: torch.Tensor
    scores: torch.Tensor
    ref_logprobs: torch.Tensor
    kl_penalty: torch.Tensor
    rewards: torch.Tensor
    extra: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    ref_hidden: torch.Tensor | None = None
    judge_seconds: float = 0.0
    exact_kl: torch.Tensor | None = None
    entropy: torch.Tensor | None = None


class AlignmentMDP:
    """Aligning a language model as a Markov decision process.

    Args:
        model: what policies start from: "tiny", a hub id, a folder, a GGUF file, or a live model.
        reference: the model that KL is measured against; None: ``model``. It is frozen, also when it is a live object:
            train a copy.
        tokenizer: a tokenizer or its name; None: the model's own.
        prompts: a source that :func:`lm_gym.prompts.load_prompts` takes, or a list of :class:`Prompt`.
        reward_model: a callable or the name of one (:mod:`lm_gym.rewards`).
        max_new_tokens: tokens until a text ends by its length. min_new_tokens: tokens before which it may not end.
        stop: strings that end a text.
        kl_coef: β ≥ 0, reward per nat.
        missing_eos_penalty: ≥ 0, taken from the score of a text that ran into the limit.
        temperature: of policy and reference alike, above 0.
        top_k: choose among the reference's k likeliest tokens only, EOS always among them; None: all.
        device, dtype: where and how models are loaded.
        max_prompt_tokens: the longest prompt allowed; also makes the shape of observations the same for every set of
            prompts, and leaves room for prompts of one's own. None: what the model's context leaves, and observations
            as wide as these prompts ask for.
    """

    def __init__(
        self,
        *,
        model: Any = "tiny",
        reference: Any = None,
        tokenizer: Any = None,
        prompts: Any = "tiny:reviews",
        reward_model: Any = "vader",
        max_new_tokens: int = 32,
        min_new_tokens: int = 0,
        stop: str | Sequence[str] = (),
        kl_coef: float = 0.05,
        missing_eos_penalty: float = 0.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        device: Any = "cpu",
        dtype: Any = "float32",
        max_prompt_tokens: int | None = None,
    ) -> None:
        self.max_new_tokens = _integer("max_new_tokens", max_new_tokens, 1, STEP_LIMIT - 1)
        self.min_new_tokens = _integer("min_new_tokens", min_new_tokens, 0, self.max_new_tokens)
        self.kl_coef = _number("kl_coef", kl_coef, at_least=0)
        self.missing_eos_penalty = _number("missing_eos_penalty", missing_eos_penalty, at_least=0)
        self.temperature = _number("temperature", temperature, above=0)
        strings = [stop] if isinstance(stop, str) else stop
        if not isinstance(strings, (list, tuple)) or not all(isinstance(s, str) and s for s in strings):
            raise ValueError(f"stop expected a string or several, none of them empty, got {stop!r}")
        self.stop = tuple(strings)
        self.device, self.dtype = device, dtype
        self.reference = load_model(
            model if reference is None else reference,
            tokenizer=tokenizer,
            device=device,
            dtype=dtype,
            what="model" if reference is None else "reference",
        ).freeze()
        self.shares_model = reference is None
        if reference is None:
            warn_of_origin(model)
        self._model, self._tokenizer = model, tokenizer
        vocab = self.reference.vocab_size
        self.top_k = None if top_k is None else _integer("top_k", top_k, 1, vocab)
        ends = sum(i < vocab for i in self.reference.eos_ids)
        if self.top_k is not None and self.min_new_tokens and self.top_k <= ends:
            raise ValueError(
                f"top_k expected more than the model's {ends} EOS ids, which min_new_tokens={self.min_new_tokens} "
                f"forbids at first, got {self.top_k}: there would be nothing to choose"
            )
        if reference is not None:
            self._check_vocabulary(self._own_tokenizer())
            if tokenizer is not None and all(isinstance(name, (str, Path)) for name in (model, reference)):
                # given for both: it may fit the one or the other
                self._check_vocabulary(tokenizer_of(model), tokenizer_of(reference))
        self.prompts = self._prompts(prompts, max_prompt_tokens)
        self.reference.check_ids((p.token_ids for p in self.prompts), "prompt")
        longest = max(len(p.token_ids) for p in self.prompts)
        self.longest_prompt = longest if max_prompt_tokens is None else max(longest, max_prompt_tokens)
        self.reward_model: Callable[..., Any] = load_reward_model(reward_model)

    def _prompts(self, source: Any, max_prompt_tokens: int | None) -> list[Prompt]:
        room = self.reference.max_positions - self.max_new_tokens
        if room < 1:
            raise ValueError(
                f"max_new_tokens expected fewer than the model's limit of {self.reference.max_positions} tokens"
                f"{because(room)}, got {self.max_new_tokens}"
            )
        limit = room if max_prompt_tokens is None else _integer("max_prompt_tokens", max_prompt_tokens, 1, room)
        if isinstance(source, (list, tuple)) and source and all(isinstance(p, Prompt) for p in source):
            long = [p for p in source if len(p.token_ids) > limit]
            if long:
                raise ValueError(
                    f"prompts expected at most {limit} tokens each{because(limit)}, got {len(long[0].token_ids)} in "
                    f"prompt {long[0].text[:60]!r}: shorten it, or lower max_new_tokens"
                )
            return list(source)
        return load_prompts(source, self.reference.tokenizer, max_tokens=limit)

    def _own_tokenizer(self) -> Any:
        """The tokenizer of ``model``, where another model is the reference; None where it has none to be found."""
        if isinstance(self._model, CausalLM):
            return self._model.tokenizer
        if self._tokenizer is not None:
            return None  # one was given, for both
        return tokenizer_of(self._model)

    def _check_vocabulary(self, tokenizer: Any, other: Any = None) -> None:
        """Policy and reference must mean the same by an id: a KL between two vocabularies means nothing."""
        found = different_tokens(tokenizer, self.reference.tokenizer if other is None else other)
        if found is not None:
            raise ValueError(
                f"model and reference expected one vocabulary, got two: id {found[0]} is {found[1]!r} in the model's "
                f"tokenizer and {found[2]!r} in that of the reference {self.reference.name!r}. To do: take a reference "
                "with the model's own tokenizer"
            )

    def initial_policy(self, share: Callable[[CausalLM], Iterable[nn.Parameter]] | None = None) -> CausalLM:
        """A copy of ``model`` for an agent to train. ``share(reference)`` names tensors to hold in common, frozen."""
        if self.shares_model:
            policy = self.reference.clone(share=() if share is None else share(self.reference))
        else:
            live = not isinstance(self._model, str)
            policy = load_model(self._model, tokenizer=self._tokenizer, device=self.device, dtype=self.dtype)
            policy = policy.clone() if live else policy
            if policy.vocab_size != self.reference.vocab_size:
                raise ValueError(
                    f"model and reference expected one vocabulary, got {policy.vocab_size} and "
                    f"{self.reference.vocab_size} tokens"
                )
            self._check_vocabulary(policy.tokenizer)
            more = sorted(set(policy.eos_ids) - set(self.reference.eos_ids))
            if more:
                warnings.warn(
                    f"texts end where the reference's do, at the ids {list(self.reference.eos_ids)}: {more}, which end "
                    "those of the model, do not. Add them to generation_config.eos_token_id of the reference if they "
                    "are to end texts",
                    stacklevel=3,
                )
            policy.eos_ids = self.reference.eos_ids
        policy.eval()
        shared = set() if share is None or not self.shares_model else {id(p) for p in share(self.reference)}
        for p in policy.parameters():
            p.requires_grad_(id(p) not in shared)
        return policy

    @property
    def generation_params(self) -> GenerationParams:
        """How a policy of this problem decodes."""
        return GenerationParams(
            max_new_tokens=self.max_new_tokens,
            min_new_tokens=self.min_new_tokens,
            stop=self.stop,
            temperature=self.temperature,
            top_k=self.top_k,
        )

    @cached_property
    def prompts_hash(self) -> str:
        """16 hexadecimal digits of all prompts' tokens in their order."""
        return hashlib.sha256(repr([p.token_ids for p in self.prompts]).encode()).hexdigest()[:16]

    @cached_property
    def reward_hash(self) -> str:
        """:func:`lm_gym.rewards.reward_model_hash` of the reward model, as it was when this was first asked for."""
        return reward_model_hash(self.reward_model)

    def draw_prompt(self, rng: np.random.Generator) -> Prompt:
        """One prompt, uniformly."""
        return self.prompts[int(rng.integers(len(self.prompts)))]

    def encode_prompt(self, text: str, **columns: Any) -> Prompt:
        """A prompt of one's own (``id`` −1), with the columns that the reward model reads."""
        if self.reference.tokenizer is None:
            raise ValueError(f"{self.reference.name} has no tokenizer to encode {text!r} with: choose by prompt_id")
        room = self.reference.max_positions - self.max_new_tokens
        [prompt] = load_prompts([{"prompt": text, **columns}], self.reference.tokenizer, max_tokens=room)
        self.reference.check_ids([prompt.token_ids], "prompt")
        return replace(prompt, id=-1)

    def finish_reason(self, tokens: Sequence[int]) -> str | None:
        """Why a completion ends with its last token ("eos", "stop", "length"), or None."""
        return finish_reason(
            tokens,
            eos_ids=self.reference.eos_ids,
            max_new_tokens=self.max_new_tokens,
            min_new_tokens=self.min_new_tokens,
            stop=self.stop,
            decode=self.reference.decode,
        )

    def judge(
        self,
        prompts: Sequence[Prompt],
        tokens: Sequence[Sequence[int]],
        reasons: Sequence[str],
        *,
        trainer_state: Any = None,
        log_metric: Callable[[str, float], None] | None = None,
    ) -> tuple[np.ndarray, list[str], dict[str, list[Any]], dict[str, float]]:
        """R(x, y) of B finished completions in one call of the reward model.

        Returns:
            scores (B,) float64, completion texts, and what the reward model logged: columns and numbers.
        """
        texts = [self.reference.decode(t) for t in tokens]
        keys = dict.fromkeys(k for p in prompts for k in p.columns)  # a prompt of one's own may bring others
        columns: Mapping[str, list[Any]] = {k: [p.columns.get(k) for p in prompts] for k in keys}
        result = score_texts(
            self.reward_model,
            prompts=[p.for_reward for p in prompts],
            completions=[p.completion_for_reward(t) for p, t in zip(prompts, texts, strict=True)],
            completion_ids=[list(t) for t in tokens],
            columns=columns,
            trainer_state=trainer_state,
            log_metric=log_metric,
        )
        late = np.array([r == "length" for r in reasons], dtype=np.float64)
        return result.scores - self.missing_eos_penalty * late, texts, result.extra, result.metrics

    def distribution(
        self,
        lm: CausalLM,
        hidden: torch.Tensor,
        *,
        allowed: torch.Tensor | None = None,
        no_eos: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """log π (n, V), float32, of a model at hidden states (n, d): :meth:`logits`, normalised."""
        return torch.log_softmax(self.logits(lm, hidden, allowed=allowed, no_eos=no_eos), -1)

    def logits(
        self,
        lm: CausalLM,
        hidden: torch.Tensor,
        *,
        allowed: torch.Tensor | None = None,
        no_eos: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits (n, V), float32, of a model at hidden states (n, d), over the problem's temperature.

        Args:
            allowed: (n, k) ids that may be chosen, None for all; the others are −inf.
            no_eos: (n,) bool, where a text may not end yet.
        """
        logits = lm.head(hidden.to(lm.device, lm.dtype))
        if self.temperature != 1.0:
            logits = logits / self.temperature
        allowed, no_eos = (None if x is None else x.to(lm.device) for x in (allowed, no_eos))
        return restrict(logits, allowed=allowed, no_eos=no_eos, eos_ids=lm.eos_ids)

    def score(
        self,
        completions: Sequence[Completion],
        *,
        kl_mode: str = "reported",
        kl_coef: float | None = None,
        hidden: bool = False,
        policy: CausalLM | None = None,
        shared_blocks: int = 0,
        trainer_state: Any = None,
    ) -> Scored:
        """Score whole completions: one reward-model batch and one teacher-forced pass of the reference.

        Args:
            completions: B finished texts with ``prompt`` set; under "reported" with ``logprobs``.
            kl_mode: as the environment's; "reported" pays the exact penalty. kl_coef: β; None: the problem's.
            hidden: also return the reference's hidden states.
            policy: the model that wrote the texts, which carry its hidden states (``completion.hidden``): for the exact
                KL and the entropy of every state.
            shared_blocks: how many of the lowest blocks of that model are the reference's own: what decoding kept of
                them (``completion.below``) is not computed again.
            trainer_state: handed to the reward model.
        """
        if kl_mode not in KL_MODES:
            raise ValueError(f"kl_mode expected one of {KL_MODES}, got {kl_mode!r}")
        beta = self.kl_coef if kl_coef is None else kl_coef
        prompts = [c.prompt for c in completions if c.prompt is not None]
        if len(prompts) != len(completions):
            raise ValueError(
                "score expected completions with prompt= set (the record from mdp.prompts), got one without"
            )
        tokens = [c.tokens for c in completions]
        started = time.perf_counter()
        scores, texts, extra, metrics = self.judge(
            prompts, tokens, [c.finish_reason for c in completions], trainer_state=trainer_state
        )
        seconds = time.perf_counter() - started
        kept = [Below(shared_blocks, c.below) for c in completions if shared_blocks and c.below is not None]
        below = kept if len(kept) == len(completions) else None
        ids = [c.prompt_ids for c in completions]
        ref = reference_pass(self, ids, tokens, hidden=hidden, policy=policy, drawn=completions, below=below)
        ref_logprobs = ref.logprobs
        lengths = torch.tensor([len(t) for t in tokens])
        mask = torch.arange(ref_logprobs.shape[1])[None] < lengths[:, None]
        ref_logprobs = ref_logprobs.masked_fill(~mask, 0.0)
        if kl_mode == "none" or beta == 0:
            penalty = torch.zeros_like(ref_logprobs)
        elif kl_mode == "reference":
            penalty = beta * ref_logprobs
        else:
            known = [c.logprobs for c in completions if c.logprobs is not None]
            if len(known) != len(completions):
                raise ValueError("kl_mode 'reported' expected completions with logprobs, got one without")
            logprobs = pad_rows([lp.float().cpu() for lp in known], ref_logprobs.shape[1])
            penalty = -beta * (logprobs - ref_logprobs)
        rewards = penalty.clone()
        result = torch.tensor(scores, dtype=torch.float32)
        rewards[torch.arange(len(tokens)), lengths - 1] += result
        return Scored(
            texts=texts,
            response_mask=mask,
            scores=result,
            ref_logprobs=ref_logprobs,
            kl_penalty=penalty,
            rewards=rewards,
            extra=extra,
            metrics=metrics,
            ref_hidden=ref.hidden,
            judge_seconds=seconds,
            exact_kl=ref.exact_kl,
            entropy=ref.entropy,
        )


def _integer(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise ValueError(f"{name} expected a whole number from {low} to {high}{because(high)}, got {value!r}")
    return int(value)


def _number(name: str, value: Any, *, at_least: float | None = None, above: float | None = None) -> float:
    ok = isinstance(value, (int, float, np.floating, np.integer)) and not isinstance(value, bool) and np.isfinite(value)
    if not ok or (at_least is not None and value < at_least) or (above is not None and value <= above):
        bound = f"of at least {at_least}" if at_least is not None else f"above {above}"
        raise ValueError(f"{name} expected a finite number {bound}, got {value!r}")
    return float(value)
