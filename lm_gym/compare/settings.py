"""What a comparison is asked to do, and what one of its processes is given."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from lm_gym.reward_identity import USER_FILE
from lm_gym.reward_specs import user_attribute

TUNING_SEED = 10_000
"""The seed of trial t is this plus t; final runs have the seeds below it."""
EVALUATION_SEED, REFERENCE_SEED, DEMONSTRATION_SEED = 1_000_000, 2_000_000, 3_000_000
"""Plus the run's seed: of the draws that measure a policy, of the reference's texts, and of SFT's demonstrations."""


@dataclass(frozen=True)
class Settings:
    """A comparison.

    Attributes:
        problems: environment id -> its kl_coefs. agents: name -> class. seeds: final runs of each, 0 … seeds − 1.
        total_tokens: of a run, and of a trial. tune_trials: of an agent at an environment and a β; 0: its defaults.
        fixed: agent -> fields that are the user's, in trials and final runs. eval_texts: fresh texts that measure a
            policy. points: of the curve. processes: at a time.
    """

    problems: Mapping[str, tuple[float, ...]]
    agents: Mapping[str, Any]
    seeds: int = 10
    total_tokens: int = 100_000
    tune_trials: int = 0
    fixed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    eval_texts: int = 256
    points: int = 12
    processes: int = 2

    def __post_init__(self) -> None:
        bounds = {"seeds": (1, TUNING_SEED), "total_tokens": (1, None), "tune_trials": (0, None)}
        bounds |= {"eval_texts": (2, None), "points": (1, None), "processes": (1, None)}
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if value < low or (high is not None and value > high):
                most = "" if high is None else f" and at most {high:,}"
                raise ValueError(f"{name} expected at least {low}{most}, got {value}")
        for name in self.fixed:
            if name not in self.agents:
                raise ValueError(f"a field of {name!r} is set, which is not compared: {', '.join(self.agents)}")

    @property
    def binding(self) -> dict[str, Any]:
        """What all results of a folder must agree in."""
        return {
            "total_tokens": self.total_tokens,
            "tune_trials": self.tune_trials,
            "eval_texts": self.eval_texts,
            "points": self.points,
        }


@dataclass(frozen=True)
class Job:
    """One run for a process of its own.

    Attributes:
        agent: its name. kind: its class. env, kl_coef, seed, total_tokens: of the run. config: fields of the agent.
        trial: its number among the trials of tuning; None: a final run. step_factor: times the default step size.
        reference: for each evaluation prompt the scores of the reference's texts; None: not needed, or exact.
        j_ref: J of the reference, where curves begin; None: not known, or no curve is wanted.
    """

    agent: str
    kind: Any
    env: str
    kl_coef: float
    seed: int
    total_tokens: int
    eval_texts: int
    points: int
    config: Mapping[str, Any] = field(default_factory=dict)
    trial: int | None = None
    step_factor: float = 1.0
    reference: Mapping[str, tuple[float, ...]] | None = None
    j_ref: float | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """For the process that runs it: an agent of a user's file is loaded from that file again."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        module = sys.modules[self.kind.__module__]
        if hasattr(module, USER_FILE):
            values["kind"] = f"py:{module.__file__}:{self.kind.__qualname__}"
        return _job, (values,)

    @property
    def group(self) -> tuple[str, str, float]:
        """What is tuned together."""
        return self.agent, self.env, self.kl_coef

    def __str__(self) -> str:
        which = f"seed {self.seed}" if self.trial is None else f"trial {self.trial}"
        return f"{self.agent} on {self.env} at β={self.kl_coef:g}, {which}"


def _job(values: dict[str, Any]) -> Job:
    kind = values["kind"]
    if isinstance(kind, str):
        values |= {"kind": user_attribute(kind.removeprefix("py:"), kind)}
    return Job(**values)
