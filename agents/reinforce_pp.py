"""REINFORCE++: PPO's clip and token rewards without a critic, advantages normalised over the whole batch.

The loss (Hu et al. 2025, arXiv:2501.03262, §3):

    L = −E[min(ρ_t·A_t, clip(ρ_t, 1−ε, 1+ε)·A_t)],    A_t = (G_t − mean)/std over all tokens of the batch

- REINFORCE++ (default): one text a prompt, G_t = Σ_{i≥t} r_i with r_i = −β·(log π − log π_ref) and R at the end: k1 in
  the reward.
- its baseline variant (``group_size=n``): G = R − mean of the n texts of a prompt, then normalised over the batch, and
  β·k2 in the loss.

Where training ends: REINFORCE++ at the optimum (regret 0 on the worked example, :func:`lm_gym.exact.endpoint`):
reward and KL are rescaled alike. What a text has paid before token t is no longer in G_t, though it still differs from
text to text, so unlike RLOO's its noise does not vanish at the optimum.

The baseline variant at .4177 (``endpoint(language, kl_in="loss", estimator="k2", whiten=True, group_size=8)``): the
deviation divides the reward but not the KL in the loss, and shrinks as the policy improves, so that β counts for less
and less until only texts of the highest reward are left. Put its KL in the reward (``kl_in="reward"``) and it ends at
the optimum too.

Defaults: 128 texts a rollout, one pass in minibatches of 64 at twice the model's own step size, token mean, ε = .2, KL
in the reward. Minibatches of 16 learn faster on ``tiny`` (J .574 in place of .513 after 20,000 tokens, one seed), and
come to rest further from the optimum (worked example: one seed of five above .002 after 100,000 tokens).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from lm_gym.advantages import group_mean, returns_to_go, whiten
from lm_gym.agent import LMAgent
from lm_gym.measures import of_groups
from lm_gym.policy_gradient import Minibatch, PolicyGradientConfig, Stats, fit, surrogate
from lm_gym.rollout import Rollout


@dataclass
class ReinforcePPConfig(PolicyGradientConfig):
    """REINFORCE++'s fields, beside those of :class:`lm_gym.policy_gradient.PolicyGradientConfig`."""

    minibatch_size: int | None = 64
    """Texts an optimizer step; None: the whole batch."""
    kl_in: str = "auto"
    """Where KL is paid: "auto" ("reward", and "loss" for the baseline variant, as published), "reward" (−β·(log π −
    log π_ref) a token), "loss" (+β·estimator), or "entropy" (reward β·log π_ref, −β·entropy in the loss)."""
    group_size: int | None = None
    """None: REINFORCE++, one text a prompt. A number of texts a prompt: the baseline variant."""
    epochs: int = 1
    """Passes over a rollout."""
    clip_range: float = 0.2
    """ε: the ratio is clipped to [1 − ε, 1 + ε]."""
    clip_range_high: float | None = None
    """The upper ε alone (DAPO's clip-higher); None: `clip_range`."""


class ReinforcePP(LMAgent):
    """REINFORCE++ and its baseline variant: PPO's clip without a critic.

    See the module's docstring for the loss, :class:`ReinforcePPConfig` for every field.
    """

    config_class: ClassVar[type[ReinforcePPConfig]] = ReinforcePPConfig
    name: ClassVar[str] = "reinforce++"
    step_scale: ClassVar[float] = 2.0
    config: ReinforcePPConfig

    def __init__(self, env: Any, **config: Any) -> None:
        if config.get("kl_in", "auto") == "auto":
            config["kl_in"] = "reward" if config.get("group_size") is None else "loss"
        super().__init__(env, **config)
        assert self.kl_control is not None
        if self.kl_control.in_loss and self.config.group_size is None:
            warnings.warn(
                "REINFORCE++ normalises its advantages over the batch, which rescales the reward against the KL or "
                "entropy in the loss: β means something else every update (worked example: k2 ends at regret .418); "
                "set kl_in='reward' and ent_coef=0",
                stacklevel=2,
            )

    def advantages(self, rollout: Rollout) -> torch.Tensor:
        """(B, T) of a rollout, with mean 0 and standard deviation 1 over its tokens."""
        c, mask, returns = self.config, rollout.response_mask, rollout.text_returns()
        if c.group_size is None:
            return whiten(returns_to_go(rollout.rewards, mask), mask)
        return whiten((returns - group_mean(returns, c.group_size))[:, None] * mask, mask)

    def update(self, rollout: Rollout) -> dict[str, float]:
        c, advantages = self.config, self.advantages(rollout)
        out = fit(self, rollout, lambda b: self.loss(b, advantages), epochs=c.epochs)
        return out if c.group_size is None else out | of_groups(rollout.text_returns(), c.group_size)

    def loss(self, batch: Minibatch, advantages: torch.Tensor) -> tuple[torch.Tensor, Stats]:
        """The loss of a minibatch; ``advantages`` (B, T) are of the whole rollout."""
        return surrogate(batch, advantages, self.config.clip_range, self.config.clip_range_high)
