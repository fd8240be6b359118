"""What a finished run is to a comparison: one JSON object on a line, written by `lm-gym compare` or by anybody else."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One run: an agent on a problem with a seed, measured at its last checkpoint (never at its best one).

    Attributes:
        agent: its name in tables. env: environment id. kl_coef: β. seed: of the run.
        tokens: response tokens generated for training (trained on, for agents that are given their texts).
        reward: E[R] of the task alone. kl: nats a text, KL(π‖π_ref) of whole sequences. Exact on exact languages,
            means over fresh texts elsewhere. J is ``reward − kl_coef·kl``.
        length: mean tokens a text. distinct_2: share of different bigrams. win_rate: P(R > R of a reference text of the
            same prompt), ties one half. None: not measured.
        curve: (tokens, J) at points of the training, from (0, J at the start) to the end; None: not measured.
        prompts: texts' prompts drawn in training, counted each time. reward_calls: texts judged in training.
        offline_pairs: given or offline preference pairs, demonstrations or labelled texts that it trained on.
        cpu_seconds: of training alone, without imports, loading and evaluation.
        config: the fields of the agent's configuration that differ from its defaults.
        source: "lm-gym", or who else made the row.
    """

    agent: str
    env: str
    kl_coef: float
    seed: int
    tokens: int
    reward: float
    kl: float
    length: float | None = None
    distinct_2: float | None = None
    win_rate: float | None = None
    curve: tuple[tuple[int, float], ...] | None = None
    prompts: int | None = None
    reward_calls: int | None = None
    offline_pairs: int | None = None
    cpu_seconds: float | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    source: str = "lm-gym"

    @property
    def j(self) -> float:
        """J(π) = E[R] − β·KL."""
        return self.reward - self.kl_coef * self.kl


@dataclass(frozen=True)
class Problem:
    """What the rows of one environment at one β are measured against.

    Attributes:
        env, kl_coef: as in :class:`Row`. j_ref: J of the reference, its E[R]. j_star: the optimum's; None: not known.
        frontier: (kl, reward) points that no policy of that KL is above (exact: π* over many β; ``exact`` is True), or
            those of best-of-n sampling of the reference, n = 1, 2, 4, … (``exact`` is False).
    """

    env: str
    kl_coef: float
    j_ref: float
    j_star: float | None
    frontier: tuple[tuple[float, float], ...]
    exact: bool


REQUIRED = ("agent", "env", "kl_coef", "seed", "tokens", "reward", "kl")
