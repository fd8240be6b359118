"""What policy-gradient agents share: configuration fields, and passes over a rollout in minibatches of whole texts.

An algorithm hands :func:`fit` a loss of one :class:`Minibatch`. Everything around it stands here once: the forward
pass, the restriction of the choice, the weights of the average, KL or entropy in the loss, gradient clipping, the
optimizer, diagnostics.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from lm_gym import blame
from lm_gym.agent_config import AgentConfig
from lm_gym.forward import chosen_logprobs
from lm_gym.losses import policy_loss, value_loss, weights
from lm_gym.rollout import Rollout

if TYPE_CHECKING:
    from lm_gym.agent import LMAgent

Stats = dict[str, torch.Tensor]
Loss = Callable[["Minibatch"], tuple[torch.Tensor, Stats]]


@dataclass
class PolicyGradientConfig(AgentConfig):
    """Fields of every policy-gradient agent, beside those of :class:`lm_gym.agent_config.AgentConfig`."""

    minibatch_size: int | None = None
    """Texts an optimizer step; None: the whole batch."""
    micro_batch_size: int | None = None
    """Texts a forward pass, the gradients adding up to the minibatch's; None: the minibatch. Saves memory only."""
    aggregation: str = "token_mean"
    """"token_mean" over the minibatch, "sequence_mean" (1/length), "sequence_sum" (sum a text, mean of them) or
    "constant" (that sum over the tokens that a text may have at most)."""
    kl_in: str = "reward"
    """Where KL is paid: "reward" (−β·(log π − log π_ref) a token, without bias), "loss" (+β·estimator), or "entropy"
    (reward β·log π_ref, −β·entropy in the loss)."""
    kl_estimator: str = "k2"
    """With kl_in="loss": "k1", "k2", "k3", or "exact" (per state, over the vocabulary)."""
    kl_target: float | None = None
    """Nats a text that an adaptive coefficient steers to; None: the coefficient is fixed."""
    kl_horizon: int = 10_000
    """Texts (not updates) over which the adaptive coefficient moves by its error, of which at most .2 counts; above
    batch_size/5, or one update could turn it negative."""
    kl_reference: str = "initial"
    """What KL is paid against: "initial" (the environment's reference) or "ema" (a slow copy of the policy)."""
    ema_decay: float = 0.95
    """Share of the slow copy that an update keeps."""
    ent_coef: float = 0.0
    """Weight of an entropy bonus in the loss. Not a substitute for KL: it biases the end point."""
    normalize_scores: int = 0
    """Above 0: scores to mean 0 and standard deviation 1 of so many samples of the reference. Rescales β."""
    engine: str = "builtin"
    """What decodes the texts of an update: "builtin", or "vllm" (the extra `vllm`)."""
    ratio_tolerance: float = 1e-3
    """|log ratio| of the first minibatch above which a warning names the worst token (.5 in 16-bit)."""
    autocast: str | None = None
    """"bfloat16": the update's matrix products in 16 bits. Faster; log-probs are off by about .006. None: not."""


class Minibatch:
    """The n response tokens of some texts, with what the policy says of them now. Everything is flat, (n, ...).

    Attributes:
        texts: (b,) which texts of the rollout. text: (n,) which of these b each token belongs to.
        logprobs: (n,) log π of the tokens, with gradient. old_logprobs: (n,) while decoding.
        values: (n,) or None, with gradient. weights: (n,) what the mean of token losses weighs each by.
    """

    def __init__(
        self, agent: LMAgent, rollout: Rollout, index: torch.Tensor, share: torch.Tensor, total: float
    ) -> None:
        self.agent, self.texts, self.part, self.total = agent, index, rollout.select(index), total
        self.device = agent.policy.lm.device
        self.mask = self.part.response_mask
        text, step = self.mask.nonzero(as_tuple=True)
        self.where = index[text], step  # of each token in the rollout's (B, T)
        self.text = text.to(self.device)
        part = self.part
        config = agent.config
        assert isinstance(config, PolicyGradientConfig)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.autocast is not None):
            self.hidden, self.values = agent.policy.at_tokens(
                part.input_ids, part.attention_mask, self.mask, part.below
            )
            self.logits = self._logits()
        self.weights = self.take(share)
        self.old_logprobs, self.tokens = self.take(rollout.logprobs), self.take(rollout.tokens)
        self.logprobs = chosen_logprobs(self.logits, self.tokens)

    @cached_property
    def logp(self) -> torch.Tensor:
        """(n, V) log π(·|s) over what may be chosen, with gradient."""
        return torch.log_softmax(self.logits, -1)

    def _logits(self) -> torch.Tensor:
        """(n, V) of the policy, −inf where nothing may be chosen."""
        allowed, no_eos = (
            None if x is None else x[self.mask].to(self.device) for x in (self.part.allowed, self.part.no_eos)
        )
        return self.agent.mdp.logits(self.agent.policy.lm, self.hidden, allowed=allowed, no_eos=no_eos)

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """(n, ...) of something that the whole rollout has for every token, (B, T, ...), or every text, (B,)."""
        return x[self.where[0] if x.dim() == 1 else self.where].to(self.device)

    def sums(self, x: torch.Tensor) -> torch.Tensor:
        """(b,) sums of (n,) over each text."""
        return torch.zeros(len(self.texts), device=self.device, dtype=x.dtype).index_add(0, self.text, x)

    def mean(self, x: torch.Tensor) -> torch.Tensor:
        """The weighted sum of a token loss (n,): this micro-batch's part of the minibatch's mean."""
        return (self.weights * x).sum()

    def share(self, x: torch.Tensor) -> torch.Tensor:
        """The weighted mean of what is logged (n,), whose weights add up to 1 over the minibatch's parts."""
        return self.mean(x.detach().float()) / self.total


def surrogate(
    batch: Minibatch,
    advantages: torch.Tensor,
    clip_range: float | None = None,
    clip_range_high: float | None = None,
) -> tuple[torch.Tensor, Stats]:
    """The policy loss of a minibatch, :func:`lm_gym.losses.policy_loss`, and what to log of it.

    Args:
        advantages: of the whole rollout, a number a token (B, T) or a text (B,).
    """
    loss, clipped = policy_loss(batch.logprobs, batch.old_logprobs, batch.take(advantages), clip_range, clip_range_high)
    mean = batch.mean(loss)
    stats = {"loss/policy_avg": mean}
    return mean, stats if clip_range is None else stats | {"policy/clipfrac_avg": batch.share(clipped)}


def value_error(
    batch: Minibatch, returns: torch.Tensor, old_values: torch.Tensor, clip_range: float | None = None
) -> tuple[torch.Tensor, Stats]:
    """The value loss of a minibatch, :func:`lm_gym.losses.value_loss`, and what to log of it.

    Args:
        returns, old_values: of the whole rollout, (B, T).
    """
    assert batch.values is not None
    loss, clipped = value_loss(batch.values, batch.take(old_values), batch.take(returns), clip_range)
    mean = batch.mean(loss)
    stats = {"loss/value_avg": mean}
    return mean, stats if clip_range is None else stats | {"val/clipfrac_avg": batch.share(clipped)}


def fit(
    agent: LMAgent,
    rollout: Rollout,
    loss: Loss,
    *,
    epochs: int = 1,
    keep: torch.Tensor | None = None,
    beside: Callable[[int], dict[str, float]] | None = None,
    collected: Rollout | None = None,
) -> dict[str, float]:
    """Passes over a rollout in minibatches; returns the means of what they logged, nothing where no text is trained on.

    Args:
        loss: of a minibatch: a scalar with gradient (a weighted sum over its tokens, so that micro-batches add up), and
            weighted sums to log. The KL or entropy that ``kl_in`` puts in the loss is added here.
        keep: (B,) bool, which texts weigh anything; None: all.
        beside: adds the gradient of another loss to every minibatch's, given its number of texts; returns what to log.
        collected: what the policy drew, where ``rollout`` is only a part of it: an adaptive β goes by its KL.
    """
    c = agent.config
    assert isinstance(c, PolicyGradientConfig) and agent.kl_control is not None
    if rollout.below is None:  # decoding kept it, unless it went through other code than this package's
        rollout.below = agent.policy.below(rollout.input_ids, rollout.attention_mask)
    stats: list[dict[str, float]] = []
    for _ in range(epochs):
        order = torch.randperm(len(rollout), generator=agent.generator)
        for index in order.split(c.minibatch_size or len(rollout)):
            if keep is not None and not keep[index].any():
                continue
            stats.append(gradient(agent, rollout, index, loss, first=not stats, keep=keep))
            if beside is not None:
                stats[-1] |= beside(len(index))
            stats[-1]["grad/norm"] = norm = agent.optimizer.clip(c.max_grad_norm)
            if not math.isfinite(norm):
                blame.check_gradient(norm, rollout.select(index))
            agent.optimizer.step()
            agent.optimizer.zero_grad(set_to_none=True)
    agent.kl_control.after_update(rollout if collected is None else collected)
    if not stats:
        return {}
    out = {key: sum(s[key] for s in stats) / len(stats) for key in stats[-1]}
    if len(stats) > 1:
        out["val/ratio_var"] = float(torch.tensor([s["val/ratio"] for s in stats]).var())
    out["val/first_ratio_error"] = stats[0]["val/first_ratio_error"]
    return out


def gradient(
    agent: LMAgent,
    rollout: Rollout,
    index: torch.Tensor,
    loss: Loss,
    *,
    first: bool = False,
    keep: torch.Tensor | None = None,
) -> dict[str, float]:
    """Adds up the gradient of one minibatch of texts (b,), in micro-batches whose weights make the minibatch's."""
    c = agent.config
    assert isinstance(c, PolicyGradientConfig) and agent.kl_control is not None
    share = torch.zeros(rollout.response_mask.shape)
    counts = rollout.response_mask if keep is None else rollout.response_mask & keep[:, None]
    share[index] = weights(counts[index], c.aggregation, agent.mdp.max_new_tokens)
    size = float(share.sum())
    total: dict[str, float] = {}
    for part in index.split(c.micro_batch_size or len(index)):
        batch = Minibatch(agent, rollout, part, share, size)
        value, stats = loss(batch)
        more, kl_stats = agent.kl_control.in_the_loss(batch)
        (value if more is None else value + more).backward()  # type: ignore[no-untyped-call]
        agent.optimizer.gather()
        stats = stats | kl_stats | _ratios(batch)
        numbers: dict[str, float] = {}
        for key, number in zip(stats, torch.stack([x.detach().float() for x in stats.values()]).tolist(), strict=True):
            worst = key == "val/first_ratio_error"
            numbers[key] = number
            total[key] = max(total.get(key, 0.0), number) if worst else total.get(key, 0.0) + number
        rounded = c.autocast is not None or agent.policy.lm.dtype != torch.float32
        tolerance = max(c.ratio_tolerance, 0.5) if rounded else c.ratio_tolerance
        blame.check_minibatch(batch, numbers, mismatch=blame.MISMATCH * tolerance if first else None)
        if first:
            _check_ratio(agent, batch, tolerance)
    return total


def _ratios(batch: Minibatch) -> Stats:
    log_ratio = (batch.logprobs - batch.old_logprobs).detach()
    return {
        "policy/approxkl_avg": batch.share(0.5 * log_ratio.square()),
        "val/ratio": batch.share(log_ratio.exp()),
        "val/first_ratio_error": log_ratio.abs().max(),
    }


def _check_ratio(agent: LMAgent, batch: Minibatch, tolerance: float) -> None:
    """Before the first step old and new log-probs are of the same weights: they must be equal up to rounding."""
    new = batch.logprobs.detach()
    error = (new - batch.old_logprobs).abs()
    if float(error.max()) <= tolerance:
        return
    at = int(error.argmax())
    text, place = batch.mask.nonzero()[at].tolist()
    token = int(batch.tokens[at])
    warnings.warn(
        f"the ratio of the first minibatch is not 1: token {place} ({token}, {agent.policy.lm.decode([token])!r}) of "
        f"{(batch.part.texts or [''] * len(batch.texts))[text]!r} had log-prob {float(batch.old_logprobs[at]):.5f} "
        f"while decoding and has {float(new[at]):.5f} now",
        stacklevel=2,
    )
