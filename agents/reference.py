"""The untouched reference: what every agent is compared with.

Its policy is the model that policies start from, its KL is 0, and its regret is where everybody begins (.7843 on the
worked example). ``learn`` draws and measures its texts, and trains nothing.
"""

from __future__ import annotations

from typing import ClassVar

from lm_gym.agent import LMAgent
from lm_gym.rollout import Rollout


class Reference(LMAgent):
    """The model that policies start from, as an agent."""

    name: ClassVar[str] = "reference"
    trains: ClassVar[bool] = False

    def update(self, rollout: Rollout) -> dict[str, float]:
        return {}
