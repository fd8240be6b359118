"""Proximal policy optimisation for language models, with a value head.

The loss, on minibatches of whole texts (Schulman et al. 2017, arXiv:1707.06347, eq. 7 and 9):

    L = −E[min(ρ_t·A_t, clip(ρ_t, 1−ε, 1+ε)·A_t)] + c·E[(V(s_t) − return_t)²]/2        ρ_t = π(a_t|s_t)/π_old(a_t|s_t)

Written as a thing to be maximised it is usually given as  L = E[min(ρA, clip(ρ)A)] − β·KL(π‖π_ref) − c·L_VF.  Where its
β·KL stands is ``kl_in``:

- "reward" (default; Ziegler et al. 2019, Ouyang et al. 2022): r_t = −β·(log π − log π_ref), plus R at the end. A then
  carries the KL, and the expected gradient is that of J(π) = E[R] − β·KL: the only one of these without bias.
- "loss": + β·E[estimator] in L, and A carries R alone. Its expected gradient counts each state's KL but not that
  actions lead to states with more of it: with k2 or "exact" training ends at regret .0099 on the worked example, with
  k3 (which descends KL(π_ref‖π)) at .0302, and k1 has no gradient at all (E[R] goes to its maximum).
- "entropy": A carries R + β·Σ log π_ref, and −β·(entropy of π(·|s_t)) stands in L: .0841.

PPO-ptx (Ouyang et al. 2022, eq. 2): + γ_ptx·E[−log π] over demonstrations or pretraining texts, ``ptx_coef`` and
``ptx_data``; it pulls the end point towards their distribution.

Whitening the advantages rescales the reward against whatever of KL or entropy stands in L (k2 .418, k3 .054, entropy
.620): it warns. End points are computed by :func:`lm_gym.exact.endpoint`. With the KL in the reward and the step size
decayed to 0, the regret on the worked example ends below .002.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from lm_gym.advantages import gae, whiten
from lm_gym.agent import LMAgent
from lm_gym.policy_gradient import Minibatch, PolicyGradientConfig, Stats, fit, surrogate, value_error
from lm_gym.rollout import Rollout
from lm_gym.supervised import Mixture
from lm_gym.values import centred


@dataclass
class PPOConfig(PolicyGradientConfig):
    """PPO's fields, beside those of :class:`lm_gym.policy_gradient.PolicyGradientConfig`."""

    minibatch_size: int | None = 32
    """Texts an optimizer step; None: the whole batch."""
    epochs: int = 4
    """Passes over a rollout."""
    critic: str = "shared"
    """"shared" value head, "separate" critic, the folder of a reward model that a critic starts from."""
    gamma: float = 1.0
    """Discount; below 1 costs regret, since the reward is at the end (.0002 at horizon 3, 2.34 at 48 for .99)."""
    lam: float = 1.0
    """λ of generalised advantage estimation; 1 is unbiased whatever the values are."""
    clip_range: float = 0.2
    """ε: the ratio is clipped to [1 − ε, 1 + ε]."""
    clip_range_high: float | None = None
    """The upper ε alone (DAPO's clip-higher); None: `clip_range`."""
    clip_range_value: float | None = 0.2
    """Values are clipped to within this of the rollout's; None: not at all."""
    vf_coef: float = 0.1
    """c, the weight of the value loss."""
    whiten_advantages: bool = True
    """Advantages to mean 0 and standard deviation 1 over the rollout."""
    whiten_rewards: bool = False
    """Per-token rewards to standard deviation 1, their mean kept. Rescales β."""
    ptx_coef: float = 0.0
    """Weight of −log π of an imitated token of `ptx_data` in the loss (PPO-ptx). It biases the end point."""
    ptx_data: str | None = None
    """Demonstrations or plain texts for PPO-ptx: a file or a hub id; in Python also a list or a `Dataset`."""


class PPO(LMAgent):
    """PPO with a value head.

    The loss is in the module's docstring, every field in :class:`PPOConfig`.
    """

    config_class: ClassVar[type[PPOConfig]] = PPOConfig
    name: ClassVar[str] = "ppo"
    config: PPOConfig

    def __init__(self, env: Any, **config: Any) -> None:
        if config.get("critic") == "none":
            raise ValueError("critic expected 'shared', 'separate' or a reward model's folder: PPO needs values")
        super().__init__(env, **config)
        c = self.config
        if (c.ptx_coef > 0) != (c.ptx_data is not None):
            raise ValueError(f"PPO-ptx expected ptx_coef above 0 and ptx_data, got {c.ptx_coef} and {c.ptx_data!r:.60}")
        self.ptx = None if c.ptx_data is None else Mixture(self, c.ptx_data, c.ptx_coef)

    def advantages(self, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
        """Advantages (whitened where asked) and returns of a rollout, (B, T) each."""
        c, mask = self.config, rollout.response_mask
        assert rollout.values is not None
        rewards = whiten(rollout.rewards, mask, shift_mean=False) if c.whiten_rewards else rollout.rewards
        advantages, returns = gae(rewards, rollout.values, mask, gamma=c.gamma, lam=c.lam, bootstrap=rollout.bootstrap)
        return (whiten(advantages, mask) if c.whiten_advantages else advantages), returns

    def update(self, rollout: Rollout) -> dict[str, float]:
        advantages, returns = self.advantages(rollout)
        values, measured = centred(self.policy, rollout, returns)
        loss = lambda b: self.loss(b, advantages, returns, values)
        out = fit(self, rollout, loss, epochs=self.config.epochs, beside=self.ptx)
        return out | measured

    def loss(
        self, batch: Minibatch, advantages: torch.Tensor, returns: torch.Tensor, old_values: torch.Tensor
    ) -> tuple[torch.Tensor, Stats]:
        """The loss of a minibatch; the other arguments are of the whole rollout, (B, T)."""
        c = self.config
        policy, stats = surrogate(batch, advantages, c.clip_range, c.clip_range_high)
        error, more = value_error(batch, returns, old_values, c.clip_range_value)
        return policy + c.vf_coef * error, stats | more

    def extra_state(self) -> dict[str, Any]:
        return {} if self.ptx is None else {"ptx_order": self.ptx.order.left}

    def load_extra_state(self, state: Any) -> None:
        if self.ptx is not None:
            self.ptx.order.restore(state["ptx_order"])
