"""The batch that a run stopped at (:mod:`lm_gym.blame`), run again with the weights of that moment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lm_gym import checkpoints, kl
from lm_gym.blame import KIND
from lm_gym.forward import response_states, token_logprobs
from lm_gym.rollout import Rollout

if TYPE_CHECKING:
    from lm_gym.agent import LMAgent


@dataclass
class Replayed:
    """A batch run again: what the dump says, and what its weights say of the same tokens now.

    Attributes:
        token: of ``state.json``. recorded: (n,) log-probs when the error was found, or None. logprobs: (n,) of now.
        drawn: (n,) when the tokens were drawn. ref_logprobs, kls: (n,) of the reference and exact per state, of now.
        texts: (n,) which text each token belongs to. places: (n,) its place there. tokens: (n,) ids.
    """

    token: dict[str, Any]
    recorded: torch.Tensor | None
    logprobs: torch.Tensor
    drawn: torch.Tensor
    ref_logprobs: torch.Tensor
    kls: torch.Tensor
    texts: torch.Tensor
    places: torch.Tensor
    tokens: torch.Tensor

    @property
    def same(self) -> bool | None:
        """Whether the log-probs are those of the dump to the bit (NaN equals NaN); None: the dump has none."""
        if self.recorded is None:
            return None
        return bool(torch.equal(torch.nan_to_num(self.recorded, nan=7.0), torch.nan_to_num(self.logprobs, nan=7.0)))


def read(folder: str | Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """The groups and the state of a dump.

    Raises:
        ValueError: it is none, or damaged.
    """
    groups, state = checkpoints.load(folder)
    if state.get("kind") != KIND or not {"policy", "batch"} <= set(groups):
        raise ValueError(f"expected the dump of an error, runs/<name>/blame/update-N, got {str(folder)!r}")
    return groups, state


@torch.no_grad()
def replay(folder: str | Path, agent: LMAgent) -> Replayed:
    """Run the batch of a dump again, with its weights, on an agent made as the one that stopped.

    Args:
        agent: of the dump's class and configuration, on the run's problem; its weights become those of the dump.
    """
    groups, state = read(folder)
    own = agent.optimizer.values()
    if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in groups["policy"].items()}:
        raise ValueError(f"{folder} expected an agent with the weights of {state['agent']!r}, got other ones")
    agent.optimizer.set_values(groups["policy"])
    fields: dict[str, Any] = dict(groups["batch"])
    part = Rollout(**fields)
    mdp, lm, mask = agent.mdp, agent.policy.lm, part.response_mask
    ids, seen = part.input_ids.to(lm.device), part.attention_mask.to(lm.device)
    hidden, _ = agent.policy.at_tokens(ids, seen, mask.to(lm.device))
    allowed, no_eos = (None if x is None else x[mask].to(lm.device) for x in (part.allowed, part.no_eos))
    logp = mdp.distribution(lm, hidden, allowed=allowed, no_eos=no_eos)
    ref_logp = mdp.distribution(mdp.reference, response_states(mdp.reference, ids, seen, mask.to(lm.device)))
    tokens = part.tokens[mask].to(lm.device)
    places = mask.nonzero()
    return Replayed(
        token=state["token"],
        recorded=groups.get("now", {}).get("logprobs"),
        logprobs=token_logprobs(logp, tokens).cpu(),
        drawn=part.logprobs[mask],
        ref_logprobs=token_logprobs(ref_logp, tokens).cpu(),
        kls=kl.exact(logp, ref_logp).cpu(),
        texts=places[:, 0],
        places=places[:, 1],
        tokens=tokens.cpu(),
    )
