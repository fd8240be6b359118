"""Whole texts in one pass: padding, hidden states before each response token, log-probs.

Layout of a batch: prompts left-padded to P, responses right-padded to T, so that ``input_ids`` is (B, P+T) and the
state before response token t stands at column P + t − 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from lm_gym.models import CausalLM


def pad_texts(
    prompt_ids: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]], pad_id: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``input_ids`` (B, P+T) and ``attention_mask`` (B, P+T), int64, and ``response_mask`` (B, T), bool."""
    b, p, t = len(tokens), max(map(len, prompt_ids)), max(map(len, tokens))
    input_ids = torch.full((b, p + t), pad_id, dtype=torch.long)
    attention_mask = torch.zeros(b, p + t, dtype=torch.long)
    for i, (prompt, response) in enumerate(zip(prompt_ids, tokens, strict=True)):
        start, end = p - len(prompt), p + len(response)
        input_ids[i, start:end] = torch.tensor([*prompt, *response], dtype=torch.long)
        attention_mask[i, start:end] = 1
    return input_ids, attention_mask, attention_mask[:, p:].bool()


def pad_rows(rows: Sequence[torch.Tensor], width: int, fill: float = 0.0) -> torch.Tensor:
    """(B, width, ...) from B tensors (T_i, ...), filled behind."""
    out = rows[0].new_full((len(rows), width, *rows[0].shape[1:]), fill)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def response_hidden(
    lm: CausalLM, input_ids: torch.Tensor, attention_mask: torch.Tensor, response_length: int
) -> torch.Tensor:
    """Last hidden states (B, T, d) of the states before each of the last T = ``response_length`` tokens."""
    # the last token's own state is never asked for: one column less to compute
    hidden = lm.trunk(input_ids[:, :-1], attention_mask[:, :-1])
    return hidden[:, -response_length:]


def token_logprobs(logp: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """log-probs (...) of tokens (...) under distributions (..., V)."""
    return logp.gather(-1, tokens[..., None]).squeeze(-1)


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
