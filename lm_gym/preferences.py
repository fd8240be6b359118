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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from lm_gym.chat import behind, in_one_form, template_options
from lm_gym.continuations import Continuation, continuation
from lm_gym.data_rows import Rows
from lm_gym.layout_cells import as_written, missing
from lm_gym.layout_rows import FEEDBACK, PAIRS, RANKINGS
from lm_gym.prompts import kind_problem
from lm_gym.rewards import Text

__all__ = ["Feedback", "Preference", "Ranking", "load_feedback", "load_preferences", "load_rankings", "tokenize"]

T = TypeVar("T")


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


def load_preferences(source: Any, *, unusable: str = "error") -> list[Preference]:
    """Read pairs.

    Args:
        source: a list of rows or of `Preference`, a `datasets.Dataset`, a file of `lm_gym.data_files.TABLES`, a folder
            that `Dataset.save_to_disk` wrote, or a hub id `org/name[:config][:split]`. Rows may also be in a layout of
            `lm_gym.layouts`.
        unusable: "error" refuses data with rows that are no preferences; "drop" leaves them out, and a warning counts
            them.

    An implicit prompt ends before the last space that both texts share, so that no word is cut in two (TRL cuts at the
    first letter that differs), or with the last message that both conversations share; in a transcript ("\\n\\nHuman: …
    \\n\\nAssistant: …") it ends where the assistant's reply begins. Roles get the names of `lm_gym.chat.ROLES`, and a
    conversation that repeats its prompt is taken without it.

    Raises:
        ValueError: no such source, no rows, or rows that are no preferences (names them and what is wrong).
        TypeError: `source` is none of the kinds above.
    """
    return _load(source, preference_of, Preference, PAIRS, unusable)


def load_feedback(source: Any, *, unusable: str = "error") -> list[Feedback]:
    """Read single completions with a boolean `label`; source and errors as in `load_preferences`."""
    return _load(source, feedback_of, Feedback, FEEDBACK, unusable)


def load_rankings(source: Any, *, unusable: str = "error") -> list[Ranking]:
    """Read rankings; source and errors as in `load_preferences`."""
    return _load(source, _ranking, Ranking, RANKINGS, unusable)


def tokenize(
    preference: Preference, tokenizer: Any, *, eos_ids: Sequence[int] | None = None
) -> tuple[list[int], list[int], list[int]]:
    """Token ids of the prompt (P,), as `lm_gym.prompts.load_prompts` makes them, and of both completions with EOS.

    Prompt and completion are tokenized as one text (a conversation as the chat template writes it), and the prompt's
    ids are cut off: :func:`lm_gym.continuations.continuation`, which also says what is done where they are not its
    beginning. What stands behind the first EOS id is left out, as a policy would not write it.

    Args:
        eos_ids: every id that ends a text of the model (`lm.eos_ids`); None: the tokenizer's EOS alone.

    Raises:
        ValueError: the tokenizer has no end-of-text token or (conversations) no chat template, the template leaves out
            what a message says or writes the prompt otherwise once an answer follows, or both completions are the same.
    """
    both = tokenized_pair(preference, tokenizer, eos_ids)
    return both[0].prompt_ids, both[0].token_ids, both[1].token_ids


def tokenized_pair(
    preference: Preference, tokenizer: Any, eos_ids: Sequence[int] | None
) -> tuple[Continuation, Continuation]:
    """:func:`tokenize`, with what is to be said of it."""
    options = template_options(preference.columns)
    prompt, texts, shared = preference.prompt, [preference.chosen, preference.rejected], 0
    if not isinstance(prompt, str) and prompt[-1]["role"] != "assistant":
        # turns that both begin with are no choice between them
        same = (a == b for a, b in zip(*(text[:-1] for text in texts)))
        shared = next((i for i, alike in enumerate(same) if not alike), min(map(len, texts)) - 1)
        prompt, texts = [*prompt, *texts[0][:shared]], [text[shared:] for text in texts]
    both = [continuation(prompt, text, tokenizer, options, eos_ids, started=not shared) for text in texts]
    first, second = sorted(both, key=lambda one: len(one.prompt_ids))
    if second.prompt_ids[: len(first.prompt_ids)] != first.prompt_ids:
        raise ValueError("goes through a chat template that writes the prompt in two ways, one for each answer")
    # where one of the two begins with <think>, as the prompt ends with it, it is a part of that answer
    chosen, rejected = (
        replace(one, prompt_ids=first.prompt_ids, token_ids=one.prompt_ids[len(first.prompt_ids) :] + one.token_ids)
        for one in both
    )
    if chosen.token_ids == rejected.token_ids:
        raise ValueError("has chosen and rejected answers that are the same up to where they end")
    return chosen, rejected


def _load(source: Any, read: Callable[[Mapping[str, Any]], T], kind: type[T], what: str, unusable: str) -> list[T]:
    rows = Rows(what, unusable=unusable)
    found = [item for _, item in rows.read(source, read, kind)]
    rows.finish(len(found))
    return found


def preference_of(row: Mapping[str, Any]) -> Preference:
    """A row as a pair; a ValueError begins with a verb, so that the row can stand before it."""
    _need(row, "chosen", "rejected")
    chosen, rejected = row["chosen"], row["rejected"]
    prompt = row.get("prompt")
    # The prompt of UltraFeedback and others is the text of a message that the conversations begin with.
    if prompt is None or (isinstance(prompt, str) and _spoken(chosen) and _spoken(rejected)):
        _check(chosen=chosen, rejected=rejected)
        try:
            prompt, chosen, rejected = _split(_in_one_form(chosen), _in_one_form(rejected))
        except ValueError as error:
            if prompt is None:
                raise
            raise ValueError(
                "has a prompt that is a text, and conversations that do not begin with the same message and then "
                "differ; give the prompt as messages"
            ) from error
    _check(prompt=prompt, chosen=chosen, rejected=rejected)
    prompt, chosen, rejected = map(_in_one_form, (prompt, chosen, rejected))
    if behind(prompt, chosen) is not chosen and behind(prompt, rejected) is not rejected:
        chosen, rejected = behind(prompt, chosen), behind(prompt, rejected)
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


def feedback_of(row: Mapping[str, Any]) -> Feedback:
    """A row as a judged text; errors as in `preference_of`."""
    _need(row, "prompt", "completion", "label")
    _check(prompt=row["prompt"], completion=row["completion"])
    given = row["label"]
    good = {"true": True, "false": False, "1": True, "0": False}.get(as_written(given).lower())
    if good is None:
        raise ValueError(f"has the label {given!r}; expected true (good) or false")
    prompt = _in_one_form(row["prompt"])
    return Feedback(
        prompt,
        behind(prompt, _in_one_form(row["completion"])),
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
    prompt = _in_one_form(row["prompt"])
    return Ranking(
        prompt,
        tuple(behind(prompt, _in_one_form(text)) for text in completions),
        annotator=_annotator(row),
        columns=_others(row, "prompt", "completions", "ranks", "annotator"),
    )


def _spoken(text: Any) -> bool:
    return isinstance(text, (list, tuple))


def _split(chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """The prompt that both begin with, and what is left of each."""
    same = next((i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected)))
    if isinstance(chosen, str) and (reply := _reply_of_transcript(chosen[:same])):
        same = reply
    elif isinstance(chosen, str):
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


def _reply_of_transcript(shared: str) -> int:
    """Where the assistant's reply begins, which the beginning of a transcript ("Human: …") ends in; 0: it does not.

    Replies may begin with the same words, which belong to them and not to the prompt.
    """
    human, assistant = shared.rfind("\n\nHuman:"), shared.rfind("\n\nAssistant:")
    return assistant + len("\n\nAssistant:") if -1 < human < assistant else 0


def _need(row: Mapping[str, Any], *names: str) -> None:
    lacking = [name for name in names if row.get(name) is None]
    if lacking:
        there = ", ".join(repr(name) for name, value in row.items() if value is not None) or "nothing"
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


def _in_one_form(text: Text) -> Text:
    return text if isinstance(text, str) else in_one_form(text)


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
    return None if missing(value) else str(value)


def _others(row: Mapping[str, Any], *known: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in known}
