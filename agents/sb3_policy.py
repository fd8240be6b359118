"""A language model as the policy of Stable-Baselines3's on-policy algorithms; made for :mod:`lm_gym.agents.sb3`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import BasePolicy
from torch.nn.attention import SDPBackend, sdpa_kernel

from lm_gym.agent_texts import state_logits
from lm_gym.cached_lm import CachedLM
from lm_gym.mdp import AlignmentMDP
from lm_gym.policy import Policy

Obs = dict[str, torch.Tensor]
EXACT_FLOATS = 2**24
"""Rollout buffers hand out actions as float32, which is exact for whole numbers up to here."""


class LMActorCriticPolicy(BasePolicy):
    """The problem's own language model, with a linear value head that starts at zero.

    ``PPO(LMActorCriticPolicy, env, policy_kwargs={"mdp": env.mdp})``, and so for A2C and sb3-contrib's TRPO and
    MaskablePPO. Rollouts decode one token a row over a KV cache. Updates are teacher-forced: observations of a
    minibatch that are prefixes of each other share one forward, and logits are computed at the asked-for places only.

    Args:
        observation_space: of ``observation_mode="tokens"``. action_space: Discrete(V), of ``action_mode="full"``.
        lr_schedule: share of training left (1 to 0) to step size.
        mdp: the problem; the policy starts as a copy of its model and works at its temperature.
        use_sde: refused; noise that depends on the state is for continuous actions.
        optimizer_class, optimizer_kwargs: as in SB3, whose Adam has eps 1e-5.

    Raises:
        ValueError: for other spaces than these.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Any,
        *,
        mdp: AlignmentMDP | None = None,
        use_sde: bool = False,
        optimizer_class: Any = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if mdp is None:
            raise ValueError("LMActorCriticPolicy expected its problem: policy_kwargs={'mdp': env.mdp}")
        if use_sde:
            raise ValueError("use_sde expected False: a language model's actions are tokens, not real numbers")
        if optimizer_kwargs is None:
            optimizer_kwargs = {"eps": 1e-5} if optimizer_class is torch.optim.Adam else {}
        super().__init__(
            observation_space, action_space, optimizer_class=optimizer_class, optimizer_kwargs=optimizer_kwargs
        )
        self.mdp = mdp
        self.language_model = Policy(mdp, critic="shared")  # TRPO knows a critic by its name: value_head has "value"
        self._check_spaces()
        dtype = self.language_model.lm.dtype
        if dtype != torch.float32:
            raise ValueError(
                f"LMActorCriticPolicy expected a model in float32, got {dtype}: SB3's optimizers move weights in their "
                "own type, in which small steps round to nothing. Make the problem with dtype='float32'"
            )
        self._actor: CachedLM | None = None
        self.optimizer = optimizer_class(self.parameters(), lr=lr_schedule(1), **optimizer_kwargs)

    def _check_spaces(self) -> None:
        observations, actions, lm = self.observation_space, self.action_space, self.language_model.lm
        if not isinstance(observations, spaces.Dict) or set(observations.spaces) != {"input_ids", "attention_mask"}:
            raise ValueError(
                "LMActorCriticPolicy expected observation_mode='tokens' (a Dict of input_ids and attention_mask), got "
                f"{observations}; 'MlpPolicy' is for observation_mode='hidden'"
            )
        if not isinstance(actions, spaces.Discrete) or actions.n != lm.vocab_size:
            raise ValueError(
                f"LMActorCriticPolicy expected action_mode='full', Discrete({lm.vocab_size}), got {actions}: the "
                "problem has another model, or actions are restricted to top_k"
            )
        if lm.vocab_size > EXACT_FLOATS:
            raise ValueError(
                f"SB3's buffers hand out actions as float32, exact up to {EXACT_FLOATS}: the model has {lm.vocab_size}"
            )

    def train(self, mode: bool = True) -> LMActorCriticPolicy:
        """SB3's switch around updates. Dropout stays off, so that updates see the log-probs that were acted with."""
        self.training = mode
        if mode:
            self._actor = None  # TRPO assigns .data, which a tensor's version does not tell
        return self

    # ---- two ways to the same states -----------------------------------------------------------------------------

    def _hidden(self, obs: Obs) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (N, V) and last hidden states (N, d): from the cache while acting, else teacher-forced."""
        if not self.training and not torch.is_grad_enabled():
            if self._actor is None:
                self._actor = CachedLM(self.language_model.lm, temperature=self.mdp.temperature)
            return self._actor.logits({key: value.cpu().numpy() for key, value in obs.items()})
        hidden = self._teacher_forced(obs)
        return self.language_model.lm.head(hidden) / self.mdp.temperature, hidden

    def _teacher_forced(self, obs: Obs) -> torch.Tensor:
        """Last hidden states (N, d) of whole prefixes."""
        ids, mask = obs["input_ids"].long(), obs["attention_mask"].long()
        lengths = mask.sum(1)
        whole, source = whole_texts(ids.cpu().numpy(), mask.cpu().numpy().astype(bool))
        at = torch.as_tensor(whole, device=ids.device)
        width = int(lengths.max())
        states = self.language_model.lm.trunk(ids[at, -width:], mask[at, -width:])
        row = torch.as_tensor(source, device=ids.device)
        column = width - 1 - (lengths[at][row] - lengths)  # texts end in the last column, their prefixes before it
        return states[row, column]

    def _distribution(self, logits: torch.Tensor, action_masks: Any) -> CategoricalDistribution:
        if action_masks is not None:
            allowed = torch.as_tensor(action_masks, device=logits.device).bool().reshape(logits.shape)
            logits = logits.masked_fill(~allowed, -torch.inf)
        return CategoricalDistribution(logits.shape[-1]).proba_distribution(action_logits=logits)

    def _value(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.language_model.value(hidden)[:, None]

    # ---- what SB3's algorithms call ------------------------------------------------------------------------------

    def forward(
        self, obs: Obs, deterministic: bool = False, action_masks: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Actions (N,), values (N, 1) and log-probs (N,) in the distribution that they were drawn from."""
        logits, hidden = self._hidden(obs)
        distribution = self._distribution(logits, action_masks)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, self._value(hidden), distribution.log_prob(actions)

    def evaluate_actions(
        self, obs: Obs, actions: torch.Tensor, action_masks: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Values (B, 1), log-probs (B,) of actions (B,) and entropies (B,), with gradients."""
        logits, hidden = self._hidden(obs)
        distribution = self._distribution(logits, action_masks)
        entropy = distribution.entropy()
        assert entropy is not None
        return self._value(hidden), distribution.log_prob(actions), entropy

    def get_distribution(self, obs: Obs, action_masks: Any = None) -> CategoricalDistribution:
        """The distribution over actions; TRPO's curvature asks for its second derivative."""
        # the fused CPU attention has a first derivative only
        twice = sdpa_kernel(SDPBackend.MATH) if torch.is_grad_enabled() else contextlib.nullcontext()
        with twice:
            return self._distribution(self._hidden(obs)[0], action_masks)

    def predict_values(self, obs: Obs) -> torch.Tensor:
        """(N, 1) values."""
        return self._value(self._hidden(obs)[1])

    def _predict(self, observation: Any, deterministic: bool = False, action_masks: Any = None) -> torch.Tensor:
        return self.get_distribution(observation, action_masks).get_actions(deterministic=deterministic)

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> tuple[Any, Any]:
        """(actions, state) as SB3's, for (N, L) or single observations; ``action_masks`` (N, V) as MaskablePPO's."""
        self.set_training_mode(False)
        obs, batched = self.obs_to_tensor(observation)
        with torch.no_grad():
            actions = self._predict(obs, deterministic, action_masks).cpu().numpy()
        return (actions if batched else actions[0]), state

    def exact_policy(self, language: Any) -> np.ndarray:
        """(S, V) probabilities in every state of an exact language: what :func:`lm_gym.exact.evaluate` takes."""
        logits = state_logits(self.language_model.lm, language, self.mdp.temperature)
        return torch.softmax(logits.double(), -1).cpu().numpy()

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            "mdp": self.mdp,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
        }


def whole_texts(ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which observations of a minibatch must be computed: those that are no prefix of another one.

    Args:
        ids, mask: (B, L), left-padded.

    Returns:
        rows (M,) that are no prefix of a later one, and for each row (B,) which of those M it is a prefix of.
    """
    texts = [row[seen].tolist() for row, seen in zip(ids, mask, strict=True)]
    whole: list[int] = []
    source = np.zeros(len(texts), dtype=np.int64)
    # sorted, a text stands right before what continues it; so from the end, a prefix is one of the last text kept
    for i in sorted(range(len(texts)), key=texts.__getitem__, reverse=True):
        if not whole or texts[whole[-1]][: len(texts[i])] != texts[i]:
            whole.append(i)
        source[i] = len(whole) - 1
    return np.array(whole, dtype=np.int64), source


class TextRolloutBuffer(DictRolloutBuffer):
    """Shuffles whole texts, not tokens: ``PPO(LMActorCriticPolicy, env, rollout_buffer_class=TextRolloutBuffer)``.

    A minibatch is still ``batch_size`` tokens, but the tokens of a text stand together in it, so that an epoch costs
    one forward a text. Where tokens are shuffled, every minibatch holds a token or two of nearly every text, and
    computes all of them.
    """

    def get(self, batch_size: int | None = None) -> Iterator[Any]:  # type: ignore[override]
        next(iter(super().get(1)))  # makes the arrays flat, row after row
        starts = self.episode_starts.copy()
        starts[0] = 1  # a text that was cut by the rollout's edge begins there
        text = np.cumsum(starts.T.reshape(-1)).astype(np.int64) - 1
        order = np.argsort(torch.randperm(int(text[-1]) + 1).numpy()[text], kind="stable")
        size = len(order) if batch_size is None else batch_size
        for begin in range(0, len(order), size):
            yield self._get_samples(order[begin : begin + size])


try:
    from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
except ImportError:
    pass
else:
    # MaskablePPO asks for this class by isinstance, and all it calls is here
    MaskableActorCriticPolicy.register(LMActorCriticPolicy)
