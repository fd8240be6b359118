"""Who compares what next: items are lent, so that two annotators do not do the same work, and a loan ends by itself."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm_gym.annotate.people import Annotator
from lm_gym.annotate.store import PRIME, Busy, Store
from lm_gym.rewards import Text

LOAN_SECONDS = 1800.0
"""A loan ends so long after the item was handed out or seen again; an answer that comes later is taken all the same."""
MOST_AT_ONCE = 5
ACTIVE_SECONDS = 3600.0
PACE_WINDOW = 30

# The order of one's own is a permutation of the (random) ids, another one for each annotator.
_CANDIDATES = f"""
SELECT id FROM items
WHERE asked = 1 AND done < need
  AND NOT EXISTS (SELECT 1 FROM loans WHERE annotator = :me AND item = items.id AND (answered OR expires > :now))
  AND done + (SELECT count(*) FROM loans WHERE item = items.id AND NOT answered AND expires > :now
              AND annotator <> :me) < need
ORDER BY (id * :multiplier + :offset) % {PRIME}
LIMIT :limit
"""

_MINE = "SELECT * FROM loans WHERE annotator = :me AND NOT answered AND expires > :now ORDER BY place"


@dataclass(frozen=True)
class Loan:
    """An item as one annotator sees it."""

    item: int
    swapped: bool
    prompt: Text
    first: Text
    """What is shown left (above on a phone)."""
    second: Text


@dataclass(frozen=True)
class Progress:
    """Where an annotator stands."""

    done: int
    """Answers of this annotator, skips and flags among them."""
    left: int
    """Items that will still come to this annotator, if everybody active goes on."""
    seconds_left: float | None
    """At this annotator's pace; None before the third answer."""


def next_items(store: Store, who: Annotator, count: int = 1) -> list[Loan]:
    """The items on this annotator's table: those already there first, then new ones up to `count`, all lent anew.

    Fewer come when there is no more work, or while somebody else is writing to the store; an item that was undone comes
    back at its old place.

    Raises:
        Busy: there is nothing on the table, and the store could not be written to.
    """
    count = max(0, min(count, MOST_AT_ONCE))
    now = store.clock()
    mine = store.rows(_MINE, {"me": who.id, "now": now})
    # The common case writes nothing: enough items on the table, none of them about to run out.
    if len(mine) < count or any(row["expires"] < now + LOAN_SECONDS / 2 for row in mine[:count]):
        try:
            # With something on the table nobody needs to wait for another writer.
            with store.transaction(wait=0.2 if mine and count else None) as connection:
                mine = _lend(store, connection, who.id, count, now)
        except Busy:
            if not mine:
                raise
    return [_loan(store, row) for row in mine[:count]]


def lend(store: Store, connection: sqlite3.Connection, annotator: int, item: int, now: float) -> None:
    """Lend one item inside a transaction; which completion comes first is drawn once and then stays."""
    place = connection.execute(
        "SELECT coalesce(max(place), 0) + 1 FROM loans WHERE annotator = ?", (annotator,)
    ).fetchone()[0]
    connection.execute(
        "INSERT INTO loans (annotator, item, swapped, place, expires) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (annotator, item) DO UPDATE SET expires = excluded.expires",
        (annotator, item, store.random.getrandbits(1), place, now + LOAN_SECONDS),
    )


def _lend(store: Store, connection: sqlite3.Connection, me: int, count: int, now: float) -> list[sqlite3.Row]:
    mine = connection.execute(_MINE, {"me": me, "now": now}).fetchall()
    connection.execute(
        "UPDATE loans SET expires = :until WHERE annotator = :me AND NOT answered AND expires > :now",
        {"me": me, "now": now, "until": now + LOAN_SECONDS},
    )
    if len(mine) < count:
        order = connection.execute("SELECT multiplier, offset FROM annotators WHERE id = ?", (me,)).fetchone()
        found = connection.execute(
            _CANDIDATES,
            {"me": me, "now": now, "limit": count - len(mine), "multiplier": order[0], "offset": order[1]},
        ).fetchall()
        for (item,) in found:
            lend(store, connection, me, item, now)
    return connection.execute(_MINE, {"me": me, "now": now}).fetchall()


def loan_of(store: Store, annotator: int, item: int) -> Loan:
    """What `annotator` was shown of `item`."""
    (row,) = store.rows("SELECT * FROM loans WHERE annotator = ? AND item = ?", (annotator, item))
    return _loan(store, row)


def _loan(store: Store, row: sqlite3.Row) -> Loan:
    (item,) = store.rows("SELECT prompt, a, b FROM items WHERE id = ?", (row["item"],))
    prompt, a, b = (json.loads(item[name]) for name in ("prompt", "a", "b"))
    swapped = bool(row["swapped"])
    return Loan(row["item"], swapped, prompt, b if swapped else a, a if swapped else b)


def progress(store: Store, who: Annotator) -> Progress:
    """Where this annotator stands: an estimate, as the others take items from the same heap."""
    now = store.clock()
    seconds = [
        row["seconds"]
        for row in store.rows(
            "SELECT seconds FROM live WHERE annotator = ? ORDER BY seq DESC LIMIT ?", (who.id, PACE_WINDOW)
        )
    ]
    done = store.value("SELECT count(*) FROM live WHERE annotator = ?", (who.id,))
    # All that is open, less what is open but answered by this annotator: both are read from an index.
    counts = "count(*) FILTER (WHERE gold IS NOT NULL), count(*) FILTER (WHERE gold IS NULL), "
    counts += "coalesce(sum(need - done) FILTER (WHERE gold IS NULL), 0)"
    is_open = "asked = 1 AND done < need"
    (everything,) = store.rows(f"SELECT {counts} FROM items WHERE {is_open}")
    (mine,) = store.rows(
        f"SELECT {counts} FROM loans JOIN items ON items.id = item WHERE annotator = ? AND answered AND {is_open}",
        (who.id,),
    )
    gold, items, answers = (total - part for total, part in zip(everything, mine, strict=True))
    others = store.value(
        "SELECT count(DISTINCT annotator) FROM answers WHERE received > ? AND annotator <> ?",
        (now - ACTIVE_SECONDS, who.id),
    )
    left = gold + min(items, math.ceil(answers / (others + 1)))
    return Progress(done, left, _median(seconds) * left if len(seconds) >= 3 else None)


def _median(values: Sequence[Any]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return float(ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2)
