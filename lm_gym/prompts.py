"""Prompt sources: from a list, a file, a dataset or a name to rows that an episode can start from.

Rows follow TRL's formats. The column `prompt` is a text, or a list of messages ({"role": ..., "content": ...}), which
goes through the tokenizer's chat template; every other column travels to the reward model, with None where a row lacks
it. Reading the sources is in `lm_gym.prompt_sources`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lm_gym.chat import Ending, Message, in_one_form, template_options, text_of, written
from lm_gym.positions import because
from lm_gym.prompt_sources import Row, read_rows
from lm_gym.rewards import RESERVED_COLUMNS

__all__ = ["Prompt", "load_prompts"]

SHOWN = 5
"""Rows that an error lists before it counts the rest."""

ENDLESS = 100_000
"""Characters from which on a prompt's length is first looked at by so many of them."""

WRITTEN_MESSAGES = re.compile(
    r"""\s*\[\s*\{(?=.*['"]role['"]\s*:\s*['"](system|user|assistant)['"])(?=.*['"]content['"]\s*:)""", re.S
)
"""Messages as a CSV file has them, in JSON or in Python's way. As a text they would be trained on, brackets and all."""


@dataclass(frozen=True)
class Prompt:
    """One start of an episode."""

    id: int
    """Its row in the source, from 0."""
    text: str
    """The text that `token_ids` are the tokens of: for a conversational prompt, what the chat template made."""
    token_ids: tuple[int, ...]
    """(P,) without padding, P >= 1."""
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """The other columns of its row; every prompt of a source has the same keys, in the same order."""
    messages: tuple[Message, ...] | None = field(default=None, hash=False)
    """The messages of a conversational prompt, as `lm_gym.chat.in_one_form` writes them; otherwise None."""

    @property
    def for_reward(self) -> str | list[Message]:
        """What a reward model gets in `prompts`: the text, or the messages without one that the model continues."""
        if self.messages is None:
            return self.text
        return list(self.messages[:-1] if self._continues else self.messages)

    def completion_for_reward(self, text: str) -> str | list[Message]:
        """What a reward model gets in `completions`: `text`, or [{"role": "assistant", "content": text}].

        Where the prompt ends in the beginning of an assistant's message, that beginning stands before `text`.
        """
        if self.messages is None:
            return text
        start = self.messages[-1]["content"] if self._continues else ""
        return [{"role": "assistant", "content": start + text}]

    @property
    def _continues(self) -> bool:
        return self.messages is not None and self.messages[-1]["role"] == "assistant"


def load_prompts(source: Any, tokenizer: Any, *, max_tokens: int | None = None) -> list[Prompt]:
    """Read `source` and tokenize it.

    Args:
        source: a list of texts, of dicts with the key `prompt`, or of lists of messages; a `datasets.Dataset`; the path
            of a file of `lm_gym.data_files.SUFFIXES` (UTF-8) or of a folder that `Dataset.save_to_disk` wrote;
            `tiny:reviews`, `tiny:questions`, `tiny:requests` or `tiny:all`, with `:test` behind for the other split;
            a hub id, `org/name[:config][:split]` (split `train`).
        tokenizer: of transformers. A text is tokenized with its own rule for special tokens, less an end-of-text token
            behind it, and without a second beginning-of-text token where the text begins with one; what a chat template
            made is tokenized without adding any.
        max_tokens: the longest prompt allowed, in tokens.

    Raises:
        ValueError: the source is unknown or empty, or prompts are missing, empty, too long, or no text; names the rows.
        TypeError: `source` is none of the kinds above.
    """
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}; expected at least 1, or None for no limit")
    rows = read_rows(source)
    if not rows:
        raise ValueError(f"the prompt source {_described(source)} has no rows; expected at least one prompt")
    names = list(dict.fromkeys(name for row in rows for name in row.columns))
    reserved = [name for name in names if name in RESERVED_COLUMNS]
    if reserved:
        raise ValueError(
            f"prompt columns {reserved} have names that the call of a reward model sets itself; rename them "
            f"(reserved: {', '.join(RESERVED_COLUMNS)})"
        )
    _check_kinds(rows)
    _refuse(rows, [("is empty", row) for row in rows if not _has_text(row.prompt)], "give it at least one word")
    rows = [row if isinstance(row.prompt, str) else replace(row, prompt=in_one_form(row.prompt)) for row in rows]
    texts = _texts(rows, tokenizer)
    if max_tokens is not None:
        endless = [row for row, text in zip(rows, texts, strict=True) if _endless(text, tokenizer, max_tokens)]
        advice = f"shorten or drop prompts of more than {max_tokens} tokens{because(max_tokens)}, or raise the limit"
        _refuse(rows, [(f"has far more than {max_tokens} tokens", row) for row in endless], advice)
    token_ids = _tokenized(rows, texts, tokenizer)
    _refuse(
        rows, [("has no tokens", row) for row, ids in zip(rows, token_ids, strict=True) if not ids], "drop or change it"
    )
    if max_tokens is not None:
        long = [
            (f"has {len(ids)} tokens", row) for row, ids in zip(rows, token_ids, strict=True) if len(ids) > max_tokens
        ]
        _refuse(
            rows,
            long,
            f"shorten or drop prompts of more than {max_tokens} tokens{because(max_tokens)}, or raise the limit",
        )
    return [
        Prompt(
            id=index,
            text=text,
            token_ids=tuple(ids),
            columns={name: row.columns.get(name) for name in names},
            messages=None if isinstance(row.prompt, str) else tuple(row.prompt),
        )
        for index, (row, text, ids) in enumerate(zip(rows, texts, token_ids, strict=True))
    ]


def _endless(text: str, tokenizer: Any, max_tokens: int) -> bool:
    """Whether the beginning of a text is too long by itself: a line of 10 MB takes minutes to tokenize whole."""
    if len(text) <= ENDLESS:
        return False
    return len(tokenizer(text[:ENDLESS], add_special_tokens=False)["input_ids"]) > 2 * max_tokens


def _check_kinds(rows: Sequence[Row]) -> None:
    wrong = []
    for row in rows:
        problem = kind_problem(row.prompt)
        if not problem and not isinstance(row.prompt, str) and row.prompt:
            last = in_one_form(row.prompt[-1:])[0]
            if last["role"] == "assistant" and (not isinstance(last["content"], str) or last.get("tool_calls")):
                problem = "ends in an assistant's message that is no text alone, which the model cannot continue"
        if problem:
            wrong.append((problem, row))
    _refuse(rows, wrong, 'expected a text, or a list of messages such as {"role": "user", "content": "Hello"}')


def kind_problem(prompt: Any) -> str:
    """What is wrong with the kind of a prompt (or of a completion), or nothing."""
    if isinstance(prompt, str):
        if WRITTEN_MESSAGES.match(prompt):
            return f"is a list of messages written out as text ({prompt!r:.60}): give the list itself, as .jsonl has it"
        return "" if _encodable(prompt) else "has characters that are no Unicode text (a lone surrogate)"
    if not isinstance(prompt, (list, tuple)):
        return f"is {type(prompt).__name__} {prompt!r:.60}"
    for message in prompt:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            return f"has the message {message!r:.80}"
        if message.get("content") is None and not message.get("tool_calls"):
            return f"has the message {message!r:.80}"
        if not _encodable(text_of(message.get("content")) or ""):
            return "has characters that are no Unicode text (a lone surrogate)"
    return ""


def _has_text(prompt: Any) -> bool:
    if isinstance(prompt, str):
        return bool(prompt.strip())
    return any(message.get("content") or message.get("tool_calls") for message in prompt)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _texts(rows: Sequence[Row], tokenizer: Any) -> list[str]:
    """What the tokenizer gets of each prompt."""
    texts, wrong = [], []
    for row in rows:
        try:
            texts.append(row.prompt if isinstance(row.prompt, str) else _templated(row, tokenizer))
        except ValueError as error:
            wrong.append((str(error), row))
    _refuse(rows, wrong, "repair or drop them")
    return texts


def _templated(row: Row, tokenizer: Any) -> str:
    ending: Ending = "started" if row.prompt[-1]["role"] == "assistant" else "prompt"
    return written(row.prompt, tokenizer, template_options(row.columns), ending=ending)


def _tokenized(rows: Sequence[Row], texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    token_ids: list[list[int]] = [[] for _ in rows]
    for plain in (True, False):
        chosen = [index for index, row in enumerate(rows) if isinstance(row.prompt, str) is plain]
        if not chosen:
            continue
        # A chat template writes its special tokens itself: adding the tokenizer's would double them.
        encoded = tokenizer([texts[index] for index in chosen], add_special_tokens=plain)["input_ids"]
        for index, ids in zip(chosen, encoded, strict=True):
            token_ids[index] = _open(texts[index], ids, tokenizer) if plain else [int(token) for token in ids]
    return token_ids


def prompt_start(text: str, tokenizer: Any) -> list[int]:
    """Token ids (P,) of a plain prompt.

    Raises:
        ValueError: it has none. Begins with a verb, so that the row can stand before it.
    """
    if not text.strip():
        raise ValueError("has an empty prompt")
    return _open(text, tokenizer(text)["input_ids"], tokenizer)


def _open(text: str, ids: Sequence[int], tokenizer: Any) -> list[int]:
    """A plain text's token ids with one BOS at most that the tokenizer added, and without an EOS behind."""
    bos, eos = getattr(tokenizer, "bos_token_id", None), getattr(tokenizer, "eos_token_id", None)
    found = without_second_bos(text, [int(token) for token in ids], tokenizer)
    while found and eos is not None and found[-1] == eos and not (len(found) == 1 and eos == bos):
        found = found[:-1]  # a text that has ended cannot be continued
    return found


def without_second_bos(text: str, ids: list[int], tokenizer: Any) -> list[int]:
    """Ids of a text with the tokenizer's special tokens, less the BOS that it put before one of the text's own.

    A text that a chat template or another program has written may begin with BOS; a model never saw two.
    """
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is None or ids[:2] != [bos, bos]:
        return ids
    own = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids[1:] if len(own) < len(ids) and list(own[:1]) == [bos] else ids


def _refuse(rows: Sequence[Row], wrong: Iterable[tuple[str, Row]], advice: str) -> None:
    listed = [f"{row.where} {what}" for what, row in wrong]
    if not listed:
        return
    more = f", and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    raise ValueError(
        f"{len(listed)} of {len(rows)} prompts cannot be used: {'; '.join(listed[:SHOWN])}{more}. To do: {advice}"
    )


def _described(source: Any) -> str:
    return repr(str(source)) if isinstance(source, (str, Path)) else f"({type(source).__name__})"
