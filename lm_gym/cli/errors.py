"""How the command line fails: one line for what a user can put right; Ctrl-C and SIGTERM first let an update end."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Any

from lm_gym.terminal import printable


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
    if isinstance(error, OSError) and error.strerror:
        if error.filename is not None:
            text = f"{error.filename}: {error.strerror}"
        elif error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):  # our own files have their names with them
            text = f"standard output, or a file of a library: {error.strerror}"
    return text or type(error).__name__


def say(message: str) -> None:
    """A line on stderr; from a signal handler too, which may come in the middle of another print.

    Escape sequences in it, of a judge or a client, are made visible: they would colour or steer the terminal.
    """
    message = printable(message)
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


class Terminated(KeyboardInterrupt):
    """SIGTERM, which schedulers send before they kill: what Ctrl-C does, with an exit code of its own."""


STOPPED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
"""Exit codes after Ctrl-C and after SIGTERM, as shells give them to any program that these signals end."""


def code_of(stop: KeyboardInterrupt) -> int:
    """The exit code of a command that was stopped."""
    return TERMINATED if isinstance(stop, Terminated) else STOPPED


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises :class:`Terminated`, unless it is ignored or somebody's already."""
    main, process = threading.current_thread() is threading.main_thread(), os.getpid()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        _leave_to_the_system(number, process)
        raise Terminated

    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _leave_to_the_system(number: int, process: int) -> None:
    """End a forked child, which has its parent's handlers, and nothing to save."""
    if os.getpid() != process:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


class Interrupt:
    """Ctrl-C or SIGTERM as a question: the first sets ``asked``. Ctrl-C after it raises KeyboardInterrupt.

    A second SIGTERM does nothing: wrappers and process groups pass one on twice, and whoever has no time sends SIGKILL.
    Where signals cannot be handled (not the main thread), they do what they always do.

    Attributes:
        asked: whether a signal came. code: the exit code that it asks for; 0 without one.
    """

    def __init__(self, message: str) -> None:
        self.asked, self.code = False, 0
        self._message, self._process = message, os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            _leave_to_the_system(number, self._process)
        elif self.asked:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self.code = True, 128 + number
            by_hand = f"Ctrl-C: {self._message} (Ctrl-C again stops at once)"
            say(by_hand if number == signal.SIGINT else f"SIGTERM: {self._message}")
