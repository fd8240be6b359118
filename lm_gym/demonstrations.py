"""Demonstrations: texts to imitate, in TRL's formats, and which of their tokens are imitated.

| format | columns | imitated |
|---|---|---|
| prompt-completion | `prompt`, `completion` | the completion, EOS included |
| conversation | `messages` | every turn of the assistant, each with its EOS |
| text | `text` | all of it, EOS included |

Prompt-completion data are standard (texts) or conversational (lists of messages; a completion may have several turns,
and what others than the assistant say in it is not imitated).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_gym.positions import because
from lm_gym.preferences import completion_tokens, load_items
from lm_gym.prompts import SHOWN, TEMPLATE_COLUMNS, kind_problem, load_prompts

__all__ = ["Demonstration", "load_demonstrations"]


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


def load_demonstrations(source: Any, tokenizer: Any, *, max_tokens: int | None = None) -> list[Demonstration]:
    """Read demonstrations and tokenize them, the prompt and each turn apart, as a policy would write them.

    Args:
        source: a list of rows or of `Demonstration`, a `datasets.Dataset`, a `.jsonl`, `.json`, `.csv` or `.parquet`
            file, a folder that `Dataset.save_to_disk` wrote, or a hub id `org/name[:config][:split]`.
        tokenizer: of transformers, with a chat template for conversations; None: only a list of `Demonstration`.
        max_tokens: the longest text allowed, in tokens.

    Raises:
        ValueError: no such source, or rows that are no demonstrations, or too long (names them and what is wrong).
    """
    found = load_items(source, lambda row: _demonstration(row, tokenizer), Demonstration, "demonstrations")
    long = [i for i, d in enumerate(found) if max_tokens is not None and len(d.token_ids) > max_tokens]
    if long:
        listed = "; ".join(f"row {i} has {len(found[i].token_ids)}" for i in long[:SHOWN])
        raise ValueError(
            f"{len(long)} of {len(found)} demonstrations have more than {max_tokens} tokens{because(max_tokens)}: "
            f"{listed}. To do: shorten or drop them"
        )
    return found


def _demonstration(row: Mapping[str, Any], tokenizer: Any) -> Demonstration:
    if tokenizer is None:
        raise ValueError("is text, and the model has no tokenizer: give a list of Demonstration")
    options: dict[str, Any] = dict(row.get("chat_template_kwargs") or {})
    if row.get("tools"):
        options["tools"] = row["tools"]
    if row.get("messages") is not None:
        _check(messages=row["messages"])
        return _conversation(row["messages"], 0, tokenizer, options)
    if row.get("prompt") is not None and row.get("completion") is not None:
        prompt, completion = row["prompt"], row["completion"]
        _check(prompt=prompt, completion=completion)
        if isinstance(prompt, str) != isinstance(completion, str):
            raise ValueError("has a prompt and a completion of which one is a text and one a list of messages")
        if not isinstance(prompt, str) and prompt[-1]["role"] != "assistant":
            return _conversation([*prompt, *completion], len(prompt), tokenizer, options)
        given = {"prompt": prompt, **{k: row[k] for k in TEMPLATE_COLUMNS if row.get(k)}}
        start = load_prompts([given], tokenizer)[0]
        return _joined(start.token_ids, completion_tokens(prompt, start.text, completion, tokenizer, options))
    if row.get("text") is not None:
        _check(text=row["text"])
        if not isinstance(row["text"], str) or not row["text"].strip():
            raise ValueError(f"has the text {row['text']!r:.60}; expected one that is not empty")
        ids = list(load_prompts([{"prompt": row["text"]}], tokenizer)[0].token_ids)
        if tokenizer.eos_token_id is not None:
            ids.append(int(tokenizer.eos_token_id))
        return Demonstration(tuple(ids), (True,) * len(ids))
    raise ValueError(f"has the columns {', '.join(row)}; expected prompt and completion, messages, or text")


def _check(**texts: Any) -> None:
    for name, text in texts.items():
        problem = kind_problem(text) or ("is empty" if not text else "")
        if problem:
            raise ValueError(f"has a {name} that {problem}; expected a text or a list of messages")


def _joined(prompt: Sequence[int], completion: Sequence[int]) -> Demonstration:
    return Demonstration((*prompt, *completion), (False,) * len(prompt) + (True,) * len(completion))


def _conversation(messages: Sequence[Any], first: int, tokenizer: Any, options: Mapping[str, Any]) -> Demonstration:
    """The assistant's turns from message ``first`` on, each tokenized behind all that the template writes before it."""
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("is a conversation, and the tokenizer has no chat template: set tokenizer.chat_template")

    def written(upto: int, answer: bool) -> str:
        given = [dict(message) for message in messages[:upto]]
        try:
            return str(tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=answer, **options))
        except Exception as error:  # templates raise what they like
            raise ValueError(f"is refused by the chat template: {error}") from error

    turns = [k for k in range(first, len(messages)) if messages[k]["role"] == "assistant"]
    if not turns or turns[0] == 0:
        raise ValueError("expected a turn of the assistant with something before it")
    ids: list[int] = []
    flags: list[bool] = []
    so_far = ""
    for k in turns:
        before, whole = written(k, True), written(k + 1, False)
        if not before.startswith(so_far) or not whole.startswith(before):
            raise ValueError(
                f"goes through a chat template that writes what stands before message {k} otherwise once it follows; "
                "give the texts as plain strings, or another template"
            )
        context = _ids(tokenizer, before[len(so_far) :])
        turn = _ids(tokenizer, whole[len(before) :])
        eos = tokenizer.eos_token_id
        end = max((place + 1 for place, token in enumerate(turn) if token == eos), default=0)
        if not end:  # a template that ends no turn: the last one is ended here, as a policy would
            turn, end = ([*turn, int(eos)] if k == turns[-1] and eos is not None else turn), len(turn) + 1
        ids += [*context, *turn]
        flags += [False] * len(context) + [place < end for place in range(len(turn))]
        so_far = whole
    while not flags[-1]:  # what the template writes behind the last answer
        ids.pop(), flags.pop()
    return Demonstration(tuple(ids), tuple(flags))


def _ids(tokenizer: Any, text: str) -> list[int]:
    return [int(i) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
