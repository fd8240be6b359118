"""One question to a JSON server, asked again until the answer can be read: what every judge over HTTP shares."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException, IncompleteRead
from typing import Any, TypeVar
from urllib.parse import urlsplit

Answer = TypeVar("Answer")

RETRIED = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses that a later try may cure; any other is an error at once."""

LONGEST_WAIT = 60.0
"""Seconds between two tries, at most, also where a server asks for more."""


class BadAnswer(ValueError):
    """An answer that came and cannot be used; `row` is the item of the question that it fails, if one can be told."""

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


class NoAnswer(RuntimeError):
    """No answer that can be used, after all tries; `row` as in the last BadAnswer."""

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


def ask(
    url: str,
    question: Any,
    read: Callable[[Any], Answer],
    *,
    timeout: float,
    retries: int,
    backoff: float,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """POST `question` as JSON and return `read(answer)`.

    Args:
        read: turns the decoded JSON into the result, or raises BadAnswer.
        timeout: seconds for one try, from connecting to the last byte.
        retries: further tries after the first.
        backoff: seconds before the second try, doubled before each further one; a Retry-After header can lengthen it.

    Raises:
        NoAnswer: no try succeeded, or a status that no retry cures; says what came last.
    """
    body = json.dumps(question).encode()
    request = urllib.request.Request(
        url, data=body, headers={"Content-Type": "application/json", "Accept": "application/json", **(headers or {})}
    )
    # A proxy from the environment cannot reach this machine's own loopback.
    local = urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({} if local else None))
    problem, row, wait = "", None, backoff
    for attempt in range(retries + 1):
        asked_wait = 0.0
        row = None
        try:
            return read(_decoded(_received(opener, request, timeout)))
        except BadAnswer as error:
            problem, row = str(error), error.row
        except urllib.error.HTTPError as error:
            problem = f"HTTP status {error.code}: {_excerpt(error)}"
            if error.code not in RETRIED:
                raise NoAnswer(f"{problem} (not tried again: a retry does not cure this status)") from error
            asked_wait = _seconds(error.headers.get("Retry-After"))
        except (OSError, HTTPException) as error:  # refused, reset, timed out, name unknown, cut off
            reason = getattr(error, "reason", error)
            late = isinstance(reason, TimeoutError)
            problem = f"no answer within {timeout:g} s" if late else f"{type(reason).__name__}: {reason}"
        if attempt < retries:
            time.sleep(min(max(wait, asked_wait), LONGEST_WAIT))
            wait *= 2
    raise NoAnswer(f"no usable answer in {retries + 1} tries; the last: {problem}", row)


def _received(opener: urllib.request.OpenerDirector, request: urllib.request.Request, timeout: float) -> bytes:
    deadline = time.monotonic() + timeout
    received = bytearray()
    with opener.open(request, timeout=timeout) as response:
        while True:
            # The socket's own time-out starts anew with every byte: a server that trickles would never run into it.
            chunk = response.read1(1 << 16)
            if not chunk and response.length:  # read1 takes an early end of the stream for an end
                raise IncompleteRead(bytes(received), response.length)
            if not chunk:
                return bytes(received)
            received += chunk
            if time.monotonic() > deadline:
                raise TimeoutError


def _decoded(received: bytes) -> Any:
    try:
        return json.loads(received)
    except (ValueError, RecursionError) as error:  # also bytes that are no UTF-8, and lists in lists without end
        raise BadAnswer(f"the answer is not JSON ({error}): {received[:80]!r}") from error


def _excerpt(error: urllib.error.HTTPError) -> str:
    try:
        return repr(error.read(300).decode(errors="replace"))
    except (OSError, HTTPException):
        return repr(error.reason)


def _seconds(header: str | None) -> float:
    return float(header) if header is not None and header.strip().isdecimal() else 0.0
