"""Connections of the annotation page: how long a request may take to come, and how many there may be at once."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from lm_gym.deadline import most_connections
from lm_gym.terminal import printable

REQUEST_SECONDS = 10.0
"""From connecting, or from the first byte on a connection that is kept, to the last byte of a request."""
MOST = 512

LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def bounded_protocol(*, seconds: float = REQUEST_SECONDS, most: int = MOST) -> type[asyncio.Protocol]:
    """uvicorn's HTTP protocol with a deadline for every request and a limit on connections, as `uvicorn.Config(http=)`.

    uvicorn itself waits for a request for as long as the client likes, and takes as many connections as come.

    Args:
        seconds: for one request to come.
        most: connections at once, and never more than half of the files that the process may open. One more takes the
            place of the one that has been idle or unfinished longest; where all are being answered it gets a 503.
    """
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    limit = most_connections(most)

    class Bounded(H11Protocol):
        timer: asyncio.TimerHandle | None = None
        """Runs while a request is waited for."""
        since = 0.0
        refused = False

        def connection_made(self, transport: Any) -> None:
            if len(self.connections) >= limit and not self._make_room():
                transport.write(FULL)
                transport.close()
                self.refused = True
                return
            super().connection_made(transport)
            self._expect()

        def data_received(self, data: bytes) -> None:
            if self.refused:
                return
            if self.timer is None and self.conn.their_state is h11.IDLE:
                self._expect()
            super().data_received(data)
            if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
                self._expected()

        def connection_lost(self, error: Exception | None) -> None:
            self._expected()
            if not self.refused:
                super().connection_lost(error)

        def _expect(self) -> None:
            self.since = self.loop.time()
            self.timer = self.loop.call_later(seconds, self._late)

        def _expected(self) -> None:
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None

        def _late(self) -> None:
            self.timer = None
            if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
                self.transport.write(LATE)
            self._close()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self._close()

        def _close(self) -> None:
            self.transport.close()
            self.loop.call_later(seconds, self.transport.abort)  # also where an answer is never fetched

        def _make_room(self) -> bool:
            held: Any = self.connections
            idle = [c for c in held if c.timer is not None or c.cycle is None or c.cycle.response_complete]
            if not idle:
                return False
            oldest = min(idle, key=lambda connection: connection.since)
            self.connections.discard(oldest)
            oldest.transport.abort()
            return True

    return Bounded


class PrintableFormatter(logging.Formatter):
    """Log lines without what would colour or steer the terminal that they go to."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"printable": {"()": PrintableFormatter, "format": "%(levelname)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "printable"}},
    "loggers": {"uvicorn": {"handlers": ["stderr"], "level": "WARNING", "propagate": False}},
}
"""Of uvicorn, whose own would write exceptions raw."""
