"""Rows in TRL's columns from rows in published layouts, wherever data enters, and a line that says what was recognised.

TRL's own columns come first: a row with a prompt beside what is wanted, or with `messages`, is read by them whatever
else it has (but where its prompt is JSON). Then the layouts of :data:`lm_gym.layouts.LAYOUTS`, and of several that fit
the one whose columns include those of the others; where there is none, the row is refused. Then `text`, and `chosen`
and `rejected` without a prompt.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm_gym.data_files import Item
from lm_gym.layout_cells import Row, missing
from lm_gym.layouts import LAYOUTS, Layout

PAIRS, FEEDBACK, RANKINGS = "preference data", "feedback data", "ranking data"
DEMONSTRATIONS, PROMPTS = "demonstrations", "prompt source"

OWN: dict[str, tuple[tuple[str, ...], ...]] = {
    PAIRS: (("prompt", "chosen", "rejected"), ("prompt", "completions"), ("prompt", "a", "b")),
    FEEDBACK: (("prompt", "completion", "label"),),
    RANKINGS: (("prompt", "completions"),),
    DEMONSTRATIONS: (("messages",), ("prompt", "completion")),
    PROMPTS: (("prompt",),),
}
"""Columns of TRL's formats (and of the annotation page's) that come before every layout."""
LAST = {PAIRS: (("chosen", "rejected"),), DEMONSTRATIONS: (("text",),)}
"""Those that come after."""
GIVEN = {
    PAIRS: ("pairs",),
    FEEDBACK: ("feedback",),
    RANKINGS: ("pairs",),
    DEMONSTRATIONS: ("demonstrations", "feedback"),
    PROMPTS: ("pairs", "feedback", "demonstrations"),
}
"""Which kinds of layout each door takes."""
TAKEN = {"pairs": "for dpo, reward models and annotate", "feedback": "for kto and sft", "demonstrations": "for sft"}
"""Which commands take each kind."""

_log = logging.getLogger("lm_gym.data")


def layout_rows(what: str, items: Sequence[Item], *, gold: bool = False) -> tuple[list[Item], list[tuple[str, str]]]:
    """Where each row is and the row in TRL's columns, and where those are that cannot be read, and why.

    Rows in TRL's columns stay as they are. Of demonstrations those whose `label` or `kto_tag` says that the answer was
    rejected are left out. A line on stderr (the logger `lm_gym.data`) says which layouts were recognised, and what was
    left out.

    Args:
        what: the door, one of the names above.
        gold: pairs of a layout also have the column `gold` of the annotation page: -3 (`chosen` is much better) to 0.

    Raises:
        ValueError: all rows are left out.
    """
    found: list[Item] = []
    wrong: list[tuple[str, str]] = []
    said: dict[str, Counter[str]] = {}
    columns: dict[str, tuple[str, ...]] = {}
    together: dict[tuple[str, str], list[Item]] = {}
    bad = 0
    for where, row in items:
        if not isinstance(row, Mapping):
            found.append((where, row))
            continue
        try:
            layout = layout_of(row, what)
            if layout is None:
                if what == DEMONSTRATIONS and _rejected(row):
                    bad += 1
                else:
                    found.append((where, row))
                continue
            counts = said.setdefault(layout.name, Counter())
            here = dict.fromkeys((*layout.columns, *(n for n in layout.prompt.optional if not missing(row.get(n)))))
            columns[layout.name] = tuple(dict.fromkeys((*columns.get(layout.name, ()), *here)))
            counts["rows"] += 1
            if layout.together and what != PROMPTS:
                _columns(layout, row, set())  # a row without an answer or a score is not to take its fellows along
                together.setdefault((layout.name, repr(layout.prompt.read(row))), []).append((where, row))
                continue
            for new in list(_read(layout, [row], what, counts, gold)):
                if what == DEMONSTRATIONS and _rejected(new):
                    bad += 1
                else:
                    found.append((where, new))
                    counts["read"] += 1
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            wrong.append((where, _why(error)))
    for (name, _), parts in together.items():
        layout, counts = next(layout for layout in LAYOUTS if layout.name == name), said[name]
        where = " and ".join(place for place, _ in parts) if len(parts) < 3 else f"{parts[0][0]} and its fellows"
        try:
            new_rows = list(_read(layout, [row for _, row in parts], what, counts, gold))
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            wrong.append((where, _why(error)))
            continue
        found += ((where, new) for new in new_rows)
        counts["read"] += len(new_rows)
    for name, counts in said.items():
        _log.warning("note: %s", _line(what, name, columns[name], counts))
    if items and not found and not wrong:
        what_is = "their answers were rejected" if bad else "no prompt has two answers to compare"
        raise ValueError(f"nothing is left of the {len(items)} rows of the {what}: {what_is}")
    if bad:
        _log.warning("note: %d of %d demonstrations are left out: their answers were rejected", bad, len(items))
    return found, wrong


def layout_of(row: Row, what: str) -> Layout | None:
    """The layout of a row, as the module says; None: TRL's own, or none that is known.

    Raises:
        ValueError: it fits two of them, or one of another kind than is wanted.
    """
    fits = [one for one in LAYOUTS if all(name in row for name in one.columns) and not set(one.without) & set(row)]
    if _has(row, OWN[what]):
        fits = [layout for layout in fits if layout.encoded]
    usable = [layout for layout in fits if layout.gives in GIVEN[what]]
    best = [one for one in usable if all(set(other.columns) <= set(one.columns) for other in usable)]
    if len(best) == 1:
        return best[0]
    if usable:
        named = " and ".join(f"{layout.name} ({', '.join(layout.columns)})" for layout in usable[:2])
        raise ValueError(f"fits two layouts, {named}: rename the columns of one")
    if fits and not _has(row, LAST.get(what, ())):
        one = fits[0]
        raise ValueError(f"is laid out as {one.name}, which has {one.gives} ({TAKEN[one.gives]}); expected {what}")
    return None


def _has(row: Row, formats: Sequence[Sequence[str]]) -> bool:
    return any(all(row.get(name) is not None for name in names) for names in formats)


def _rejected(row: Row) -> bool:
    """Whether a demonstration says that its answer is a bad one. A `label` that is a number, or of a text, is none."""
    if not _has(row, OWN[DEMONSTRATIONS]):
        return False
    said = {str(row.get(name)).lower() for name in ("label", "kto_tag")}
    return "false" in said or str(row.get("kto_tag")) in ("0", "0.0")


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"has other values than its layout: {error!r:.80}"


def _read(layout: Layout, rows: Sequence[Row], what: str, counts: Counter[str], gold: bool) -> Iterator[dict[str, Any]]:
    """The rows that the answers to one prompt give, which are those of one row, or of several."""
    prompt, used = layout.prompt.read(rows[0]), {*layout.prompt.all_columns, *layout.answers.columns}
    if what == PROMPTS:
        yield _row(rows[0], layout.prompt.all_columns, (), {"prompt": prompt})
        return
    found = [
        (_said(prompt, answer), score, detail)
        for row in rows
        for answer, score, detail in zip(*_columns(layout, row, used), strict=True)
    ]
    rest = rows[0] if not layout.together else {}
    if what in (PAIRS, RANKINGS) and len(found) == 1:
        counts["alone"] += 1
    elif what == DEMONSTRATIONS:
        [(answer, score, _)] = found
        whole = {"prompt": prompt, "completion": answer} if isinstance(prompt, str) else {"messages": prompt + answer}
        good = {"label": score > 0} if layout.gives == "feedback" else {}
        yield _row(rest, used, layout.scores.columns, whole | good)
    elif what == FEEDBACK:
        [(answer, score, _)] = found
        new = {"prompt": prompt, "completion": answer, "label": score > 0}
        yield _row(rest, used, layout.scores.columns, new)
    elif what == RANKINGS:
        places = sorted({-score for _, score, _ in found})
        ranks = [places.index(-score) + 1 for _, score, _ in found]
        new = {"prompt": prompt, "completions": [answer for answer, _, _ in found], "ranks": ranks}
        yield _row(rest, used, layout.scores.columns, new)
    else:
        for one, other in itertools.combinations(found, 2):
            better, worse = (other, one) if other[1] > one[1] else (one, other)
            size = better[1] - worse[1]
            counts["ties"] += size == 0
            new = {"prompt": prompt, "chosen": better[0], "rejected": worse[0], "label": 1.0 if size else 0.5}
            new |= {"margin": size} if layout.margin else {}
            if gold and rest.get("gold") is None:
                new["gold"] = -min(3, max(1, round(size))) if layout.margin and size else -2 * (size > 0)
            for side, (_, _, detail) in (("chosen", better), ("rejected", worse)):
                new |= {f"{name}_{side}": value for name, value in detail.items()}
            yield _row(rest, used, layout.scores.columns, new)


def _columns(layout: Layout, row: Row, used: set[str]) -> tuple[list[Any], list[float], list[Any]]:
    """The answers of a row, what was said of each, and what else is known of it and of no other."""
    answers = layout.answers.read(row)
    scores = layout.scores.read(row) or [0.0] * len(answers)
    if layout.details is not None:
        details = layout.details.read(row)
    else:
        details = [{k: v for k, v in row.items() if layout.together and k not in used}] * len(answers)
    if not answers or any(answer is None for answer in answers):
        raise ValueError(f"has no answer in {' or '.join(layout.answers.columns)}")
    return answers, scores, details


def _said(prompt: Any, answer: Any) -> Any:
    """An answer of the prompt's kind."""
    if isinstance(prompt, str) or isinstance(answer, (list, tuple)):
        return answer
    if not isinstance(answer, str):
        raise ValueError(f"has the answer {answer!r:.40}; expected a text")
    return [{"role": "assistant", "content": answer}]


def _row(old: Row, used: Any, scores: Sequence[str], new: dict[str, Any]) -> dict[str, Any]:
    """The new columns and those of the old ones that nothing was read from.

    Raises:
        ValueError: a column has the name of a new one.
    """
    rest = {name: value for name, value in old.items() if name not in used}
    if twice := sorted(set(rest) & set(new) - set(scores)):
        raise ValueError(
            f"has the column {twice[0]!r} beside those of its layout, which gives one of that name: rename it"
        )
    return rest | new


def _line(what: str, name: str, columns: Sequence[str], counts: Counter[str]) -> str:
    """What was recognised, in words."""
    made = {PAIRS: "pairs", FEEDBACK: "judged texts", RANKINGS: "rankings", PROMPTS: "prompts"}.get(what, what)
    ties = f" ({counts['ties']} of them ties)" if counts["ties"] else ""
    alone = f"; left out, without another answer to the prompt: {counts['alone']}" if counts["alone"] else ""
    rows = f"{counts['rows']} row{'s' * (counts['rows'] != 1)}"
    return f"recognised {name} (columns {', '.join(columns)}): {rows}, {made}: {counts['read']}{ties}{alone}"
