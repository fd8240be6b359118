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

Whitening the advantages rescales the reward against whatever of KL or entropy stands in L (k2 .418, k3 .054, entropy
.620): it warns. End points are computed by :func:`lm_gym.exact.endpoint`. With the KL in the reward and the step size
decayed to 0, the regret on the worked example ends below .002.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar

import torch

from lm_gym import kl
from lm_gym.advantages import explained_variance, gae, whiten
from lm_gym.agent import AgentConfig, LMAgent
from lm_gym.decoding import restrict
from lm_gym.forward import token_logprobs
from lm_gym.rollout import Rollout

AGGREGATIONS = ("token_mean", "sequence_mean", "sequence_sum")
BOUNDS = (
    ("micro_batch_size", 1, inf),
    ("epochs", 1, inf),
    ("gamma", 0, 1),
    ("lam", 0, 1),
    ("clip_range", 1e-9, inf),
    ("clip_range_value", 1e-9, inf),
    ("vf_coef", 0, inf),
    ("ema_decay", 0, 1),
    ("ent_coef", 0, inf),
    ("normalize_scores", 0, inf),
    ("ratio_tolerance", 0, inf),
)
"""Field, smallest and largest value."""


@dataclass
class PPOConfig(AgentConfig):
    """PPO's fields, beside those of :class:`lm_gym.agent.AgentConfig`."""

    minibatch_size: int = 32
    """Texts an optimizer step."""
    micro_batch_size: int | None = None
    """Texts a forward pass, the gradients adding up to the minibatch's; None: the minibatch. Saves memory only."""
    epochs: int = 4
    """Passes over a rollout."""
    gamma: float = 1.0
    """Discount; below 1 costs regret, since the reward is at the end (.0002 at horizon 3, 2.34 at 48 for .99)."""
    lam: float = 1.0
    """λ of generalised advantage estimation; 1 is unbiased whatever the values are."""
    clip_range: float = 0.2
    """ε: the ratio is clipped to [1 − ε, 1 + ε]."""
    clip_range_value: float | None = 0.2
    """Values are clipped to within this of the rollout's; None: not at all."""
    vf_coef: float = 0.1
    """c, the weight of the value loss."""
    kl_in: str = "reward"
    """Where KL is paid: "reward", "loss", or "entropy" (see the module's docstring)."""
    kl_estimator: str = "k2"
    """With kl_in="loss": "k1", "k2", "k3", or "exact" (per state, over the vocabulary)."""
    kl_target: float | None = None
    """Nats a text that an adaptive coefficient steers to; None: the coefficient is fixed."""
    kl_horizon: int = 10_000
    """Texts over which the adaptive coefficient moves by its error."""
    kl_reference: str = "initial"
    """What KL is paid against: "initial" (the environment's reference) or "ema" (a slow copy of the policy)."""
    ema_decay: float = 0.95
    """Share of the slow copy that an update keeps."""
    ent_coef: float = 0.0
    """Weight of an entropy bonus in the loss. Not a substitute for KL: it biases the end point."""
    whiten_advantages: bool = True
    """Advantages to mean 0 and standard deviation 1 over the rollout."""
    whiten_rewards: bool = False
    """Per-token rewards to standard deviation 1, their mean kept. Rescales β."""
    normalize_scores: int = 0
    """Above 0: scores to mean 0 and standard deviation 1 of so many samples of the reference. Rescales β."""
    aggregation: str = "token_mean"
    """"token_mean" over the minibatch, "sequence_mean" (1/length), or "sequence_sum" (sum a text, mean of them)."""
    ratio_tolerance: float = 1e-3
    """|log ratio| of the first minibatch above which a warning names the worst token (.5 in 16-bit)."""


def policy_loss(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, clip_range: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Clipped surrogate per token, −min(ρ·A, clip(ρ, 1−ε, 1+ε)·A), and where the clip took hold; (B, T) each."""
    ratio = (logprobs - old_logprobs).exp()
    free, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(free, clipped), clipped > free


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, clip_range: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """½·max((V − ret)², (clip(V, V_old ± ε) − ret)²) per token, and where the clip took hold; (B, T) each."""
    free = (values - returns).square()
    if clip_range is None:
        return 0.5 * free, torch.zeros_like(free, dtype=torch.bool)
    near = old_values + (values - old_values).clamp(-clip_range, clip_range)
    clipped = (near - returns).square()
    return 0.5 * torch.maximum(free, clipped), clipped > free


def weights(mask: torch.Tensor, aggregation: str) -> torch.Tensor:
    """(B, T) weights w with loss = Σ w·token loss, for a minibatch's response mask (B, T).

    token_mean: 1/Σ_i T_i.  sequence_mean: 1/(B·T_i).  sequence_sum: 1/B.
    """
    m = mask.float()
    if aggregation == "token_mean":
        return m / m.sum()
    if aggregation == "sequence_mean":
        return m / m.sum(-1, keepdim=True) / len(m)
    return m / len(m)


class PPO(LMAgent):
    """PPO with a value head; see the module's docstring for the loss and :class:`PPOConfig` for every field."""

    config_class: ClassVar[type[AgentConfig]] = PPOConfig
    name: ClassVar[str] = "ppo"
    config: PPOConfig

    def __init__(self, env: Any, **config: Any) -> None:
        super().__init__(env, **config)
        c = self.config
        self._check()
        self.adaptive = None if c.kl_target is None else kl.AdaptiveKL(self.kl_coef, c.kl_target, c.kl_horizon)
        self.ema = None
        if c.kl_reference == "ema":
            self.ema = copy.deepcopy(self.policy.lm).freeze()
        self.score_scale: tuple[float, float] | None = None

    def _check(self) -> None:
        c = self.config
        for name, value, known in (
            ("kl_in", c.kl_in, ("reward", "loss", "entropy")),
            ("kl_estimator", c.kl_estimator, kl.ESTIMATORS),
            ("kl_reference", c.kl_reference, ("initial", "ema")),
            ("aggregation", c.aggregation, AGGREGATIONS),
        ):
            if value not in known:
                raise ValueError(f"{name} expected one of {known}, got {value!r}")
        if c.critic == "none":
            raise ValueError("critic expected 'shared', 'separate' or a reward model's folder: PPO needs values")
        if not 1 <= c.minibatch_size <= c.batch_size:
            raise ValueError(f"minibatch_size expected 1 to batch_size={c.batch_size}, got {c.minibatch_size}")
        for name, low, high in BOUNDS:
            x = getattr(c, name)
            if x is not None and not low <= x <= high:
                raise ValueError(f"{name} expected {low:g} to {high:g}, got {x!r}")
        if self.base.kl_mode == "none" and self.kl_coef and c.kl_in != "loss":
            raise ValueError(
                f"the environment pays no KL (kl_mode='none') and kl_in={c.kl_in!r} would: make it with "
                "kl_mode='reference' or 'reported', or choose kl_in='loss', or kl_coef=0"
            )
        if self.wrappers and (c.kl_reference == "ema" or c.normalize_scores):
            raise ValueError("kl_reference='ema' and normalize_scores expected an environment without wrappers")
        if c.kl_target is not None and c.kl_in == "entropy":
            raise ValueError("kl_target expected kl_in='reward' or 'loss', got 'entropy'")
        if c.kl_in != "loss" and c.kl_estimator != "k2":
            raise ValueError(
                f"kl_estimator={c.kl_estimator!r} has no effect with kl_in={c.kl_in!r}, it is for kl_in='loss'"
            )
        beside = (c.kl_in != "reward" and self.kl_coef > 0) or c.ent_coef > 0
        if beside and (c.whiten_advantages or c.whiten_rewards):
            warnings.warn(
                "whitening rescales the reward against the KL or entropy in the loss, so β means something else every "
                "update (worked example: k2 ends at regret .418, not .0099); set whiten_advantages=False",
                stacklevel=3,
            )
        if c.kl_in == "loss" and c.kl_estimator == "k1" and self.kl_coef > 0:
            warnings.warn(
                "k1 in the loss has no expected gradient: training will pay no KL; use 'k2' or 'exact'", stacklevel=3
            )

    @property
    def reward_kl_mode(self) -> str:
        return {"reward": "reported", "loss": "none", "entropy": "reference"}[self.config.kl_in]

    # ---- texts and advantages ------------------------------------------------------------------------------------

    def collect(self) -> tuple[Rollout, dict[str, float]]:
        if self.config.normalize_scores and self.score_scale is None:
            self.score_scale = self._reference_scale(self.config.normalize_scores)
        rollout, metrics = super().collect()
        if rollout.values is None:
            rollout.values = self._critic_values(rollout)
        if "cut" in (rollout.finish_reasons or []):
            rollout.bootstrap = self._values_after(rollout)
        if self.score_scale is not None:
            assert rollout.scores is not None
            mean, std = self.score_scale
            last = rollout.lengths - 1
            rollout.rewards[torch.arange(len(rollout)), last] += (rollout.scores - mean) / std - rollout.scores
        if self.ema is not None:
            paid = self._pay_ema(rollout)
            metrics |= {key: metrics[key] + paid for key in ("objective/rlhf_reward", "objective/non_score_reward")}
        return rollout, metrics

    def _reference_scale(self, n: int) -> tuple[float, float]:
        from lm_gym.collect import batched_texts
        from lm_gym.decoding import Engine

        engine = Engine(self.mdp.reference, guide=self.mdp.reference, seed=self.config.seed + 2)
        prompts = [self.mdp.prompts[i % len(self.mdp.prompts)] for i in range(n)]
        completions = batched_texts(self.mdp, engine, prompts, rows=256)
        scores = self.mdp.judge(prompts, [c.tokens for c in completions], [c.finish_reason for c in completions])[0]
        if scores.std() == 0:
            raise ValueError(
                f"normalize_scores expected scores that differ, got {scores[0]} for {n} samples of the reference"
            )
        return float(scores.mean()), float(scores.std())

    @torch.no_grad()
    def _critic_values(self, rollout: Rollout) -> torch.Tensor:
        assert self.policy.critic is not None
        out = torch.zeros(rollout.response_mask.shape)
        for at in torch.arange(len(rollout)).split(self.config.minibatch_size):
            part = rollout.select(at)
            t = part.response_mask.shape[1]
            device = self.policy.lm.device
            values = self.policy.critic(part.input_ids.to(device), part.attention_mask.to(device), t)
            out[at, :t] = values.cpu() * part.response_mask
        return out

    @torch.no_grad()
    def _values_after(self, rollout: Rollout) -> torch.Tensor:
        """(B,) V of the state that a text was cut off in, by a wrapper; 0 for those that ended."""
        out = torch.zeros(len(rollout))
        cut = torch.tensor([i for i, reason in enumerate(rollout.finish_reasons or []) if reason == "cut"])
        for at in cut.split(self.config.minibatch_size):
            part, device = rollout.select(at), self.policy.lm.device
            # one column more, never attended to by what is read: the state before it is the one after the last token
            ids, seen = (torch.nn.functional.pad(x, (0, 1)).to(device) for x in (part.input_ids, part.attention_mask))
            _, values = self.policy(ids, seen, part.response_mask.shape[1] + 1)
            assert values is not None
            out[at] = values.cpu()[torch.arange(len(at)), part.lengths]
        return out

    def _pay_ema(self, rollout: Rollout) -> float:
        """Pay KL against the slow copy in place of the initial reference; the mean that a text gets more for it."""
        assert self.ema is not None and rollout.ref_logprobs is not None
        width = rollout.response_mask.shape[1]
        prompts, tokens = [], []
        for ids, seen, length in zip(rollout.input_ids, rollout.attention_mask, rollout.lengths.tolist(), strict=True):
            prompts.append(ids[:-width][seen[:-width].bool()].tolist())
            tokens.append(ids[-width:][:length].tolist())
        ema_logprobs, ema_hidden = self.mdp.reference_pass(prompts, tokens, hidden=True, lm=self.ema)
        ema_logprobs = ema_logprobs * rollout.response_mask
        more = torch.zeros_like(rollout.rewards)
        if self.config.kl_in in ("reward", "entropy"):
            more = self.kl_coef * (ema_logprobs - rollout.ref_logprobs)
        rollout.rewards = rollout.rewards + more
        rollout.ref_logprobs, rollout.ref_hidden = ema_logprobs, ema_hidden
        return float(more.sum(-1).mean())

    def advantages(self, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
        """Advantages (whitened where asked) and returns of a rollout, (B, T) each."""
        c, mask = self.config, rollout.response_mask
        assert rollout.values is not None
        rewards = whiten(rollout.rewards, mask, shift_mean=False) if c.whiten_rewards else rollout.rewards
        advantages, returns = gae(rewards, rollout.values, mask, gamma=c.gamma, lam=c.lam, bootstrap=rollout.bootstrap)
        return (whiten(advantages, mask) if c.whiten_advantages else advantages), returns

    # ---- the update ----------------------------------------------------------------------------------------------

    def update(self, rollout: Rollout) -> dict[str, float]:
        c = self.config
        assert rollout.values is not None
        advantages, returns = self.advantages(rollout)
        stats: list[dict[str, float]] = []
        ev = explained_variance(rollout.values, returns, rollout.response_mask)
        for _ in range(c.epochs):
            order = torch.randperm(len(rollout), generator=self.generator)
            for index in order.split(c.minibatch_size):
                stats.append(self._minibatch(rollout, index, advantages, returns, first=not stats))
                norm = torch.nn.utils.clip_grad_norm_(list(self.params.values()), c.max_grad_norm)
                stats[-1]["grad/norm"] = float(norm)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self._move_ema()
        if self.adaptive is not None and rollout.ref_logprobs is not None:
            paid = ((rollout.logprobs - rollout.ref_logprobs) * rollout.response_mask).sum(-1)  # k1, as in the reward
            self.kl_coef = self.adaptive.update(float(paid.mean()), len(rollout))
        out = {key: sum(s[key] for s in stats) / len(stats) for key in stats[-1]}
        if len(stats) > 1:
            out["val/ratio_var"] = float(torch.tensor([s["val/ratio"] for s in stats]).var())
        out["val/first_ratio_error"] = stats[0]["val/first_ratio_error"]
        if ev == ev:  # there is none where all returns are equal
            out["val/explained_variance"] = ev
        return out

    def _minibatch(
        self, rollout: Rollout, index: torch.Tensor, advantages: torch.Tensor, returns: torch.Tensor, *, first: bool
    ) -> dict[str, float]:
        """Gradients of one minibatch, in micro-batches whose weights add up to the minibatch's."""
        c = self.config
        share = torch.zeros(rollout.response_mask.shape)
        share[index] = weights(rollout.response_mask[index], c.aggregation)
        total: dict[str, float] = {}
        for part in index.split(c.micro_batch_size or len(index)):
            loss, stats = self._loss(rollout.select(part), part, advantages, returns, share, first=first)
            loss.backward()  # type: ignore[no-untyped-call]
            for key, value in stats.items():
                total[key] = (
                    max(total.get(key, 0.0), value) if key == "val/first_ratio_error" else total.get(key, 0.0) + value
                )
        return total

    def _loss(
        self,
        part: Rollout,
        index: torch.Tensor,
        advantages: torch.Tensor,
        returns: torch.Tensor,
        share: torch.Tensor,
        *,
        first: bool,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        c, device, lm = self.config, self.policy.lm.device, self.policy.lm
        mask = part.response_mask
        t = mask.shape[1]
        logits, values = self.policy(part.input_ids.to(device), part.attention_mask.to(device), t)
        assert values is not None and part.values is not None
        allowed = None if part.allowed is None else part.allowed.to(device)
        no_eos = None if part.no_eos is None else part.no_eos.to(device)
        logp = torch.log_softmax(restrict(logits, allowed=allowed, no_eos=no_eos, eos_ids=lm.eos_ids), -1)
        tokens, m = part.tokens.to(device), mask.to(device)
        # behind the end there may be ids that a restriction forbids: their log-prob is −inf, and no part of anything
        new = token_logprobs(logp, tokens.clamp(max=lm.vocab_size - 1)).masked_fill(~m, 0.0)
        old = part.logprobs.to(device)
        adv, ret = advantages[index, :t].to(device), returns[index, :t].to(device)
        w = share[index, :t].to(device)

        surrogate, clipped = policy_loss(new, old, adv, c.clip_range)
        value, value_clipped = value_loss(values, part.values.to(device), ret, c.clip_range_value)
        loss = (w * surrogate).sum() + c.vf_coef * (w * value).sum()
        stats = {
            "loss/policy_avg": float((w * surrogate).sum().detach()),
            "loss/value_avg": float((w * value).sum().detach()),
        }

        if c.kl_in == "loss":
            penalty = self._kl_term(part, logp, new)
            loss = loss + self.kl_coef * (w * penalty).sum()
            stats["loss/kl_avg"] = float((w * penalty).sum().detach())
        bonus = c.ent_coef + (self.kl_coef if c.kl_in == "entropy" else 0.0)
        if bonus:
            p = logp.exp()
            entropy = -(p * logp.masked_fill(p == 0, 0.0)).sum(-1)
            loss = loss - bonus * (w * entropy).sum()
        with torch.no_grad():
            log_ratio = (new - old) * m
            error = float(log_ratio.abs().max())
            if first:
                self._check_ratio(part, log_ratio.cpu(), old.cpu(), new.detach().cpu())
            n = share.sum()
            stats |= {
                "policy/approxkl_avg": float((w * 0.5 * log_ratio.square()).sum() / n),
                "policy/clipfrac_avg": float((w * clipped).sum() / n),
                "val/clipfrac_avg": float((w * value_clipped).sum() / n),
                "val/ratio": float((w * log_ratio.exp()).sum() / n),
                "val/first_ratio_error": error,
            }
        return loss, stats

    def _kl_term(self, part: Rollout, logp: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        assert part.ref_logprobs is not None
        if self.config.kl_estimator != "exact":
            return kl.estimate(new, part.ref_logprobs.to(new.device), self.config.kl_estimator)
        assert part.ref_hidden is not None
        ref = self.mdp.reference if self.ema is None else self.ema
        with torch.no_grad():
            hidden = part.ref_hidden.to(ref.device, ref.dtype)
            ref_logp = torch.log_softmax(ref.head(hidden) / self.mdp.temperature, -1)
        return kl.exact(logp, ref_logp)

    def _check_ratio(self, part: Rollout, log_ratio: torch.Tensor, old: torch.Tensor, new: torch.Tensor) -> None:
        """The first minibatch is the behaviour policy itself: a ratio other than 1 is a bug or 16-bit rounding."""
        half = self.policy.lm.dtype != torch.float32
        tolerance = max(self.config.ratio_tolerance, 0.5) if half else self.config.ratio_tolerance
        if float(log_ratio.abs().max()) <= tolerance:
            return
        i, t = divmod(int(log_ratio.abs().argmax()), log_ratio.shape[1])
        token = int(part.tokens[i, t])
        warnings.warn(
            f"the ratio of the first minibatch is not 1: token {t} ({token}, {self.policy.lm.decode([token])!r}) of "
            f"{(part.texts or [''] * len(part))[i]!r} had log-prob {float(old[i, t]):.5f} while decoding and has "
            f"{float(new[i, t]):.5f} now",
            stacklevel=2,
        )

    def _move_ema(self) -> None:
        assert self.ema is not None
        with torch.no_grad():
            for slow, fast in zip(self.ema.parameters(), self.policy.lm.parameters(), strict=True):
                slow.lerp_(fast, 1.0 - self.config.ema_decay)

    # ---- keeping -------------------------------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Any]:
        return {
            "adaptive": None if self.adaptive is None else self.adaptive.state_dict(),
            "score_scale": None if self.score_scale is None else list(self.score_scale),
        }

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        if self.adaptive is not None and state.get("adaptive"):
            self.adaptive.load_state_dict(state["adaptive"])
            self.kl_coef = self.adaptive.value
        scale = state.get("score_scale")
        self.score_scale = None if scale is None else (float(scale[0]), float(scale[1]))

    def extra_tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        return {} if self.ema is None else {"ema": dict(self.ema.named_parameters())}

    def load_extra_tensors(self, groups: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        if self.ema is None:
            return
        slow = dict(self.ema.named_parameters())
        if set(groups.get("ema", {})) != set(slow):
            raise ValueError("checkpoint expected the slow copy of the policy in ema.safetensors")
        with torch.no_grad():
            for key, p in slow.items():
                p.copy_(groups["ema"][key])
