"""What stands between the network and the page: known hosts, same-origin JSON posts of bounded size, strict headers."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LARGEST_BODY = 65_536
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; require-trusted-types-for 'script'; trusted-types lm-gym"
)
"""The page's own files and nothing else: no inline script or style, no other host, no frame, one sink for HTML."""

HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}


class Guard:
    """ASGI middleware.

    Refused, before anything is read: a host that is not ours (a foreign name that resolves to this machine), a post
    from another origin or without one (so that no other site can answer in an annotator's name), a post that is not
    JSON, a body above 64 KiB. Every response gets the headers above.

    Args:
        hosts: names or addresses under which the page may be asked for, without port.
    """

    def __init__(self, app: App, hosts: Collection[str]) -> None:
        self.app = app
        self.hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # no websockets: the connection is closed
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                ours = [(key.encode(), value.encode()) for key, value in HEADERS.items()]
                message["headers"] = [pair for pair in message.get("headers", []) if pair[0].decode() not in HEADERS]
                message["headers"] += ours
            await send(message)

        status, reason = self._refusal(scope["method"], headers)
        if status:
            await _answer(guarded, status, reason)
            return
        # The whole body is read here, so that one without a content-length is bounded too.
        body = b""
        while scope["method"] == "POST":
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            if len(body) > LARGEST_BODY:
                await _answer(guarded, 413, f"a request expected at most {LARGEST_BODY} bytes")
                return
            if not message.get("more_body"):
                break
        read = False

        async def once() -> Message:
            nonlocal read
            if scope["method"] != "POST" or read:
                return await receive()
            read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, once, guarded)

    def _refusal(self, method: str, headers: dict[str, str]) -> tuple[int, str]:
        """Status and reason of a refusal; 0 if the request may pass."""
        host = headers.get("host", "")
        if _name(host) not in self.hosts:
            return 421, "this page is not served under that name; start it with --url http://<name>:<port>"
        if method in ("GET", "HEAD"):
            return 0, ""
        if method != "POST":
            return 405, "only GET and POST are answered"
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return 415, "a post expected Content-Type: application/json"
        if _origin(headers.get("origin", "")) != host.lower():
            return 403, "a post expected to come from this page itself"
        length = headers.get("content-length", "0").lstrip("0")  # compared by its digits: there may be thousands
        if not re.fullmatch(r"[0-9]*", length):
            return 400, "a request expected a Content-Length in digits"
        if len(length) > len(str(LARGEST_BODY)) or int(length or "0") > LARGEST_BODY:
            return 413, f"a request expected at most {LARGEST_BODY} bytes"
        return 0, ""


def _origin(origin: str) -> str:
    """Host and port of an Origin header."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:  # half of an IPv6 address
        return ""


def _name(host: str) -> str:
    """The host of a Host header, without port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


async def _answer(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    start = {
        "type": "http.response.start",
        "status": status,
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
    }
    await send(start)
    await send({"type": "http.response.body", "body": body})
