"""urllib with one deadline for a request, from connecting to the last byte, and without redirects.

The time-out of a socket starts anew with every byte: a server that sends its headers, or the body of an error, a byte
at a time would never run into it. Here every wait has what is left of one time.
"""

from __future__ import annotations

import io
import socket
import urllib.request
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from lm_gym.deadline import Until, left


def opener(url: str, deadline: float) -> urllib.request.OpenerDirector:
    """What opens requests to http and https, and nothing else, until `deadline` (of `time.monotonic`).

    Proxies are those of the environment, but for this machine's own loopback, which they cannot reach. A redirect is an
    HTTPError, as every status that is no success.
    """
    local = urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
    made = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler({} if local else None),
        _Handler(deadline),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
    ):
        made.add_handler(handler)
    return made


class _Handler(urllib.request.AbstractHTTPHandler):
    def __init__(self, deadline: float) -> None:
        super().__init__()
        self.deadline = deadline

    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_Connection, request, deadline=self.deadline)  # type: ignore[arg-type]

    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(_SecureConnection, request, deadline=self.deadline)  # type: ignore[arg-type]

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_


class _WithDeadline(HTTPConnection):
    """What both kinds of connection do by the deadline: connecting, sending, and reading."""

    def __init__(self, *arguments: Any, deadline: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.deadline = deadline
        self._create_connection = self._connected
        self.response_class = self._response  # type: ignore[assignment]

    def _connected(self, address: tuple[str, int], *_: Any) -> socket.socket:
        failure: OSError = OSError(f"the name {address[0]} leads to no address")
        for found in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
            place: Any = found[4][:2]
            try:
                # The TLS handshake comes next, under the same time-out; both measure it over all of their bytes.
                connected = socket.create_connection(place, left(self.deadline))
                connected.settimeout(left(self.deadline))
                return connected
            except OSError as error:
                failure = error
        raise failure

    def send(self, data: Any) -> None:
        if self.sock is not None:
            self.sock.settimeout(left(self.deadline))
        super().send(data)

    def _response(self, sock: socket.socket, *arguments: Any, **options: Any) -> HTTPResponse:
        response = HTTPResponse(sock, *arguments, **options)
        response.fp = io.BufferedReader(Until(response.fp.detach(), sock, self.deadline))
        return response


class _Connection(_WithDeadline):
    pass


class _SecureConnection(_WithDeadline, HTTPSConnection):
    pass
