"""Demonstrations: texts to imitate, in TRL's formats, and which of their tokens are imitated.

| format | columns | imitated |
|---|---|---|
| prompt-completion | `prompt`, `completion` | the completion, EOS included |
| conversation | `messages` | every turn of the assistant, each up to its first EOS |
| text | `text` | all of it, EOS included |

Prompt-completion data are standard (texts) or conversational (lists of messages; a completion may have several turns,
and what others than the assistant say in it is not imitated).

A turn is tokenized as :func:`lm_gym.continuations.continuation` says, behind the prompt that a policy would have there.
Turns share one text where the chat template writes an earlier turn again as it stood when it was the last; where it
does not (it leaves out the reasoning of earlier turns), each turn is a text of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_gym.chat import behind, in_one_form, template_options
from lm_gym.continuations import Continuation, continuation, ends_of
from lm_gym.data_rows import Rows, shorten
from lm_gym.layout_rows import DEMONSTRATIONS
from lm_gym.positions import because
from lm_gym.prompts import kind_problem, prompt_start

__all__ = ["Demonstration", "load_demonstrations"]

APART = (
    "are conversations whose earlier turns the chat template writes otherwise once others follow: each of their turns "
    "is a text of its own"
)


@dataclass(frozen=True)
class Demonstration:
    """Token ids (L,) of a whole text, and which of them are imitated, (L,). The first is predicted by nothing."""

    token_ids: tuple[int, ...]
    imitated: tuple[bool, ...]

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.imitated) or not any(self.imitated[1:]):
            raise ValueError(
                "a demonstration expected a flag for each token, and one behind the first that is imitated, got "
                f"{len(self.token_ids)} tokens and {len(self.imitated)} flags, {sum(self.imitated)} of them set"
            )


def load_demonstrations(
    source: Any,
    tokenizer: Any,
    *,
    eos_ids: Sequence[int] | None = None,
    max_tokens: int | None = None,
    unusable: str = "error",
    too_long: str = "error",
) -> list[Demonstration]:
    """Read demonstrations and tokenize them as a policy would write them.

    Args:
        source: a list of rows or of `Demonstration`, a `datasets.Dataset`, a file of `lm_gym.data_files.TABLES`, a
            folder that `Dataset.save_to_disk` wrote, or a hub id `org/name[:config][:split]`. Rows may also be in a
            layout of `lm_gym.layouts`; those that say that their answer was rejected are left out.
        tokenizer: of transformers, with a chat template for conversations; None: only a list of `Demonstration`.
        eos_ids: every id that ends a text of the model (`lm.eos_ids`); None: the tokenizer's EOS alone.
        max_tokens: the longest text allowed, in tokens.
        unusable: "error" refuses data with rows that are no demonstrations; "drop" leaves them out.
        too_long: what is done with longer texts: "error"; "drop"; "cut": what stands before the first imitated token
            loses its beginning until half of the room is left of it, then the rest loses its end. Warnings count them.

    Raises:
        ValueError: no such source, or rows that are no demonstrations, or too long (names them and what is wrong).
    """
    rows = Rows(DEMONSTRATIONS, unusable=unusable, too_long=too_long, max_length=max_tokens)
    return read_demonstrations(source, tokenizer, eos_ids, rows)


def read_demonstrations(source: Any, tokenizer: Any, eos_ids: Sequence[int] | None, rows: Rows) -> list[Demonstration]:
    """:func:`load_demonstrations`, with the counts of its rows."""
    found: list[Demonstration] = []
    kept = 0
    read: Any = lambda row: _demonstrations(row, tokenizer, eos_ids, rows)
    bos = getattr(tokenizer, "bos_token_id", None)
    for where, item in rows.read(source, read, Demonstration):
        texts = [item] if isinstance(item, Demonstration) else item
        longest, limit = max(len(d.token_ids) for d in texts), rows.max_length
        if limit is not None and longest > limit:
            if not rows.keep_long(where, f"has {longest} tokens (at most {limit}{because(limit)})"):
                continue
            with rows.row(where):
                found += [_cut(d, limit, bos) for d in texts]
                kept += 1
            continue
        found += texts
        kept += 1
    rows.finish(kept)
    return found


def fingerprint(demonstrations: Sequence[Demonstration]) -> str:
    """sha256 of all token ids, and of which are imitated."""
    rows = [(d.token_ids, d.imitated) for d in demonstrations]
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]


def _demonstrations(
    row: Mapping[str, Any], tokenizer: Any, eos_ids: Sequence[int] | None, rows: Rows
) -> list[Demonstration]:
    if tokenizer is None:
        raise ValueError("is text, and the model has no tokenizer: give a list of Demonstration")
    options = template_options(row)
    if row.get("messages") is not None:
        _check(messages=row["messages"])
        if isinstance(row["messages"], str):
            raise ValueError(f"has messages that are a text: {row['messages']!r:.60}; expected a list of messages")
        return _conversation((), row["messages"], tokenizer, options, eos_ids, rows)
    if row.get("prompt") is not None and row.get("completion") is not None:
        prompt, completion = row["prompt"], row["completion"]
        _check(prompt=prompt, completion=completion)
        if isinstance(prompt, str) != isinstance(completion, str):
            raise ValueError("has a prompt and a completion of which one is a text and one a list of messages")
        if not isinstance(prompt, str):
            return _conversation(prompt, behind(prompt, completion), tokenizer, options, eos_ids, rows)
        one = continuation(prompt, completion, tokenizer, options, eos_ids)
        rows.note(one.notes)
        return [_behind(one.prompt_ids, [False] * len(one.prompt_ids), one)]
    if row.get("text") is not None:
        _check(text=row["text"])
        if not isinstance(row["text"], str) or not row["text"].strip():
            raise ValueError(f"has the text {row['text']!r:.60}; expected one that is not empty")
        ids = _ended(prompt_start(row["text"], tokenizer), tokenizer, eos_ids)
        return [Demonstration(tuple(ids), (True,) * len(ids))]
    raise ValueError(f"has the columns {', '.join(row)}; expected prompt and completion, messages, or text")


def _check(**texts: Any) -> None:
    for name, text in texts.items():
        problem = kind_problem(text) or ("is empty" if not text else "")
        if problem:
            raise ValueError(f"has a {name} that {problem}; expected a text or a list of messages")


def _ended(ids: list[int], tokenizer: Any, eos_ids: Sequence[int] | None) -> list[int]:
    """A whole text up to the EOS that it ends in, or with one appended; EOS ids in its middle stay."""
    try:
        ends = ends_of(tokenizer, eos_ids)
    except ValueError:  # it may be imitated without an end
        return ids
    for place, token in enumerate(ids):
        if token in ends and not tokenizer.decode([i for i in ids[place + 1 :] if i not in ends]).strip():
            return ids[: place + 1]
    return [*ids, ends[0]]


def _behind(ids: Sequence[int], flags: Sequence[bool], turn: Continuation) -> Demonstration:
    """A text that ends in an imitated turn."""
    return Demonstration((*ids, *turn.token_ids), (*flags, *(True for _ in turn.token_ids)))


def _conversation(
    prompt: Sequence[Any],
    completion: Sequence[Any],
    tokenizer: Any,
    options: Mapping[str, Any],
    eos_ids: Sequence[int] | None,
    rows: Rows,
) -> list[Demonstration]:
    """The assistant's turns of a completion, in as few texts as the chat template allows: see the module."""
    found: list[Demonstration] = []
    notes: list[str] = []
    ids: list[int] = []
    flags: list[bool] = []
    for before, turn, started in _turns(in_one_form(prompt), in_one_form(completion)):
        one = continuation(before, [turn], tokenizer, options, eos_ids, started=started)
        notes += one.notes
        if found and one.prompt_ids[: len(ids)] == ids:
            found.pop()
        else:
            ids, flags = [], []
        context = one.prompt_ids[len(ids) :]
        found.append(_behind([*ids, *context], [*flags, *(False for _ in context)], one))
        # an EOS of ours is not what the template writes before the next turn
        end = len(found[-1].token_ids) - one.appended
        ids, flags = list(found[-1].token_ids[:end]), list(found[-1].imitated[:end])
    if not found:
        raise ValueError("expected a turn of the assistant with something before it")
    rows.note([*notes, APART] if len(found) > 1 else notes)
    return found


def _turns(
    prompt: list[dict[str, Any]], completion: list[dict[str, Any]]
) -> Iterator[tuple[list[dict[str, Any]], dict[str, Any], bool]]:
    """What stands before each of the assistant's turns, the turn, and whether it goes on with the last message."""
    first = len(prompt)
    if prompt and prompt[-1]["role"] == completion[0]["role"] == "assistant":
        yield prompt, completion[0], True
        said = prompt[-1]["content"] + completion[0]["content"]
        completion = [completion[0] | {"content": said}, *completion[1:]]
        prompt = prompt[:-1]
    messages = [*prompt, *completion]
    for place in range(first, len(messages)):
        if messages[place]["role"] == "assistant":
            if place == 0:
                raise ValueError("expected a turn of the assistant with something before it")
            yield messages[:place], messages[place], False


def _cut(text: Demonstration, room: int, bos: int | None) -> Demonstration:
    """A text of at most ``room`` tokens: see :func:`load_demonstrations`.

    Raises:
        ValueError: nothing of it would be imitated.
    """
    first = text.imitated.index(True)
    start, [rest] = shorten(text.token_ids[:first], [text.token_ids[first:]], room, bos)
    flags = [False] * len(start) + list(text.imitated[first : first + len(rest)])
    end = max(place + 1 for place, flag in enumerate(flags) if flag)
    return Demonstration(tuple([*start, *rest][:end]), tuple(flags[:end]))
