"""Maximum likelihood on demonstrations: batches of whole texts, padded or packed, and the loss of their tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lm_gym.cycle import Cycle
from lm_gym.demonstrations import Demonstration, load_demonstrations
from lm_gym.forward import by_length, token_logprobs
from lm_gym.mdp import SCORING_TOKENS, AlignmentMDP
from lm_gym.models import CausalLM

if TYPE_CHECKING:
    from lm_gym.agent import LMAgent


@dataclass
class Likelihood:
    """Of the imitated tokens of some demonstrations: Σ −log π in nats, how many, how many were the likeliest."""

    nll: torch.Tensor
    tokens: int
    right: int

    @property
    def loss(self) -> float:
        """Mean −log π of a token, nats."""
        return float(self.nll.detach()) / self.tokens


def likelihood(lm: CausalLM, mdp: AlignmentMDP, batch: Sequence[Demonstration], *, packing: bool = False) -> Likelihood:
    """−Σ log π(y_t|x, y_<t) over the imitated tokens, at the problem's temperature, with gradient.

    Args:
        packing: several texts in a row of the longest one's length, each attending to itself only, so that hardly
            anything is padding; the same numbers up to rounding.
    """
    hidden, targets = _packed(lm, batch) if packing else _padded(lm, batch)
    logp = mdp.distribution(lm, hidden)
    nll = -token_logprobs(logp, targets).sum()
    return Likelihood(nll, len(targets), int((logp.detach().argmax(-1) == targets).sum()))


@torch.no_grad()
def held_out(lm: CausalLM, mdp: AlignmentMDP, demonstrations: Sequence[Demonstration]) -> Likelihood:
    """:func:`likelihood` of many, in batches of at most ``SCORING_TOKENS`` padded tokens."""
    total = Likelihood(torch.zeros(()), 0, 0)
    for at in by_length([len(d.token_ids) for d in demonstrations], SCORING_TOKENS):
        part = likelihood(lm, mdp, [demonstrations[i] for i in at])
        total = Likelihood(total.nll + part.nll.cpu(), total.tokens + part.tokens, total.right + part.right)
    return total


class Mixture:
    """Demonstrations beside another loss: the gradient of coefficient·mean −log π of some of them a minibatch.

    Args:
        agent: whose policy and generator are used. source: as for :func:`lm_gym.demonstrations.load_demonstrations`.
        coef: the weight.
    """

    def __init__(self, agent: LMAgent, source: Any, coef: float) -> None:
        reference = agent.mdp.reference
        self.agent, self.coef = agent, coef
        self.data = load_demonstrations(source, reference.tokenizer, max_tokens=reference.max_positions)
        self.order = Cycle(len(self.data), agent.generator)

    def __call__(self, count: int) -> dict[str, float]:
        """Adds up the gradient of the next ``count`` demonstrations; what to log."""
        batch = [self.data[i] for i in self.order.take(count)]
        found = likelihood(self.agent.policy.lm, self.agent.mdp, batch)
        (self.coef * found.nll / found.tokens).backward()
        return {"loss/ptx_avg": found.loss}


def _padded(lm: CausalLM, batch: Sequence[Demonstration]) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states (n, d) before each imitated token, and the tokens (n,)."""
    width = max(len(d.token_ids) for d in batch)
    ids = torch.full((len(batch), width), lm.pad_id, dtype=torch.long)
    seen, wanted = torch.zeros(2, len(batch), width, dtype=torch.long)
    for i, d in enumerate(batch):
        n = len(d.token_ids)
        ids[i, :n], seen[i, :n], wanted[i, :n] = torch.tensor(d.token_ids), 1, torch.tensor(d.imitated)
    before = wanted[:, 1:].bool().to(lm.device)
    hidden = lm.trunk(ids[:, :-1].to(lm.device), seen[:, :-1].to(lm.device))
    return hidden[before], ids[:, 1:].to(lm.device)[before]


def _packed(lm: CausalLM, batch: Sequence[Demonstration]) -> tuple[torch.Tensor, torch.Tensor]:
    rows = list(pack([len(d.token_ids) for d in batch], max(len(d.token_ids) for d in batch)))
    width = max(sum(len(batch[i].token_ids) for i in row) for row in rows)
    ids = torch.full((len(rows), width), lm.pad_id, dtype=torch.long)
    segments, wanted = torch.zeros(2, len(rows), width, dtype=torch.long)
    for r, row in enumerate(rows):
        at = 0
        for k, i in enumerate(row):
            d = batch[i]
            span = slice(at, at + len(d.token_ids))
            ids[r, span], segments[r, span] = torch.tensor(d.token_ids), k + 1
            wanted[r, span] = torch.tensor((False, *d.imitated[1:]))  # another text stands before the first token
            at = span.stop
    before = wanted[:, 1:].bool().to(lm.device)
    hidden = lm.packed_trunk(ids[:, :-1].to(lm.device), segments[:, :-1].to(lm.device))
    return hidden[before], ids[:, 1:].to(lm.device)[before]


def pack(lengths: Sequence[int], capacity: int) -> Iterator[list[int]]:
    """Indices in rows of at most ``capacity`` tokens each: first fit, the longest first."""
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fits = next((r for r, left in enumerate(room) if left >= lengths[i]), None)
        if fits is None:
            rows.append([])
            room.append(capacity)
            fits = len(rows) - 1
        rows[fits].append(i)
        room[fits] -= lengths[i]
    yield from rows
