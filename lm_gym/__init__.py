"""LM Gym: aligning a language model as a standard reinforcement-learning problem.

Importing this package registers the environments and nothing more: torch, transformers and Stable-Baselines3 are
loaded when a name that needs them is first used.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium

__version__ = "0.1.0"

# name -> module that defines it; filled in on first use (PEP 562).
_LAZY_ATTRIBUTES = {
    "AlignmentMDP": "lm_gym.mdp",
    "CachedLM": "lm_gym.cached_lm",
    "LMAlignEnv": "lm_gym.env",
    "LMAlignVectorEnv": "lm_gym.vector_env",
    "Rollout": "lm_gym.rollout",
    "load_prompts": "lm_gym.prompts",
    "load_reward_model": "lm_gym.rewards",
    "reference_agent": "lm_gym.policy",
}
_LAZY_MODULES = ("agents", "exact", "kl", "reward_models", "tiny")

__all__ = ["__version__", *_LAZY_ATTRIBUTES, *_LAZY_MODULES]


def __getattr__(name: str) -> Any:
    if name in _LAZY_ATTRIBUTES:
        value = getattr(importlib.import_module(_LAZY_ATTRIBUTES[name]), name)
    elif name in _LAZY_MODULES:
        value = importlib.import_module(f"lm_gym.{name}")
    else:
        raise AttributeError(f"module 'lm_gym' has no attribute {name!r}; it has {', '.join(__dir__())}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _MountedFolders(importlib.abc.MetaPathFinder):
    """Last in sys.meta_path: says why lm_gym.agents is not there when a checkout shadows the installed package.

    agents/ and reward_models/ stand beside lm_gym/ in the repository and inside it once installed. A Python started in
    the repository's root takes lm_gym from there, and finds the two only where the checkout itself is installed.
    """

    mounted = ("lm_gym.agents", "lm_gym.reward_models")

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self.mounted:
            return None
        here = Path(__file__).resolve().parent
        raise ModuleNotFoundError(
            f"No module named {fullname!r} in {here}: this is a checkout that is not installed, and it hides any "
            f"installed lm_gym. Either install the checkout (pip install -e {here.parent}) or start Python in another "
            f"folder than {here.parent}.",
            name=fullname,
        )


sys.meta_path.append(_MountedFolders())


def _register(env_id: str, **kwargs: Any) -> None:
    if env_id not in gymnasium.registry:
        gymnasium.register(id=env_id, **kwargs)


_register("LMAlign-v0", entry_point="lm_gym.env:LMAlignEnv", vector_entry_point="lm_gym.vector_env:LMAlignVectorEnv")
_register(
    "LMAlignTopK-v0",
    entry_point="lm_gym.env:LMAlignEnv",
    vector_entry_point="lm_gym.vector_env:LMAlignVectorEnv",
    kwargs={"action_mode": "top_k"},
)
_register(
    "LMAlignExact-v0",
    entry_point="lm_gym.exact.envs:make_exact_env",
    vector_entry_point="lm_gym.exact.envs:make_exact_vector_env",
)
_register(
    "LMAlignExactLong-v0",
    entry_point="lm_gym.exact.envs:make_exact_env",
    vector_entry_point="lm_gym.exact.envs:make_exact_vector_env",
    kwargs={"horizon": 48},
)
