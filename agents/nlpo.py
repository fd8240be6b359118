"""NLPO: PPO that chooses among the likeliest tokens of a lagged copy of itself.

Ramamurthy et al. 2023, "Is Reinforcement Learning (Not) for Natural Language Processing" (arXiv:2210.01241). At every
state a mask keeps the smallest set of tokens whose probabilities under the lagged copy π_ψ add up to p (top-p,
Holtzman et al. 2020), and the policy is

    π(a|s) = π_θ(a|s)·[a ∈ V_ψ^p(s)]/Σ_{b ∈ V_ψ^p(s)} π_θ(b|s)

Texts are drawn from it, its log-probs are those of the ratio and of the KL (to the whole reference), and ψ becomes θ
every ``mask_every`` updates. The loss is PPO's.

End point: the best policy under the mask that is there at the end, which :mod:`lm_gym.exact` has as
``optimal_policy(language, mask=agent.mask(language))`` and which it meets to 1e-5 nats on the worked example. Which
mask that is depends on the path: one that follows a policy which settles cuts off what the best policy still needs
(p = .95 costs nothing under the reference's own mask and ends at regret .036 to .047), and lets back in what the rise
of others brings within p (p = .8: .543 under the reference's mask, .155 to .264 here). p = 1 is PPO.

Defaults: p = .95, a new mask every 10 updates, the rest as PPO.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from lm_gym.advantages import gae, whiten
from lm_gym.agent import LMAgent
from lm_gym.agent_texts import state_logits
from lm_gym.cached_lm import CachedLM
from lm_gym.decoding import GenerationParams, restrict, top_p_ids
from lm_gym.policy_gradient import Minibatch, PolicyGradientConfig, Stats, fit, surrogate, value_error
from lm_gym.rollout import Rollout
from lm_gym.values import centred


@dataclass
class NLPOConfig(PolicyGradientConfig):
    """NLPO's fields, beside those of :class:`lm_gym.policy_gradient.PolicyGradientConfig`."""

    top_p: float = 0.95
    """Mass under the lagged copy that the tokens which may be chosen have."""
    mask_every: int = 10
    """Updates between copies of the policy that the mask is made from."""
    minibatch_size: int | None = 32
    """Texts an optimizer step; None: the whole batch."""
    epochs: int = 4
    """Passes over a rollout."""
    critic: str = "shared"
    """"shared" value head, "separate" critic, the folder of a reward model that a critic starts from."""
    lam: float = 1.0
    """λ of generalised advantage estimation; 1 is unbiased whatever the values are."""
    clip_range: float = 0.2
    """ε: the ratio is clipped to [1 − ε, 1 + ε]."""
    clip_range_value: float | None = 0.2
    """Values are clipped to within this of the rollout's; None: not at all."""
    vf_coef: float = 0.1
    """Weight of the value loss."""
    whiten_advantages: bool = True
    """Advantages to mean 0 and standard deviation 1 over the rollout."""


class NLPO(LMAgent):
    """PPO whose choice is masked to the likeliest tokens of a lagged copy of its policy."""

    config_class: ClassVar[type[NLPOConfig]] = NLPOConfig
    name: ClassVar[str] = "nlpo"
    config: NLPOConfig

    def __init__(self, env: Any, **config: Any) -> None:
        if config.get("critic") == "none":
            raise ValueError("critic expected 'shared', 'separate' or a reward model's folder: NLPO needs values")
        super().__init__(env, **config)
        c = self.config
        if not 0 < c.top_p <= 1:
            raise ValueError(f"top_p expected above 0 and at most 1, got {c.top_p}")
        if c.mask_every < 1:
            raise ValueError(f"mask_every expected at least 1 update, got {c.mask_every}")
        if self.mdp.top_k is not None:
            raise ValueError("NLPO masks by its own copy: it expected an environment without top_k")
        if self.wrappers:
            raise ValueError("NLPO expected an environment without wrappers: its mask is not the environment's")
        self.lagged = copy.deepcopy(self.policy.lm).freeze()
        self.engine.guide = self.lagged
        self._lagged_actor: CachedLM | None = None

    @property
    def generation_params(self) -> GenerationParams:
        return replace(self.mdp.generation_params, top_p=self.config.top_p)

    def update(self, rollout: Rollout) -> dict[str, float]:
        c, mask = self.config, rollout.response_mask
        assert rollout.values is not None and rollout.allowed is not None
        advantages, returns = gae(rollout.rewards, rollout.values, mask, lam=c.lam)
        advantages = whiten(advantages, mask) if c.whiten_advantages else advantages
        values, measured = centred(self.policy, rollout, returns)
        out = fit(self, rollout, lambda b: self.loss(b, advantages, returns, values), epochs=c.epochs)
        chosen_from = rollout.allowed[mask].sort(-1).values
        out["nlpo/choices"] = float((1 + (chosen_from.diff(dim=-1) != 0).sum(-1)).float().mean())
        if (self.updates + 1) % c.mask_every == 0:
            self.lagged.load_state_dict(self.policy.lm.state_dict())
        return out | measured

    def loss(
        self, batch: Minibatch, advantages: torch.Tensor, returns: torch.Tensor, old_values: torch.Tensor
    ) -> tuple[torch.Tensor, Stats]:
        """The loss of a minibatch; the other arguments are of the whole rollout, (B, T)."""
        c = self.config
        policy, stats = surrogate(batch, advantages, c.clip_range)
        error, more = value_error(batch, returns, old_values, c.clip_range_value)
        return policy + c.vf_coef * error, stats | more

    # ---- acting under the mask -----------------------------------------------------------------------------------

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, None]:
        """(token, None), drawn under the mask."""
        if self.mdp.min_new_tokens:
            raise ValueError("predict of NLPO expected an environment without min_new_tokens: use generate(prompts)")
        t, seed = self.mdp.temperature, self.config.seed
        self._actor = self._actor or CachedLM(self.policy.lm, temperature=t, seed=seed)
        self._lagged_actor = self._lagged_actor or CachedLM(self.lagged, temperature=t, seed=seed)
        guide = self._lagged_actor.logits(observation)[0]
        ids = top_p_ids(guide, self.config.top_p).numpy()
        mask = np.zeros(guide.shape, dtype=bool)
        np.put_along_axis(mask, ids, True, -1)
        actions, _, _ = self._actor.act(observation, action_mask=mask, deterministic=deterministic)
        single = np.asarray(observation["input_ids"]).ndim == 1
        return (int(actions) if single else actions), None

    def mask(self, language: Any) -> np.ndarray:
        """(S, V) bool, what may be chosen in every state of an exact language; for :mod:`lm_gym.exact`."""
        logits = state_logits(self.lagged, language, self.mdp.temperature)
        keep = torch.zeros(logits.shape, dtype=torch.bool).scatter_(-1, top_p_ids(logits, self.config.top_p), True)
        return keep.numpy()

    def exact_policy(self, language: Any) -> np.ndarray:
        logits = state_logits(self.policy.lm, language, self.mdp.temperature)
        allowed = top_p_ids(state_logits(self.lagged, language, self.mdp.temperature), self.config.top_p)
        return torch.softmax(restrict(logits, allowed=allowed).double(), -1).numpy()

    def copies(self) -> dict[str, dict[str, torch.Tensor]]:
        return {**super().copies(), "lagged": dict(self.lagged.named_parameters())}
