"""Preference data: pairs, judged single completions and rankings, in all of TRL's formats, and their tokens.

| format | columns |
|---|---|
| explicit prompt | `prompt`, `chosen`, `rejected` |
| implicit prompt | `chosen`, `rejected`: the prompt is what both begin with |
| unpaired (`load_feedback`) | `prompt`, `completion`, `label` (true: good) |
| ranking (`load_rankings`) | `prompt`, `completions` from best to worst, or in any order with `ranks` (1 is best) |

Each is standard (texts) or conversational (lists of messages). Pairs may have `label` (the probability that `chosen` is
better: 1 by default, .5 is a tie), `margin` and `annotator`; every other column is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from lm_gym.layout_rows import FEEDBACK, PAIRS, RANKINGS, layout_rows
from lm_gym.prompt_sources import read_items
from lm_gym.prompts import SHOWN, TEMPLATE_COLUMNS, kind_problem, load_prompts
from lm_gym.rewards import Text

__all__ = ["Feedback", "Preference", "Ranking", "load_feedback", "load_preferences", "load_rankings", "tokenize"]

T = TypeVar("T")

ANCHORS = ("a", ":", "\n")
"""What a completion is tokenized behind, and taken off again: at the start of a text SentencePiece adds a space."""


@dataclass(frozen=True)
class Preference:
    """Two completions of a prompt, and what an annotator said."""

    prompt: Text
    chosen: Text
    rejected: Text
    label: float = 1.0
    """P(`chosen` is better), 0 to 1: .5 is a tie, below .5 the annotator took the other one."""
    margin: float | None = None
    """By how much `chosen` is better, in units of reward; None: not said."""
    annotator: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """The other columns of its row."""


@dataclass(frozen=True)
class Feedback:
    """One completion of a prompt, and whether it is good (TRL's unpaired format)."""

    prompt: Text
    completion: Text
    good: bool
    annotator: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Ranking:
    """K >= 2 completions of a prompt from best to worst."""

    prompt: Text
    completions: tuple[Text, ...]
    annotator: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)


def load_preferences(source: Any) -> list[Preference]:
    """Read pairs.

    Args:
        source: a list of rows or of `Preference`, a `datasets.Dataset`, a file of `lm_gym.data_files.TABLES`, a folder
            that `Dataset.save_to_disk` wrote, or a hub id `org/name[:config][:split]`. Rows may also be in a layout of
            `lm_gym.layouts`.

    An implicit prompt ends before the last space that both texts share, so that no word is cut in two (TRL cuts at the
    first letter that differs), or with the last message that both conversations share.

    Raises:
        ValueError: no such source, no rows, or rows that are no preferences (names them and what is wrong).
        TypeError: `source` is none of the kinds above.
    """
    return load_items(source, _preference, Preference, PAIRS)


def load_feedback(source: Any) -> list[Feedback]:
    """Read single completions with a boolean `label`; source and errors as in `load_preferences`."""
    return load_items(source, _feedback, Feedback, FEEDBACK)


def load_rankings(source: Any) -> list[Ranking]:
    """Read rankings; source and errors as in `load_preferences`."""
    return load_items(source, _ranking, Ranking, RANKINGS)


def tokenize(preference: Preference, tokenizer: Any) -> tuple[list[int], list[int], list[int]]:
    """Token ids of the prompt (P,), as `lm_gym.prompts.load_prompts` makes them, and of both completions with EOS.

    A conversation goes through the chat template; what the template writes behind the end-of-text token is left out,
    as a policy would not write it.

    Raises:
        ValueError: the tokenizer has no end-of-text token or (conversations) no chat template, or the template writes
            the prompt otherwise once an answer follows.
    """
    row: dict[str, Any] = {"prompt": preference.prompt}
    row |= {name: preference.columns[name] for name in TEMPLATE_COLUMNS if preference.columns.get(name) is not None}
    prompt = load_prompts([row], tokenizer)[0]
    options: dict[str, Any] = dict(row.get("chat_template_kwargs") or {})
    if row.get("tools"):
        options["tools"] = row["tools"]
    chosen, rejected = (
        completion_tokens(preference.prompt, prompt.text, completion, tokenizer, options)
        for completion in (preference.chosen, preference.rejected)
    )
    return list(prompt.token_ids), chosen, rejected


def completion_tokens(
    prompt: Text, prompt_text: str, completion: Text, tokenizer: Any, template_options: Mapping[str, Any] | None = None
) -> list[int]:
    """Token ids (T,) of a completion with EOS behind it, as it follows `prompt`, which is written `prompt_text`."""
    eos = tokenizer.eos_token_id
    if eos is None:
        raise ValueError("the tokenizer has no end-of-text token: set tokenizer.eos_token")
    if isinstance(completion, str):
        return [*_inner_tokens(completion, tokenizer), int(eos)]
    assert not isinstance(prompt, str)
    messages = [dict(message) for message in (*prompt, *completion)]
    if prompt[-1]["role"] == "assistant":  # the completion goes on with the prompt's last message
        start = messages.pop(len(prompt) - 1)
        messages[len(prompt) - 1]["content"] = start["content"] + messages[len(prompt) - 1]["content"]
    whole = str(tokenizer.apply_chat_template(messages, tokenize=False, **(template_options or {})))
    if not whole.startswith(prompt_text):
        raise ValueError(
            f"the chat template writes the prompt otherwise once an answer follows: {prompt_text[-80:]!r} is not the "
            f"beginning of {whole[:80]!r}...; give the texts as plain strings, or another template"
        )
    ids = [int(i) for i in tokenizer(whole[len(prompt_text) :], add_special_tokens=False)["input_ids"]]
    last = max((place for place, token in enumerate(ids) if token == eos), default=None)
    return [*ids, int(eos)] if last is None else ids[: last + 1]


def _inner_tokens(text: str, tokenizer: Any) -> list[int]:
    """Token ids of a text that stands behind another one."""

    def ids_of(part: str) -> list[int]:
        return [int(i) for i in tokenizer(part, add_special_tokens=False)["input_ids"]]

    for anchor in ANCHORS:
        before, both = ids_of(anchor), ids_of(anchor + text)
        if before and both[: len(before)] == before:
            return both[len(before) :]
    return ids_of(text)


def load_items(source: Any, read: Callable[[Mapping[str, Any]], T], kind: type[T], what: str) -> list[T]:
    items = read_items(source, what=what)
    if not items:
        raise ValueError(f"the {what} {source!r:.80} has no rows; expected at least one")
    found: list[T] = []
    rows, unread = layout_rows(what, items)
    wrong = [f"{where} {why}" for where, why in unread]
    for where, item in rows:
        if isinstance(item, kind):
            found.append(item)
            continue
        try:
            if not isinstance(item, Mapping):
                raise ValueError(f"is of type {type(item).__name__}, expected named columns")
            found.append(read(item))
        except ValueError as error:
            wrong.append(f"{where} {error}")
    if wrong:
        more = f", and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ValueError(
            f"{len(wrong)} of {len(items)} rows of the {what} cannot be used: {'; '.join(wrong[:SHOWN])}{more}. "
            "To do: repair or drop them"
        )
    return found


def _preference(row: Mapping[str, Any]) -> Preference:
    _need(row, "chosen", "rejected")
    chosen, rejected = row["chosen"], row["rejected"]
    prompt = row.get("prompt")
    # The prompt of UltraFeedback and others is the text of a message that the conversations begin with.
    if prompt is None or (isinstance(prompt, str) and _spoken(chosen) and _spoken(rejected)):
        _check(chosen=chosen, rejected=rejected)
        try:
            prompt, chosen, rejected = _split(chosen, rejected)
        except ValueError as error:
            if prompt is None:
                raise
            raise ValueError(
                "has a prompt that is a text, and conversations that do not begin with the same message and then "
                "differ; give the prompt as messages"
            ) from error
    _check(prompt=prompt, chosen=chosen, rejected=rejected)
    if chosen == rejected:
        raise ValueError("has the same text as chosen and as rejected")
    label = _number(row, "label")
    if label is not None and not 0 <= label <= 1:
        raise ValueError(f"has the label {row['label']!r}; expected P(chosen is better), 0 to 1")
    return Preference(
        prompt,
        chosen,
        rejected,
        label=1.0 if label is None else label,
        margin=_number(row, "margin"),
        annotator=_annotator(row),
        columns=_others(row, "prompt", "chosen", "rejected", "label", "margin", "annotator"),
    )


def _feedback(row: Mapping[str, Any]) -> Feedback:
    _need(row, "prompt", "completion", "label")
    _check(prompt=row["prompt"], completion=row["completion"])
    given = row["label"]
    good = {"true": True, "false": False, "1": True, "0": False}.get(str(given).strip().lower())
    if good is None:
        raise ValueError(f"has the label {given!r}; expected true (good) or false")
    return Feedback(
        row["prompt"],
        row["completion"],
        good,
        annotator=_annotator(row),
        columns=_others(row, "prompt", "completion", "label", "annotator"),
    )


def _ranking(row: Mapping[str, Any]) -> Ranking:
    _need(row, "prompt", "completions")
    completions, ranks = row["completions"], row.get("ranks")
    if not isinstance(completions, (list, tuple)) or len(completions) < 2:
        raise ValueError(f"has the completions {completions!r:.60}; expected a list of at least two")
    _check(prompt=row["prompt"], **{f"completions[{i}]": text for i, text in enumerate(completions)})
    if ranks is not None:
        if len(set(ranks)) != len(completions) or len(ranks) != len(completions):
            raise ValueError(f"has the ranks {ranks!r}; expected {len(completions)} different numbers, 1 for the best")
        completions = [text for _, text in sorted(zip(ranks, completions, strict=True), key=lambda pair: pair[0])]
    return Ranking(
        row["prompt"],
        tuple(completions),
        annotator=_annotator(row),
        columns=_others(row, "prompt", "completions", "ranks", "annotator"),
    )


def _spoken(text: Any) -> bool:
    return isinstance(text, (list, tuple))


def _split(chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """The prompt that both begin with, and what is left of each."""
    same = next((i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected)))
    if isinstance(chosen, str):
        while same and not chosen[same - 1 : same].isspace():
            same -= 1
        while same and chosen[same - 1] == " ":  # the space belongs to the first word of the completion
            same -= 1
    elif same == min(len(chosen), len(rejected)):  # one goes on where the other ends, which is an answer too
        same = max(0, same - 1)
    prompt, left, right = chosen[:same], chosen[same:], rejected[same:]
    if not prompt or not left or not right:
        raise ValueError(
            "has no column 'prompt', and chosen and rejected do not begin with a prompt and then differ; add a column "
            "'prompt'"
        )
    return prompt, left, right


def _need(row: Mapping[str, Any], *names: str) -> None:
    lacking = [name for name in names if row.get(name) is None]
    if lacking:
        there = ", ".join(repr(name) for name in row) or "nothing"
        raise ValueError(f"has no {' and no '.join(repr(name) for name in lacking)}, only {there}")


def _check(**texts: Any) -> None:
    """All of one kind, texts or lists of messages, and none of them empty but a completion's text."""
    kinds = {name: "text" if isinstance(text, str) else "conversation" for name, text in texts.items()}
    for name, text in texts.items():
        if problem := kind_problem(text):
            raise ValueError(f"has {name} that {problem}; expected a text or a list of messages")
        if not text and not (isinstance(text, str) and name != "prompt"):
            raise ValueError(f"has an empty {name}")
    if len(set(kinds.values())) > 1:
        named = ", ".join(f"{name} is a {kind}" for name, kind in kinds.items())
        raise ValueError(f"mixes texts and conversations: {named}")


def _number(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    if value is None or value == "":  # the empty field of a CSV file
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"has the {name} {value!r}; expected a finite number")
    return number


def _annotator(row: Mapping[str, Any]) -> str | None:
    value = row.get("annotator")
    return None if value is None or value == "" else str(value)


def _others(row: Mapping[str, Any], *known: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in known}
