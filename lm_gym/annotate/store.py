"""The store: one SQLite file in WAL mode that is synchronised to the disk at every commit, so that what the server has
confirmed survives a kill or a power cut."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_gym.annotate.schema import APPLICATION_ID, SCHEMA, TRIGGERS, VERSION
from lm_gym.reward_errors import short
from lm_gym.rewards import Text

PRIME = 2_147_483_647
"""Item ids and the order of one's own are numbers below this; products of two stay within SQLite's 64 bits."""
BUSY_SECONDS = 30.0
"""A transaction waits so long for another writer, in this process or another, unless a store says otherwise."""

READ_SECONDS = 3.0
"""Of a query that only reads: it waits for a program that has locked the whole file, and for nothing else."""

ALWAYS = 1_000_000_000
"""Answers wanted of a gold item: everybody's."""


class StoreError(ValueError):
    """The file is no store, or a request does not fit what is in it."""


class Conflict(StoreError):
    """What was sent contradicts what the store already holds; sending it again will not help."""


class Busy(StoreError):
    """Another writer has the store, and was waited for; the same later will do."""


class Unreadable(StoreError):
    """What SQLite says of a damaged file, a full disk, a disk that fails."""


@dataclass(frozen=True)
class Pair:
    """Two completions of a prompt, to be compared."""

    prompt: Text
    a: Text
    b: Text
    columns: Mapping[str, Any] = field(default_factory=dict)
    gold: int | None = None
    """The known answer on the scale -3 (a is significantly better) to 3 (b is); None: not known."""

    def uid(self) -> str:
        """A hash of the three texts, the same for both orders of the completions."""
        return hashlib.sha256(dumps([self.prompt, *sorted((dumps(self.a), dumps(self.b)))]).encode()).hexdigest()


def dumps(value: Any) -> str:
    """Canonical JSON: equal values give equal texts."""
    return json.dumps(value, ensure_ascii=True, sort_keys=True, separators=(",", ":"))


class Reader:
    """A connection that only reads. In WAL mode it sees the last commit, and waits for no writer."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection = _connect(path, READ_SECONDS)
        self._connection.execute("PRAGMA query_only = ON")

    def rows(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[sqlite3.Row]:
        """The rows of a query."""
        with self._lock, _errors_of(self._path):
            return self._connection.execute(sql, parameters).fetchall()

    def value(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> Any:
        """The first column of the first row of a query, None if there is no row."""
        rows = self.rows(sql, parameters)
        return rows[0][0] if rows else None

    def close(self) -> None:
        """Close the connection; idle afterwards."""
        with self._lock:
            self._connection.close()


class Store:
    """An open store: one connection writes, another reads, so that nobody who reads waits for who writes.

    Args:
        path: the SQLite file.
        create: make it if it is missing.
        clock: seconds since 1970.

    Attributes:
        wait: seconds for which a transaction waits for other writers.

    Raises:
        StoreError: missing (without `create`), no store, of another version, or on a disk without WAL.
    """

    def __init__(self, path: str | Path, *, create: bool = False, clock: Callable[[], float] = time.time) -> None:
        self.path = Path(path)
        self.clock = clock
        self.wait = BUSY_SECONDS
        self.random = random.SystemRandom()
        if not create and not self.path.is_file():
            raise StoreError(
                f"there is no store {self.path}; `lm-gym annotate serve --data ... --db {self.path}` is one"
            )
        if not self.path.absolute().parent.is_dir():
            raise StoreError(f"there is no folder {self.path.parent} for the store {self.path.name}: make it first")
        self._lock = threading.RLock()
        self._writing_thread: int | None = None
        try:
            self._connection = _connect(self.path)
            self._open()
            self._reader = Reader(self.path)
        except sqlite3.DatabaseError as error:
            raise StoreError(f"{self.path} expected a store of `lm-gym annotate`, and SQLite says: {error}") from error

    def _open(self) -> None:
        execute = self._connection.execute
        found = execute("PRAGMA application_id").fetchone()[0]
        empty = execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if found != APPLICATION_ID and not empty:
            raise StoreError(
                f"{self.path} is an SQLite database, but no store of `lm-gym annotate`: choose another --db"
            )
        mode = execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise StoreError(
                f"{self.path}: SQLite cannot keep a write-ahead log here (it says {mode!r}); use a local disk"
            )
        execute("PRAGMA synchronous = FULL")
        execute("PRAGMA foreign_keys = ON")
        if empty:
            with self.transaction() as connection:
                # Read again: another process may have made the tables since.
                if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                    for statement in _statements(SCHEMA):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    connection.execute(f"PRAGMA user_version = {VERSION}")
        version = execute("PRAGMA user_version").fetchone()[0]
        if version != VERSION:
            raise StoreError(f"{self.path} is a store of version {version}, and this lm-gym reads {VERSION}")
        triggers = list(_statements(TRIGGERS))
        if execute("SELECT count(*) FROM sqlite_master WHERE type = 'trigger'").fetchone()[0] < len(triggers):
            with self.transaction() as connection:
                for statement in triggers:
                    connection.execute(statement)

    @contextlib.contextmanager
    def transaction(self, wait: float | None = None) -> Iterator[sqlite3.Connection]:
        """A transaction that may write: committed and on the disk when the block ends, undone if it raises.

        Args:
            wait: seconds for other writers, if not the store's.

        Raises:
            Busy: others wrote for so long. Unreadable: SQLite gave up.
        """
        wait = self.wait if wait is None else wait
        until = time.monotonic() + wait
        if not self._lock.acquire(timeout=wait):
            raise Busy(BUSY)
        try:
            with _errors_of(self.path):
                left = max(0.0, until - time.monotonic())
                self._connection.execute(f"PRAGMA busy_timeout = {round(1000 * left)}")
                self._connection.execute("BEGIN IMMEDIATE")
                self._writing_thread = threading.get_ident()
                try:
                    yield self._connection
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:  # a full disk may have ended it already
                        self._connection.execute("ROLLBACK")
                    raise
                finally:
                    self._writing_thread = None
        finally:
            self._lock.release()

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[Reader]:
        """The store as it is now, for several queries: later commits are not seen, and nobody waits."""
        with _errors_of(self.path):
            reader = Reader(self.path)
            try:
                reader.rows("BEGIN")
                yield reader
            finally:
                reader.close()

    def rows(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[sqlite3.Row]:
        """The rows of a query that does not write; inside of a transaction it sees what was written there."""
        if self._writing_thread == threading.get_ident():
            return self._connection.execute(sql, parameters).fetchall()
        return self._reader.rows(sql, parameters)

    def value(self, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> Any:
        """The first column of the first row of a query, None if there is no row."""
        rows = self.rows(sql, parameters)
        return rows[0][0] if rows else None

    def setting(self, name: str, default: str = "") -> str:
        """A setting of the store."""
        found = self.value("SELECT value FROM settings WHERE name = ?", (name,))
        return default if found is None else str(found)

    def set(self, name: str, value: str) -> None:
        """Keep a setting."""
        with self.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, value))

    def close(self) -> None:
        """Close the file; idle afterwards."""
        self._reader.close()
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


BUSY = "somebody else is writing to the store (an import, another program); try again in a moment"


def _connect(path: Path, timeout: float = BUSY_SECONDS) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    return connection


@contextlib.contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """What SQLite raises as a StoreError that names the file; a broken constraint stays what it is."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        if "locked" in str(error):
            raise Busy(BUSY) from error
        raise Unreadable(f"{path}: SQLite says: {short(str(error), 200)}") from error


@contextlib.contextmanager
def fitting_together(path: Path) -> Iterator[None]:
    """Around what makes sense of rows: where they do not fit together the file is damaged, and the error says so."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        what = short(f"{type(error).__name__}: {error}", 200)
        raise Unreadable(
            f"{path} is damaged: its rows do not fit together ({what}). Take a copy, and get back what can be read "
            f"with `sqlite3 {path.name} .recover`"
        ) from error


def add_pairs(
    store: Store, pairs: Sequence[Pair], *, source: str, need: int = 1, asked: bool = True, gold: bool = False
) -> int:
    """Add pairs that are not there yet; returns how many were new.

    Args:
        need: answers wanted of each.
        asked: False holds them back until `selection.select`.
        gold: they are gold items: everybody gets them, and their `gold` is the known answer.
    """
    added = 0
    with store.transaction() as connection:
        for pair in pairs:
            if gold and pair.gold is None:
                raise StoreError("a gold pair expected a known answer -3 to 3, got None")
            added += insert(store, connection, pair, source=source, need=need, asked=asked, gold=gold) is not None
    return added


def insert(
    store: Store,
    connection: sqlite3.Connection,
    pair: Pair,
    *,
    source: str,
    need: int,
    asked: bool = True,
    gold: bool = False,
    author: int | None = None,
    uid: str | None = None,
) -> int | None:
    """Add one pair inside a transaction; its id, or None if the store has it (its uid) already."""
    uid = uid or pair.uid()
    if connection.execute("SELECT 1 FROM items WHERE uid = ?", (uid,)).fetchone():
        return None
    while True:
        item = store.random.randrange(1, PRIME)
        if not connection.execute("SELECT 1 FROM items WHERE id = ?", (item,)).fetchone():
            break
    connection.execute(
        "INSERT INTO items (id, uid, asked, need, gold, author, created, source, columns, prompt, a, b)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            item,
            uid,
            int(asked or gold),
            ALWAYS if gold else need,
            pair.gold if gold else None,
            author,
            store.clock(),
            source,
            dumps(pair.columns),
            *(dumps(text) for text in (pair.prompt, pair.a, pair.b)),
        ),
    )
    return item


def set_need(store: Store, need: int) -> None:
    """Ask `need` annotators about every item that is not gold, from now on."""
    if need < 1:
        raise StoreError(f"expected at least 1 annotator an item, got {need}")
    with store.transaction() as connection:
        connection.execute("UPDATE items SET need = ? WHERE gold IS NULL AND need <> ?", (need, need))
    store.set("need", str(need))


def _statements(script: str) -> Iterator[str]:
    """The statements of a script one by one: `executescript` would commit the transaction that it runs in."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    assert not statement.strip()
