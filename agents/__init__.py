"""Agents made for language models: one file an algorithm.

A new one is a file here, a name in `_AGENTS`, and a line under `[project.entry-points."lm_gym.agents"]` in
pyproject.toml, which gives it its name on the command line (CONTRIBUTING.md).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if __name__ != "lm_gym.agents":
    raise ImportError(
        f"agents/ was imported as {__name__!r}, but it is installed inside the package: import lm_gym.agents "
        "(after `pip install -e .` in a checkout). A top-level package `agents` is somebody else's."
    )

if TYPE_CHECKING:
    from lm_gym.agents.ppo import PPO as PPO
    from lm_gym.agents.sb3 import ExactKL as ExactKL
    from lm_gym.agents.sb3 import LMActorCriticPolicy as LMActorCriticPolicy
    from lm_gym.agents.sb3 import SB3VecEnv as SB3VecEnv
    from lm_gym.agents.sb3 import TextRolloutBuffer as TextRolloutBuffer

# name -> module that defines it, loaded on first use (PEP 562): an agent does not pay for the imports of another.
_AGENTS = {"PPO": "lm_gym.agents.ppo"}
# what Stable-Baselines3 trains with (docs/sb3.md)
_AGENTS |= dict.fromkeys(("ExactKL", "LMActorCriticPolicy", "SB3VecEnv", "TextRolloutBuffer"), "lm_gym.agents.sb3")
__all__ = list(_AGENTS)


def __getattr__(name: str) -> Any:
    if name not in _AGENTS:
        raise AttributeError(f"module 'lm_gym.agents' has no attribute {name!r}; it has {', '.join(_AGENTS)}")
    value = globals()[name] = getattr(importlib.import_module(_AGENTS[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
