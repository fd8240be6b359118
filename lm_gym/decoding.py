"""Decoding: token ids in, completions out.

:class:`Engine` is the built-in engine for any :class:`~lm_gym.models.CausalLM`: a preallocated cache, finished rows
dropped or refilled with waiting prompts, behaviour log-probs and values recorded while decoding, every draw from a
seeded generator. The noise of a completion belongs to its prompt's place in the list and its step, so a text does not
depend on which rows ran beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from lm_gym.models import CausalLM
from lm_gym.prompts import Prompt
from lm_gym.sampling import restrict, sample, top_k_ids, top_p_ids


@dataclass(frozen=True)
class GenerationParams:
    """How to decode.

    Attributes:
        max_new_tokens: a text ends after so many tokens. min_new_tokens: no EOS and no stop string before so many.
        stop: strings that end a text once its completion contains one. temperature: divides the logits, above 0;
            ``greedy`` takes the most likely token instead (log-probs stay those of the distribution).
        top_k: choose among the k likeliest tokens of the engine's ``guide`` only, EOS always among them.
        top_p: choose among the ``guide``'s likeliest tokens that have so much probability together only.
        rows: how many texts decode together; the rest wait and refill finished rows. None: all at once.
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    temperature: float = 1.0
    greedy: bool = False
    top_k: int | None = None
    top_p: float | None = None
    rows: int | None = None


@dataclass
class Completion:
    """One finished text.

    Attributes:
        prompt_ids: what it continues. tokens: T ids, the ending EOS among them. finish_reason: "eos", "stop", "length".
        logprobs: (T,) float32, log π of each token in the distribution it was drawn from; None if unknown.
        weight_versions: T ints, the version of the weights that drew each token.
        values: (T,) value estimates of the states before each token, if the engine has a value head.
        hidden: (T, d) last hidden states before each token, if asked for.
        allowed: (T, k) ids that could be chosen under ``top_k`` or ``top_p`` (where there are fewer, some twice).
        prompt: the prompt's record, which scoring needs.
    """

    prompt_ids: Sequence[int]
    tokens: list[int]
    finish_reason: str
    logprobs: torch.Tensor | None = None
    weight_versions: list[int] = field(default_factory=list)
    values: torch.Tensor | None = None
    hidden: torch.Tensor | None = None
    allowed: torch.Tensor | None = None
    prompt: Prompt | None = None


class DecodingEngine(Protocol):
    """What a decoding engine offers; the built-in one, vLLM's, or one of your own."""

    def generate(self, prompts: Sequence[Sequence[int]], params: GenerationParams) -> list[Completion]:
        """Completions in the order of ``prompts`` (lists of ids)."""

    def update_weights(self, lm: CausalLM, version: int) -> None:
        """Decode with these weights from now on."""


def finish_reason(
    tokens: Sequence[int],
    *,
    eos_ids: Sequence[int],
    max_new_tokens: int,
    min_new_tokens: int = 0,
    stop: Sequence[str] = (),
    decode: Callable[[Sequence[int]], str] | None = None,
) -> str | None:
    """Why a completion ends with its last token: "eos", "stop", "length", or None if it does not.

    A stop string counts once the text of the completion contains it and ``min_new_tokens`` are there.
    """
    if tokens[-1] in eos_ids:
        return "eos"
    if stop and decode is not None and len(tokens) >= min_new_tokens:
        text = decode(tokens)
        if any(s in text for s in stop):
            return "stop"
    return "length" if len(tokens) >= max_new_tokens else None


class Engine:
    """The built-in decoding engine: it shares the policy's own weights.

    Args:
        lm: the model that decodes. guide: the reference, which ``top_k`` restricts choices by.
        value_head: hidden (n, d) to values (n,), recorded while decoding.
        keep_hidden: whether completions carry the hidden states.
        seed: of the generator that every draw comes from.
    """

    def __init__(
        self,
        lm: CausalLM,
        *,
        guide: CausalLM | None = None,
        value_head: Callable[[torch.Tensor], torch.Tensor] | None = None,
        keep_hidden: bool = False,
        seed: int = 0,
    ) -> None:
        self.lm, self.guide, self.value_head, self.keep_hidden = lm, guide, value_head, keep_hidden
        self.generator = torch.Generator().manual_seed(seed)
        self.version = 0

    def update_weights(self, lm: CausalLM, version: int) -> None:
        self.lm, self.version = lm, version

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], params: GenerationParams) -> list[Completion]:
        if not prompts:
            return []
        if any(len(p) == 0 for p in prompts):
            raise ValueError(f"prompt {[len(p) for p in prompts].index(0)} is empty: give it at least one token")
        guided = params.top_k is not None or params.top_p is not None
        if guided and self.guide is None:
            raise ValueError(
                "top_k and top_p expected an engine with guide= (the model whose likeliest tokens are chosen from)"
            )
        lm, total, limit = self.lm, len(prompts), params.max_new_tokens
        n = min(params.rows or total, total)
        models = [lm, self.guide] if guided and self.guide is not None else [lm]
        lanes = [m.rows(n, max(map(len, prompts)) + limit) for m in models]
        hidden = [lane.insert(range(n), prompts[:n]) for lane in lanes]
        record = _Record(total, limit, lm, params, self.value_head is not None, self.keep_hidden)
        noise = torch.rand(total, limit, generator=self.generator).to(lm.device)
        owner = torch.arange(n, device=lm.device)  # which prompt a row works on; -1: none
        age = torch.zeros(n, dtype=torch.long, device=lm.device)
        waiting = n
        while True:
            no_eos = age < params.min_new_tokens if params.min_new_tokens else None
            allowed = None
            if guided:
                guide = models[1].head(hidden[1])
                if params.top_p is not None:
                    free = restrict(guide / params.temperature, no_eos=no_eos, eos_ids=lm.eos_ids)
                    allowed = top_p_ids(free, params.top_p)
                elif params.top_k is not None:
                    allowed = top_k_ids(guide, params.top_k, lm.eos_ids)
            logits = lm.head(hidden[0]) / params.temperature
            logp = torch.log_softmax(restrict(logits, allowed=allowed, no_eos=no_eos, eos_ids=lm.eos_ids), -1)
            busy = (owner >= 0).nonzero().flatten()
            at, step = owner[busy], age[busy]
            tokens = torch.full_like(owner, lm.pad_id)
            tokens[busy] = logp[busy].argmax(-1) if params.greedy else sample(logp[busy], noise[at, step])
            values = self.value_head(hidden[0][busy]) if self.value_head is not None else None
            record.write(
                at,
                step,
                tokens[busy],
                logp[busy],
                values,
                hidden[0][busy],
                allowed[busy] if allowed is not None else None,
            )
            age += 1
            ended = busy[torch.tensor(record.finish(at.tolist(), age[busy].tolist()), device=lm.device)]
            owner[ended] = -1
            free = (owner < 0).nonzero().flatten()
            if waiting >= total and len(free) == len(owner):
                return record.completions(prompts, self.version)
            if waiting >= total and 4 * len(free) >= len(owner):  # nothing waits: decode what is left in fewer rows
                left = (owner >= 0).nonzero().flatten()
                owner, age, tokens, free = owner[left], age[left], tokens[left], free[:0]
                for lane in lanes:
                    lane.keep(left.tolist())
            if len(free):
                for lane in lanes:
                    lane.park(free.tolist())
            if len(free) < len(owner):
                hidden = [lane.step(tokens) for lane in lanes]
            if waiting < total and (8 * len(free) >= len(owner)):  # a few at a time: one prefill serves them all
                fill = free[: total - waiting]
                fresh = list(range(waiting, waiting + len(fill)))
                for lane, h in zip(lanes, hidden, strict=True):
                    h[fill] = lane.insert(fill.tolist(), [prompts[i] for i in fresh])
                owner[fill] = torch.tensor(fresh, device=lm.device)
                age[fill] = 0
                waiting += len(fresh)


class _Record:
    """What every prompt's completion is so far, in tensors of (prompts, max_new_tokens, ...)."""

    def __init__(
        self, total: int, limit: int, lm: CausalLM, params: GenerationParams, values: bool, hidden: bool
    ) -> None:
        self.lm, self.params = lm, params
        self.tokens = torch.zeros(total, limit, dtype=torch.long, device=lm.device)
        self.logprobs = torch.zeros(total, limit, device=lm.device)
        self.values = torch.zeros(total, limit, device=lm.device) if values else None
        self.hidden: torch.Tensor | None = (
            torch.zeros(total, limit, lm.hidden_size, device=lm.device) if hidden else None
        )
        self.allowed = (
            torch.zeros(total, limit, params.top_k or 1, dtype=torch.long, device=lm.device)
            if params.top_k or params.top_p
            else None
        )
        self.reasons: list[str] = [""] * total
        self.lengths = [0] * total

    def write(
        self,
        at: torch.Tensor,
        step: torch.Tensor,
        tokens: torch.Tensor,
        logp: torch.Tensor,
        values: torch.Tensor | None,
        hidden: torch.Tensor,
        allowed: torch.Tensor | None,
    ) -> None:
        self.tokens[at, step] = tokens
        self.logprobs[at, step] = logp.gather(-1, tokens[:, None]).squeeze(-1)
        if self.values is not None and values is not None:
            self.values[at, step] = values.float()
        if self.hidden is not None:
            self.hidden[at, step] = hidden.float()
        if self.allowed is not None and allowed is not None:
            more = allowed.shape[-1] - self.allowed.shape[-1]
            if more > 0:  # a larger set than any before: the first id fills up, as in the set itself
                self.allowed = torch.cat([self.allowed, self.allowed[..., :1].expand(-1, -1, more)], -1)
            self.allowed[at, step] = allowed[:, :1].expand(-1, self.allowed.shape[-1])
            self.allowed[at, step, : allowed.shape[-1]] = allowed

    def finish(self, at: list[int], lengths: list[int]) -> list[bool]:
        """Which of the prompts ``at`` have ended with their last token."""
        out = []
        last = self.tokens[at, [k - 1 for k in lengths]].tolist()
        for i, length, token in zip(at, lengths, last, strict=True):
            tokens = self.tokens[i, :length].tolist() if self.params.stop else [token] * length
            reason = finish_reason(
                tokens,
                eos_ids=self.lm.eos_ids,
                max_new_tokens=self.params.max_new_tokens,
                min_new_tokens=self.params.min_new_tokens,
                stop=self.params.stop,
                decode=self.lm.decode,
            )
            if reason is not None:
                self.reasons[i], self.lengths[i] = reason, length
            out.append(reason is not None)
        return out

    def completions(self, prompts: Sequence[Sequence[int]], version: int) -> list[Completion]:
        def cut(x: torch.Tensor | None, i: int) -> torch.Tensor | None:
            return None if x is None else x[i, : self.lengths[i]].clone()

        return [
            Completion(
                prompt_ids=prompt,
                tokens=self.tokens[i, : self.lengths[i]].tolist(),
                finish_reason=self.reasons[i],
                logprobs=cut(self.logprobs, i),
                weight_versions=[version] * self.lengths[i],
                values=cut(self.values, i),
                hidden=cut(self.hidden, i),
                allowed=cut(self.allowed, i),
            )
            for i, prompt in enumerate(prompts)
        ]
