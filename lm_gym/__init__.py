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
from typing import TYPE_CHECKING, Any

import gymnasium

if TYPE_CHECKING:  # the lazy names below, for type checkers and editors
    from lm_gym import agents as agents
    from lm_gym import exact as exact
    from lm_gym import kl as kl
    from lm_gym import reward_models as reward_models
    from lm_gym import tiny as tiny
    from lm_gym.cached_lm import CachedLM as CachedLM
    from lm_gym.cached_lm import reference_agent as reference_agent
    from lm_gym.env import LMAlignEnv as LMAlignEnv
    from lm_gym.mdp import AlignmentMDP as AlignmentMDP
    from lm_gym.prompts import load_prompts as load_prompts
    from lm_gym.rewards import load_reward_model as load_reward_model
    from lm_gym.rollout import Rollout as Rollout
    from lm_gym.vector_env import LMAlignVectorEnv as LMAlignVectorEnv

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
    "reference_agent": "lm_gym.cached_lm",
}
_LAZY_MODULES = ("agents", "exact", "kl", "reward_models", "tiny")

__all__ = ["__version__", *_LAZY_ATTRIBUTES, *_LAZY_MODULES]


def __getattr__(name: str) -> Any:
    if name in _LAZY_ATTRIBUTES:
        value = getattr(importlib.import_module(_LAZY_ATTRIBUTES[name]), name)
    elif name in _LAZY_MODULES:
        value = importlib.import_module(f"lm_gym.{name}")
    else:
        from difflib import get_close_matches

        near = get_close_matches(name, __all__, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(__dir__())}"
        raise AttributeError(f"module 'lm_gym' has no attribute {name!r}; {hint}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _MountedFolders(importlib.abc.MetaPathFinder):
    """Finds lm_gym.agents and lm_gym.reward_models that belong to this lm_gym, or says why they are not there.

    The two stand beside lm_gym/ in the repository and inside it once installed. A Python started in the repository's
    root takes lm_gym from there: it would find the two only where this checkout is the one that is installed, and take
    those of another checkout, in silence, where another one is.
    """

    mounted = ("lm_gym.agents", "lm_gym.reward_models")

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self.mounted:
            return None
        here = Path(__file__).resolve().parent
        folder = fullname.rpartition(".")[2]
        others = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((found for found in others if found is not None), None)
        came = "this is a checkout that is not installed, and it hides any installed lm_gym"
        if spec is not None and spec.origin is not None:
            origin = Path(spec.origin).resolve().parent
            if origin in (here / folder, here.parent / folder):
                return spec
            came = f"this is a checkout that is not installed, and the installed one is {origin.parent}"
        raise ModuleNotFoundError(
            f"No module named {fullname!r} for the lm_gym in {here.parent}: {came}. Either install the checkout "
            f"(pip install -e {here.parent}) or start Python in another folder than {here.parent}.",
            name=fullname,
        )


# A reload must not add a second one.
sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__qualname__ != _MountedFolders.__qualname__]
sys.meta_path.insert(0, _MountedFolders())


def _register(env_id: str, **kwargs: Any) -> None:
    if env_id not in gymnasium.registry:
        gymnasium.register(id=env_id, **kwargs)


# Above every max_new_tokens (lm_gym.mdp.STEP_LIMIT), so that a TimeLimit never truncates.
_STEPS = {"max_episode_steps": 100_000}
_ENV = {"entry_point": "lm_gym.env:LMAlignEnv", "vector_entry_point": "lm_gym.vector_env:LMAlignVectorEnv", **_STEPS}
_EXACT = {
    "entry_point": "lm_gym.exact.envs:LMAlignExactEnv",
    "vector_entry_point": "lm_gym.exact.envs:LMAlignExactVectorEnv",
    **_STEPS,
}
_register("LMAlign-v0", **_ENV)
_register("LMAlignTopK-v0", **_ENV, kwargs={"action_mode": "top_k", "top_k": 32})
_register("LMAlignExact-v0", **_EXACT)
_register("LMAlignExactLong-v0", **_EXACT, kwargs={"horizon": 48})
_register(
    "LMAlignExactScales-v0",
    **_EXACT,
    kwargs={
        "start_rows": [[0.1, 0.4, 0.3, 0.2]] * 2,
        "token_reward": ["py:lm_gym.exact:worked_reward", "py:lm_gym.exact.more_rewards:tenfold_reward"],
    },
)
_register(
    "LMAlignExactRare-v0",
    **_EXACT,
    kwargs={
        "transitions": [[0.4, 0.3, 0.2, 0.1]] * 4,
        "token_reward": "py:lm_gym.exact.more_rewards:rare_reward",
    },
)
