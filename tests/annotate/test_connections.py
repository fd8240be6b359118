"""The annotation page under uvicorn: slow clients, many connections, and what reaches the log."""

import contextlib
import http.client
import json
import logging
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import uvicorn
from annotate_stores import store_with

from lm_gym.annotate.connections import LOGGING, PrintableFormatter, bounded_protocol
from lm_gym.annotate.people import invite
from lm_gym.annotate.server import create_app
from lm_gym.annotate.store import Store

SECONDS = 0.3
POST = b"POST /api/join HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://127.0.0.1\r\nContent-Type: application/json\r\n"


@contextlib.contextmanager
def served(store: Store, *, most: int = 64) -> Iterator[int]:
    """The page on a free port, with a short deadline."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        protocol = bounded_protocol(seconds=SECONDS, most=most)
        config = uvicorn.Config(create_app(store), http=protocol, lifespan="off", access_log=False, log_config=LOGGING)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with store_with(tmp_path, 2) as store:
        yield store


def opened(port: int, sent: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(sent)
    return connection


def ended(connection: socket.socket, sending: bytes = b"") -> tuple[float, bytes]:
    """Seconds until the server hangs up on a client that sends `sending` every 20 ms, and what it had answered."""
    started, answer = time.monotonic(), b""
    connection.settimeout(0.02)
    while time.monotonic() - started < 5:
        try:
            connection.sendall(sending)
            got = connection.recv(1 << 16)
        except TimeoutError:
            continue
        except OSError:
            break
        if not got:
            break
        answer += got
    connection.close()
    return time.monotonic() - started, answer


def status_of(port: int, path: str = "/static/style.css") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path)
    status = connection.getresponse().status
    connection.close()
    return status


def test_a_request_has_a_deadline_whoever_sends_it(store: Store) -> None:
    with served(store) as port:
        slow = [
            (b"", b""),
            (b"GET /sta", b""),
            (b"GET /sta", b"x"),
            (POST, b"X-Header: x\r\n"),
            (POST + b"Content-Length: 1000\r\n\r\n", b""),
            (POST + b"Content-Length: 1000\r\n\r\n", b" "),
            (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        ]
        with ThreadPoolExecutor(len(slow)) as pool:
            for seconds, answer in pool.map(lambda client: ended(opened(port, client[0]), client[1]), slow):
                assert SECONDS * 0.8 < seconds < SECONDS + 1 and answer.startswith(b"HTTP/1.1 408 ")
        # One that comes in time is answered, and so is the next on the same connection, long after the first.
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        for pause in (0.0, 2 * SECONDS):
            time.sleep(pause)
            connection.request("GET", "/static/style.css")
            assert connection.getresponse().read() and connection.sock is not None
        connection.sock.sendall(b"GET /half")  # and a second half-sent one has a deadline as well
        assert ended(connection.sock)[0] < SECONDS + 1


def test_half_sent_posts_lock_nobody_out(store: Store) -> None:
    with served(store, most=8) as port:
        half = [opened(port, POST + b"Content-Length: 1000\r\n\r\n") for _ in range(30)]
        started = time.monotonic()
        assert status_of(port) == 200
        assert time.monotonic() - started < SECONDS
        assert all(ended(connection)[0] < SECONDS + 1 for connection in half)
        assert status_of(port) == 200


def test_a_writer_elsewhere_is_a_503_with_a_time_to_come_back(store: Store) -> None:
    with served(store) as port:
        store.wait = 0.1
        cookies = {}
        for name in ("ada", "bob"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            headers = {"Origin": f"http://127.0.0.1:{port}", "Content-Type": "application/json"}
            connection.request("POST", "/api/join", json.dumps({"token": invite(store, name)}), headers)
            cookies[name] = connection.getresponse().headers["Set-Cookie"].partition(";")[0]
            connection.close()
        with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/api/next", headers={"Cookie": cookies["ada"]})
            answer = connection.getresponse()
            assert answer.status == 503 and int(answer.headers["Retry-After"]) > 0
            assert "somebody else is writing" in json.loads(answer.read())["error"]
            connection.request("GET", "/api/next?count=0", headers={"Cookie": cookies["bob"]})
            answer = connection.getresponse()
            assert answer.status == 200 and json.loads(answer.read())["progress"]["left"] == 2
            connection.close()
            other.execute("ROLLBACK")


def test_log_lines_do_not_steer_the_terminal() -> None:
    record = logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, "a path: %s", ("\x1b]0;X\x07\u202e",), None)
    assert PrintableFormatter("%(levelname)s: %(message)s").format(record).isprintable()
