"""The sockets and headers of :class:`lm_gym.reward_server.RewardServer`: who may ask, how much, and errors as JSON."""

from __future__ import annotations

import hmac
import json
import socket
import socketserver
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from lm_gym.reward_requests import Problem

if TYPE_CHECKING:
    from lm_gym.reward_server import RewardServer

ROUTES = {"/get_reward": "POST", "/classify": "POST", "/health": "GET"}


class RewardHTTP(ThreadingHTTPServer):
    """A thread a connection. It counts those under way, so that closing can wait for them."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, rewards: RewardServer, host: str, port: int) -> None:
        self.rewards = rewards
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._open = 0
        self._changed = threading.Condition()
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own asks a name server for the host's name

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changed:
            self._open += 1
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._changed:
                self._open -= 1
                self._changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.rewards.on_error(f"{client_address[0]}: the connection broke off ({sys.exc_info()[1]})")

    def emptied(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._open == 0, seconds)


class _Handler(BaseHTTPRequestHandler):
    server: RewardHTTP
    server_version = "lm-gym"

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.rewards.limits.timeout)

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        rewards = self.server.rewards
        status, headers = 200, dict[str, str]()
        try:
            path = self.path.partition("?")[0].rstrip("/")
            try:
                body = self._body()  # read in every case: a client that is still sending would not see the answer
            except TimeoutError as error:
                raise Problem(408, f"nothing came for {rewards.limits.timeout:g} s", kind="Timeout") from error
            if path not in ROUTES:
                raise Problem(404, f"there is no {path or '/'}; there are {', '.join(ROUTES)}", kind="NotFound")
            if self.command != ROUTES[path]:
                raise Problem(405, f"{path} takes {ROUTES[path]}, not {self.command}", kind="MethodNotAllowed")
            if path == "/health":
                content = rewards.health()
            else:
                self._check_token()
                content = rewards.answer(path, self._decoded(body))
        except Exception as error:  # a client gets an answer also to what nobody thought of
            broken = Problem(500, f"{type(error).__name__}: {error}", kind="InternalError")
            problem = error if isinstance(error, Problem) else broken
            status, content = problem.code, problem.body
            headers = {401: {"WWW-Authenticate": "Bearer"}, 405: {"Allow": "GET, POST"}}.get(status, {})
            rewards.on_error(f"{self.command} {self.path}: {status} {problem}")
        self._send(status, content, headers)

    def _body(self) -> bytes:
        if self.command == "GET":
            return b""
        length, most = self.headers.get("Content-Length"), self.server.rewards.limits.max_bytes
        if length is None or not length.isdecimal():
            raise Problem(411, "expected a Content-Length", kind="LengthRequired")
        if int(length) > most:
            left = min(int(length), 4 * most)
            while left > 0 and (chunk := self.rfile.read(min(left, 1 << 16))):
                left -= len(chunk)
            raise Problem(413, f"{length} bytes in one request; at most {most}", kind="TooLarge")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise Problem(400, f"expected {length} bytes, got {len(body)}")
        return body

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
            return json.loads(body, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise Problem(400, f"the request is not JSON: {error}") from error

    def _send(self, status: int, content: dict[str, Any], headers: dict[str, str]) -> None:
        body = json.dumps(content, allow_nan=False).encode()
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


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
