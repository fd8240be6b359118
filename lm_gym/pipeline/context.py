"""What the stages of a pipeline share: its configuration, prompts that are kept apart, models, and the gold score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from lm_gym.held_out import split_prompts
from lm_gym.loading import load_model
from lm_gym.mdp import AlignmentMDP
from lm_gym.models import CausalLM
from lm_gym.pipeline.config import Pipeline
from lm_gym.pipeline.stage import Record
from lm_gym.prompts import Prompt, load_prompts
from lm_gym.rewards import load_reward_model, score_texts

POLICY, JUDGE = "policy", "model"
"""The folder of the trained model in a stage's folder, and that of the reward model."""


class Stopped(Exception):
    """The pipeline was asked to stop, and did, after a checkpoint."""


class Context:
    """One call of a pipeline.

    Args:
        say: takes a line about what happens. stop: whether to stop at the next checkpoint.
        progress: draw the progress of training.
    """

    def __init__(
        self,
        config: Pipeline,
        out: Path,
        *,
        say: Callable[[str], None],
        stop: Callable[[], bool],
        progress: bool,
    ) -> None:
        self.config, self.out, self.say, self.stop, self.progress = config, out, say, stop, progress
        self.records: dict[str, Record] = {}

    @cached_property
    def base(self) -> CausalLM:
        """The model before any training."""
        return load_model(self.config.model, device=self.config.device)

    def policy(self, stage: str) -> CausalLM:
        """The model that a stage trained."""
        return load_model(str(self.out / stage / POLICY), device=self.config.device)

    @cached_property
    def gold(self) -> Any:
        """The gold score, a reward model."""
        return load_reward_model(self.config.gold_name)

    @property
    def learned_reward(self) -> Any:
        """The reward model of the stage reward-model."""
        return load_reward_model(f"hf:{self.out / 'reward-model' / JUDGE}?device={self.config.device}")

    @cached_property
    def prompts(self) -> tuple[list[Prompt], list[Prompt]]:
        """(train, evaluation); no text is in both.

        Raises:
            ValueError: nothing would be left to train on, or a single prompt to evaluate on.
        """
        config, tokenizer = self.config, self.base.tokenizer
        room = max(1, self.base.max_positions - config.max_new_tokens)
        found = load_prompts(config.prompts, tokenizer, max_tokens=room)
        source = config.eval_source
        train, held_out = split_prompts(
            found, None if source is None else load_prompts(source, tokenizer, max_tokens=room)
        )
        if {p.text for p in train} & {p.text for p in held_out}:
            raise ValueError(
                f"all prompts of {config.prompts!r} are evaluation prompts: give others to train on, or --eval-prompts"
            )
        if len(held_out) < 2:
            raise ValueError(f"expected at least 2 evaluation prompts, got {len(held_out)}: give --eval-prompts")
        return train, held_out

    def environment(
        self, model: CausalLM, prompts: Sequence[Prompt], reward_model: Any, *, kl_coef: float = 0.0
    ) -> Any:
        """LMAlign-v0 as this pipeline has it, KL against ``model``."""
        config = self.config
        mdp = AlignmentMDP(
            model=model,
            prompts=list(prompts),
            reward_model=reward_model,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            kl_coef=kl_coef,
            device=config.device,
        )
        return gymnasium.make("LMAlign-v0", mdp=mdp)

    def gold_scores(self, prompts: Sequence[Prompt], texts: Sequence[str], ids: Sequence[Sequence[int]]) -> np.ndarray:
        """(B,) gold scores of completions."""
        names = dict.fromkeys(name for p in prompts for name in p.columns)
        return score_texts(
            self.gold,
            prompts=[p.for_reward for p in prompts],
            completions=[p.completion_for_reward(text) for p, text in zip(prompts, texts, strict=True)],
            completion_ids=ids,
            columns={name: [p.columns.get(name) for p in prompts] for name in names},
        ).scores
