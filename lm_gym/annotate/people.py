"""Annotators, invitation links, sessions. Tokens and cookies are 256 random bits; only hashes of them are kept."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass

from lm_gym.annotate.store import PRIME, Store, StoreError

NAME = re.compile(r"[\w .@+-]{1,60}")
DAY = 86_400.0


@dataclass(frozen=True)
class Annotator:
    """Who sits at the page."""

    id: int
    name: str
    admin: bool


def invite(store: Store, name: str, *, days: float = 30.0, admin: bool = False) -> str:
    """Make a new invitation token for `name`, who is added if not known; earlier tokens and sessions end.

    Raises:
        StoreError: a name that cannot stand in a link or a table, or `days` that are not above 0.
    """
    if not NAME.fullmatch(name) or name != name.strip():
        raise StoreError(f"annotator {name!r}: expected 1 to 60 letters, digits, blanks or .@+-_")
    if not 0 < days < 36_500:
        raise StoreError(f"an invitation expected more than 0 and fewer than 36500 days, got {days}")
    token = secrets.token_urlsafe(32)
    now = store.clock()
    with store.transaction() as connection:
        connection.execute(
            "INSERT OR IGNORE INTO annotators (name, admin, expires, multiplier, offset, created)"
            " VALUES (?, ?, 0, ?, ?, ?)",
            (name, int(admin), store.random.randrange(1, PRIME), store.random.randrange(PRIME), now),
        )
        connection.execute(
            "UPDATE annotators SET token_hash = ?, expires = ?, admin = ? WHERE name = ?",
            (_hash(token), now + days * DAY, int(admin), name),
        )
        connection.execute("DELETE FROM sessions WHERE annotator = (SELECT id FROM annotators WHERE name = ?)", (name,))
    return token


def invited(store: Store, name: str) -> bool:
    """Whether `name` has an invitation that still holds."""
    return bool(store.value("SELECT 1 FROM annotators WHERE name = ? AND expires > ?", (name, store.clock())))


def holder(store: Store, token: str) -> Annotator | None:
    """Whose invitation `token` is; None for a wrong or expired one."""
    return _found(store, "SELECT * FROM annotators WHERE token_hash = ? AND expires > ?", token)


def sign_in(store: Store, token: str) -> tuple[Annotator, str] | None:
    """Exchange an invitation token for a cookie; None for a wrong or expired one."""
    who = holder(store, token)
    if who is None:
        return None
    cookie = secrets.token_urlsafe(32)
    with store.transaction() as connection:
        connection.execute("INSERT INTO sessions VALUES (?, ?, ?)", (_hash(cookie), who.id, store.clock()))
    return who, cookie


def signed_in(store: Store, cookie: str) -> Annotator | None:
    """Whose cookie this is; None for a wrong one, or when the invitation behind it has expired."""
    return _found(
        store,
        "SELECT annotators.* FROM sessions JOIN annotators ON annotators.id = annotator"
        " WHERE sessions.hash = ? AND expires > ?",
        cookie,
    )


def _found(store: Store, sql: str, secret: str) -> Annotator | None:
    rows = store.rows(sql, (_hash(secret), store.clock()))
    return Annotator(rows[0]["id"], rows[0]["name"], bool(rows[0]["admin"])) if rows else None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
