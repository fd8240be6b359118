"""What critics say: values that decoding did not record, and the constant that they are moved by."""

from __future__ import annotations

import torch

from lm_gym.advantages import explained_variance, masked_mean
from lm_gym.policy import AT_ONCE, Policy
from lm_gym.rollout import Rollout


@torch.no_grad()
def critic_values(policy: Policy, rollout: Rollout) -> torch.Tensor:
    """(B, T) values of the states before each response token, by a separate critic."""
    assert policy.critic is not None
    out = torch.zeros(rollout.response_mask.shape)
    for at in torch.arange(len(rollout)).split(AT_ONCE):
        part = rollout.select(at)
        values = policy.critic(part.input_ids, part.attention_mask, part.response_mask)
        padded = torch.zeros(part.response_mask.shape).masked_scatter(part.response_mask, values.cpu())
        out[at, : padded.shape[1]] = padded
    return out


def centred(policy: Policy, rollout: Rollout, returns: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """Moves all values by the mean error of a rollout; its values (B, T) after that, and what to log of them before.

    Args:
        returns: (B, T) what the values should have been.
    """
    assert rollout.values is not None
    ev = explained_variance(rollout.values, returns, rollout.response_mask)
    by = float(masked_mean(returns - rollout.values, rollout.response_mask))
    policy.centre_values(by)
    # there is none where all returns are equal
    return rollout.values + by, {} if ev != ev else {"val/explained_variance": ev}


@torch.no_grad()
def values_after(policy: Policy, rollout: Rollout) -> torch.Tensor:
    """(B,) V of the state that a text was cut off in, by a wrapper; 0 for those that ended."""
    out = torch.zeros(len(rollout))
    cut = torch.tensor([i for i, reason in enumerate(rollout.finish_reasons or []) if reason == "cut"])
    for at in cut.split(AT_ONCE):
        part = rollout.select(at)
        # one column more, never attended to by what is read: the state before it is the one after the last token
        ids, seen = (torch.nn.functional.pad(x, (0, 1)) for x in (part.input_ids, part.attention_mask))
        after = torch.nn.functional.one_hot(part.lengths, part.response_mask.shape[1] + 1).bool()
        _, values = policy.at_tokens(ids, seen, after)
        assert values is not None
        out[at] = values.cpu()
    return out
