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
    from lm_gym.reward_models.classifier import Classifier as Classifier
    from lm_gym.reward_models.length import LengthTarget as LengthTarget
    from lm_gym.reward_models.remote import Remote as Remote
    from lm_gym.reward_models.vader import Vader as Vader

# name -> module that defines it, loaded on first use (PEP 562): VADER does not pay for the classifier's torch.
_REWARD_MODELS = {
    "Classifier": "lm_gym.reward_models.classifier",
    "LengthTarget": "lm_gym.reward_models.length",
    "Remote": "lm_gym.reward_models.remote",
    "Vader": "lm_gym.reward_models.vader",
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
