"""One warning a process where an agent from outside is paid the reference half of the KL alone, and nobody chose it."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

given = False
"""Whether this process has been warned."""

MESSAGE = (
    "this environment was made without kl_mode, so that step() pays the reference half of the KL penalty alone: an "
    "agent that takes these rewards as they come learns to write one single text (regret .620 on the worked language, "
    "where the optimum has 0 and an untrained policy .784). Two ways to the exact reward: make it with "
    "kl_mode='reported' and call env.unwrapped.report_logprob(logprob) before every step; or keep kl_mode='reference' "
    "and train on lm_gym.kl.shape(rewards, logprobs, kl_coef). Naming a kl_mode ('reported', 'reference' or 'none') "
    "silences this"
)


def warn_once() -> None:
    """Called by every step of an environment whose ``kl_mode`` nobody named; points at the line that steps it.

    Our own agents name theirs before they step. An environment checker steps without learning anything, so that it
    does not count.
    """
    global given
    if given:
        return
    frames = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    if any(_module(f).endswith(".env_checker") for f in frames):
        return
    given = True
    users = next((depth for depth, f in enumerate(frames, 2) if not _in_between(f)), 2)
    warnings.warn(MESSAGE, stacklevel=users)


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _in_between(frame: FrameType) -> bool:
    """Whether this is code of LM Gym or of an installed package: Gymnasium's wrappers, a library's training loop."""
    return _module(frame).split(".")[0] == "lm_gym" or "site-packages" in frame.f_code.co_filename
