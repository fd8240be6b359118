"""REINFORCE for language models: the likelihood of a text goes up as far as it earned more than a baseline.

The loss, one pass over a rollout (Williams 1992, "Simple Statistical Gradient-Following Algorithms"; for language
models Ahmadian et al. 2024, arXiv:2402.14740, §2):

    L = −E[Σ_t A·log π(a_t|s_t)],    A_i = R_i − mean of the batch,    R_i = R(x, y) − β·Σ_t (log π − log π_ref)

- ``critic="none"`` (default): all tokens of a text share A, the text's whole return less the batch's mean return.
- ``critic="shared"``, ``"separate"`` or a reward model's folder: A_t = G_t − V(s_t), with the return to go G_t and a
  learned baseline V, fitted by c·½(V − G_t)².

Several minibatches of one pass are a little off-policy, so −A·ρ_t is what is descended, with ρ_t = π/π_old: the same
gradient where ρ = 1, and each later token weighted as the moved policy would have drawn it.

Where training ends: at the optimum (regret 0 on the worked example, :func:`lm_gym.exact.endpoint`), with the KL in the
reward as by default. There every text has the same return J*, so that with the batch's mean the noise vanishes too. KL
in the loss ends at .0099 (k2, "exact") or .0302 (k3), an entropy bonus at .0841.

Defaults: 128 texts a rollout, one pass in minibatches of 16 at twice the model's own step size (PPO makes twice as many
steps), token mean, the batch's mean as the baseline, KL in the reward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from lm_gym.advantages import gae, mean
from lm_gym.agent import LMAgent
from lm_gym.policy_gradient import Minibatch, PolicyGradientConfig, Stats, fit, surrogate, value_error
from lm_gym.rollout import Rollout
from lm_gym.values import centred


@dataclass
class REINFORCEConfig(PolicyGradientConfig):
    """REINFORCE's fields, beside those of :class:`lm_gym.policy_gradient.PolicyGradientConfig`."""

    minibatch_size: int | None = 16
    """Texts an optimizer step; None: the whole batch, which is strictly on-policy."""
    critic: str = "none"
    """The baseline: "none" (the batch's mean), "shared" value head, "separate" critic, a reward model's folder."""
    vf_coef: float | None = None
    """c, the weight of the value loss; None: .1. Only with a critic."""


class REINFORCE(LMAgent):
    """REINFORCE with the batch's mean or a learned baseline.

    See the module's docstring for the loss, :class:`REINFORCEConfig` for every field.
    """

    config_class: ClassVar[type[REINFORCEConfig]] = REINFORCEConfig
    name: ClassVar[str] = "reinforce"
    step_scale: ClassVar[float] = 2.0
    config: REINFORCEConfig

    def __init__(self, env: Any, **config: Any) -> None:
        super().__init__(env, **config)
        if self.config.critic == "none" and self.config.vf_coef is not None:
            raise ValueError(f"vf_coef expected a critic, got {self.config.vf_coef} with critic='none'")

    def update(self, rollout: Rollout) -> dict[str, float]:
        if self.config.critic == "none":
            returns = rollout.text_returns()
            advantages = returns - mean(returns)
            return fit(self, rollout, lambda b: surrogate(b, advantages))
        assert rollout.values is not None
        learned, to_go = gae(
            rollout.rewards, rollout.values, rollout.response_mask, lam=1.0, bootstrap=rollout.bootstrap
        )
        values, measured = centred(self.policy, rollout, to_go)
        return fit(self, rollout, lambda b: self.loss(b, learned, to_go, values)) | measured

    def loss(
        self, batch: Minibatch, advantages: torch.Tensor, returns: torch.Tensor, old_values: torch.Tensor
    ) -> tuple[torch.Tensor, Stats]:
        """The loss of a minibatch with a critic; the other arguments are of the whole rollout, (B, T)."""
        policy, stats = surrogate(batch, advantages)
        error, more = value_error(batch, returns, old_values)
        return policy + (0.1 if self.config.vf_coef is None else self.config.vf_coef) * error, stats | more
