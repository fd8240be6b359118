"""What people said as training data: TRL's preference format, with strength, votes, agreement and annotator.

Three files, and every answer that stands is in one of them: `<out>.jsonl` (one completion is better),
`<out>.ties.jsonl` (neither is) and `<out>.flags.jsonl` (flags and skips, as they were given).
`lm_gym.preferences.load_preferences` reads the first two.

| column | of one answer (`aggregate="none"`) | of an item (the other methods) |
|---|---|---|
| `prompt`, `chosen`, `rejected` | texts or messages | the same |
| `label` | 1; of a tie .5 | P(`chosen` is better), as `aggregate.Verdict.p_b` says |
| `margin` | steps on the scale, 1 to 3; of a tie 0 | mean steps towards `chosen`, not below 0 |
| `annotator` | the name | - |
| `annotators` | - | names in the order of `strengths` |
| `strength`, `strengths` | steps towards `chosen` | the same, of every vote |
| `votes`, `agreement` | - | votes, and the share of them (or the model's probability) that say the same |
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from lm_gym.annotate.aggregate import Method, Verdict, Vote, aggregate
from lm_gym.annotate.store import Store, StoreError, fitting_together
from lm_gym.annotate.transcripts import as_text
from lm_gym.rewards import Text
from lm_gym.runinfo import write_atomically

Layout = Literal["as-is", "standard", "conversational"]
How = Literal["none", "majority", "mean", "dawid-skene"]
OWN = frozenset(
    "prompt chosen rejected label margin annotator annotators strength strengths votes agreement both_bad item source"
    " comments comment seconds time shown_first kind reason a b".split()
)


@dataclass(frozen=True)
class Exported:
    """What was written, and how many rows."""

    preferences: Path
    ties: Path
    flags: Path
    rows: int
    tied: int
    flagged: int


def export(
    store: Store,
    out: str | Path,
    *,
    how: How = "majority",
    layout: Layout = "as-is",
    with_ties: bool = False,
    gold: bool = False,
) -> Exported:
    """Write the three files; each is complete or not there.

    Args:
        how: "none" for a row an answer (to train with annotators), or a method of `aggregate` for a row an item.
        layout: "standard" makes texts of conversations (as HH writes them), "conversational" makes messages of texts;
            "as-is" leaves every pair as it was imported.
        with_ties: ties into the first file too, with the label .5.
        gold: answers to gold items too; without it they only judge the annotators.

    Raises:
        StoreError: an unknown option, no answers, or a file name that does not end in .jsonl.
    """
    out = Path(out)
    if how not in get_args(How):
        raise StoreError(f"aggregation expected one of {', '.join(get_args(How))}, got {how!r}")
    if layout not in get_args(Layout):
        raise StoreError(f"format expected one of {', '.join(get_args(Layout))}, got {layout!r}")
    if out.suffix != ".jsonl":
        raise StoreError(f"out expected a name that ends in .jsonl, got {out}")
    with store.snapshot() as seen:  # one state of the store for both queries
        answers = seen.rows(
            "SELECT live.*, name FROM live JOIN annotators ON annotators.id = live.annotator ORDER BY live.seq"
        )
        found = seen.rows("SELECT * FROM items WHERE id IN (SELECT item FROM answers)")
    if not answers:
        raise StoreError("nobody has answered yet: there is nothing to export")
    with fitting_together(store.path):
        rows, ties, flags = _rows(answers, {row["id"]: row for row in found}, how, layout, gold)
    if with_ties:
        rows += ties
    paths = [out, out.with_suffix(".ties.jsonl"), out.with_suffix(".flags.jsonl")]
    for path, lines in zip(paths, (rows, ties, flags), strict=True):
        _write(path, lines)
    return Exported(paths[0], paths[1], paths[2], len(rows), len(ties), len(flags))


def _rows(
    answers: Sequence[Any], items: Mapping[int, Any], how: How, layout: Layout, gold: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Preferences, ties, and flags and skips."""
    votes = [row for row in answers if row["strength"] is not None]
    notes = [row for row in answers if row["strength"] is None]
    rows: list[dict[str, Any]] = []
    ties: list[dict[str, Any]] = []
    if how == "none":
        for row in votes:
            if gold or items[row["item"]]["gold"] is None:
                (rows if row["strength"] else ties).append(_one(items[row["item"]], row, layout))
    else:
        for item, said, verdict in _verdicts(votes, items, how):
            if gold or items[item]["gold"] is None:
                (rows if verdict.direction else ties).append(_together(items[item], said, verdict, layout))
    return rows, ties, [_note(items[row["item"]], row, layout) for row in notes]


def _verdicts(votes: Sequence[Any], items: Mapping[int, Any], how: Method) -> Iterable[tuple[int, list[Any], Verdict]]:
    known = {item: row["gold"] for item, row in items.items() if row["gold"] is not None}
    verdicts = aggregate([Vote(row["item"], row["annotator"], row["strength"]) for row in votes], how, gold=known)
    said: dict[int, list[Any]] = {}
    for row in votes:
        said.setdefault(row["item"], []).append(row)
    return [(item, said[item], verdict) for item, verdict in verdicts.items()]


def _one(item: Any, row: Any, layout: Layout) -> dict[str, Any]:
    toward_b = 1 if row["strength"] > 0 else -1
    strength = abs(row["strength"])
    return _base(item, toward_b, layout) | {
        "label": 1.0 if strength else 0.5,
        "margin": float(strength),
        "annotator": row["name"],
        "strength": strength,
        "both_bad": row["kind"] == "both_bad",
        "comment": row["comment"],
        "seconds": round(row["seconds"], 2),
        "time": _time(row["received"]),
        "shown_first": "rejected" if bool(row["swapped"]) != (toward_b > 0) else "chosen",
    }


def _together(item: Any, said: Sequence[Any], verdict: Verdict, layout: Layout) -> dict[str, Any]:
    toward_b = 1 if verdict.direction > 0 else -1
    label = 0.5 if verdict.direction == 0 else verdict.p_b if toward_b > 0 else 1 - verdict.p_b
    return _base(item, toward_b, layout) | {
        "label": round(label, 6),
        # The majority may be weaker than a minority that is very sure: its margin is then 0, not negative.
        "margin": 0.0 if verdict.direction == 0 else round(max(0.0, toward_b * verdict.strength), 6),
        "votes": verdict.votes,
        "agreement": round(verdict.agreement, 6),
        "annotators": [row["name"] for row in said],
        "strengths": [toward_b * row["strength"] for row in said],
        "both_bad": sum(row["kind"] == "both_bad" for row in said),
        "comments": [row["comment"] for row in said if row["comment"]],
        "time": _time(max(row["received"] for row in said)),
    }


def _note(item: Any, row: Any, layout: Layout) -> dict[str, Any]:
    base = _base(item, -1, layout)
    return {
        "kind": row["kind"],
        "reason": row["reason"],
        "annotator": row["name"],
        "comment": row["comment"],
        "seconds": round(row["seconds"], 2),
        "time": _time(row["received"]),
        "prompt": base.pop("prompt"),
        "a": base.pop("chosen"),
        "b": base.pop("rejected"),
        **base,
    }


def _base(item: Any, toward_b: int, layout: Layout) -> dict[str, Any]:
    """The texts, where they came from, and the other columns of the imported row."""
    prompt, a, b = (json.loads(item[name]) for name in ("prompt", "a", "b"))
    if layout == "standard":
        prompt, a, b = _standard(prompt, a, b)
    elif layout == "conversational":
        prompt, a, b = _messages(prompt, "user"), _messages(a, "assistant"), _messages(b, "assistant")
    chosen, rejected = (b, a) if toward_b > 0 else (a, b)
    # A column of the import whose name is taken here is kept under another.
    others = {f"imported_{k}" if k in OWN else k: v for k, v in json.loads(item["columns"]).items()}
    return {
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "item": item["id"],
        "source": item["source"],
        **others,
    }


def _standard(prompt: Text, a: Text, b: Text) -> tuple[Text, Text, Text]:
    if isinstance(prompt, str) or isinstance(a, str) or isinstance(b, str):
        return prompt, a, b
    # The prompt ends where the assistant begins to speak, so that both completions are what it says.
    if a[0]["role"] == b[0]["role"] == "assistant":
        start = "\n\nAssistant:"
        return as_text(prompt) + start, as_text(a).removeprefix(start), as_text(b).removeprefix(start)
    return as_text(prompt), as_text(a), as_text(b)


def _messages(text: Text, role: str) -> Text:
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).isoformat(timespec="milliseconds")


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
