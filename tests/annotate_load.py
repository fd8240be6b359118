"""Many annotators at once, a server killed in between, and the store compared with what was confirmed.

    .venv/bin/python tests/annotate_load.py --annotators 20 --answers 2000 --kills 5

A sitting behaves as the page does: it takes three items at a time, sends an answer again under the same id until it is
confirmed, takes some answers back, and now and then sends one twice.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import http.client
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm_gym.annotate.store import Store


class Server:
    """`lm-gym annotate serve` in a process of its own, which can be killed and started again on the same port."""

    def __init__(self, db: Path, *options: str) -> None:
        self.db, self.options = db, options
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.links: dict[str, str] = {}
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "lm_gym", "annotate", "serve", "--db", str(self.db), "--port", str(self.port)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*command, *self.options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        assert self.process.stdout is not None
        said = ""
        for line in self.process.stdout:
            said += line
            if found := re.match(r"(\S+)\s+(http\S+/join/\S+)", line):
                self.links[found[1]] = found[2]
            if line.startswith("stop with Ctrl-C"):
                return
        raise RuntimeError(f"the server did not start:\n{said}")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextlib.contextmanager
def serving(db: Path, *options: str) -> Iterator[Server]:
    """A server for the block."""
    server = Server(db, *options)
    try:
        yield server
    finally:
        server.kill()


def write_pairs(path: Path, n: int) -> Path:
    rows = [{"prompt": f"Question {i}?", "a": f"Answer {i}, one", "b": f"Answer {i}, two"} for i in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class Sitting(threading.Thread):
    """One annotator at work, until `answers` of theirs are confirmed or there is no more to do."""

    def __init__(self, server: Server, name: str, answers: int, seed: int, pause: float) -> None:
        super().__init__(name=name, daemon=True)
        self.server, self.wanted, self.random, self.pause = server, answers, random.Random(seed), pause
        self.confirmed: dict[str, dict[str, Any]] = {}
        self.undone: set[str] = set()
        self.seconds: list[float] = []
        self.lost_connections = 0
        self.wrong: list[str] = []
        self.connection: http.client.HTTPConnection | None = None
        self.cookie = ""

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """A request, again and again until there is an answer."""
        sent = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Origin": self.server.url, "Cookie": self.cookie}
        while True:
            try:
                if self.connection is None:
                    self.connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=10)
                started = time.perf_counter()
                self.connection.request(method, path, sent, headers)
                response = self.connection.getresponse()
                found = json.loads(response.read())
                if path == "/api/answers":
                    self.seconds.append(time.perf_counter() - started)
                if path == "/api/join":
                    self.cookie = str(response.getheader("set-cookie")).partition(";")[0]
                if response.status != 200:
                    self.wrong.append(f"{method} {path}: {response.status} {found}")
                return found
            except (OSError, http.client.HTTPException, json.JSONDecodeError):
                self.lost_connections += 1
                if self.connection is not None:
                    self.connection.close()
                self.connection = None
                time.sleep(0.02)

    def run(self) -> None:
        self.ask("POST", "/api/join", {"token": self.server.links[self.name].rpartition("/")[2]})
        idle = 0
        while len(self.confirmed) - len(self.undone) < self.wanted and not self.wrong:
            items = self.ask("GET", "/api/next?count=3")["items"]
            idle = 0 if items else idle + 1
            if idle > 100:
                return
            if not items:
                time.sleep(0.05)
            for item in items:
                if len(self.confirmed) - len(self.undone) >= self.wanted:
                    return
                self.answer(item["item"])
                if self.random.random() < 0.05:
                    self.take_back()
                    break
                time.sleep(self.random.expovariate(1 / self.pause) if self.pause else 0)

    def answer(self, item: int) -> None:
        body: dict[str, Any] = {"id": str(uuid.UUID(int=self.random.getrandbits(128), version=4)), "item": item}
        body |= {"kind": "preference", "shown": self.random.randint(-3, 3), "seconds": self.random.random()}
        receipt = self.ask("POST", "/api/answers", body)
        if self.random.random() < 0.1 and self.ask("POST", "/api/answers", body) != receipt:
            self.wrong.append(f"a retry of {body['id']} gave another result")
        self.confirmed[body["id"]] = body

    def take_back(self) -> None:
        last = next(reversed(self.confirmed))
        self.ask("POST", "/api/undo", {"id": str(uuid.uuid4()), "answer": last})
        self.undone.add(last)


@dataclasses.dataclass
class Outcome:
    confirmed: int
    undone: int
    kills: int
    lost: int
    changed: int
    twice: int
    unconfirmed: int
    over_asked: int
    wrong: list[str]
    broken_requests: int
    seconds: list[float]

    def milliseconds(self, share: float) -> float:
        return 1000 * sorted(self.seconds)[min(len(self.seconds) - 1, int(share * len(self.seconds)))]


def load(folder: Path, *, annotators: int, answers: int, kills: int, pause: float, seed: int = 0) -> Outcome:
    """Run it, and compare the store with what the server confirmed."""
    per_item = 4 if annotators >= 4 else 1
    names = [f"person-{i:02}" for i in range(annotators)]
    data = write_pairs(folder / "pairs.jsonl", answers // per_item + 3 * annotators)
    rng = random.Random(seed)
    db = folder / "prefs.sqlite"
    options = ["--data", str(data), "--per-item", str(per_item), "--annotators", *names]
    with serving(db, *options) as server:
        sittings = [Sitting(server, name, answers // annotators, seed + i, pause) for i, name in enumerate(names)]
        for sitting in sittings:
            sitting.start()
        done = 0
        while any(sitting.is_alive() for sitting in sittings):
            total = sum(len(sitting.confirmed) for sitting in sittings)
            # Spread over the work, at a moment that has nothing to do with it.
            if done < kills and total > answers * (done + 0.5) / (kills + 1):
                time.sleep(rng.random() * 0.05)
                server.kill()
                server.start()
                done += 1
            time.sleep(0.01)
    said = {identity: body for sitting in sittings for identity, body in sitting.confirmed.items()}
    undone = {identity for sitting in sittings for identity in sitting.undone}
    with Store(db) as store:
        rows = {row["id"]: row for row in store.rows("SELECT * FROM answers")}
        live = store.rows("SELECT annotator, item FROM live")
        gone = {row["answer"] for row in store.rows("SELECT answer FROM undos")}
        over = store.value("SELECT count(*) FROM items WHERE done > need")
    return Outcome(
        confirmed=len(said),
        undone=len(undone),
        kills=done,
        lost=sum(identity not in rows for identity in said) + len(undone ^ gone),
        changed=sum(
            (rows[i]["item"], rows[i]["shown"]) != (b["item"], b["shown"]) for i, b in said.items() if i in rows
        ),
        twice=len(live) - len({(row["annotator"], row["item"]) for row in live}),
        unconfirmed=len(rows.keys() - said.keys()),
        over_asked=over,
        wrong=[text for sitting in sittings for text in sitting.wrong],
        broken_requests=sum(sitting.lost_connections for sitting in sittings),
        seconds=[seconds for sitting in sittings for seconds in sitting.seconds],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--annotators", type=int, default=20)
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--pause", type=float, default=0.0, help="mean seconds between two answers of a person")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = load(Path(folder), **vars(given))
    print({key: value for key, value in vars(found).items() if key != "seconds"})
    print(
        f"submission: median {1000 * statistics.median(found.seconds):.1f} ms, p95 {found.milliseconds(0.95):.1f} ms, "
        f"p99 {found.milliseconds(0.99):.1f} ms, most {1000 * max(found.seconds):.1f} ms, n {len(found.seconds)}"
    )


if __name__ == "__main__":
    main()
