"""RLOO: REINFORCE with the other texts of the same prompt as the baseline.

The loss, on n texts a prompt (Ahmadian et al. 2024, "Back to Basics", arXiv:2402.14740, eq. 8; Kool et al. 2019):

    L = −E[Σ_t (R_i − Σ_{j≠i} R_j/(n − 1))·log π(a_t|s_t)],    R_i = R(x, y_i) − β·Σ_t (log π − log π_ref)

The whole text is one action: all its tokens share the advantage. The baseline does not contain text i, so that the
gradient is that of J for any n ≥ 2. Several minibatches of one pass are a little off-policy, so −A·ρ_t is what is
descended, ρ_t = π/π_old: the same gradient where ρ = 1. ``clip_range`` clips ρ_t as PPO does, for several passes.

Where training ends: at the optimum (regret 0 on the worked example, :func:`lm_gym.exact.endpoint`), with the KL in the
reward as by default; there all texts of a prompt have the same return, and the noise vanishes too. KL in the loss ends
at .0099 (k2, "exact") or .0302 (k3), an entropy bonus at .0841.

Defaults: 32 prompts of 4 texts a rollout, one pass in minibatches of 16 at twice the model's own step size (PPO makes
twice as many steps), token mean, no clip, KL in the reward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from lm_gym.advantages import leave_one_out
from lm_gym.agent import LMAgent
from lm_gym.measures import of_groups
from lm_gym.policy_gradient import Minibatch, PolicyGradientConfig, Stats, fit, surrogate
from lm_gym.rollout import Rollout


@dataclass
class RLOOConfig(PolicyGradientConfig):
    """RLOO's fields, beside those of :class:`lm_gym.policy_gradient.PolicyGradientConfig`."""

    minibatch_size: int | None = 16
    """Texts an optimizer step; None: the whole batch, which is strictly on-policy."""
    group_size: int = 4
    """n, texts a prompt; their prompt is computed once."""
    epochs: int = 1
    """Passes over a rollout."""
    clip_range: float | None = None
    """ε: the ratio is clipped to [1 − ε, 1 + ε], for several epochs; None: not at all, as published."""


class RLOO(LMAgent):
    """REINFORCE with the other texts of the prompt as the baseline.

    See the module's docstring for the loss, :class:`RLOOConfig` for every field.
    """

    config_class: ClassVar[type[RLOOConfig]] = RLOOConfig
    name: ClassVar[str] = "rloo"
    step_scale: ClassVar[float] = 2.0
    config: RLOOConfig

    def update(self, rollout: Rollout) -> dict[str, float]:
        c, returns = self.config, rollout.text_returns()
        advantages = returns - leave_one_out(returns, c.group_size)
        out = fit(self, rollout, lambda b: self.loss(b, advantages), epochs=c.epochs)
        return out | of_groups(returns, c.group_size)

    def loss(self, batch: Minibatch, advantages: torch.Tensor) -> tuple[torch.Tensor, Stats]:
        """The loss of a minibatch; ``advantages`` (B,) are of the whole rollout."""
        return surrogate(batch, advantages, self.config.clip_range)
