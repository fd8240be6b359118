"""One question to a JSON server, asked again until the answer can be read: what every judge over HTTP shares."""

from __future__ import annotations

import datetime
import email.utils
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException, IncompleteRead
from typing import Any, TypeVar
from urllib.parse import urlsplit

from lm_gym.reward_errors import short, shown
from lm_gym.reward_models.http_deadline import opener
from lm_gym.terminal import printable

Answer = TypeVar("Answer")

RETRIED = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses that a later try may cure; any other is an error at once."""

LONGEST_WAIT = 60.0
"""Seconds between two tries, at most, also where a server asks for more."""

LONGEST = 86_400.0
"""Seconds, of a time-out or a wait between tries that a user may ask for."""

LARGEST_ANSWER = 2**20
"""Bytes of an answer to one question, and as many more for each text in it (a value a token of a long text)."""


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
    token_env: str | None = None,
    texts: int = 1,
) -> Answer:
    """POST `question` as JSON and return `read(answer)`.

    A redirect is not followed: it would ask another address without the question, and with the token.

    Args:
        read: turns the decoded JSON into the result, or raises BadAnswer.
        timeout: seconds for one try, from connecting (behind the look-up of the server's name) to the last byte.
        retries: further tries after the first.
        backoff: seconds before the second try, doubled before each further one; a Retry-After header, in seconds or as
            a date, can lengthen it.
        token_env: name of the environment variable with a bearer token.
        texts: how many are asked about; an answer has at most LARGEST_ANSWER bytes for each, and once more.

    Raises:
        NoAnswer: no try succeeded, or a status that no retry cures, a redirect, or an answer that is too large; says
            what came last.
        ValueError: an address that is not http(s)://, or a token that no header can hold.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"expected an address http(s)://..., got {url!r:.200}")
    headers = {"Content-Type": "application/json", "Accept": "application/json", **bearer(token_env)}
    body = json.dumps(question).encode()
    request = urllib.request.Request(url, data=body, headers=headers)
    largest = LARGEST_ANSWER * (1 + texts)
    problem, row, wait = "", None, backoff
    for attempt in range(retries + 1):
        asked_wait = 0.0
        row = None
        try:
            return read(_decoded(_received(request, timeout, largest)))
        except BadAnswer as error:
            problem, row = str(error), error.row
        except urllib.error.HTTPError as error:
            with error:
                place = error.headers.get("Location") if 300 <= error.code < 400 else None
                if place is not None:
                    raise NoAnswer(
                        f"HTTP status {error.code}: the server redirects to {short(printable(place), 200)}, which is "
                        "not followed; give that address if it is the right one"
                    ) from error
                problem = f"HTTP status {error.code}: {_excerpt(error)}"
                if error.code not in RETRIED:
                    raise NoAnswer(f"{problem} (not tried again: a retry does not cure this status)") from error
                asked_wait = _wait_asked_for(error.headers)
        except (OSError, HTTPException) as error:  # refused, reset, timed out, name unknown, cut off
            reason = getattr(error, "reason", error)
            late = isinstance(reason, TimeoutError)
            problem = f"no answer within {timeout:g} s" if late else printable(f"{type(reason).__name__}: {reason}")
        if attempt < retries:
            time.sleep(min(max(wait, asked_wait), LONGEST_WAIT))
            wait *= 2
    raise NoAnswer(f"no usable answer in {retries + 1} tries; the last: {problem}", row)


def address(url: str, what: str, example: str = "http://host:port/path") -> str:
    """An address without user, password and query, which is what judges are called by.

    Raises:
        ValueError: it is none, or one to which no request can be sent; begins with ``what``.
    """
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError as error:  # half of an IPv6 address, a port of letters
        raise ValueError(
            f"{what} is {shown(url)}; expected one such as {example}, and this is no URL ({error})"
        ) from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{what} is {shown(url)}; expected one such as {example}, and this is no URL")
    if not re.fullmatch(r"[!-~]+", url):
        raise ValueError(
            f"{what} is {shown(url)}, which holds letters that no URL has: percent-encode them (%20 is a space)"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{port}{parts.path}"


def check_waits(who: str, timeout: float, retries: int, backoff: float) -> None:
    """Refuse numbers that :func:`ask` cannot wait by."""
    if not (0 < timeout <= LONGEST and 0 <= backoff <= LONGEST and retries >= 0):  # a NaN is refused too
        raise ValueError(f"{who}: expected timeout > 0, backoff >= 0, both at most {LONGEST:g} s, and retries >= 0")


def bearer(token_env: str | None) -> dict[str, str]:
    """The header with the token of an environment variable; none without one.

    Raises:
        ValueError: there is no such variable, or a token that no header can hold; the message does not show it.
    """
    if token_env is None:
        return {}
    if token_env not in os.environ:
        raise ValueError(f"token_env is {token_env!r}, and there is no such environment variable")
    if not re.fullmatch(r"[!-~]+", os.environ[token_env]):
        raise ValueError(f"the token in {token_env} is empty, or has spaces or letters that a header cannot hold")
    return {"Authorization": f"Bearer {os.environ[token_env]}"}


def _received(request: urllib.request.Request, timeout: float, largest: int) -> bytes:
    received = bytearray()
    with opener(request.full_url, time.monotonic() + timeout).open(request, timeout=timeout) as response:
        while True:
            if len(received) + (response.length or 0) > largest:
                raise NoAnswer(f"the answer has more than {largest} bytes, the most that is read of one")
            chunk = response.read1(1 << 16)
            if not chunk and response.length:  # read1 takes an early end of the stream for an end
                raise IncompleteRead(bytes(received), response.length)
            if not chunk:
                return bytes(received)
            received += chunk


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


def _wait_asked_for(headers: Any) -> float:
    """Seconds of a Retry-After header (RFC 9110, 10.2.3): a number, or a date, by the server's clock if it says it."""
    asked = (headers.get("Retry-After") or "").strip()
    if asked.isdecimal():
        return float(asked)
    until = _date(asked)
    if until is None:
        return 0.0
    now = _date(headers.get("Date") or "") or datetime.datetime.now(datetime.timezone.utc)
    return (until - now).total_seconds()


def _date(header: str) -> datetime.datetime | None:
    try:
        found = email.utils.parsedate_to_datetime(header)
        return found if found.tzinfo is not None else found.replace(tzinfo=datetime.timezone.utc)
    except (TypeError, ValueError, OverflowError, IndexError):
        return None
