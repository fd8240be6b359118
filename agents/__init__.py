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
    from lm_gym.agents.a2c import A2C as A2C
    from lm_gym.agents.best_of_n import BestOfN as BestOfN
    from lm_gym.agents.dpo import DPO as DPO
    from lm_gym.agents.dr_grpo import DrGRPO as DrGRPO
    from lm_gym.agents.grpo import GRPO as GRPO
    from lm_gym.agents.kto import KTO as KTO
    from lm_gym.agents.nlpo import NLPO as NLPO
    from lm_gym.agents.online_dpo import OnlineDPO as OnlineDPO
    from lm_gym.agents.ppo import PPO as PPO
    from lm_gym.agents.raft import RAFT as RAFT
    from lm_gym.agents.reference import Reference as Reference
    from lm_gym.agents.reinforce import REINFORCE as REINFORCE
    from lm_gym.agents.reinforce_pp import ReinforcePP as ReinforcePP
    from lm_gym.agents.rloo import RLOO as RLOO
    from lm_gym.agents.sb3 import ExactKL as ExactKL
    from lm_gym.agents.sb3 import LMActorCriticPolicy as LMActorCriticPolicy
    from lm_gym.agents.sb3 import SB3VecEnv as SB3VecEnv
    from lm_gym.agents.sb3 import TextRolloutBuffer as TextRolloutBuffer
    from lm_gym.agents.sft import SFT as SFT

# name -> module that defines it, loaded on first use (PEP 562): an agent does not pay for the imports of another.
_AGENTS = {
    "A2C": "lm_gym.agents.a2c",
    "BestOfN": "lm_gym.agents.best_of_n",
    "DPO": "lm_gym.agents.dpo",
    "DrGRPO": "lm_gym.agents.dr_grpo",
    "GRPO": "lm_gym.agents.grpo",
    "KTO": "lm_gym.agents.kto",
    "NLPO": "lm_gym.agents.nlpo",
    "OnlineDPO": "lm_gym.agents.online_dpo",
    "PPO": "lm_gym.agents.ppo",
    "RAFT": "lm_gym.agents.raft",
    "REINFORCE": "lm_gym.agents.reinforce",
    "RLOO": "lm_gym.agents.rloo",
    "Reference": "lm_gym.agents.reference",
    "ReinforcePP": "lm_gym.agents.reinforce_pp",
    "SFT": "lm_gym.agents.sft",
}
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
