"""One time for a whole exchange over a socket, and how many connections a server can hold."""

from __future__ import annotations

import io
import socket
import time
from typing import Any


class Until(io.RawIOBase):
    """A socket's stream that may be read until `deadline` (of `time.monotonic`); then every read is a TimeoutError.

    The time-out of a socket alone starts anew with every byte: who sends one now and then would never run into it.

    Args:
        raw: the stream, as `socket.makefile("rb").detach()` gives it.
    """

    def __init__(self, raw: Any, sock: socket.socket, deadline: float) -> None:
        super().__init__()
        self.raw, self.sock, self.deadline = raw, sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self.sock.settimeout(left(self.deadline))
        found: int | None = self.raw.readinto(buffer)
        return found

    def close(self) -> None:
        self.raw.close()
        super().close()


def left(deadline: float) -> float:
    """Seconds until `deadline`.

    Raises:
        TimeoutError: none are left.
    """
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("the time is over")
    return seconds


def most_connections(wanted: int) -> int:
    """At most `wanted`, and half of the files that this process may open: the rest is for what it serves."""
    try:
        import resource
    except ImportError:  # Windows
        return wanted
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return wanted if soft == resource.RLIM_INFINITY else min(wanted, max(4, soft // 2))
