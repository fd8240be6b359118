"""Judges to plug in: one file a kind of reward model.

A new one is a file here, a name in `_REWARD_MODELS`, and a line under `[project.entry-points."lm_gym.reward_models"]`
in pyproject.toml, which gives it the plain name that `reward_model="…"` and the command line know (CONTRIBUTING.md).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if __name__ != "lm_gym.reward_models":
    raise ImportError(
        f"reward_models/ was imported as {__name__!r}, but it is installed inside the package: import "
        "lm_gym.reward_models (after `pip install -e .` in a checkout)."
    )

if TYPE_CHECKING:
    from lm_gym.reward_models.bradley_terry import RewardModelConfig as RewardModelConfig
    from lm_gym.reward_models.bradley_terry import train_reward_model as train_reward_model
    from lm_gym.reward_models.by_column import JudgeByColumn as JudgeByColumn
    from lm_gym.reward_models.by_column import WeightsByColumn as WeightsByColumn
    from lm_gym.reward_models.cached import Cached as Cached
    from lm_gym.reward_models.classifier import Classifier as Classifier
    from lm_gym.reward_models.combine import Lexicographic as Lexicographic
    from lm_gym.reward_models.combine import Minimum as Minimum
    from lm_gym.reward_models.combine import Product as Product
    from lm_gym.reward_models.combine import WeightedSum as WeightedSum
    from lm_gym.reward_models.constrained import Constrained as Constrained
    from lm_gym.reward_models.ensemble import Ensemble as Ensemble
    from lm_gym.reward_models.length import LengthTarget as LengthTarget
    from lm_gym.reward_models.lm_judge import LMJudge as LMJudge
    from lm_gym.reward_models.normalised import Normalised as Normalised
    from lm_gym.reward_models.readability import Readability as Readability
    from lm_gym.reward_models.regex import Regex as Regex
    from lm_gym.reward_models.remote import Remote as Remote
    from lm_gym.reward_models.repetition import Repetition as Repetition
    from lm_gym.reward_models.vader import Vader as Vader
    from lm_gym.reward_models.words import TargetWords as TargetWords

# name -> module that defines it, loaded on first use (PEP 562): VADER does not pay for the classifier's torch.
_REWARD_MODELS = {
    "Cached": "lm_gym.reward_models.cached",
    "Classifier": "lm_gym.reward_models.classifier",
    "Constrained": "lm_gym.reward_models.constrained",
    "Ensemble": "lm_gym.reward_models.ensemble",
    "JudgeByColumn": "lm_gym.reward_models.by_column",
    "LMJudge": "lm_gym.reward_models.lm_judge",
    "LengthTarget": "lm_gym.reward_models.length",
    "Lexicographic": "lm_gym.reward_models.combine",
    "Minimum": "lm_gym.reward_models.combine",
    "Normalised": "lm_gym.reward_models.normalised",
    "Product": "lm_gym.reward_models.combine",
    "Readability": "lm_gym.reward_models.readability",
    "Regex": "lm_gym.reward_models.regex",
    "Remote": "lm_gym.reward_models.remote",
    "Repetition": "lm_gym.reward_models.repetition",
    "RewardModelConfig": "lm_gym.reward_models.bradley_terry",
    "TargetWords": "lm_gym.reward_models.words",
    "Vader": "lm_gym.reward_models.vader",
    "WeightedSum": "lm_gym.reward_models.combine",
    "WeightsByColumn": "lm_gym.reward_models.by_column",
    "train_reward_model": "lm_gym.reward_models.bradley_terry",
}
__all__ = list(_REWARD_MODELS)


def __getattr__(name: str) -> Any:
    if name not in _REWARD_MODELS:
        known = ", ".join(_REWARD_MODELS)
        raise AttributeError(f"module 'lm_gym.reward_models' has no attribute {name!r}; it has {known}")
    value = globals()[name] = getattr(importlib.import_module(_REWARD_MODELS[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
