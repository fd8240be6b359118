"""What a reward model did wrong, as one kind of error: whatever code of the user's raises, and however it ends."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from lm_gym.terminal import printable

PASSING = (KeyboardInterrupt, GeneratorExit)
"""The only exceptions of a reward model that are not its own: Ctrl-C, and the end of a generator that runs around it.

SystemExit is not among them: a library that calls `sys.exit(0)` inside a judge must not end a run as if it were done.
"""


class RewardModelError(RuntimeError):
    """A reward model raised, or returned something that is not one finite number a completion.

    A reward model may raise it itself with `row`, the index in the batch of the completion at fault.
    """

    row: int | None = None
    located = False  # True: the message already names the reward model, the prompt and the completion

    def __init__(self, message: str, *, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


class UnusableRewardModel(RewardModelError, ValueError):
    """A reward model that cannot be made: its file, function or class raised. From the command line exit code 2."""


@contextlib.contextmanager
def named_errors(what: str, kind: type[RewardModelError] = RewardModelError) -> Iterator[None]:
    """Whatever the block raises as a :class:`RewardModelError` that begins with `what`."""
    try:
        yield
    except (*PASSING, RewardModelError):
        raise
    except BaseException as error:
        raise kind(f"{what} raised {told(error)}") from error


def told(error: BaseException) -> str:
    """Type and message of an exception, whose own `__str__` may raise."""
    try:
        message = str(error)
    except PASSING:
        raise
    except BaseException:
        message = ""
    name = type(error).__name__
    return short(printable(f"{name}: {message}" if message else name), 2000)


def shown(value: Any, limit: int = 300) -> str:
    """The repr of a value for an error's message: short, without control characters, also where `__repr__` raises."""
    try:
        text = repr(value)
    except PASSING:
        raise
    except BaseException as error:
        text = f"a value of type {type(value).__qualname__} whose repr raises {type(error).__name__}"
    return short(printable(text), limit)


def short(text: str, limit: int = 300) -> str:
    """`text`, without its middle where it is longer than `limit`."""
    return text if len(text) <= limit else f"{text[: limit - 60]} ... {text[-55:]}"
