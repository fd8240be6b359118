"""Agents from outside: Stable-Baselines3 on LM Gym's vector environment, with the exact KL reward.

    env = SB3VecEnv(gym.make_vec("LMAlign-v0", num_envs=32))
    model = PPO(LMActorCriticPolicy, env, gamma=1.0, policy_kwargs={"mdp": env.mdp})
    model.learn(100_000, callback=ExactKL())

docs/sb3.md has step sizes that work, smaller agents, and what a discount or an entropy bonus costs.
"""

from __future__ import annotations

import time
import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from lm_gym.agents.sb3_policy import LMActorCriticPolicy, TextRolloutBuffer
from lm_gym.mdp import AlignmentMDP
from lm_gym.vector_env import LMAlignVectorEnv

RESET_KEYS = ("prompt", "prompt_id", "action_mask", "action_tokens")
"""What the infos of a row that ended say about its next text."""


class SB3VecEnv(VecEnv):
    """``gym.make_vec("LMAlign-v0", num_envs=N)`` as Stable-Baselines3's VecEnv; one reference cache serves all rows.

    It pays the exact KL reward, so learning takes ``callback=ExactKL()``. To evaluate, make a second one with
    ``kl_mode="none"``: then rewards are the reward model's score alone. The reset after an end happens in the same
    step, and a text that reached its length limit has terminated: nothing bootstraps on top of its score.

    Args:
        env: an LM Gym vector environment, bare or in vector wrappers. ``kl_mode="reference"`` becomes ``"reported"``.
            Observations are ``"tokens"`` or ``"hidden"``; SB3 takes no text.

    ``infos[i]`` holds what the single environment's ``info`` does, and at an end ``terminal_observation``,
    ``TimeLimit.truncated`` (False) and Monitor's ``episode`` (``r`` return, ``l`` tokens, ``t`` seconds since the
    start).
    """

    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any]) -> None:
        base = getattr(env, "unwrapped", env)
        if not isinstance(base, LMAlignVectorEnv):
            raise ValueError(
                "SB3VecEnv expected gym.make_vec('LMAlign-v0', num_envs=N) without a vectorization_mode, got a "
                f"{type(base).__name__}; SB3's own make_vec_env wraps single environments"
            )
        if base.autoreset_mode is not gym.vector.AutoresetMode.SAME_STEP:
            raise ValueError(f"SB3VecEnv expected autoreset_mode='SameStep', got {base.autoreset_mode.value!r}")
        if base.stepper.observation_mode == "text":
            raise ValueError(
                "SB3VecEnv expected observation_mode='tokens' or 'hidden', got 'text': SB3 takes no strings"
            )
        if base.kl_mode == "reference":
            base.use_reported_kl(base.kl_coef)
        self.env, self.base = env, base
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self._actions: np.ndarray | None = None
        self._returns, self._lengths = np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=np.int64)
        self._started = time.time()

    @property
    def mdp(self) -> AlignmentMDP:
        """The problem: what ``policy_kwargs={"mdp": env.mdp}`` hands to :class:`LMActorCriticPolicy`."""
        return self.base.mdp

    def report_logprob(self, logprobs: Any) -> None:
        """Log-probs (N,) of the next actions; :class:`ExactKL` calls it."""
        self.base.report_logprob(logprobs)

    def reset(self) -> Any:
        seeds: Any = list(self._seeds)  # one a row, which Gymnasium's type does not know
        obs, info = self.env.reset(seed=seeds, options=self._row_options())
        self._reset_seeds()
        self._reset_options()
        self._returns[:], self._lengths[:] = 0, 0
        self.reset_infos = [row_info(info, i) for i in range(self.num_envs)]
        return obs

    def _row_options(self) -> dict[str, Any]:
        first = self._options[0]
        if all(options == first for options in self._options):
            return dict(first)
        if any(set(options) != {"prompt_id"} for options in self._options):
            raise ValueError("set_options expected the same options for every row, or a 'prompt_id' for each")
        return {"prompt_id": [options["prompt_id"] for options in self._options]}

    def step_async(self, actions: np.ndarray) -> None:
        if self.base.kl_mode == "reported" and self.base.stepper.reported is None:
            raise ValueError(
                "SB3VecEnv pays the exact KL reward and expected log-probs before every step: learn(..., "
                "callback=ExactKL()). To evaluate, step SB3VecEnv(gym.make_vec(..., kl_mode='none')), which pays the "
                "score alone"
            )
        self._actions = actions

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        obs, rewards, done, truncated, info = self.env.step(self._actions)
        if np.any(truncated):
            raise ValueError(
                f"a wrapper truncated rows {np.flatnonzero(truncated).tolist()}, but the environment inside goes on "
                "with their texts: cut texts off with max_new_tokens"
            )
        self._returns += rewards
        self._lengths += 1
        infos = []
        del info["valid"]  # always: no step is spent on a reset
        for i in range(self.num_envs):
            row = row_info(info, i)
            if done[i]:
                self.reset_infos[i] = {key: row.pop(key) for key in RESET_KEYS if key in row}
                row = self._last_info(row, i)
            infos.append(row)
        return obs, rewards.astype(np.float32), done, infos

    def _last_info(self, row: dict[str, Any], i: int) -> dict[str, Any]:
        row.update(row.pop("final_info"))
        row["terminal_observation"] = row.pop("final_obs")
        row["TimeLimit.truncated"] = False  # SB3 would add a value on top of a score already paid
        seconds = round(time.time() - self._started, 6)
        row["episode"] = {"r": float(self._returns[i]), "l": int(self._lengths[i]), "t": seconds}
        self._returns[i], self._lengths[i] = 0, 0
        return row

    def action_masks(self) -> np.ndarray:
        """(N, actions) bool, True where an action may be taken."""
        return self.base.action_masks()

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """``"action_masks"`` and ``"render"``, a list of rows: nothing else is a row's, they share one environment."""
        rows = list(self._get_indices(indices))
        if method_name == "action_masks":
            masks = self.action_masks()
            return [masks[i] for i in rows]
        if method_name == "render":
            lines = self.env.render()
            return [None if lines is None else lines[i] for i in rows]
        raise AttributeError(
            f"env_method expected 'action_masks' or 'render', got {method_name!r}: the rows share one environment, "
            "call its methods on .base"
        )

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The shared environment's attribute, once for each row."""
        return [getattr(self.base, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of the shared environment, for all rows or not at all."""
        if len(set(self._get_indices(indices))) < self.num_envs:
            raise ValueError(f"set_attr({attr_name!r}) expected all rows: they share one environment")
        setattr(self.base, attr_name, value)

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Any = None) -> list[bool]:
        """True for Monitor, whose ``episode`` info every row has: ``evaluate_policy`` asks."""
        return [wrapper_class is Monitor for _ in self._get_indices(indices)]

    def close(self) -> None:
        self.env.close()


def row_info(info: dict[str, Any], row: int) -> dict[str, Any]:
    """What a vector environment's ``info`` says about one row; nested dicts too."""
    out: dict[str, Any] = {}
    for key, values in info.items():
        if key.startswith("_") or not info.get(f"_{key}", np.ones(row + 1, dtype=bool))[row]:
            continue
        out[key] = row_info(values, row) if isinstance(values, dict) else values[row]
    return out


class ExactKL(BaseCallback):
    """Pays an unmodified agent the exact reward, R − β·(log π − log π_ref): ``learn(..., callback=ExactKL())``.

    While learning lasts, the log-probs that the policy returns with its actions are reported to the environment before
    every step. Works on :class:`SB3VecEnv`, on SB3's own DummyVecEnv and SubprocVecEnv of ``gym.make("LMAlign-v0")``,
    which stay in ``kl_mode="reported"``, and through wrappers of either. Warns where γ is not 1 or an entropy bonus is
    paid, and says what that costs.

    Raises:
        ValueError: at the start of learning, for an algorithm without log-probs or an environment that pays no KL.
    """

    _hooks: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()

    def _on_training_start(self) -> None:
        if not isinstance(self.model, OnPolicyAlgorithm):
            raise ValueError(
                f"ExactKL expected PPO, A2C, TRPO or MaskablePPO, got {type(self.model).__name__}: KL needs the "
                "log-probs of a stochastic policy"
            )
        venv = self.training_env.unwrapped
        if "none" in venv.get_attr("kl_mode"):
            raise ValueError("ExactKL expected an environment that pays KL, got kl_mode='none'")
        if not isinstance(venv, SB3VecEnv):
            venv.env_method("use_reported_kl")
        warn_of_discount(self.model.gamma, max(mdp.max_new_tokens for mdp in venv.get_attr("mdp")))
        warn_of_entropy(self.model.ent_coef)
        self._remove()  # of a learn() that an exception ended
        self._hooks[self.model.policy] = self.model.policy.register_forward_hook(self._report)

    def _report(self, policy: nn.Module, inputs: Any, outputs: Sequence[Any]) -> None:
        logprobs = outputs[2].detach().cpu().numpy()
        venv = self.training_env.unwrapped
        if isinstance(venv, SB3VecEnv):
            venv.report_logprob(logprobs)
            return
        for i, logprob in enumerate(logprobs):
            venv.env_method("report_logprob", float(logprob), indices=i)

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._remove()

    def _remove(self) -> None:
        hook = self._hooks.pop(self.model.policy, None)
        if hook is not None:
            hook.remove()


def warn_of_discount(gamma: float, max_new_tokens: int) -> None:
    """Says what γ < 1 does to a problem whose score comes with the last token."""
    if gamma != 1:
        warnings.warn(
            f"gamma={gamma}: the score comes with the last token, and of it only {gamma ** (max_new_tokens - 1):.2f} "
            f"reaches the first of {max_new_tokens}. On the worked language γ=.99 costs a regret of .0002 at horizon "
            "3, .0685 at 16 and 2.34 at 48: set gamma=1 (docs/sb3.md)",
            stacklevel=2,
        )


def warn_of_entropy(ent_coef: float) -> None:
    """Says what an entropy bonus does where KL is paid exactly."""
    if ent_coef != 0:
        warnings.warn(
            f"ent_coef={ent_coef}: the KL reward already keeps the policy from collapsing, and a bonus on top moves "
            "where training ends. On the worked language (β=.5) .01, .05 and .1 cost A2C a regret of .0002, .0040 and "
            ".0145: set ent_coef=0 (docs/sb3.md)",
            stacklevel=2,
        )


__all__ = ["ExactKL", "LMActorCriticPolicy", "SB3VecEnv", "TextRolloutBuffer"]
