"""RAFT, or expert iteration: draw several texts a prompt, keep the best, imitate them, repeat.

    kept = the ``keep`` texts of a group of n with the highest return R − β·(log π(y|x) − log π_ref(y|x))
    L = −(1/N)·Σ log π(a_t|s_t)   over the N tokens of the kept texts

Dong et al. 2023, "RAFT: Reward rAnked FineTuning" (arXiv:2304.06767), whose ranking may pay KL as well; Anthony et al.
2017, "Thinking Fast and Slow with Deep Learning and Tree Search" (expert iteration). No baseline, no ratio, no critic.

End point: imitating what was kept leaves the policy where it is only if keeping changes nothing, that is if all texts
of a prompt rank alike. With KL in the reward that is the best policy π*: regret 0. With ``kl_in="loss"`` texts are
ranked by R alone and the estimator stands in the loss: the pull of ranking does not shrink with the size of a
difference, so that β means something else (it warns; there is no closed form).

Defaults: 64 texts in groups of 4, the best one of each kept, one step a batch of 2.5 times the model's own size,
decayed to 0.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from lm_gym.agent import LMAgent
from lm_gym.policy_gradient import Minibatch, PolicyGradientConfig, Stats, fit
from lm_gym.rollout import Rollout


@dataclass
class RAFTConfig(PolicyGradientConfig):
    """RAFT's fields, beside those of :class:`lm_gym.policy_gradient.PolicyGradientConfig`."""

    batch_size: int = 64
    """Texts an update."""
    group_size: int = 4
    """Texts a prompt, n."""
    keep: int = 1
    """Texts of a group that are imitated."""
    epochs: int = 1
    """Passes over what was kept."""


class RAFT(LMAgent):
    """Expert iteration: imitates the best texts of every prompt's group."""

    config_class: ClassVar[type[RAFTConfig]] = RAFTConfig
    name: ClassVar[str] = "raft"
    step_scale: ClassVar[float] = 2.5
    config: RAFTConfig

    def __init__(self, env: Any, **config: Any) -> None:
        super().__init__(env, **config)
        c = self.config
        if not 1 <= c.keep < c.group_size:
            raise ValueError(f"keep expected 1 to group_size - 1 = {c.group_size - 1}, got {c.keep}")
        kept = c.batch_size // c.group_size * c.keep
        if c.minibatch_size is not None and c.minibatch_size > kept:
            raise ValueError(f"minibatch_size expected at most the {kept} texts that are kept, got {c.minibatch_size}")
        if c.kl_in != "reward" and self.kl_coef > 0:
            warnings.warn(
                "ranking by the score alone pulls as hard for a small difference as for a large one, so β in the loss "
                "means something else; kl_in='reward' ranks by R − β·KL and ends in the best policy",
                stacklevel=2,
            )

    def update(self, rollout: Rollout) -> dict[str, float]:
        c, returns = self.config, rollout.text_returns()
        best = kept_texts(returns, c.group_size, c.keep)
        out = fit(self, rollout.select(best), self.loss, epochs=c.epochs, collected=rollout)
        out["raft/kept_return"] = float(returns[best].mean())
        out["sft/perplexity"] = math.exp(min(out["sft/loss"], 700.0))
        return out

    def loss(self, batch: Minibatch) -> tuple[torch.Tensor, Stats]:
        """−log π of the kept texts' tokens."""
        nll = batch.mean(-batch.logprobs)
        right = batch.logp.detach().argmax(-1) == batch.tokens
        return nll, {"sft/loss": nll, "sft/token_accuracy": batch.share(right)}


def kept_texts(returns: torch.Tensor, group_size: int, keep: int) -> torch.Tensor:
    """Indices of the ``keep`` highest returns (B,) of each group of ``group_size`` texts in a row; the first of equals.

    Returns:
        (B/group_size·keep,) int64, ascending within a group's place.
    """
    grouped = returns.view(-1, group_size)
    order = grouped.argsort(dim=-1, descending=True, stable=True)[:, :keep].sort(-1).values
    return (order + group_size * torch.arange(len(grouped))[:, None]).flatten()
