"""Pairs to compare, from the formats that preference data comes in. A row that cannot be used is named, not dropped.

| format | rows |
|---|---|
| plain | `prompt`, `a`, `b` (or `completion_a`, `completion_b`; `response_a`, `response_b`) |
| several completions | `prompt`, `completions` (two or more: every pair of them) |
| TRL, explicit prompt | `prompt`, `chosen`, `rejected` |
| TRL, implicit prompt | `chosen`, `rejected`: the prompt is what both begin with |
| HH | `chosen`, `rejected` as transcripts "\\n\\nHuman: ...\\n\\nAssistant: ..." |
| OASST | trees (`prompt` with `replies`), or flat messages (`message_id`, `parent_id`, `text`, `role`, `rank`) |
| published layouts | those of `lm_gym.layouts` that have pairs |

Texts are strings or lists of messages. Files: .jsonl, .json, .csv, .tsv, each also .gz, and .parquet; folders of
`Dataset.save_to_disk`; hub ids; a `datasets.Dataset`; a list of dicts.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lm_gym.annotate.oasst import is_message, is_tree, tree_pairs, trees_of
from lm_gym.annotate.store import Pair
from lm_gym.annotate.transcripts import is_transcript, transcript
from lm_gym.layout_rows import PAIRS, layout_rows
from lm_gym.preferences import load_preferences
from lm_gym.prompt_sources import read_items
from lm_gym.prompts import kind_problem
from lm_gym.rewards import Text

TWO = (("a", "b"), ("completion_a", "completion_b"), ("response_a", "response_b"))
LONGEST = 4_000_000
"""Characters of a text; a longer one is refused, as a page could not show it."""


@dataclass
class Imported:
    """What a source gave."""

    pairs: list[Pair] = field(default_factory=list)
    unusable: list[tuple[str, str]] = field(default_factory=list)
    """Where a row is, and why it cannot be used."""


def read_pairs(source: Any) -> Imported:
    """The pairs of a source (see the table of this module), each pair once.

    Where a row says which completion is better (`chosen`, a rank, or a column `gold` from -3, a is significantly
    better, to 3), the pair's `gold` says so; `chosen` and ranks as -2 (moderately), with a `label` by it (.5 is 0, a
    tie; below .5 b is better), and by the strength that a published layout has.

    Raises:
        ValueError: no such source, or a file that is not UTF-8.
        TypeError: a kind of source that is not known.
    """
    found = Imported()
    flat: list[tuple[str, Mapping[str, Any]]] = []
    seen: dict[str, str] = {}

    def add(where: str, pairs: Iterable[Pair]) -> None:
        for pair in pairs:
            problem = _problem(pair)
            uid = "" if problem else pair.uid()
            if not problem and uid in seen:
                problem = f"is the pair of {seen[uid]} again"
            if problem:
                found.unusable.append((where, problem))
            else:
                seen[uid] = where
                found.pairs.append(pair)

    broken = found.unusable
    items = read_items(source, what="pairs to compare", broken=lambda where, why: broken.append((where, why)))
    rows, unread = layout_rows(PAIRS, items, gold=True)
    found.unusable += unread
    for where, row in rows:
        if not isinstance(row, Mapping):
            found.unusable.append((where, f"is {type(row).__name__}, expected an object with named columns"))
        elif is_message(row):
            flat.append((where, row))
        else:
            try:
                add(where, list(_pairs(row)))
            except ValueError as error:
                found.unusable.append((where, str(error)))
    trees, lost = trees_of(flat)
    found.unusable += lost
    for where, tree in trees:
        pairs = list(tree_pairs(tree))
        add(where, pairs)
        if not pairs:
            found.unusable.append((where, "is a tree without two ranked replies to the same message"))
    return found


def _pairs(row: Mapping[str, Any]) -> Iterator[Pair]:
    """The pairs of one row.

    Raises:
        ValueError: it has none; says why.
    """
    if is_tree(row):
        pairs = list(tree_pairs(row))
        if not pairs:
            raise ValueError("is a tree without two ranked replies to the same message")
        yield from pairs
        return
    for first, second in TWO:
        if row.get(first) is not None and row.get(second) is not None:
            yield Pair(_prompt(row), row[first], row[second], _rest(row, "prompt", first, second, "gold"), _gold(row))
            return
    completions = row.get("completions")
    if isinstance(completions, (list, tuple)) and len(completions) > 1:
        rest = _rest(row, "prompt", "completions", "gold")
        if row.get("gold") is not None and len(completions) > 2:
            raise ValueError("has a gold answer for more than two completions; give two")
        ranks = _ranks(row, len(completions))
        for (one, first), (other, second) in itertools.combinations(zip(completions, ranks), 2):
            known = None if first is None else 0 if first == second else -2 if first < second else 2
            yield Pair(_prompt(row), one, other, rest, known if row.get("gold") is None else _gold(row))
        return
    if row.get("chosen") is None or row.get("rejected") is None:
        there = ", ".join(map(repr, row)) or "nothing"
        raise ValueError(
            f"has only {there:.200}; expected prompt and two completions: a and b, chosen and rejected, or completions"
        )
    gold = _said(row) if _gold(row) is None else _gold(row)
    rest = _rest(row, "prompt", "chosen", "rejected", "gold")
    if row.get("prompt") is None and is_transcript(row["chosen"]) and is_transcript(row["rejected"]):
        yield Pair(*_split(transcript(row["chosen"]), transcript(row["rejected"])), rest, gold)
        return
    try:
        (found,) = load_preferences([{name: row.get(name) for name in ("prompt", "chosen", "rejected", "label")}])
    except ValueError as error:
        # "1 of 1 rows of ... cannot be used: row 0 <problem>. To do: ..."
        raise ValueError(str(error).partition(": row 0 ")[2].partition(". To do")[0] or str(error)) from error
    yield Pair(found.prompt, found.chosen, found.rejected, rest, gold)


def _split(chosen: list[dict[str, str]], rejected: list[dict[str, str]]) -> tuple[Text, Text, Text]:
    """The messages that both transcripts begin with, and the rest of each."""
    same = 0
    for one, other in zip(chosen, rejected):
        if one != other:
            break
        same += 1
    prompt, left, right = chosen[:same], chosen[same:], rejected[same:]
    if not left or not right:
        raise ValueError("is the same transcript twice, or one is the beginning of the other")
    if not prompt:
        raise ValueError("has transcripts with no beginning in common")
    if left[0]["role"] != "assistant" or right[0]["role"] != "assistant":
        raise ValueError("has transcripts that part at what the human says: there are no two replies to compare")
    return prompt, left, right


def _problem(pair: Pair) -> str:
    """Why a pair cannot be shown or exported; nothing if it can."""
    texts = {"prompt": pair.prompt, "first completion": pair.a, "second completion": pair.b}
    for name, text in texts.items():
        if problem := kind_problem(text):
            return f"has a {name} that {problem}; expected a text or a list of messages"
        if isinstance(text, str):
            if name == "prompt" and not text.strip():
                return "has an empty prompt"
        elif not text or not all(_is_textual(message) for message in text):
            return f"has a {name} with no message, or with content that is no text"
        if len(text if isinstance(text, str) else json.dumps(text)) > LONGEST:
            return f"has a {name} of more than {LONGEST:,} characters"
    if len({isinstance(text, str) for text in texts.values()}) > 1:
        return "mixes texts and conversations"
    if pair.a == pair.b:
        return "has the same completion twice"
    return ""


def _is_textual(message: Mapping[str, Any]) -> bool:
    content = message["content"]
    if isinstance(content, (list, tuple)):
        return all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content)
    return isinstance(content, str)


def _gold(row: Mapping[str, Any]) -> int | None:
    value = row.get("gold")
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 9.0
    if number not in range(-3, 4):
        raise ValueError(f"has the gold answer {value!r:.40}; expected a whole number from -3 (a is better) to 3")
    return int(number)


def _said(row: Mapping[str, Any]) -> int:
    """The known answer of `label`, the probability that `chosen` (a) is better: 1 is -2, .5 is 0, 0 is 2.

    Raises:
        ValueError: a label that is no probability.
    """
    given = row.get("label")
    try:
        label = 1.0 if given is None or given == "" else float(given)
    except (TypeError, ValueError):
        label = math.nan
    if not 0 <= label <= 1:
        raise ValueError(f"has the label {given!r:.40}; expected P(chosen is better), 0 to 1")
    size = max(1, round(4 * abs(label - 0.5)))
    return 0 if label == 0.5 else -size if label > 0.5 else size


def _ranks(row: Mapping[str, Any], count: int) -> list[Any]:
    """A number a completion, 1 for the best, where the row has them (TRL's rankings); else as many None.

    Raises:
        ValueError: they are no numbers, or of another count.
    """
    given = row.get("ranks")
    if given is None:
        return [None] * count
    numbers = isinstance(given, (list, tuple)) and all(isinstance(r, (int, float)) and r == r for r in given)
    if not numbers or len(given) != count:
        raise ValueError(f"has the ranks {given!r:.60}; expected {count} numbers, 1 for the best")
    return list(given)


def _prompt(row: Mapping[str, Any]) -> Any:
    if row.get("prompt") is None:
        raise ValueError(f"has no prompt, only {', '.join(map(repr, row)):.200}")
    return row["prompt"]


def _rest(row: Mapping[str, Any], *known: str) -> dict[str, Any]:
    """The other columns as JSON has them; what it has not, as text."""
    return {str(name): json.loads(json.dumps(value, default=str)) for name, value in row.items() if name not in known}
