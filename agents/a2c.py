"""Advantage actor-critic (A2C) for language models: one pass over a rollout with λ-advantages, no clip.

The loss (Mnih et al. 2016, arXiv:1602.01783, synchronous; advantages of Schulman et al. 2016, arXiv:1506.02438):

    L = −E[A_t·log π(a_t|s_t)] + c·E[(V(s_t) − return_t)²]/2,    A_t = Σ_l (γλ)^l·δ_{t+l},
    δ_t = r_t + γ·V(s_{t+1}) − V(s_t),    r_t = −β·(log π − log π_ref), and R on the last token

Several minibatches of one pass are a little off-policy, so −A_t·ρ_t is what is descended, ρ_t = π/π_old: the same
gradient where ρ = 1.

Where training ends: at the optimum (regret 0 on the worked example, :func:`lm_gym.exact.endpoint`), with the KL in the
reward as by default: for λ = 1 whatever the values are, for λ < 1 once they are right. At the optimum and with the
right values every advantage is 0, so that the noise vanishes too. KL in the loss ends at .0099 (k2, "exact") or .0302
(k3), an entropy bonus at .0841; whitened advantages beside them at .418, .054 and .620, which warns.

Defaults: 128 texts a rollout, one pass in minibatches of 16 at twice the model's own step size (PPO makes twice as many
steps), token mean, λ = γ = 1, c = .1, advantages not whitened, KL in the reward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from lm_gym.advantages import gae, whiten
from lm_gym.agent import LMAgent
from lm_gym.policy_gradient import Minibatch, PolicyGradientConfig, Stats, fit, surrogate, value_error
from lm_gym.rollout import Rollout
from lm_gym.values import centred


@dataclass
class A2CConfig(PolicyGradientConfig):
    """A2C's fields, beside those of :class:`lm_gym.policy_gradient.PolicyGradientConfig`."""

    minibatch_size: int | None = 16
    """Texts an optimizer step; None: the whole batch, which is strictly on-policy."""
    critic: str = "shared"
    """"shared" value head, "separate" critic, the folder of a reward model that a critic starts from."""
    gamma: float = 1.0
    """Discount; below 1 costs regret, since the reward is at the end (.0002 at horizon 3, 2.34 at 48 for .99)."""
    lam: float = 1.0
    """λ of generalised advantage estimation; 1 is unbiased whatever the values are."""
    vf_coef: float = 0.1
    """c, the weight of the value loss."""
    whiten_advantages: bool = False
    """Advantages to mean 0 and standard deviation 1 over the rollout."""


class A2C(LMAgent):
    """A2C: λ-advantages of a value head, one pass, no clip.

    See the module's docstring for the loss, :class:`A2CConfig` for every field.
    """

    config_class: ClassVar[type[A2CConfig]] = A2CConfig
    name: ClassVar[str] = "a2c"
    step_scale: ClassVar[float] = 2.0
    config: A2CConfig

    def __init__(self, env: Any, **config: Any) -> None:
        if config.get("critic") == "none":
            raise ValueError("critic expected 'shared', 'separate' or a reward model's folder: A2C needs values")
        super().__init__(env, **config)

    def advantages(self, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
        """Advantages (whitened where asked) and returns of a rollout, (B, T) each."""
        c, mask = self.config, rollout.response_mask
        assert rollout.values is not None
        advantages, returns = gae(
            rollout.rewards, rollout.values, mask, gamma=c.gamma, lam=c.lam, bootstrap=rollout.bootstrap
        )
        return (whiten(advantages, mask) if c.whiten_advantages else advantages), returns

    def update(self, rollout: Rollout) -> dict[str, float]:
        advantages, returns = self.advantages(rollout)
        values, measured = centred(self.policy, rollout, returns)
        return fit(self, rollout, lambda b: self.loss(b, advantages, returns, values)) | measured

    def loss(
        self, batch: Minibatch, advantages: torch.Tensor, returns: torch.Tensor, old_values: torch.Tensor
    ) -> tuple[torch.Tensor, Stats]:
        """The loss of a minibatch; the other arguments are of the whole rollout, (B, T)."""
        policy, stats = surrogate(batch, advantages)
        error, more = value_error(batch, returns, old_values)
        return policy + self.config.vf_coef * error, stats | more
