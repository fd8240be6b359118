"""Language models as step-by-step policies: what a loop of one's own over ``env.step`` acts with."""

from __future__ import annotations

import weakref
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from lm_gym.decoding import sample
from lm_gym.loading import load_model
from lm_gym.models import CausalLM
from lm_gym.rows import Rows

_watching: weakref.WeakSet[CachedLM] = weakref.WeakSet()


def _notice(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """After every optimizer's step: fused ones move weights without a new version of the tensor."""
    for policy in _watching:
        own = {id(p) for p in policy.lm.parameters()}
        policy.moved |= any(id(p) in own for group in optimizer.param_groups for p in group["params"])


register_optimizer_step_post_hook(_notice)


class CachedLM:
    """A language model as a policy with a KV cache: one token a row is computed, not the whole prefix.

    It recognises rows that only grew by one token since the last call; any other row is prefilled anew. Changed weights
    (an optimizer's step, a tensor written to) are noticed, and everything is prefilled anew. Put adapters into the
    model before its first text: those that come later are noticed once an optimizer has moved them.

    Args:
        model: as for :func:`lm_gym.loading.load_model`, or a :class:`CausalLM`. It is not copied.
        value_head: hidden states (n, d) to values (n,) or (n, 1), if there is one.
        temperature: the problem's. seed: of the generator that actions are drawn with.
    """

    def __init__(
        self,
        model: Any,
        *,
        value_head: nn.Module | None = None,
        temperature: float = 1.0,
        seed: int = 0,
        tokenizer: Any = None,
    ) -> None:
        self.lm: CausalLM = load_model(model, tokenizer=tokenizer)
        self.value_head, self.temperature = value_head, temperature
        self.generator = torch.Generator().manual_seed(seed)
        self._rows: Rows | None = None
        self._seen: tuple[np.ndarray, np.ndarray] | None = None
        self._weights: list[nn.Parameter] = []
        self._version = 0
        self.moved = False  # whether an optimizer has moved weights since the last call
        _watching.add(self)

    def __getstate__(self) -> dict[str, Any]:
        """For copy and pickle: without what was computed with weights that a copy no longer shares."""
        return self.__dict__ | {"_rows": None, "_seen": None, "_weights": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _watching.add(self)

    @torch.no_grad()
    def act(
        self, obs: Any, *, action_mask: Any = None, action_tokens: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Draw an action for every row.

        Args:
            obs: ``tokens`` observations, (N, L) each, or of a single environment, (L,).
            action_mask: (N, actions), ``info["action_mask"]``. action_tokens: (N, k), ``info["action_tokens"]``.
            deterministic: take the likeliest action.

        Returns:
            actions (N,) int64, their log-probs (N,) float32 in this policy's own distribution over what may be chosen,
            and values (N,) or None. For a single observation the same without N.
        """
        logits, hidden = self.logits(obs)
        single = np.asarray(obs["input_ids"]).ndim == 1
        if action_tokens is not None:
            logits = logits.gather(-1, torch.as_tensor(np.atleast_2d(action_tokens)).to(logits.device))
        if action_mask is not None:
            logits = masked(logits, np.atleast_2d(action_mask))
        logp = torch.log_softmax(logits, -1)
        if deterministic:
            actions = logp.argmax(-1)
        else:
            actions = sample(logp, torch.rand(len(logp), generator=self.generator).to(logp.device))
        chosen = logp.gather(-1, actions[:, None]).squeeze(-1).cpu().numpy()
        values = None
        if self.value_head is not None:
            values = self.value_head(hidden).reshape(len(logp)).float().cpu().numpy()
        out = actions.cpu().numpy()
        if single:
            return out[0], chosen[0], None if values is None else values[0]
        return out, chosen, values

    @torch.no_grad()
    def logits(self, obs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (N, V) over the temperature, and hidden states (N, d), of ``tokens`` observations."""
        if not isinstance(obs, dict) or not {"input_ids", "attention_mask"} <= set(obs):
            raise ValueError(
                "CachedLM expected observations of observation_mode='tokens' (a dict of input_ids and attention_mask), "
                f"got a {type(obs).__name__}"
            )
        ids = np.atleast_2d(np.asarray(obs["input_ids"], dtype=np.int64))
        mask = np.atleast_2d(np.asarray(obs["attention_mask"])).astype(bool)
        hidden = self._advance(ids, mask)
        self._seen = ids.copy(), mask.copy()
        logits = self.lm.head(hidden)
        return logits if self.temperature == 1.0 else logits / self.temperature, hidden

    def _advance(self, ids: np.ndarray, mask: np.ndarray) -> torch.Tensor:
        n, width = ids.shape
        version = sum(p._version for p in self._weights)
        grown = np.zeros(n, dtype=bool)
        changed = self.moved or version != self._version
        if self._rows is None or self._seen is None or self._seen[0].shape != ids.shape or changed:
            self._rows, self._weights = self.lm.rows(n, width), list(self.lm.parameters())
            version = sum(p._version for p in self._weights)
        else:
            old_ids, old_mask = self._seen
            same = (ids[:, :-1] == old_ids[:, 1:]) | ~mask[:, :-1]
            grown = same.all(1) & (mask[:, :-1] == old_mask[:, 1:]).all(1) & ~old_mask[:, 0]
        self._version, self.moved = version, False
        rows, new = self._rows, np.flatnonzero(~grown)
        hidden: torch.Tensor | None = None
        if grown.any():
            if len(new):
                rows.park(new.tolist())
            hidden = rows.step(torch.as_tensor(ids[:, -1]).to(self.lm.device))
        if len(new):
            fresh = rows.insert(new.tolist(), [ids[i][mask[i]].tolist() for i in new])
            if hidden is None:
                hidden = fresh
            else:
                hidden[torch.as_tensor(new)] = fresh
        assert hidden is not None
        return hidden


def masked(logits: torch.Tensor, action_mask: np.ndarray) -> torch.Tensor:
    """Logits (n, actions) with −inf where the mask (n, actions) is 0."""
    if action_mask.strides[0] == 0 and len(action_mask) == len(logits):  # one row that stands for all, as environments
        banned = np.flatnonzero(action_mask[0] == 0)  # give where they can: most often nothing, or the ends alone
        return logits.index_fill(-1, torch.as_tensor(banned).to(logits.device), -torch.inf) if len(banned) else logits
    forbidden = torch.as_tensor(action_mask == 0).to(logits.device)
    return logits.masked_fill(forbidden, -torch.inf)


class ReferenceAgent:
    """Samples from the reference: what a newcomer compares with, and what regret is measured from.

    It reads the log-probs that the environment has computed anyway, so it costs no decode of its own, and works with
    every observation and action mode. Made by :func:`reference_agent`.
    """

    def __init__(self, env: Any, seed: int = 0) -> None:
        stepper = getattr(env.unwrapped, "stepper", None)
        if stepper is None:
            raise ValueError(f"reference_agent expected an LMAlign environment, got {type(env.unwrapped).__name__}")
        self.stepper = stepper
        self.single = not isinstance(env, gym.vector.VectorEnv)
        self.generator = torch.Generator().manual_seed(seed)

    def __repr__(self) -> str:
        return f"ReferenceAgent({self.stepper.mdp.reference.name!r})"

    def predict(
        self, obs: Any = None, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> Any:
        """(action, None), as Stable-Baselines3's verb; the action is drawn for the environment's current state."""
        logp = self.stepper.logp
        if self.stepper.choices is not None:
            logp = logp.gather(-1, self.stepper.choices)
        mask = torch.as_tensor(np.array(self.stepper.action_masks(), dtype=bool))
        logp = torch.log_softmax(logp.masked_fill(~mask, -torch.inf), -1)
        uniform = torch.rand(len(logp), generator=self.generator)
        actions = (logp.argmax(-1) if deterministic else sample(logp, uniform)).numpy()
        return (int(actions[0]) if self.single else actions), None


def reference_agent(env: Any, seed: int = 0) -> ReferenceAgent:
    """An agent with ``.predict(obs)`` that samples from the environment's reference, within what may be chosen."""
    return ReferenceAgent(env, seed)


__all__ = ["CachedLM", "ReferenceAgent", "reference_agent"]
