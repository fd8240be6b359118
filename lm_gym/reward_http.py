"""The sockets and headers of :class:`lm_gym.reward_server.RewardServer`: who may ask, how much, and errors as JSON."""

from __future__ import annotations

import hmac
import io
import json
import math
import re
import socket
import socketserver
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from lm_gym.deadline import Until, most_connections
from lm_gym.reward_requests import Problem

if TYPE_CHECKING:
    from lm_gym.reward_server import RewardServer

ROUTES = {"/get_reward": "POST", "/classify": "POST", "/health": "GET"}
LINGER = 2.0
"""Seconds for which the rest of a refused request is read and thrown away: a client that is still sending would see a
broken connection in place of the answer."""


class RewardHTTP(ThreadingHTTPServer):
    """A thread a connection. It counts those under way, so that closing can wait for them."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, rewards: RewardServer, host: str, port: int) -> None:
        self.rewards = rewards
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._open = 0
        self._headless: dict[socket.socket, None] = {}
        """Connections whose request line and headers have not come yet, oldest first."""
        self._most = most_connections(rewards.limits.max_connections)
        self._changed = threading.Condition()
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own asks a name server for the host's name

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changed:
            full = self._open >= self._most
            if full and self._headless:
                oldest = next(iter(self._headless))
                del self._headless[oldest]
                _hang_up(oldest)  # its thread sees the end of the stream
            elif full:
                request.settimeout(LINGER)
                request.sendall(_BUSY)
                self.shutdown_request(request)
                return
            self._open += 1
            self._headless[request] = None
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._changed:
                self._open -= 1
                self._headless.pop(request, None)
                self._changed.notify_all()

    def has_head(self, request: Any) -> None:
        """The request line and the headers of a connection have come."""
        with self._changed:
            self._headless.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.rewards.on_error(f"{client_address[0]}: the connection broke off ({sys.exc_info()[1]})")

    def server_close(self) -> None:
        super().server_close()
        with self._changed:
            for waiting in self._headless:
                _hang_up(waiting)

    def emptied(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._open == 0, seconds)


class _Handler(BaseHTTPRequestHandler):
    server: RewardHTTP
    server_version = "lm-gym"

    def setup(self) -> None:
        super().setup()
        self.deadline = time.monotonic() + self.server.rewards.limits.timeout
        self.rfile = io.BufferedReader(Until(self.rfile.detach(), self.connection, self.deadline))  # type: ignore

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.server.has_head(self.connection)
        rewards = self.server.rewards
        status, headers = 200, dict[str, str]()
        self.unread = self.headers.get("Content-Length") is not None
        try:
            path = self.path.partition("?")[0].rstrip("/")
            if path not in ROUTES:
                raise Problem(404, f"there is no {path or '/'}; there are {', '.join(ROUTES)}", kind="NotFound")
            if self.command != ROUTES[path]:
                raise Problem(405, f"{path} takes {ROUTES[path]}, not {self.command}", kind="MethodNotAllowed")
            if path == "/health":
                content = rewards.health()
            else:
                self._check_token()  # before the body: it may be large, and slow to come
                content = rewards.answer(path, self._decoded(self._body()))
        except Exception as error:  # a client gets an answer also to what nobody thought of
            broken = Problem(500, f"{type(error).__name__}: {error}", kind="InternalError")
            problem = error if isinstance(error, Problem) else broken
            status, content = problem.code, problem.body
            headers = {401: {"WWW-Authenticate": "Bearer"}, 405: {"Allow": "GET, POST"}}.get(status, {})
            rewards.on_error(f"{self.command} {self.path}: {status} {problem}")
        self._send(status, content, headers)
        if self.unread:
            self._throw_away()

    def _body(self) -> bytes:
        length, most = self.headers.get("Content-Length", ""), self.server.rewards.limits.max_bytes
        if not re.fullmatch(r"[0-9]+", length) or "Transfer-Encoding" in self.headers:
            raise Problem(411, "expected a Content-Length, and no Transfer-Encoding", kind="LengthRequired")
        digits = length.lstrip("0")
        if len(digits) > len(str(most)) or int(digits or "0") > most:
            raise Problem(413, f"{digits:.20} bytes in one request; at most {most}", kind="TooLarge")
        try:
            body = self.rfile.read(int(digits or "0"))
        except TimeoutError as error:
            self.unread = False
            limit = self.server.rewards.limits.timeout
            raise Problem(408, f"the request had not come after {limit:g} s", kind="Timeout") from error
        self.unread = False
        if len(body) < int(digits or "0"):
            raise Problem(400, f"expected {digits} bytes, got {len(body)}")
        return body

    def _throw_away(self) -> None:
        """The rest of a request that was refused; see LINGER."""
        self.rfile.raw.deadline = min(self.deadline, time.monotonic() + LINGER)  # type: ignore[attr-defined]
        try:
            self.connection.shutdown(socket.SHUT_WR)
            while self.rfile.read1(1 << 16):
                pass
        except OSError:  # the time is over, or the client is gone
            pass

    def _check_token(self) -> None:
        token = self.server.rewards.token
        given = self.headers.get("Authorization", "")
        if token is not None and not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise Problem(401, "expected the server's token as Authorization: Bearer <token>", kind="Unauthorized")

    def _decoded(self, body: bytes) -> Any:
        # Also what keeps web pages out: a browser does not send this type to another site without asking first.
        kind = self.headers.get_content_type()
        if kind != "application/json":
            raise Problem(415, f"expected Content-Type: application/json, got {kind}", kind="UnsupportedMediaType")
        try:
            return json.loads(body, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_whole)
        except (ValueError, RecursionError) as error:
            raise Problem(400, f"the request is not JSON: {error}") from error

    def _send(self, status: int, content: dict[str, Any], headers: dict[str, str]) -> None:
        body = json.dumps(content, allow_nan=False).encode()
        self.connection.settimeout(self.server.rewards.limits.timeout)  # for an answer that nobody fetches
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library refuses by itself (a broken request line, another method), as JSON too."""
        problem = Problem(code, message or HTTPStatus(code).phrase)
        self.server.rewards.on_error(f"{code} {problem}")
        self._send(code, problem.body, {"Connection": "close"})

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _hang_up(request: socket.socket) -> None:
    try:
        request.shutdown(socket.SHUT_RDWR)
    except OSError:  # it is closed already
        pass


_BUSY_BODY = json.dumps(Problem(503, "too many connections at once; ask again", kind="Busy").body).encode()
_BUSY = (
    f"HTTP/1.0 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {len(_BUSY_BODY)}\r\n"
    "Retry-After: 1\r\nConnection: close\r\n\r\n"
).encode() + _BUSY_BODY


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits:.40} is beyond the range of numbers")
    return number


def _whole(digits: str) -> int:
    number = int(digits) if len(digits) < 400 else None  # JSON sets no limit
    if number is None or abs(number) > sys.float_info.max:
        raise ValueError(f"a number of {len(digits)} digits is beyond the range of numbers")
    return number
