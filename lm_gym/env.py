"""``LMAlign-v0``: aligning a language model, one token a step."""

from __future__ import annotations

import difflib
import inspect
import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded

from lm_gym import live
from lm_gym.mdp import AlignmentMDP
from lm_gym.prompts import Prompt
from lm_gym.stepping import Outcome, Stepper

RENDER_MODES = ("ansi", "human")
VIEW = ("kl_mode", "observation_mode", "action_mode", "top_k", "render_mode", "mdp")
"""The environment's own arguments; the others are the problem's."""


def make_mdp(
    *,
    mdp: Any,
    action_mode: str,
    top_k: int | None,
    problem: Mapping[str, Any],
) -> AlignmentMDP:
    """The problem behind an environment: ``mdp`` itself, or one made from the environment's arguments."""
    if mdp is not None:
        mdp = live.resolve("mdp", mdp)
        if not isinstance(mdp, AlignmentMDP):
            raise ValueError(f"mdp expected an AlignmentMDP, got a {type(mdp).__name__}")
        if problem or top_k not in (None, mdp.top_k):
            given = sorted(problem) or [f"top_k={top_k}"]
            raise ValueError(f"mdp= expected no argument of the problem beside it, got {given}: set them on the mdp")
        return mdp
    return AlignmentMDP(top_k=top_k, **{k: live.resolve(k, v) for k, v in problem.items()})


class LMAlignEnv(gym.Env[Any, Any]):
    """A text is an episode, a token an action, and a reward model judges the end.

    ## Description
    Every episode draws a prompt. Each action appends one token. The episode ends with an EOS token, a stop string, or
    ``max_new_tokens``; then the reward model scores the completion. Every step pays for leaving the reference model.

    ## Action Space
    ``Discrete(V)``: the token's id (``action_mode="full"``); or ``Discrete(k)``: one of the reference's k likeliest
    tokens in this state, ordered by token id, EOS always among them (``"top_k"``, ``info["action_tokens"]`` names
    them). What may be chosen is in ``info["action_mask"]`` and ``action_masks()``.

    ## Observation Space
    - ``"tokens"``: ``Dict(input_ids=(L,) int64, attention_mask=(L,) int8)``, prompt and text so far, left-padded to
      L = longest prompt + ``max_new_tokens``.
    - ``"hidden"``: ``Box(d,)`` float32, the reference's last hidden state.
    - ``"text"``: prompt and text so far as a string.

    ## Rewards
    R(x, y) on the last action, and every step its price of KL, by ``kl_mode`` (β is ``kl_coef``):
    - ``"reference"``: +β·log π_ref(a_t|s_t), the reference half, in nats times β. **It is exact only once the agent
      adds −β·log π(a_t|s_t) to its return** (:func:`lm_gym.kl.shape`): optimised as it stands, its best policy is one
      single text, and an entropy bonus is not the same thing.
    - ``"reported"``: −β·(log π(a_t|s_t) − log π_ref(a_t|s_t)), the exact one: call ``report_logprob`` before each step.
    - ``"none"``: R alone.

    R is the reward model's score, less ``missing_eos_penalty`` where the text ran into the length limit.

    ## Starting State
    A prompt drawn uniformly by the environment's own generator. ``reset(options={"prompt_id": 3})`` or
    ``{"prompt": "text", "columns": {...}}`` choose one.

    ## Episode End
    ``terminated`` with ``info["finish_reason"]`` "eos", "stop" or "length"; never ``truncated``: the limit is part of
    the problem. ``spec.max_episode_steps`` lies above every limit.

    ## Info
    At reset: ``prompt``, ``prompt_id`` (absent for a prompt of your own). Every step: ``ref_logprob`` (nats),
    ``reward/task``, ``reward/kl_penalty``. At the end: ``text``, ``finish_reason``, ``score`` (R), ``episode_tokens``,
    and what the reward model logs as ``score/<name>``. Until then ``action_mask``, and ``action_tokens`` under
    ``"top_k"``. A key that does not apply is absent.

    ## Arguments
    See :class:`lm_gym.mdp.AlignmentMDP` for ``model`` … ``max_prompt_tokens``. ``top_k`` (for
    ``action_mode="top_k"``), ``mdp`` (a ready problem, in place of all of them), ``render_mode`` ("ansi", "human").
    Every argument takes a plain value or a string; live objects work too and are never copied.

    ## Vectorized environment
    ``gym.make_vec("LMAlign-v0", num_envs=64)``: :class:`lm_gym.vector_env.LMAlignVectorEnv`, row for row the same.

    ## Version History
    v0: first.
    """

    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": 30}

    def __init__(
        self,
        *,
        kl_mode: str | None = None,
        observation_mode: str = "tokens",
        action_mode: str = "full",
        top_k: int | None = None,
        render_mode: str | None = None,
        mdp: Any = None,
        **problem: Any,
    ) -> None:
        if render_mode is not None and render_mode not in RENDER_MODES:
            # a TypeError: Stable-Baselines3's make_vec_env asks for "rgb_array" and takes one for a no
            raise TypeError(f"render_mode expected None or one of {RENDER_MODES}, got {render_mode!r}")
        check_arguments(problem)
        self.mdp = make_mdp(mdp=mdp, action_mode=action_mode, top_k=top_k, problem=problem)
        self.stepper = Stepper(self.mdp, 1, kl_mode=kl_mode, observation_mode=observation_mode, action_mode=action_mode)
        self.render_mode = render_mode
        self.observation_space = self.stepper.single_observation_space
        self.action_space = self.stepper.single_action_space
        self._console: Any = None
        self._last: Outcome | None = None
        self._nats: list[float] = []  # what the human rendering tints tokens by

    # Gymnasium sets and deep-copies the spec; live objects stay out of it (lm_gym/live.py)
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
        """β in force. Agents with a coefficient of their own set it on this object, and so does an adaptive one."""
        return self.stepper.kl_coef

    def use_reported_kl(self, kl_coef: float | None = None) -> None:
        """For agents that know their log-probs: from now on pay the exact penalty, at ``kl_coef`` or the problem's."""
        self.stepper.named_kl_mode = "reported"
        self.stepper.kl_coef = self.mdp.kl_coef if kl_coef is None else kl_coef

    def report_logprob(self, logprob: Any) -> None:
        """The log-prob (a float, nats, ≤ 0) of the next action in the agent's own distribution; before each step."""
        self.stepper.report(logprob)

    def action_masks(self) -> np.ndarray:
        """(actions,) bool, True where an action may be taken (the name sb3-contrib's MaskablePPO looks for)."""
        return self.stepper.action_masks()[0].astype(bool)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        prompt = choose_prompt(self.mdp, self.np_random, options, self.stepper.plans.get(0))
        self.stepper.start([0], [prompt])
        self._last, self._nats = None, []
        if self.render_mode == "human":
            self._draw()
        info: dict[str, Any] = {"prompt": prompt.text, **self._choices()}
        if prompt.id >= 0:
            info["prompt_id"] = prompt.id
        return self.stepper.observe(0), info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        actions = np.asarray(action)
        if actions.shape not in ((), (1,)) or not np.issubdtype(actions.dtype, np.integer):
            raise ValueError(f"action expected one whole number, got {action!r}")
        if not self.stepper.live[0]:
            raise ResetNeeded("step() expected an episode, got none: call reset() first, and after every end")
        out = self._last = self.stepper.step(actions)
        terminated = bool(out.ended[0])
        info: dict[str, Any] = {
            "ref_logprob": float(out.ref_logprobs[0]),
            "reward/task": float(out.task[0]),
            "reward/kl_penalty": float(out.kl_penalty[0]),
        }
        info.update(ending(self.stepper, out, 0) if terminated else self._choices())
        own = 0.0 if out.logprobs is None else float(out.logprobs[0])
        self._nats.append(own - float(out.ref_logprobs[0]))
        if self.render_mode == "human":
            self._draw()
        return self.stepper.observe(0), float(out.rewards[0]), terminated, False, info

    def _choices(self) -> dict[str, Any]:
        info: dict[str, Any] = {"action_mask": self.stepper.action_masks()[0].copy()}
        ids = self.stepper.choice_ids()
        if ids is not None:
            info["action_tokens"] = ids[0]
        return info

    def render(self) -> str | None:
        """ "ansi": prompt, a bar, the text so far; and its rewards once it has ended. "human" draws by itself."""
        if self.render_mode == "ansi":
            from lm_gym.rendering import ansi

            return ansi(self.stepper, self._last)
        return None

    def _draw(self) -> None:
        from lm_gym.rendering import Console

        if self._console is None:
            self._console = Console()
        self._console.draw(self.stepper, self._last, self._nats)

    def close(self) -> None:
        if self._console is not None:
            self._console.close()
            self._console = None


def ending(stepper: Stepper, out: Outcome, row: int) -> dict[str, Any]:
    """The info of an episode's last step."""
    logged = {f"score/{key}": _plain(value) for key, value in out.extra.get(row, {}).items()}
    return {
        "text": out.texts[row],
        "finish_reason": out.reasons[row],
        "score": float(out.scores[row]),
        "episode_tokens": len(stepper.tokens[row]),
        **{key: value for key, value in logged.items() if value is not None},
    }


def _plain(value: Any) -> Any:
    """What a reward model logged, without tensors; None for what does not apply, NaN among it."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return None if isinstance(value, float) and math.isnan(value) else value


def choose_prompt(
    mdp: AlignmentMDP, rng: np.random.Generator, options: Mapping[str, Any] | None, plan: deque[Prompt] | None = None
) -> Prompt:
    """The prompt that ``reset(options=...)`` asks for, else the next of the row's plan, else a random one."""
    options = options or {}
    known = {"prompt_id"} if "prompt_id" in options else {"prompt", "columns"} if "prompt" in options else set()
    if set(options) - known:
        raise ValueError(
            "reset options expected 'prompt_id' (its number), or 'prompt' (a text) with 'columns' (a dict) if the "
            f"reward model reads some, got {sorted(options)}"
        )
    if "prompt" in options:
        return mdp.encode_prompt(options["prompt"], **options.get("columns", {}))
    if "prompt_id" in options:
        i = options["prompt_id"]
        if isinstance(i, bool) or not isinstance(i, (int, np.integer)) or not 0 <= i < len(mdp.prompts):
            raise ValueError(f"prompt_id expected a whole number from 0 to {len(mdp.prompts) - 1}, got {i!r}")
        return mdp.prompts[i]
    return plan.popleft() if plan else mdp.draw_prompt(rng)


def check_arguments(problem: Mapping[str, Any]) -> None:
    """Refuse unknown arguments with the nearest known one (Gymnasium's own error prints every argument)."""
    of_the_problem = [k for k in inspect.signature(AlignmentMDP.__init__).parameters if k not in ("self", "top_k")]
    refuse_unknown("LMAlign", [k for k in problem if k not in of_the_problem], [*of_the_problem, *VIEW])


def refuse_unknown(what: str, unknown: Sequence[str], known: Sequence[str]) -> None:
    """An error about the first of some arguments that do not exist, with the nearest known one."""
    for name in unknown:
        if name == "autoreset_mode":
            raise ValueError(
                f"{what}: autoreset_mode is for the vector environment; here every episode waits for reset()"
            )
        if name == "frameskip":
            # a TypeError with these words: TorchRL's GymEnv asks every environment for it, and takes one for a no
            raise TypeError(f"{what} got an unexpected keyword argument 'frameskip': every step is one token")
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        raise ValueError(f"{what} has no argument {name!r}; {hint}")
