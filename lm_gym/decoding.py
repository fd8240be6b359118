"""Decoding: token ids in, completions out.

:class:`Engine` is the built-in engine for any :class:`~lm_gym.models.CausalLM`: a preallocated cache, finished rows
dropped or refilled with waiting prompts, behaviour log-probs and values recorded while decoding, every draw from a
seeded generator. The noise of a completion belongs to its prompt's place in the list and its step, so a text does not
depend on which rows ran beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from lm_gym.completions import Completion, GenerationParams, Record, finish_reason
from lm_gym.models import CausalLM
from lm_gym.sampling import restrict, sample, top_k_ids, top_p_ids


class DecodingEngine(Protocol):
    """What a decoding engine offers; the built-in one, vLLM's, or one of your own."""

    def generate(self, prompts: Sequence[Sequence[int]], params: GenerationParams) -> list[Completion]:
        """Completions in the order of ``prompts`` (lists of ids)."""

    def update_weights(self, lm: CausalLM, version: int) -> None:
        """Decode with these weights from now on."""


class Engine:
    """The built-in decoding engine: it shares the policy's own weights.

    Args:
        lm: the model that decodes. guide: the reference, which ``top_k`` restricts choices by.
        value_head: hidden (n, d) to values (n,), recorded while decoding.
        keep_hidden: whether completions carry the hidden states.
        keep_below: above 0: completions carry what came out of so many of the lowest blocks, where the model is written
            out here (:mod:`lm_gym.fast_step`) and has more of them.
        seed: of the generator that every draw comes from.
        cuda_graphs: record a step once a call as a CUDA graph and replay it; for models on a CUDA device.
    """

    def __init__(
        self,
        lm: CausalLM,
        *,
        guide: CausalLM | None = None,
        value_head: Callable[[torch.Tensor], torch.Tensor] | None = None,
        keep_hidden: bool = False,
        keep_below: int = 0,
        seed: int = 0,
        cuda_graphs: bool = False,
    ) -> None:
        self.lm, self.guide, self.value_head, self.keep_hidden = lm, guide, value_head, keep_hidden
        self.keep_below, self.cuda_graphs = keep_below, cuda_graphs
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
        for lane in lanes if self.cuda_graphs else ():
            lane.fix_shapes()
        if self.keep_below:
            lanes[0].keep_below(self.keep_below)
        hidden = [lane.insert(range(n), prompts[:n]) for lane in lanes]
        record = Record(total, lm, params)
        nowhere = total * limit  # where rows without a prompt are: behind the last text
        noise = torch.rand(nowhere, generator=self.generator)
        noise = torch.cat([noise, noise.new_zeros(1)]).to(lm.device)
        # Which prompt a row works on (None: none) is known here, and the place of its next token among all on the
        # device: a step waits for the device once at most, to see what was drawn.
        owner: list[int | None] = list(range(n))
        place = torch.arange(n, device=lm.device) * limit
        ends = torch.tensor(lm.eos_ids, device=lm.device)
        waiting = n
        while True:
            logp, allowed = self._distribution(models, hidden, record.early(owner), params, ends)
            tokens = logp.argmax(-1) if params.greedy else sample(logp, noise.index_select(0, place))
            values = self.value_head(hidden[0]) if self.value_head is not None else None
            chosen = logp.gather(-1, tokens[:, None]).squeeze(-1)
            record.write(place, tokens, chosen, values, hidden[0] if self.keep_hidden else None, allowed)
            ended = record.finish(owner, tokens)
            place = (place + 1).clamp_(max=nowhere)
            for row in ended:
                at, owner[row] = owner[row], None
                if self.keep_below and at is not None:
                    record.below[at] = lanes[0].below(row)
            if ended:
                place[ended] = nowhere
            free = [row for row, at in enumerate(owner) if at is None]
            if waiting >= total and len(free) == n:
                return record.completions(prompts, self.version)
            if waiting >= total and 4 * len(free) >= n:  # nothing waits: decode what is left in fewer rows
                left = [row for row, at in enumerate(owner) if at is not None]
                owner, n, free = [owner[row] for row in left], len(left), []
                place, tokens = place[left], tokens[left]
                for lane in lanes:
                    lane.keep(left)
            if free:
                for lane in lanes:
                    lane.park(free)
            fill = free[: total - waiting] if 8 * len(free) >= n else []  # a few at a time: one prefill serves them all
            if len(free) < n:
                hidden = [lane.step(tokens) for lane in lanes]
            elif fill:
                hidden = [h.clone() for h in hidden]  # the record holds the old ones
            if fill:
                fresh = range(waiting, waiting + len(fill))
                for lane, h in zip(lanes, hidden, strict=True):
                    h[fill] = lane.insert(fill, [prompts[i] for i in fresh])
                place[fill] = torch.tensor(fresh, device=lm.device) * limit
                for row, i in zip(fill, fresh, strict=True):
                    owner[row] = i
                waiting += len(fill)

    def _distribution(
        self,
        models: Sequence[CausalLM],
        hidden: Sequence[torch.Tensor],
        early: list[bool],
        params: GenerationParams,
        ends: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """log π (n, V) over what may be chosen, and the choices (n, k) where there are few.

        ``early``: which rows may not end yet. ``ends``: the EOS ids, on the device.
        """
        lm, allowed = models[0], None

        def open_end(logits: torch.Tensor) -> torch.Tensor:
            if not any(early):
                return logits
            if all(early):
                return logits.index_fill(-1, ends, -torch.inf)
            return restrict(logits, no_eos=torch.tensor(early, device=logits.device), eos_ids=lm.eos_ids)

        def tempered(logits: torch.Tensor) -> torch.Tensor:
            return logits if params.temperature == 1.0 else logits / params.temperature

        if params.top_p is not None:
            allowed = top_p_ids(open_end(tempered(models[1].head(hidden[1]))), params.top_p)
        elif params.top_k is not None:
            allowed = top_k_ids(models[1].head(hidden[1]), params.top_k, lm.eos_ids)
        logits = restrict(tempered(lm.head(hidden[0])), allowed=allowed)
        return torch.log_softmax(open_end(logits), -1), allowed


__all__ = [
    "Completion",
    "DecodingEngine",
    "Engine",
    "GenerationParams",
    "finish_reason",
    "restrict",
    "sample",
    "top_k_ids",
    "top_p_ids",
]
