"""What a reference says of whole texts, and how far the policy that wrote them is from it in every state.

One teacher-forced pass; logits are made in pieces, each of which serves everything that is asked of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lm_gym import kl
from lm_gym.completions import Completion
from lm_gym.forward import by_length, pad_below, pad_texts, response_states, token_logprobs
from lm_gym.models import Below, CausalLM

if TYPE_CHECKING:
    from lm_gym.mdp import AlignmentMDP

SCORING_TOKENS = 16_384
"""Padded tokens in one pass over whole texts."""


def head_rows(vocab_size: int) -> int:
    """States whose logits are computed at once where no gradient is needed: 4 MB of them, or 64 rows if that is more.

    Four times as many take 1.2 times as long and leave the cache; fewer rows than 64 make the product slow.
    """
    return max(64, 1_000_000 // vocab_size)


@dataclass
class ReferencePass:
    """Of B texts; T is the longest, shorter ones are zero behind their end.

    Attributes:
        logprobs: (B, T) log π_ref(a_t|s_t), whole vocabulary, at the problem's temperature.
        hidden: (B, T, d) the reference's hidden states before each token, if asked for.
        exact_kl, entropy: (B, T) KL(π‖π_ref) and the entropy of π in each state, nats, where the policy was given.
    """

    logprobs: torch.Tensor
    hidden: torch.Tensor | None = None
    exact_kl: torch.Tensor | None = None
    entropy: torch.Tensor | None = None


@torch.no_grad()
def reference_pass(
    mdp: AlignmentMDP,
    prompt_ids: Sequence[Sequence[int]],
    tokens: Sequence[Sequence[int]],
    *,
    lm: CausalLM | None = None,
    hidden: bool = False,
    policy: CausalLM | None = None,
    drawn: Sequence[Completion] = (),
    below: Sequence[Below] | None = None,
) -> ReferencePass:
    """Pass over B texts, batched by length.

    Args:
        lm: stands in for the problem's reference where KL is paid against another model.
        hidden: keep the hidden states.
        policy: the model that wrote the texts. drawn: the texts as it wrote them, with its hidden states.
        below: what came out of ``lm``'s lowest blocks for each text's tokens but the last, (P_i+T_i−1, d), where
            another model that has the very same blocks computed it already.
    """
    lm, shape = lm or mdp.reference, (len(tokens), max(map(len, tokens)))
    out = ReferencePass(torch.zeros(shape), torch.zeros(*shape, lm.hidden_size) if hidden else None)
    if policy is not None:
        out.exact_kl, out.entropy = torch.zeros(shape), torch.zeros(shape)
    for batch in by_length([len(p) + len(t) for p, t in zip(prompt_ids, tokens, strict=True)], SCORING_TOKENS):
        ids, mask, responses = pad_texts([prompt_ids[i] for i in batch], [tokens[i] for i in batch], lm.pad_id)
        width = responses.shape[1]
        known = None
        if below is not None:
            known = Below(below[0].blocks, pad_below(mask, [below[i].states for i in batch]))
        states = response_states(lm, ids, mask, responses, known)
        chosen = ids[:, -width:][responses].to(lm.device)
        own = None if policy is None else _Written(mdp, policy, [drawn[i] for i in batch], responses)
        found: list[tuple[torch.Tensor, ...]] = []
        for at in torch.arange(len(states)).split(head_rows(lm.vocab_size)):
            piece = slice(int(at[0]), int(at[-1]) + 1)
            logp = mdp.distribution(lm, states[piece])
            numbers = () if own is None else kl.exact_and_entropy(own.distribution(piece), logp)
            found.append((token_logprobs(logp, chosen[piece]), *numbers))
        tables = [x for x in (out.logprobs, out.exact_kl, out.entropy) if x is not None]
        for table, flat in zip(tables, zip(*found, strict=True), strict=True):
            table[batch, :width] = torch.zeros(responses.shape).masked_scatter(responses, torch.cat(flat).cpu())
        if out.hidden is not None:
            room = torch.zeros(*responses.shape, lm.hidden_size)
            out.hidden[batch, :width] = room.masked_scatter(responses[..., None], states.float().cpu())
    return out


class _Written:
    """The n states of some texts that a policy wrote, in the order of their response mask (b, T)."""

    def __init__(
        self, mdp: AlignmentMDP, policy: CausalLM, drawn: Sequence[Completion], responses: torch.Tensor
    ) -> None:
        self.mdp, self.policy = mdp, policy
        hidden = [c.hidden for c in drawn if c.hidden is not None]
        if len(hidden) != len(drawn):
            raise ValueError("the exact KL expected completions with the policy's hidden states, got one without")
        self.hidden = torch.cat(hidden)
        allowed = [c.allowed for c in drawn if c.allowed is not None]
        self.allowed = torch.cat(allowed) if allowed else None
        self.no_eos = None
        if mdp.min_new_tokens:
            early = torch.arange(responses.shape[1]) < mdp.min_new_tokens
            self.no_eos = early.expand_as(responses)[responses]

    def distribution(self, piece: slice) -> torch.Tensor:
        """(m, V) log π over what may be chosen in some of the states."""
        allowed, no_eos = (None if x is None else x[piece] for x in (self.allowed, self.no_eos))
        return self.mdp.distribution(self.policy, self.hidden[piece], allowed=allowed, no_eos=no_eos)
