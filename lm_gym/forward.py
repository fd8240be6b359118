"""Whole texts in one pass: padding, hidden states before each response token, log-probs.

Layout of a batch: prompts left-padded to P, responses right-padded to T, so that ``input_ids`` is (B, P+T) and the
state before response token t stands at column P + t − 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import pad_sequence

from lm_gym.models import Below, CausalLM


def pad_texts(
    prompt_ids: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]], pad_id: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``input_ids`` (B, P+T) and ``attention_mask`` (B, P+T), int64, and ``response_mask`` (B, T), bool."""
    p, t = max(map(len, prompt_ids)), max(map(len, tokens))
    ids, seen = [], []
    for prompt, response in zip(prompt_ids, tokens, strict=True):
        before, behind = p - len(prompt), t - len(response)
        ids.append([pad_id] * before + [*prompt, *response] + [pad_id] * behind)
        seen.append([0] * before + [1] * (p + t - before - behind) + [0] * behind)
    attention_mask = torch.tensor(seen)
    return torch.tensor(ids), attention_mask, attention_mask[:, p:].bool()


def pad_rows(rows: Sequence[torch.Tensor], width: int, fill: float = 0.0) -> torch.Tensor:
    """(B, width, ...) from B tensors (T_i, ...), filled behind."""
    out = pad_sequence(list(rows), batch_first=True, padding_value=fill)
    if out.shape[1] == width:
        return out
    return torch.cat([out, out.new_full((len(out), width - out.shape[1], *out.shape[2:]), fill)], 1)


def pad_below(attention_mask: torch.Tensor, rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """(B, P+T−1, d) from what came out of lower blocks for B texts' tokens but the last, (P_i+T_i−1, d); 0 elsewhere.

    ``attention_mask``: (B, P+T) of the texts.
    """
    fed = (attention_mask[:, :-1] & attention_mask[:, 1:]).bool()
    states = torch.cat(list(rows)).to(attention_mask.device)
    out = states.new_zeros(fed.numel(), states.shape[-1])
    return out.index_copy_(0, fed.flatten().nonzero()[:, 0], states).view(*fed.shape, -1)


def response_hidden(
    lm: CausalLM, input_ids: torch.Tensor, attention_mask: torch.Tensor, response_length: int
) -> torch.Tensor:
    """Last hidden states (B, T, d) of the states before each of the last T = ``response_length`` tokens."""
    # the last token's own state is never asked for: one column less to compute
    hidden = lm.trunk(input_ids[:, :-1], attention_mask[:, :-1])
    return hidden[:, -response_length:]


class HasStates(Protocol):
    """What gives hidden states: :meth:`CausalLM.states`; a critic has them too."""

    @property
    def states(self) -> Callable[..., torch.Tensor]: ...


def response_states(
    lm: HasStates,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    response_mask: torch.Tensor,
    below: Below | None = None,
) -> torch.Tensor:
    """Last hidden states (n, d) of the states before each of the n response tokens of ``response_mask`` (B, T).

    ``below``: what :meth:`CausalLM.lower_states` gave for all tokens but the last column's.
    """
    width = input_ids.shape[1] - response_mask.shape[1]
    wanted = torch.nn.functional.pad(response_mask, (width - 1, 0))
    return lm.states(input_ids[:, :-1], attention_mask[:, :-1], wanted, prompt_width=width, below=below)


def token_logprobs(logp: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """log-probs (...) of tokens (...) under distributions (..., V)."""
    return logp.gather(-1, tokens[..., None]).squeeze(-1)


class _ChosenLogprobs(torch.autograd.Function):
    """log-softmax of one id a row, whose gradient is made in one tensor of (n, V) and not in three."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        logp = torch.log_softmax(logits, -1)
        ctx.save_for_backward(logp, tokens)
        return token_logprobs(logp, tokens)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        logp, tokens = ctx.saved_tensors
        out = logp.exp().mul_(-grad[:, None])
        return out.scatter_add_(-1, tokens[:, None], grad[:, None]), None


def chosen_logprobs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """log-probs (n,) of tokens (n,) under logits (n, V), with gradient.

    The gradient of log softmax(z)_a is 1_a − softmax(z).
    """
    return _ChosenLogprobs.apply(logits, tokens)  # type: ignore[no-any-return, no-untyped-call]


def by_length(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices in batches of similar length: at most ``budget`` padded tokens each, the shortest first."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and lengths[i] * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
