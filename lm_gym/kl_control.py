"""Where a policy-gradient agent pays KL, against what, and at which price.

    "reward"   r_t = −β·(log π − log π_ref), the only one whose expected gradient is that of J
    "loss"     +β·estimator beside the policy loss
    "entropy"  r_t = β·log π_ref, and −β·entropy in the loss

The price β is fixed, or adaptive (Ziegler et al. 2019). It is paid against the environment's reference, or against a
slow copy of the policy.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from lm_gym import kl
from lm_gym.choices import check_choice
from lm_gym.losses import AGGREGATIONS, entropy
from lm_gym.reference_pass import reference_pass
from lm_gym.rollout import Rollout

if TYPE_CHECKING:
    from lm_gym.agent import LMAgent
    from lm_gym.policy_gradient import Minibatch, PolicyGradientConfig


class KLControl:
    """The KL terms of one agent; see the module's docstring and :class:`PolicyGradientConfig`'s ``kl_`` fields."""

    def __init__(self, agent: LMAgent, config: PolicyGradientConfig) -> None:
        self.agent, self.config = agent, config
        self._check()
        c = config
        self.adaptive = None if c.kl_target is None else kl.AdaptiveKL(agent.kl_coef, c.kl_target, c.kl_horizon)
        if self.adaptive is not None:
            self.adaptive.check(c.batch_size)
        self.ema = copy.deepcopy(agent.policy.lm).freeze() if c.kl_reference == "ema" else None
        # in 16 bits a share of 1 − decay of a small difference would round to nothing
        slow = () if self.ema is None else self.ema.named_parameters()
        self.ema32 = {name: p.detach().float() for name, p in slow if p.dtype != torch.float32}

    def _check(self) -> None:
        c, agent = self.config, self.agent
        check_choice("kl_in", c.kl_in, ("reward", "loss", "entropy"))
        check_choice("kl_estimator", c.kl_estimator, kl.ESTIMATORS)
        check_choice("kl_reference", c.kl_reference, ("initial", "ema"))
        check_choice("aggregation", c.aggregation, AGGREGATIONS)
        if agent.base.kl_mode == "none" and agent.kl_coef and c.kl_in != "loss":
            raise ValueError(
                f"the environment pays no KL (kl_mode='none') and kl_in={c.kl_in!r} would: make it with "
                "kl_mode='reference' or 'reported', or choose kl_in='loss', or kl_coef=0"
            )
        if agent.wrappers and (c.kl_reference == "ema" or c.normalize_scores):
            raise ValueError("kl_reference='ema' and normalize_scores expected an environment without wrappers")
        if c.kl_target is not None and c.kl_in == "entropy":
            raise ValueError("kl_target expected kl_in='reward' or 'loss', got 'entropy'")
        if c.kl_in != "loss" and c.kl_estimator != type(c).kl_estimator:
            raise ValueError(
                f"kl_estimator={c.kl_estimator!r} has no effect with kl_in={c.kl_in!r}, it is for kl_in='loss'"
            )
        if self.in_loss and (getattr(c, "whiten_advantages", False) or getattr(c, "whiten_rewards", False)):
            warnings.warn(
                "whitening rescales the reward against the KL or entropy in the loss, so β means something else every "
                "update (worked example: k2 ends at regret .418, not .0099); set whiten_advantages=False",
                stacklevel=5,
            )
        if c.kl_in == "loss" and c.kl_estimator == "k1" and agent.kl_coef > 0:
            warnings.warn(
                "k1 in the loss has no expected gradient: training will pay no KL; use 'k2' or 'exact'", stacklevel=5
            )

    @property
    def in_loss(self) -> bool:
        """Whether something beside the policy loss pulls on the policy."""
        return (self.config.kl_in != "reward" and self.agent.kl_coef > 0) or self.config.ent_coef > 0

    @property
    def reward_mode(self) -> str:
        """What the rewards of a rollout pay: "reported" (exact), "reference" (its half) or "none"."""
        return {"reward": "reported", "loss": "none", "entropy": "reference"}[self.config.kl_in]

    def repay(self, rollout: Rollout) -> float:
        """Pay KL against the slow copy in place of the initial reference; the mean that a text gets more for it."""
        if self.ema is None:
            return 0.0
        assert rollout.ref_logprobs is not None
        prompts, tokens = rollout.token_lists()
        ema = reference_pass(self.agent.mdp, prompts, tokens, hidden=True, lm=self.ema)
        ema_logprobs = ema.logprobs * rollout.response_mask
        more = torch.zeros_like(rollout.rewards)
        if self.config.kl_in in ("reward", "entropy"):
            more = self.agent.kl_coef * (ema_logprobs - rollout.ref_logprobs)
        rollout.rewards = rollout.rewards + more
        rollout.ref_logprobs, rollout.ref_hidden = ema_logprobs, ema.hidden
        return float(more.sum(-1).mean())

    def in_the_loss(self, batch: Minibatch) -> tuple[torch.Tensor | None, dict[str, torch.Tensor]]:
        """What KL and entropy add to the loss of a minibatch, if anything, and what to log of it."""
        c, beta = self.config, self.agent.kl_coef
        more, stats = None, {}
        if c.kl_in == "loss":
            penalty = batch.mean(self._estimate(batch))
            more, stats["loss/kl_avg"] = beta * penalty, penalty
        bonus = c.ent_coef + (beta if c.kl_in == "entropy" else 0.0)
        if bonus:
            paid = -bonus * batch.mean(entropy(batch.logp))
            more = paid if more is None else more + paid
        return more, stats

    def _estimate(self, batch: Minibatch) -> torch.Tensor:
        """(n,) the estimator of each token or state."""
        part, mdp = batch.part, self.agent.mdp
        assert part.ref_logprobs is not None and part.ref_hidden is not None
        if self.config.kl_estimator != "exact":
            ref_logprobs = part.ref_logprobs[batch.mask].to(batch.device)
            return kl.estimate(batch.logprobs, ref_logprobs, self.config.kl_estimator)
        with torch.no_grad():
            ref_logp = mdp.distribution(self.ema or mdp.reference, part.ref_hidden[batch.mask])
        return kl.exact(batch.logp, ref_logp.to(batch.device))

    def after_update(self, rollout: Rollout) -> None:
        """Move the slow copy and the coefficient."""
        if self.ema is not None:
            exact, slow = self.agent.optimizer.values(), self.ema_values()
            with torch.no_grad():
                for name, p in self.agent.policy.lm.named_parameters():
                    fast = exact.get(f"lm.{name}", p)  # the optimizer's float32 copy, where it has one
                    slow[name].lerp_(fast.float(), 1.0 - self.config.ema_decay)
            self.round_ema()
        if self.adaptive is not None and rollout.ref_logprobs is not None:
            # k1, as in the reward
            paid = ((rollout.logprobs - rollout.ref_logprobs) * rollout.response_mask).sum(-1)
            self.agent.kl_coef = self.adaptive.update(float(paid.mean()), len(rollout))

    def ema_values(self) -> dict[str, torch.Tensor]:
        """The slow copy's weights by name in full precision: what moves, and what a checkpoint keeps."""
        assert self.ema is not None
        return {name: self.ema32.get(name, p) for name, p in self.ema.named_parameters()}

    @torch.no_grad()
    def round_ema(self) -> None:
        """Give a slow copy in 16 bits what its values have become."""
        for name, p in () if self.ema is None else self.ema.named_parameters():
            if name in self.ema32:
                p.copy_(self.ema32[name])

    def state_dict(self) -> dict[str, Any] | None:
        return None if self.adaptive is None else self.adaptive.state_dict()

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        if self.adaptive is not None and state:
            self.adaptive.load_state_dict(dict(state))
            self.agent.kl_coef = self.adaptive.value
