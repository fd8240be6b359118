"""``LMAlignExact-v0`` and ``LMAlignExactLong-v0``: languages whose optimum is known, as environments."""

from __future__ import annotations

from typing import Any

from lm_gym import live
from lm_gym.env import VIEW, LMAlignEnv, refuse_unknown
from lm_gym.exact.language import ExactLanguage
from lm_gym.exact.table_lm import TableLM
from lm_gym.mdp import AlignmentMDP
from lm_gym.prompts import Prompt
from lm_gym.vector_env import LMAlignVectorEnv


class ExactReward:
    """R(x, y) of an exact language as a reward model."""

    def __init__(self, language: ExactLanguage) -> None:
        self.language, self.name = language, "exact language"

    def __call__(self, *, completion_ids: list[list[int]], prompt_index: list[int], **_: Any) -> list[float]:
        return [self.language.reward(ids, p) for ids, p in zip(completion_ids, prompt_index, strict=True)]


def exact_mdp(language: ExactLanguage, *, top_k: int | None = None, temperature: float = 1.0) -> AlignmentMDP:
    """The alignment problem of an exact language: a frozen :class:`TableLM` is the reference."""
    v = language.n_tokens
    return AlignmentMDP(
        model=TableLM(language),
        prompts=[Prompt(p, f"<prompt {p}>", (v + p,), {"prompt_index": p}) for p in range(language.n_prompts)],
        reward_model=ExactReward(language),
        max_new_tokens=language.horizon,
        kl_coef=language.kl_coef,
        top_k=top_k,
        temperature=temperature,
    )


LANGUAGE = ("transitions", "horizon", "token_reward", "token_table", "kl_coef", "start_rows", "states")
"""The arguments that make the language; those of the view are the same as everywhere."""


def _check_view(view: dict[str, Any]) -> None:
    known = [k for k in VIEW if k != "mdp"]
    refuse_unknown("LMAlignExact", [k for k in view if k not in known], [*LANGUAGE, *known])


def _language(
    transitions: Any, horizon: int, token_reward: Any, token_table: Any, kl_coef: float, start_rows: Any, states: str
) -> ExactLanguage:
    given = {"transitions": transitions, "token_reward": token_reward, "token_table": token_table}
    found = {k: live.resolve(k, x) for k, x in {**given, "start_rows": start_rows}.items()}
    return ExactLanguage(horizon=horizon, kl_coef=kl_coef, states=states, **found)


class LMAlignExactEnv(LMAlignEnv):
    """A language small enough to enumerate, stepped like any other; ``.language`` is what :mod:`lm_gym.exact` takes.

    Args:
        transitions: (V, V) rows, by previous token; row 0 is also the first token's; token 0 is EOS. None: DESIGN's
            worked example.
        horizon: tokens until a text ends. token_reward: a callable on the list of token ids, or "py:module:attr", or
            one for each prompt. token_table: a reward that is a sum over tokens, (V,) or (P, V).
        kl_coef: β. start_rows: (P, V), the first token's distribution for each of P prompts.
        states: "auto", "prefixes" or "steps" (see :class:`ExactLanguage`).
        kl_mode, observation_mode, action_mode, top_k, render_mode: as :class:`lm_gym.env.LMAlignEnv`.
    """

    def __init__(
        self,
        *,
        transitions: Any = None,
        horizon: int = 3,
        token_reward: Any = None,
        token_table: Any = None,
        kl_coef: float = 0.5,
        start_rows: Any = None,
        states: str = "auto",
        top_k: int | None = None,
        **view: Any,
    ) -> None:
        _check_view(view)
        self.language = _language(transitions, horizon, token_reward, token_table, kl_coef, start_rows, states)
        super().__init__(mdp=exact_mdp(self.language, top_k=top_k), top_k=top_k, **view)


class LMAlignExactVectorEnv(LMAlignVectorEnv):
    """The vector environment of :class:`LMAlignExactEnv`."""

    def __init__(
        self,
        num_envs: int = 1,
        *,
        transitions: Any = None,
        horizon: int = 3,
        token_reward: Any = None,
        token_table: Any = None,
        kl_coef: float = 0.5,
        start_rows: Any = None,
        states: str = "auto",
        top_k: int | None = None,
        **view: Any,
    ) -> None:
        _check_view({k: v for k, v in view.items() if k not in ("autoreset_mode", "max_episode_steps")})
        self.language = _language(transitions, horizon, token_reward, token_table, kl_coef, start_rows, states)
        super().__init__(num_envs, mdp=exact_mdp(self.language, top_k=top_k), top_k=top_k, **view)
