"""Where tuning looks: the same number of trials for every agent, drawn from a space that is written down here.

Trial 0 is the default configuration. Every other one draws the step size, log-uniform from a quarter to four times the
agent's default, and each field of its row in `CHOICES`. Its draw depends on the agent's name and the trial's number
alone. The winner has the highest J at the end of its trial.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from lm_gym.agent_config import make_config

STEP = 4.0
"""The step size is drawn between its default over this and times this."""
MOST_DRAWS = 100

# Fewer texts an update are more, noisier updates for the same tokens; smaller minibatches more steps of each.
_UPDATE = {"batch_size": (64, 128, 256), "minibatch_size": (16, 32, 64)}
_SMALL = {"batch_size": (64, 128, 256), "minibatch_size": (8, 16, 32)}
_CLIPPED = {**_UPDATE, "epochs": (2, 4, 6), "clip_range": (0.1, 0.2, 0.3)}

CHOICES: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    # λ below 1 trades the critic's bias for less variance; more epochs reuse texts that the clip then bounds
    "ppo": {**_CLIPPED, "lam": (0.95, 1.0)},
    # what the mask leaves out cannot be learned, and a mask that is renewed rarely lags behind
    "nlpo": {**_CLIPPED, "top_p": (0.9, 0.95, 0.99), "mask_every": (5, 10, 20)},
    # one pass: the number of steps comes from the minibatch alone
    "a2c": {**_SMALL, "lam": (0.95, 1.0), "vf_coef": (0.1, 0.5)},
    # a learned baseline has less variance than the batch's mean once it is right
    "reinforce": {**_SMALL, "critic": ("none", "shared")},
    # larger groups: better baselines, fewer prompts
    "rloo": {**_SMALL, "group_size": (2, 4, 8)},
    # the group's size also moves the end point (docs/algorithms.md); a second epoch reuses what the clip bounds
    "grpo": {**_SMALL, "group_size": (4, 8, 16), "epochs": (1, 2)},
    "dr-grpo": {**_SMALL, "group_size": (4, 8, 16), "epochs": (1, 2)},
    "reinforce++": {**_UPDATE, "epochs": (1, 2), "clip_range": (0.1, 0.2, 0.3)},
    # the best of more texts is a stronger pull, and less of what was paid for is imitated
    "raft": {"batch_size": (32, 64, 128), "group_size": (2, 4, 8), "epochs": (1, 2)},
    # one step a batch
    "online-dpo": {"batch_size": (16, 32, 64)},
    "dpo": {"batch_size": (16, 32, 64)},
    # a text's label is how it compares with the others of its prompt
    "kto": {"batch_size": (32, 64), "texts_per_prompt": (4, 8, 16)},
    "sft": {"batch_size": (16, 32, 64)},
    # nothing is trained: n is all that there is
    "best-of-n": {"n": (16, 4, 64, 8, 32, 2, 128, 1)},
}
"""Agent -> field -> its values; an agent that is not here has its step size alone."""


def trials(agent: str, kind: Any, fixed: Mapping[str, Any], count: int) -> list[tuple[dict[str, Any], float]]:
    """(configuration, factor of the default step size) of each trial; none of an agent that has nothing to tune.

    Fields that the user set stay as they are. Where all that can be chosen is a few combinations (best-of-n's n), each
    is tried once, and fewer trials than asked for may be all of them.

    Args:
        agent: its name, on which the draws depend. kind: its class. fixed: the user's fields.
    """
    choices = {field: values for field, values in CHOICES.get(agent, {}).items() if field not in fixed}
    step = kind.trains and "learning_rate" not in fixed
    if not choices and not step:
        return []
    default = [(dict(fixed), 1.0)]
    if not step:
        defaults = kind.config_class()
        combinations = [dict(zip(choices, values)) for values in itertools.product(*choices.values())]
        others = [c for c in combinations if any(getattr(defaults, field) != v for field, v in c.items())]
        return [*default, *(({**fixed, **found}, 1.0) for found in others)][:count]
    return [*default, *(_drawn(agent, kind, trial, choices, fixed) for trial in range(1, count))][:count]


def _drawn(
    agent: str,
    kind: Any,
    trial: int,
    choices: Mapping[str, tuple[Any, ...]],
    fixed: Mapping[str, Any],
) -> tuple[dict[str, Any], float]:
    rng = np.random.default_rng([zlib.crc32(agent.encode()), trial])
    factor = float(STEP ** rng.uniform(-1, 1))
    problem = ""
    for _ in range(MOST_DRAWS):
        drawn = {field: values[int(rng.integers(len(values)))] for field, values in choices.items()}
        try:
            make_config(kind.config_class, {**fixed, **drawn}, agent)
        except ValueError as error:  # what the user set and what was drawn do not fit each other
            problem = str(error)
        else:
            return {**fixed, **drawn}, factor
    raise ValueError(f"no configuration to try for {agent} fits {dict(fixed)}: {problem}; set more of its fields")
