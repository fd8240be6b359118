"""Answers and undo: each one transaction, each under an id that the page made, so that a retry changes nothing."""

from __future__ import annotations

import hashlib
import re
import sqlite3
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeGuard

from lm_gym.annotate.lending import LOAN_SECONDS
from lm_gym.annotate.people import Annotator
from lm_gym.annotate.store import Conflict, Store, StoreError, dumps

KINDS = ("preference", "both_bad", "skip", "flag")
COUNTED = ("preference", "both_bad", "flag")
"""Kinds that use up one of the answers wanted of an item; one that was skipped goes to somebody else."""
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
LONGEST_NOTE = 4000
LONGEST_SECONDS = 86_400.0


@dataclass(frozen=True)
class Answer:
    """What a page sends."""

    id: str
    """A UUID made by the page."""
    item: int
    kind: str
    """preference, both_bad, skip or flag."""
    shown: int | None = None
    """For a preference: -3 (the first shown is significantly better) to 3 (the second is)."""
    reason: str = ""
    """Of a flag."""
    comment: str = ""
    seconds: float = 0.0
    """That the item was on show."""

    @classmethod
    def read(cls, sent: Any) -> Answer:
        """Check what came over the network.

        Raises:
            StoreError: says what was expected.
        """
        if not isinstance(sent, Mapping):
            raise StoreError("an answer expected a JSON object")
        unknown = sorted(set(map(str, sent)) - set(cls.__dataclass_fields__))
        if unknown:
            raise StoreError(f"an answer has no field {unknown[0]!r:.60}")
        identity = read_id(sent.get("id"))
        item, kind, shown = sent.get("item"), sent.get("kind"), sent.get("shown")
        if not is_whole(item):
            raise StoreError(f"item expected a whole number, got {item!r:.60}")
        if kind not in KINDS:
            raise StoreError(f"kind expected one of {', '.join(KINDS)}, got {kind!r:.60}")
        if kind == "preference" and not (is_whole(shown) and -3 <= shown <= 3):
            raise StoreError(f"a preference expected shown from -3 to 3, got {shown!r:.60}")
        if kind != "preference" and shown is not None:
            raise StoreError(f"{kind} expected no value beside it, got shown {shown!r:.60}")
        reason, comment = (_note(name, sent.get(name, "")) for name in ("reason", "comment"))
        if (kind == "flag") != bool(reason.strip()):
            raise StoreError("a flag, and nothing else, expected a reason")
        seconds = sent.get("seconds", 0.0)
        # Compared, and not converted: a whole number may be too large for a float.
        number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
        if not number or not abs(seconds) <= sys.float_info.max:
            raise StoreError(f"seconds expected a number, got {seconds!r:.60}")
        return cls(identity, item, kind, shown, reason, comment, min(max(float(seconds), 0.0), LONGEST_SECONDS))

    def digest(self) -> str:
        """A hash of everything in it."""
        return hashlib.sha256(dumps(asdict(self)).encode()).hexdigest()


def submit(store: Store, who: Annotator, answer: Answer) -> dict[str, Any]:
    """Keep an answer; it is on the disk when this returns. The same answer again gives the same result.

    Raises:
        Conflict: the id was used for something else, the item was never lent to this annotator, or has an answer of
            theirs already.
    """
    with store.transaction() as connection:
        known = connection.execute("SELECT * FROM answers WHERE id = ?", (answer.id,)).fetchone()
        if known is not None:
            if known["annotator"] != who.id or known["digest"] != answer.digest():
                raise Conflict("this id was used for another answer: make a new one")
            return _receipt(known)
        loan = connection.execute(
            "SELECT * FROM loans WHERE annotator = ? AND item = ?", (who.id, answer.item)
        ).fetchone()
        if loan is None:
            raise Conflict("this item was not given to you")
        if loan["answered"]:
            raise Conflict("you have answered this item already, perhaps in another tab; that answer stays")
        shown = 0 if answer.kind == "both_bad" else answer.shown
        strength = None if shown is None else (-shown if loan["swapped"] else shown)
        connection.execute(
            "INSERT INTO answers (id, digest, annotator, item, kind, shown, strength, swapped, reason, comment,"
            " seconds, received) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(answer.id, answer.digest(), who.id, answer.item, answer.kind, answer.shown, strength),
                *(loan["swapped"], answer.reason, answer.comment, answer.seconds, store.clock()),
            ),
        )
        connection.execute("UPDATE loans SET answered = 1 WHERE annotator = ? AND item = ?", (who.id, answer.item))
        if answer.kind in COUNTED:
            connection.execute("UPDATE items SET done = done + 1 WHERE id = ?", (answer.item,))
        return _receipt(connection.execute("SELECT * FROM answers WHERE id = ?", (answer.id,)).fetchone())


def undo(store: Store, who: Annotator, identity: str, answer: str) -> dict[str, Any]:
    """Take back this annotator's last answer that stands; it stays in the table, and the item comes back.

    Args:
        identity: a UUID made by the page for this undo.
        answer: the id of the answer.

    Raises:
        Conflict: the id was used otherwise, or `answer` is not the last one of this annotator that stands.
    """
    with store.transaction() as connection:
        known = connection.execute("SELECT * FROM undos WHERE id = ?", (identity,)).fetchone()
        if known is not None:
            if known["annotator"] != who.id or known["answer"] != answer:
                raise Conflict("this id was used for another undo: make a new one")
            return {"id": identity, "answer": answer}
        last = connection.execute(
            "SELECT * FROM live WHERE annotator = ? ORDER BY seq DESC LIMIT 1", (who.id,)
        ).fetchone()
        if last is None or last["id"] != answer:
            raise Conflict("only the last answer that stands can be taken back, and this is not it")
        now = store.clock()
        connection.execute(
            "INSERT INTO undos (id, answer, annotator, received) VALUES (?, ?, ?, ?)", (identity, answer, who.id, now)
        )
        connection.execute(
            "UPDATE loans SET answered = 0, expires = ? WHERE annotator = ? AND item = ?",
            (now + LOAN_SECONDS, who.id, last["item"]),
        )
        if last["kind"] in COUNTED:
            connection.execute("UPDATE items SET done = done - 1 WHERE id = ?", (last["item"],))
        return {"id": identity, "answer": answer}


def last_answers(store: Store, who: Annotator, count: int = 20) -> list[str]:
    """Ids of the last answers that stand, newest first."""
    found = store.rows("SELECT id FROM live WHERE annotator = ? ORDER BY seq DESC LIMIT ?", (who.id, count))
    return [row["id"] for row in found]


def read_id(identity: Any) -> str:
    """An id made by a page.

    Raises:
        StoreError: no UUID in small letters.
    """
    if not isinstance(identity, str) or not UUID.fullmatch(identity):
        raise StoreError(f"id expected a UUID in small letters, got {identity!r:.60}")
    return identity


def _receipt(row: sqlite3.Row) -> dict[str, Any]:
    return {name: row[name] for name in ("id", "item", "kind", "shown", "received")}


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether a value that came over the network is a whole number that SQLite and JavaScript can hold."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53


def _note(name: str, text: Any) -> str:
    if not isinstance(text, str) or len(text) > LONGEST_NOTE:
        raise StoreError(f"{name} expected a text of at most {LONGEST_NOTE} characters")
    return text.encode("utf-8", "replace").decode()  # half of a surrogate pair cannot be stored
