"""Where the work stands: progress, speed, agreement, accuracy on gold items, position bias, disagreements."""

from __future__ import annotations

import itertools
import json
import statistics
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lm_gym.annotate.agreement import SCALE, Alpha, cohen_kappa, ordinal_alpha, wilson
from lm_gym.annotate.store import Store, fitting_together
from lm_gym.rewards import plain_text

MOST_DISAGREED = 10
PAUSE_SECONDS = 600.0
"""A longer gap between two answers is a pause, and no time of work."""
LEAST_COMMON = 2


@dataclass(frozen=True)
class Person:
    """What one annotator did."""

    name: str
    answers: int
    skips: int
    flags: int
    undone: int
    median_seconds: float | None
    """That an item was on show."""
    per_hour: float | None
    """Answers an hour at work, pauses of more than 10 minutes left out."""
    gold_right: int
    gold_seen: int
    first_preferred: int
    """How often the completion shown first (left, above) was preferred, of `preferred`."""
    preferred: int


@dataclass(frozen=True)
class Disagreement:
    """An item on which annotators differ."""

    item: int
    prompt: str
    strengths: dict[str, int]
    """Annotator -> strength, above 0: b is better."""


@dataclass(frozen=True)
class Kappa:
    """Cohen's κ of two annotators."""

    first: str
    second: str
    items: int
    direction: float | None
    """On a better, tie, b better."""
    quadratic: float | None
    """On the seven levels with squared distances as weights."""


@dataclass(frozen=True)
class Status:
    """Everything that `lm-gym annotate status` and the admin page show."""

    items: int
    held_back: int
    gold: int
    red_team: int
    wanted: int
    """Answers wanted of the items that are asked about and not gold."""
    given: int
    """Of these, how many there are (never more than wanted for an item)."""
    complete: int
    """Items that have all the answers wanted."""
    kinds: dict[str, int]
    people: list[Person]
    alpha: Alpha | None
    kappas: list[Kappa]
    disagreements: list[Disagreement]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def status(store: Store, *, resamples: int = 1000, seed: int = 0) -> Status:
    """Work it out from the answers that stand.

    Raises:
        Unreadable: the store is damaged.
    """
    with fitting_together(store.path):
        return _status(store, resamples, seed)


def _status(store: Store, resamples: int, seed: int) -> Status:
    with store.snapshot() as seen:  # one state of the store for all the queries
        answers = seen.rows(
            "SELECT live.*, name, gold FROM live JOIN annotators ON annotators.id = live.annotator"
            " JOIN items ON items.id = live.item ORDER BY live.seq"
        )
        undone = Counter(
            row["name"]
            for row in seen.rows("SELECT name FROM undos JOIN annotators ON annotators.id = undos.annotator")
        )
        items = seen.rows("SELECT asked, need, done, gold, author FROM items")
        names = [row["name"] for row in seen.rows("SELECT name FROM annotators WHERE NOT admin ORDER BY name")]
    worked = {row["name"] for row in answers} | set(undone)
    names += sorted(worked - set(names))
    asked = [row for row in items if row["asked"] and row["gold"] is None]
    strengths = {(row["name"], row["item"]): row["strength"] for row in answers if row["strength"] is not None}
    return Status(
        items=len(items),
        held_back=sum(not row["asked"] for row in items),
        gold=sum(row["gold"] is not None for row in items),
        red_team=sum(row["author"] is not None for row in items),
        wanted=sum(row["need"] for row in asked),
        given=sum(min(row["done"], row["need"]) for row in asked),
        complete=sum(row["done"] >= row["need"] for row in asked),
        kinds=dict(Counter(row["kind"] for row in answers)),
        people=[_person(name, [row for row in answers if row["name"] == name], undone[name]) for name in names],
        alpha=ordinal_alpha(_matrix(strengths), resamples=resamples, seed=seed) if strengths else None,
        kappas=_kappas(strengths),
        disagreements=_disagreements(store, strengths),
    )


def _person(name: str, rows: list[Any], undone: int) -> Person:
    gaps = [b["received"] - a["received"] for a, b in itertools.pairwise(rows)]
    work = [gap for gap in gaps if gap <= PAUSE_SECONDS]
    gold = [row for row in rows if row["gold"] is not None and row["strength"] is not None]
    preferred = [row["shown"] for row in rows if row["kind"] == "preference" and row["shown"] != 0]
    return Person(
        name=name,
        answers=len(rows),
        skips=sum(row["kind"] == "skip" for row in rows),
        flags=sum(row["kind"] == "flag" for row in rows),
        undone=undone,
        median_seconds=statistics.median(row["seconds"] for row in rows) if rows else None,
        per_hour=3600 * len(work) / sum(work) if work and sum(work) > 0 else None,
        gold_right=sum(int(np.sign(row["gold"]) == np.sign(row["strength"])) for row in gold),
        gold_seen=len(gold),
        first_preferred=sum(shown < 0 for shown in preferred),
        preferred=len(preferred),
    )


def _matrix(strengths: dict[tuple[str, int], int]) -> np.ndarray:
    """(annotators, items) of strengths, NaN where there is none."""
    people = {name: at for at, name in enumerate(sorted({name for name, _ in strengths}))}
    items = {item: at for at, item in enumerate(sorted({item for _, item in strengths}))}
    matrix = np.full((len(people), len(items)), np.nan)
    for (name, item), strength in strengths.items():
        matrix[people[name], items[item]] = strength
    return matrix


def _kappas(strengths: dict[tuple[str, int], int]) -> list[Kappa]:
    by_name: dict[str, dict[int, int]] = {}
    for (name, item), strength in strengths.items():
        by_name.setdefault(name, {})[item] = strength
    found = []
    for first, second in itertools.combinations(sorted(by_name), 2):
        common = sorted(by_name[first].keys() & by_name[second].keys())
        if len(common) < LEAST_COMMON:
            continue
        x, y = ([by_name[name][item] for item in common] for name in (first, second))
        direction = cohen_kappa([int(np.sign(v)) for v in x], [int(np.sign(v)) for v in y], levels=(-1, 0, 1))
        found.append(Kappa(first, second, len(common), direction, cohen_kappa(x, y, levels=SCALE, weights="quadratic")))
    return found


def _disagreements(store: Store, strengths: dict[tuple[str, int], int]) -> list[Disagreement]:
    by_item: dict[int, dict[str, int]] = {}
    for (name, item), strength in strengths.items():
        by_item.setdefault(item, {})[name] = strength
    apart = {item: max(said.values()) - min(said.values()) for item, said in by_item.items() if len(said) > 1}
    worst = sorted((item for item in apart if apart[item] > 0), key=lambda item: (-apart[item], item))
    found = []
    for item in worst[:MOST_DISAGREED]:
        prompt = plain_text(json.loads(store.value("SELECT prompt FROM items WHERE id = ?", (item,))))
        found.append(Disagreement(item, prompt, dict(sorted(by_item[item].items()))))
    return found


def share(hits: int, n: int) -> str:
    """A share with its 95% interval, such as ".53 [.48, .58]"; "-" without a case."""
    if n == 0:
        return "-"
    low, high = wilson(hits, n)
    return f"{hits / n:.2f} [{low:.2f}, {high:.2f}]"
