"""GRPO: a text's advantage is its score against the other texts of the same prompt; with DAPO's options.

The loss, on n texts a prompt (Shao et al. 2024, DeepSeekMath, arXiv:2402.03300, eq. 3, 4 and §4.1.2):

    L = −1/B·Σ_i 1/T_i·Σ_t min(ρ_t·A_i, clip(ρ_t, 1−ε, 1+ε)·A_i) + β·k3_t,    A_i = (R_i − mean)/(std + 1e-4)

mean and sample standard deviation (n − 1) are those of the text's group, itself included. As published: 1/length
(``aggregation="sequence_mean"``), k3 in the loss, one pass.

Where training ends: not at the optimum. The regret on the worked example is .0388 for groups of 8
(``endpoint(language, kl_in="loss", estimator="k3", std_normalize="sample", length_normalize=True, group_size=8)``), and
.072, .029, .025 for 4, 16, 64; with ``aggregation="token_mean"`` .0411. With ``kl_in="reward"`` it ends at the optimum.

DAPO (Yu et al. 2025, arXiv:2503.14476) is ``GRPO(env, aggregation="token_mean", clip_range_high=.28, kl_coef=0,
overlong_buffer=n)``, or ``mask_truncated=True`` in place of the buffer; its dynamic sampling of prompts is not here:

- ``overlong_buffer``: soft overlong punishment (eq. 13). It is added to the score, so it changes what is optimised.
- ``mask_truncated``: overlong filtering. Texts that ran into the length limit stay in their group's mean and standard
  deviation and weigh nothing in the loss. They pay no KL in the loss either: where the reference often runs into the
  limit (on the worked example in .455 of its texts), what it writes there is left to chance.

Defaults: 16 prompts of 8 texts a rollout, one pass in minibatches of 16 at 1.5 times the model's own step size (PPO
makes twice as many steps), ε = .2, k3 in the loss, 1/length. The noise does not vanish at this end point: larger steps
come to rest further around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from lm_gym.advantages import group_mean, group_std
from lm_gym.agent import LMAgent
from lm_gym.measures import of_groups
from lm_gym.policy_gradient import Minibatch, PolicyGradientConfig, Stats, fit, surrogate
from lm_gym.rollout import Rollout

EPS = 1e-4
"""Added to the standard deviation, as in TRL and in the published results."""


@dataclass
class GRPOConfig(PolicyGradientConfig):
    """GRPO's fields, beside those of :class:`lm_gym.policy_gradient.PolicyGradientConfig`."""

    minibatch_size: int | None = 16
    """Texts an optimizer step; None: the whole batch."""
    aggregation: str = "sequence_mean"
    """"sequence_mean" (1/length, published), "token_mean" (DAPO), "sequence_sum", or "constant" (Dr. GRPO)."""
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
    """The upper ε alone (DAPO's clip-higher: .28); None: `clip_range`."""
    overlong_buffer: int = 0
    """Tokens before the length limit over which a text is punished more and more (DAPO); 0: none is."""
    overlong_penalty: float | None = None
    """The punishment at the limit, in units of the score; None: 1. Only with `overlong_buffer`."""
    mask_truncated: bool = False
    """Texts that ran into the length limit weigh nothing in the loss (DAPO's overlong filtering)."""


class GRPO(LMAgent):
    """Scores normalised within the group of a prompt, with DAPO's options.

    See the module's docstring for the loss, :class:`GRPOConfig` for every field.
    """

    config_class: ClassVar[type[GRPOConfig]] = GRPOConfig
    name: ClassVar[str] = "grpo"
    step_scale: ClassVar[float] = 1.5
    config: GRPOConfig

    def __init__(self, env: Any, **config: Any) -> None:
        super().__init__(env, **config)
        c, longest = self.config, self.mdp.max_new_tokens
        if not 0 <= c.overlong_buffer <= longest:
            raise ValueError(f"overlong_buffer expected 0 to max_new_tokens={longest}, got {c.overlong_buffer}")
        if c.overlong_penalty is not None and not c.overlong_buffer:
            raise ValueError(f"overlong_penalty expected an overlong_buffer, got {c.overlong_penalty} without one")

    def update(self, rollout: Rollout) -> dict[str, float]:
        c, returns, measured, keep = self.config, rollout.text_returns(), {}, None
        if c.overlong_buffer:
            paid = overlong_punishment(rollout.lengths, self.mdp.max_new_tokens, c.overlong_buffer)
            paid = paid * (1.0 if c.overlong_penalty is None else c.overlong_penalty)
            returns = returns + paid
            measured["group/overlong_avg"] = float(paid.mean())
        if c.mask_truncated:
            assert rollout.finish_reasons is not None
            keep = torch.tensor([reason != "length" for reason in rollout.finish_reasons])
            measured["group/masked_share"] = float((~keep).float().mean())
        advantages = (returns - group_mean(returns, c.group_size)) / (group_std(returns, c.group_size) + EPS)
        out = fit(self, rollout, lambda b: self.loss(b, advantages), epochs=c.epochs, keep=keep)
        return out | of_groups(returns, c.group_size) | measured

    def loss(self, batch: Minibatch, advantages: torch.Tensor) -> tuple[torch.Tensor, Stats]:
        """The loss of a minibatch; ``advantages`` (B,) are of the whole rollout."""
        return surrogate(batch, advantages, self.config.clip_range, self.config.clip_range_high)


def overlong_punishment(lengths: torch.Tensor, longest: int, buffer: int) -> torch.Tensor:
    """(B,) 0 up to ``longest − buffer`` tokens, then falling evenly to −1 at ``longest`` (DAPO, eq. 13).

    Args:
        lengths: (B,) tokens. longest: the limit of a text. buffer: tokens before it over which the punishment grows.
    """
    return -((lengths - (longest - buffer)).float() / buffer).clamp(0.0, 1.0)
