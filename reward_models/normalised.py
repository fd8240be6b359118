"""A reward model moved to mean 0 and standard deviation 1 on samples of the reference.

Source: Ziegler et al., "Fine-Tuning Language Models from Human Preferences", 2019, section 2.1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lm_gym.decoding import Engine
from lm_gym.mdp import AlignmentMDP
from lm_gym.reward_models.parts import fingerprint_of, log_part, nones, update_parts
from lm_gym.rewards import (
    Text,
    load_reward_model,
    load_reward_state,
    prepare_reward_model,
    reward_model_hash,
    reward_model_name,
    reward_state,
    score_texts,
)

ROWS = 64
"""Texts that decode together while it is fitted."""


class Normalised:
    """(R − mean) / std, with the mean and the standard deviation that R has on completions of the reference.

    This rescales β: the problem with `kl_coef` β is the one that R itself has with β·std. So one β can be kept over
    reward models of different scales; but a number published with it means nothing without `std`.

    Give mean and std, or call :meth:`fit` once (:meth:`prepare` does so where neither was done). From then on both are
    frozen: a scale that moved with the policy would be another problem every time. None ("does not apply") stays None,
    and is left out of the fit.

    Range: that of R, moved and scaled. State: mean and std. Logged: R itself, under its name.

    Args:
        reward: the reward model R, an object or a string. mean, std: in R's unit, std above 0; None: to be fitted.
    """

    def __init__(self, reward: Any, mean: float | None = None, std: float | None = None) -> None:
        self.reward = load_reward_model(reward)
        if (mean is None) != (std is None):
            raise ValueError(f"normalised: mean is {mean!r} and std is {std!r}; expected both, or none and a fit")
        self.mean: float | None = None
        self.std: float | None = None
        if mean is not None and std is not None:
            self._freeze(mean, std)

    @property
    def name(self) -> str:
        return f"normalised({reward_model_name(self.reward)})"

    __name__ = name  # TRL logs rewards/<__name__>

    def fit(self, mdp: AlignmentMDP, n: int = 512, seed: int = 0) -> Normalised:
        """Take mean and standard deviation (divided by n) of R on n completions of the reference of `mdp`.

        Only the prompts, the reference and the limits of `mdp` are used, not its reward model: that may be this object.

        Raises:
            ValueError: it is frozen already; n is below 2; or R does not vary on these completions.
        """
        if self.std is not None:
            raise ValueError(f"{self.name} has mean {self.mean} and std {self.std} already, and they are frozen")
        if n < 2:
            raise ValueError(f"normalised: n is {n}; expected at least 2 completions")
        rng = np.random.default_rng(seed)
        prompts = [mdp.draw_prompt(rng) for _ in range(n)]
        engine = Engine(mdp.reference, guide=mdp.reference, seed=seed)
        params = dataclasses.replace(mdp.generation_params, rows=ROWS)
        tokens = [completion.tokens for completion in engine.generate([p.token_ids for p in prompts], params)]
        texts = [mdp.reference.decode(ids) for ids in tokens]
        keys = dict.fromkeys(key for prompt in prompts for key in prompt.columns)
        scores = score_texts(
            self.reward,
            prompts=[prompt.for_reward for prompt in prompts],
            completions=[prompt.completion_for_reward(text) for prompt, text in zip(prompts, texts, strict=True)],
            completion_ids=tokens,
            columns={key: [prompt.columns.get(key) for prompt in prompts] for key in keys},
            allow_none=True,
        ).scores
        applies = scores[~np.isnan(scores)]
        if len(applies) < 2 or np.ptp(applies) == 0:  # the std of 64 scores of .1 is not 0 but 1.4e-17
            raise ValueError(
                f"{self.name}: the {len(applies)} of {n} completions that it applies to all score "
                f"{applies[0] if len(applies) else 'nothing'}; a reward that does not vary on the reference's own "
                "texts has no scale. Give mean= and std=, or take more completions"
            )
        self._freeze(float(applies.mean()), float(applies.std()))
        return self

    def prepare(self, mdp: AlignmentMDP) -> None:
        """Before training: fit what was given no numbers, with the defaults of :meth:`fit`."""
        prepare_reward_model(self.reward, mdp)
        if self.std is None:
            self.fit(mdp)

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]],
        trainer_state: Any = None,
        log_extra: Callable[[str, Sequence[Any]], None] = lambda column, values: None,
        log_metric: Callable[[str, float], None] = lambda name, value: None,
        **columns: Any,
    ) -> list[float | None]:
        if self.mean is None or self.std is None:
            raise ValueError(f"{self.name} has no mean and std yet: call .fit(mdp) first, or give mean= and std=")
        result = score_texts(
            self.reward,
            prompts=prompts,
            completions=completions,
            completion_ids=completion_ids,
            columns=columns,
            trainer_state=trainer_state,
            allow_none=True,
        )
        log_part(reward_model_name(self.reward), result, log_extra, log_metric)
        return nones((result.scores - self.mean) / self.std)

    def update(self, metrics: Mapping[str, float]) -> None:
        """Hand a rollout's metrics on to the reward model within; mean and std stay what they are."""
        update_parts({reward_model_name(self.reward): self.reward}, metrics)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "std": self.std, "reward": reward_state(self.reward)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        load_reward_state(self.reward, state["reward"])
        self.mean, self.std = None, None
        if state["std"] is not None:
            self._freeze(state["mean"], state["std"])

    def fingerprint(self) -> str:
        return fingerprint_of("normalised", reward_model_hash(self.reward), self.mean, self.std)

    def _freeze(self, mean: float, std: float) -> None:
        if not math.isfinite(mean) or not 0 < std < math.inf:
            raise ValueError(f"normalised: mean is {mean!r} and std is {std!r}; expected finite numbers, std above 0")
        self.mean, self.std = float(mean), float(std)
