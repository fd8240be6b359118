"""``gym.make_vec("LMAlign-v0", num_envs=N)``: N texts at once over one reference cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from lm_gym import live
from lm_gym.env import RENDER_MODES, check_arguments, choose_prompt, ending, make_mdp
from lm_gym.stepping import Stepper


class LMAlignVectorEnv(VectorEnv[Any, Any, np.ndarray]):
    """The native vector environment; each row behaves as :class:`lm_gym.env.LMAlignEnv` seeded with ``seed + row``.

    One reference cache serves all rows, a row is reset without touching the others, and the finished texts of a step
    are scored in one call of the reward model.

    Args:
        num_envs: N. autoreset_mode: "SameStep" (default), "NextStep" or "Disabled", or Gymnasium's ``AutoresetMode``.
        max_episode_steps: what Gymnasium passes along; it lies above ``max_new_tokens``.
        Others: as :class:`lm_gym.env.LMAlignEnv`.

    Infos are dicts of arrays (N,) with a mask ``_key`` each. ``valid`` (N,) is False on rows that a step only reset
    (next-step mode) or that wait for their reset (disabled mode). Under same-step autoreset ``final_obs`` and
    ``final_info`` hold what belongs to the text that ended; ``ref_logprob`` and the rewards' parts are always those of
    the transition.
    """

    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": 30}

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP,
        max_episode_steps: int | None = None,
        kl_mode: str | None = None,
        observation_mode: str = "tokens",
        action_mode: str = "full",
        top_k: int | None = None,
        render_mode: str | None = None,
        mdp: Any = None,
        **problem: Any,
    ) -> None:
        if isinstance(num_envs, bool) or not isinstance(num_envs, (int, np.integer)) or num_envs < 1:
            raise ValueError(f"num_envs expected a whole number from 1, got {num_envs!r}")
        if render_mode not in (None, "ansi"):
            raise ValueError(f"render_mode expected None or 'ansi' for the vector environment, got {render_mode!r}")
        try:
            self.autoreset_mode = AutoresetMode(autoreset_mode)
        except ValueError as e:
            names = [m.value for m in AutoresetMode]
            raise ValueError(f"autoreset_mode expected one of {names}, got {autoreset_mode!r}") from e
        check_arguments(problem)
        self.mdp = make_mdp(mdp=mdp, action_mode=action_mode, top_k=top_k, problem=problem)
        if max_episode_steps is not None and max_episode_steps <= self.mdp.max_new_tokens:
            raise ValueError(
                f"max_episode_steps expected more than max_new_tokens={self.mdp.max_new_tokens}, got "
                f"{max_episode_steps}: the length limit is part of the problem, lower max_new_tokens instead"
            )
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.num_envs, self.render_mode = int(num_envs), render_mode
        self.stepper = Stepper(
            self.mdp, self.num_envs, kl_mode=kl_mode, observation_mode=observation_mode, action_mode=action_mode
        )
        self.single_observation_space = self.stepper.single_observation_space
        self.single_action_space = self.stepper.single_action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.rngs = [seeding.np_random(None)[0] for _ in range(self.num_envs)]
        self.waiting = np.zeros(self.num_envs, dtype=bool)  # ended, and not reset yet

    @property
    def spec(self) -> Any:
        return getattr(self, "_spec", None)

    @spec.setter
    def spec(self, spec: Any) -> None:
        if spec is not None:
            spec.kwargs, self._live = live.to_spec(spec.kwargs)
        self._spec = spec

    @property
    def kl_mode(self) -> str:
        return self.stepper.kl_mode

    @property
    def kl_coef(self) -> float:
        """β in force."""
        return self.stepper.kl_coef

    def use_reported_kl(self, kl_coef: float | None = None) -> None:
        """As :meth:`lm_gym.env.LMAlignEnv.use_reported_kl`."""
        self.stepper.named_kl_mode = "reported"
        self.stepper.kl_coef = self.mdp.kl_coef if kl_coef is None else kl_coef

    def report_logprob(self, logprobs: Any) -> None:
        """The log-probs (N,) of the next actions in the agent's own distribution; rows not ``valid`` ignore theirs."""
        self.stepper.report(logprobs)

    def action_masks(self) -> np.ndarray:
        """(N, actions) bool, True where an action may be taken."""
        return self.stepper.action_masks().astype(bool)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start new episodes in all rows, or in those of ``options["reset_mask"]`` (N,) bool.

        ``seed`` an int seeds row i with ``seed + i``; a list gives each row its own. The other options are those of
        the single environment, for all rows that start; ``prompt_id`` may also be (N,), one for each.
        """
        options = dict(options or {})
        mask = options.pop("reset_mask", None)
        rows = list(range(self.num_envs)) if mask is None else self._masked(mask)
        if len(rows) < self.num_envs and self.stepper.prompts[0] is None:
            raise ResetNeeded("options['reset_mask'] expected rows that have begun: the first reset() takes all rows")
        seeds = [None] * self.num_envs if seed is None else seed
        if isinstance(seeds, (int, np.integer)):
            seeds = [int(seeds) + i for i in range(self.num_envs)]
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed expected a whole number or {self.num_envs} of them, got {len(seeds)}")
        for i in rows:
            if seeds[i] is not None:
                self.rngs[i] = seeding.np_random(seeds[i])[0]
        return self._observed(self._start(rows, options))

    def _masked(self, mask: Any) -> list[int]:
        mask = np.asarray(mask)
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise ValueError(
                f"options['reset_mask'] expected ({self.num_envs},) bool with at least one True, got {mask.dtype} "
                f"{mask.shape} with {int(np.count_nonzero(mask))} set"
            )
        return [int(i) for i in np.flatnonzero(mask)]

    def _start(self, rows: list[int], options: dict[str, Any] | None = None) -> dict[str, Any]:
        options = dict(options or {})
        ids = options.get("prompt_id")
        if isinstance(ids, (list, tuple, np.ndarray)):
            if len(ids) != self.num_envs:
                raise ValueError(f"options['prompt_id'] expected one number or {self.num_envs}, got {len(ids)}")
            prompts = [choose_prompt(self.mdp, self.rngs[i], {**options, "prompt_id": ids[i]}) for i in rows]
        else:
            plans = self.stepper.plans
            prompts = [choose_prompt(self.mdp, self.rngs[i], options, plans.get(i)) for i in rows]
        self.stepper.start(rows, prompts)
        self.waiting[rows] = False
        info: dict[str, Any] = {}
        self._put(info, "prompt", rows, [p.text for p in prompts], object)
        known = [(i, p.id) for i, p in zip(rows, prompts, strict=True) if p.id >= 0]
        if known:  # a prompt of one's own has no id
            self._put(info, "prompt_id", [i for i, _ in known], [k for _, k in known], np.int64)
        return info

    def _put(self, info: dict[str, Any], key: str, rows: Sequence[int], values: Any, dtype: Any) -> None:
        array = np.full(self.num_envs, None, object) if dtype is object else np.zeros(self.num_envs, dtype)
        mask = np.zeros(self.num_envs, dtype=bool)
        for i, value in zip(rows, values, strict=True):
            array[i] = value
        mask[list(rows)] = True
        info[key], info[f"_{key}"] = array, mask

    def _observed(self, info: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        live = self.stepper.live.copy()
        info["action_mask"], info["_action_mask"] = self.stepper.action_masks(), live
        ids = self.stepper.choice_ids()
        if ids is not None:
            info["action_tokens"], info["_action_tokens"] = ids, live
        return self.stepper.observe(), info

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or not np.issubdtype(actions.dtype, np.integer):
            raise ValueError(f"actions expected whole numbers ({self.num_envs},), got {actions.dtype} {actions.shape}")
        if self.stepper.prompts[0] is None:
            raise ResetNeeded("step() expected episodes, got none: call reset() first")
        resetting = np.flatnonzero(self.waiting).tolist()
        if self.autoreset_mode is AutoresetMode.DISABLED and len(resetting) == self.num_envs:
            raise ResetNeeded(
                "every row has ended and autoreset_mode is 'Disabled': call reset(options={'reset_mask': mask}) first"
            )
        valid = self.stepper.live.copy()
        out = self.stepper.step(actions)
        info: dict[str, Any] = {}
        everywhere = np.ones(self.num_envs, dtype=bool)
        for key, values in (
            ("ref_logprob", out.ref_logprobs),
            ("reward/task", out.task),
            ("reward/kl_penalty", out.kl_penalty),
        ):
            info[key], info[f"_{key}"] = values, valid
        info["valid"], info["_valid"] = valid, everywhere
        ended = list(out.texts)
        if ended:
            self._finish(info, out, ended)
        if self.autoreset_mode is AutoresetMode.NEXT_STEP and resetting:
            info.update(self._start(resetting))
        obs, info = self._observed(info)
        return obs, out.rewards, out.ended.copy(), np.zeros(self.num_envs, dtype=bool), info

    def _finish(self, info: dict[str, Any], out: Any, ended: list[int]) -> None:
        finals = [ending(self.stepper, out, i) for i in ended]
        target = info
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            target = {}
            for key in ("ref_logprob", "reward/task", "reward/kl_penalty"):
                self._put(target, key, ended, info[key][ended], np.float64)
            self._put(info, "final_obs", ended, [self.stepper.observe(i) for i in ended], object)
            mask = np.zeros(self.num_envs, dtype=bool)
            mask[ended] = True
            info["final_info"], info["_final_info"] = target, mask
        for key in dict.fromkeys(k for f in finals for k in f):
            there = [(i, f[key]) for i, f in zip(ended, finals, strict=True) if key in f]
            kinds = {type(value) for _, value in there}
            kind: Any = np.int64 if kinds == {int} else np.float64 if kinds <= {int, float} else object
            self._put(target, key, [i for i, _ in there], [value for _, value in there], kind)
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            info.update(self._start(ended))
        else:
            self.waiting[ended] = True

    def render(self) -> Any:
        """ "ansi": a tuple of N strings, prompt, a bar and the text so far."""
        if self.render_mode is None:
            return None
        lines = (
            f"{p.text if p is not None else ''} | {self.stepper.lm.decode(t)}"
            for p, t in zip(self.stepper.prompts, self.stepper.tokens, strict=True)
        )
        return tuple(lines)

    def close_extras(self, **kwargs: Any) -> None:
        """Nothing to close: models are freed with the object."""
