"""How the command line fails: one line for what a user can put right, and Ctrl-C that first lets an update end."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Any


class Refused(Exception):
    """Something that the user can put right: one line on stderr, exit code 2."""


class Failed(Exception):
    """A run that broke off for a reason that is not ours: its message on stderr, exit code 1."""


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Errors of set-up (a bad name, file, value, or a missing extra) as :class:`Refused`."""
    try:
        yield
    except BrokenPipeError:  # `lm-gym train ppo --help | head`
        raise
    except (ValueError, TypeError, OSError, ImportError) as error:
        # ModuleNotFoundError of a module of ours is a broken installation, which its own message explains.
        raise Refused(one_line(error)) from error


def one_line(error: BaseException) -> str:
    """An error's message in one line, with its type where that is all there is."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    return text or type(error).__name__


def say(message: str) -> None:
    """A line on stderr; from a signal handler too, which may come in the middle of another print."""
    try:
        print(message, file=sys.stderr, flush=True)
    except RuntimeError:
        os.write(2, f"{message}\n".encode())


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings in one line, without the place in our code that they come from."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_args, **_kwargs: say(f"warning: {' '.join(str(message).split())}")
        yield


class Interrupt:
    """Ctrl-C as a question: the first SIGINT sets ``asked``, the second raises KeyboardInterrupt.

    Where signals cannot be handled (not the main thread), Ctrl-C does what it always does.
    """

    def __init__(self, message: str) -> None:
        self.asked = False
        self._message = message
        self._before: Any = None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        say(self._message)
