"""A completion's token ids as a policy would write them behind its prompt, ended at the first EOS."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_gym.chat import in_one_form, lost, written
from lm_gym.prompts import prompt_start
from lm_gym.rewards import Text

ANCHORS = ("a", ":", "\n")
"""What a text is tokenized behind, and taken off again, where it cannot stand behind its prompt: at the start of a text
SentencePiece adds a space."""

MARK = "LMGymAnswerHere"
"""An answer to find the place of one in what a template writes."""

MERGED = "have a prompt and an answer whose tokens merge where they meet: the answer is tokenized apart"
SHORTENED = (
    "go through a chat template whose marker of an answer has an end (such as <think>) that these answers do not begin "
    "with: their prompts are taken without it, while prompts of the environment have it"
)
VERBATIM = "have an answer with reasoning that the chat template would leave out: it is taken as it stands"
ONE_TURN = "have answers of several turns: only the first is learned from, since a policy ends there"
NOTES = (MERGED, SHORTENED, VERBATIM, ONE_TURN)
"""What may be said of rows, behind "3 of 100 rows of the pairs"."""


@dataclass(frozen=True)
class Continuation:
    """Token ids of a prompt (P,) and of a completion (T,), T >= 1, that ends in an EOS id."""

    prompt_ids: list[int]
    token_ids: list[int]
    appended: bool
    """The EOS is ours: nothing in the completion's text ends it."""
    notes: tuple[str, ...] = ()
    """Some of `NOTES`."""


def ends_of(tokenizer: Any, eos_ids: Sequence[int] | None) -> tuple[int, ...]:
    """EOS ids, the one to append first: the tokenizer's own, then the model's.

    Raises:
        ValueError: there is none.
    """
    own = getattr(tokenizer, "eos_token_id", None)
    found = dict.fromkeys(int(i) for i in ([] if own is None else [own]) + list(eos_ids or ()))
    if not found:
        raise ValueError("cannot be ended: the tokenizer has no end-of-text token, set tokenizer.eos_token")
    return tuple(found)


def continuation(
    prompt: Text,
    completion: Text,
    tokenizer: Any,
    options: Mapping[str, Any] | None = None,
    eos_ids: Sequence[int] | None = None,
    *,
    started: bool = True,
) -> Continuation:
    """The tokens of a completion: of prompt and completion tokenized as one text, what stands behind the prompt's ids.

    Where the prompt's ids are not the beginning of those of the whole text, the completion is tokenized by itself, as
    the middle of a text: a policy begins behind the prompt's ids, whatever others the whole text would have. What
    stands behind the first EOS id is left out, and where there is none the tokenizer's is appended.

    Args:
        prompt, completion: texts, or messages. Of a completion of several messages the first is taken.
        options: for the chat template.
        eos_ids: of the model; None: the tokenizer's alone.
        started: an assistant's message at the end of the prompt is the beginning of the completion.

    Raises:
        ValueError: there is no EOS id or no chat template, or no answer can be told in what the template writes. Begins
            with a verb, so that the row can stand before it.
    """
    ends = ends_of(tokenizer, eos_ids)
    notes: list[str] = []
    if isinstance(prompt, str):
        assert isinstance(completion, str)
        text, whole = prompt, prompt + completion
    else:
        assert not isinstance(completion, str)
        text, whole, notes = _in_template(in_one_form(prompt), in_one_form(completion), tokenizer, options, started)
    before, both = ids_of(text, tokenizer), ids_of(whole, tokenizer)
    prompt_ids = prompt_start(prompt, tokenizer) if isinstance(prompt, str) else before
    if both[: len(before)] == before:
        ids = both[len(before) :]
    else:
        ids = inner_ids(whole[len(text) :], tokenizer)
        notes.append(MERGED)
    end = next((place + 1 for place, token in enumerate(ids) if token in ends), None)
    ids = [*ids, ends[0]] if end is None else ids[:end]
    return Continuation(prompt_ids, ids, appended=end is None, notes=tuple(notes))


def _in_template(
    prompt: list[dict[str, Any]],
    completion: list[dict[str, Any]],
    tokenizer: Any,
    options: Mapping[str, Any] | None,
    started: bool,
) -> tuple[str, str, list[str]]:
    """(prompt, prompt with its answer) as the template writes them, the first the beginning of the second; notes."""
    answer, notes = completion[0], [] if len(completion) == 1 else [ONE_TURN]
    if answer["role"] != "assistant":
        raise ValueError(f"has an answer that begins with a message of the role {answer['role']!r}")
    started = started and prompt[-1]["role"] == "assistant"
    context = prompt[:-1] if started else prompt
    if started:  # the completion goes on with the prompt's last message
        answer = answer | {"content": prompt[-1]["content"] + answer["content"]}
    text = written(prompt, tokenizer, options, ending="started" if started else "prompt")
    whole = written([*context, answer], tokenizer, options, ending="whole")
    reasons = lost([answer], whole, reasoning=True) is not None
    if whole.startswith(text) and not reasons:
        return text, whole, notes
    marked = written([*context, answer | {"content": MARK}], tokenizer, options, ending="whole")
    before, _, behind = marked.partition(MARK)
    if reasons:
        said = completion[0]["content"]
        opened = "" if started else text[len(_shared(text, before)) :].strip()  # <think>, which both may have
        if opened and said.lstrip().startswith(opened):
            said = said.lstrip()[len(opened) :].lstrip()
        return text, text + said + behind, [*notes, VERBATIM]
    shared = _shared(text, before, whole)
    if not started and lost(context, shared) is None:
        return shared, whole, [*notes, SHORTENED]
    raise ValueError(
        f"goes through a chat template that writes the prompt otherwise once an answer follows: {text[-80:]!r} is not "
        f"the beginning of {whole[:80]!r}...; give the texts as plain strings, or another template"
    )


def _shared(*texts: str) -> str:
    """What all texts begin with."""
    alike = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    return texts[0][: sum(1 for _ in alike)]


def ids_of(text: str, tokenizer: Any) -> list[int]:
    """Token ids without special tokens beside those in the text."""
    return [int(i) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]


def inner_ids(text: str, tokenizer: Any) -> list[int]:
    """Token ids of a text that stands behind another one."""
    for anchor in ANCHORS:
        before, both = ids_of(anchor, tokenizer), ids_of(anchor + text, tokenizer)
        if before and both[: len(before)] == before:
            return both[len(before) :]
    return ids_of(text, tokenizer)
