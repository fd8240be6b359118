"""Dr. GRPO: GRPO without its two biases, the division by the standard deviation and by the length.

The loss, on n texts a prompt (Liu et al. 2025, "Understanding R1-Zero-Like Training", arXiv:2503.20783, §3.2):

    L = −1/(B·L_max)·Σ_i Σ_t min(ρ_t·A_i, clip(ρ_t, 1−ε, 1+ε)·A_i) + β·k3_t,    A_i = R_i − mean of the group

L_max is the number of tokens that a text may have at most: a constant, so that a token weighs the same in a long text
as in a short one. The group's mean contains text i, which shrinks the advantages by 1 − 1/n against RLOO's. That
changes nothing where KL is in the reward, and is as good as a β larger by n/(n − 1) where it is in the loss.

The paper trains with β = 0, where the two are the same. With a β, this file pays it as GRPO does: k3 in the loss
(``kl_in="loss"``, ``kl_estimator="k3"``), so that training ends at regret .0407 on the worked example
(``endpoint(language, kl_in="loss", estimator="k3", group_size=8)``; .0302 in the limit of a large group). With
``kl_in="reward"`` it ends at the optimum.

Defaults: 16 prompts of 8 texts a rollout, one pass in minibatches of 16 at 1.5 times the model's own step size (PPO
makes twice as many steps), ε = .2, k3 in the loss. The noise does not vanish at this end point: larger steps
come to rest further around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from lm_gym.advantages import group_mean
from lm_gym.agent import LMAgent
from lm_gym.measures import of_groups
from lm_gym.policy_gradient import Minibatch, PolicyGradientConfig, Stats, fit, surrogate
from lm_gym.rollout import Rollout


@dataclass
class DrGRPOConfig(PolicyGradientConfig):
    """Dr. GRPO's fields, beside those of :class:`lm_gym.policy_gradient.PolicyGradientConfig`."""

    minibatch_size: int | None = 16
    """Texts an optimizer step; None: the whole batch."""
    aggregation: str = "constant"
    """Sum over the tokens over B·L_max (published); or "token_mean", "sequence_mean", "sequence_sum"."""
    kl_in: str = "loss"
    """Where KL is paid: "loss" (+β·estimator), "reward" (−β·(log π − log π_ref) a token, without bias), or "entropy"
    (reward β·log π_ref, −β·entropy in the loss)."""
    kl_estimator: str = "k3"
    """With kl_in="loss": "k1", "k2", "k3", or "exact" (per state, over the vocabulary)."""
    group_size: int = 8
    """n, texts a prompt; their prompt is computed once."""
    epochs: int = 1
    """Passes over a rollout."""
    clip_range: float = 0.2
    """ε: the ratio is clipped to [1 − ε, 1 + ε]."""
    clip_range_high: float | None = None
    """The upper ε alone (DAPO's clip-higher); None: `clip_range`."""


class DrGRPO(LMAgent):
    """GRPO without its division by standard deviation and length.

    See the module's docstring for the loss, :class:`DrGRPOConfig` for every field.
    """

    config_class: ClassVar[type[DrGRPOConfig]] = DrGRPOConfig
    name: ClassVar[str] = "dr-grpo"
    step_scale: ClassVar[float] = 1.5
    config: DrGRPOConfig

    def update(self, rollout: Rollout) -> dict[str, float]:
        c, returns = self.config, rollout.text_returns()
        advantages = returns - group_mean(returns, c.group_size)
        out = fit(self, rollout, lambda b: self.loss(b, advantages), epochs=c.epochs)
        return out | of_groups(returns, c.group_size)

    def loss(self, batch: Minibatch, advantages: torch.Tensor) -> tuple[torch.Tensor, Stats]:
        """The loss of a minibatch; ``advantages`` (B,) are of the whole rollout."""
        return surrogate(batch, advantages, self.config.clip_range, self.config.clip_range_high)
