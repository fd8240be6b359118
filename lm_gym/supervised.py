"""Maximum likelihood on demonstrations: batches of whole texts, and the loss of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lm_gym.cycle import Cycle
from lm_gym.demonstrations import Demonstration, load_demonstrations
from lm_gym.forward import by_length, chosen_logprobs
from lm_gym.mdp import AlignmentMDP
from lm_gym.models import CausalLM
from lm_gym.reference_pass import SCORING_TOKENS

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


def likelihood(lm: CausalLM, mdp: AlignmentMDP, batch: Sequence[Demonstration]) -> Likelihood:
    """−Σ log π(y_t|x, y_<t) over the imitated tokens, at the problem's temperature, with gradient."""
    hidden, targets = _before_imitated(lm, batch)
    logits = mdp.logits(lm, hidden)
    nll = -chosen_logprobs(logits, targets).sum()
    return Likelihood(nll, len(targets), int((logits.detach().argmax(-1) == targets).sum()))


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
        self.data = load_demonstrations(
            source, reference.tokenizer, eos_ids=reference.eos_ids, max_tokens=reference.max_positions
        )
        reference.check_ids((d.token_ids for d in self.data), "demonstration")
        self.order = Cycle(len(self.data), agent.generator)

    def __call__(self, count: int) -> dict[str, float]:
        """Adds up the gradient of the next ``count`` demonstrations; what to log."""
        batch = [self.data[i] for i in self.order.take(count)]
        found = likelihood(self.agent.policy.lm, self.agent.mdp, batch)
        (self.coef * found.nll / found.tokens).backward()
        return {"loss/ptx_avg": found.loss}


def _before_imitated(lm: CausalLM, batch: Sequence[Demonstration]) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states (n, d) before each imitated token, and the tokens (n,)."""
    width = max(len(d.token_ids) for d in batch)
    ids = torch.full((len(batch), width), lm.pad_id, dtype=torch.long)
    seen, wanted = torch.zeros(2, len(batch), width, dtype=torch.long)
    for i, d in enumerate(batch):
        n = len(d.token_ids)
        ids[i, :n], seen[i, :n], wanted[i, :n] = torch.tensor(d.token_ids), 1, torch.tensor(d.imitated)
    before = wanted[:, 1:].bool()
    return lm.states(ids[:, :-1], seen[:, :-1], before), ids[:, 1:][before].to(lm.device)
