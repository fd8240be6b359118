"""Conversations as text: their roles in one form, and the chat template with a check that nothing is lost in it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Message = Mapping[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")
"""The roles that every template may know. Another one is taken where the tokenizer's template names it."""

OTHER_NAMES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "bot", "chatbot", "ai", "model"), "assistant"),
    "observation": "tool",
}
"""What data sets also call a user, an assistant and a tool (ShareGPT, OpenAssistant, Gemma), in small letters."""

TEMPLATE_COLUMNS = ("tools", "chat_template_kwargs")
"""Columns that also go to the chat template of a conversational prompt, as in TRL."""

REASONING_ENDS = "</think>"
"""What stands before it in an answer many templates leave out of earlier turns, or move."""

Ending = Literal["whole", "prompt", "started"]


def in_one_form(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as the rest of the package reads them.

    Roles have the names of `ROLES` ("human" is "user", "gpt" is "assistant"; capitals do not matter), content that is a
    list of text parts is their text, keys without a value are left out, and a message of tool calls has a content.
    """
    found = []
    for message in messages:
        new = {key: value for key, value in message.items() if value is not None}
        name = str(message["role"]).strip().lower()
        known = OTHER_NAMES.get(name, name)
        new["role"] = known if known in ROLES else message["role"]
        text = text_of(new.get("content", ""))
        new["content"] = new["content"] if text is None else text
        found.append(new)
    return found


def behind(prompt: Any, text: Any) -> Any:
    """A conversation without the messages of its prompt where it repeats them, as some data sets do; or as it is."""
    spoken = isinstance(prompt, (list, tuple)) and isinstance(text, (list, tuple))
    return text[len(prompt) :] if spoken and len(text) > len(prompt) > 0 and text[: len(prompt)] == prompt else text


def text_of(content: Any) -> str | None:
    """The text of a message's content, which is a text or a list of text parts; None: it is neither."""
    if isinstance(content, (list, tuple)):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        return "".join(texts) if len(texts) == len(parts) else None
    return content if isinstance(content, str) else None


def template_options(columns: Mapping[str, Any]) -> dict[str, Any]:
    """What `TEMPLATE_COLUMNS` of a row give to the chat template. Both may be JSON text, as in files of text columns.

    Raises:
        ValueError: no JSON, or JSON of another kind.
    """
    found: dict[str, Any] = {}
    for name, kind, what in (("chat_template_kwargs", Mapping, "an object"), ("tools", (list, tuple), "a list")):
        value = columns.get(name)
        if isinstance(value, str) and value.strip():
            try:
                value = json.loads(value)
            except ValueError as error:
                raise ValueError(f"has {name} that are no JSON ({error}): {value!r:.60}") from error
        if not value:
            continue
        if not isinstance(value, kind):
            raise ValueError(f"has {name} of type {type(value).__name__}; expected {what}, or JSON of one")
        found |= {"tools": list(value)} if name == "tools" else dict(value)
    return found


def written(
    messages: Sequence[Message], tokenizer: Any, options: Mapping[str, Any] | None = None, *, ending: Ending
) -> str:
    """What the chat template makes of messages in one form (:func:`in_one_form`).

    Args:
        options: for the template, such as `tools`.
        ending: "whole"; "prompt", with the marker of an answer behind it; or "started", whose last message goes on.

    Raises:
        ValueError: there is no template, it refuses the conversation, it does not know a role, or it leaves out what a
            message says, or a tool. Begins with a verb, so that the row can stand before it.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "is a conversation, and the tokenizer has no chat template: set tokenizer.chat_template, take a model made "
            "for chat, or give plain texts"
        )
    _check_roles(messages, str(tokenizer.chat_template))
    given = dict(options or {})

    def applied(form: list[dict[str, Any]]) -> str:
        try:
            return str(
                tokenizer.apply_chat_template(
                    form,
                    tokenize=False,
                    add_generation_prompt=ending == "prompt",
                    continue_final_message=ending == "started",
                    **given,
                )
            )
        except Exception as error:  # templates raise what they like
            raise ValueError(f"is refused by the chat template: {error}") from error

    first: ValueError | None = None
    for form in (dict, _in_parts):  # some templates, of models that also see, read a list of parts only
        try:
            text = applied([form(message) for message in messages])
            if (tool := _tools_lost(given, text)) is not None:
                raise ValueError(
                    f"goes through a chat template that leaves out the tool {tool!r}: give another template (one that "
                    "reads tools), or leave the column 'tools' out"
                )
            if (missing := lost(messages, text)) is None:
                if form is _in_parts and any(_as_they_stand(message, text) for message in messages):
                    break  # the template reads no parts: what the first form met is the reason
                return text
            index, said = missing
            raise ValueError(
                f"goes through a chat template that leaves out what message {index} ({messages[index]['role']}) says: "
                f"{said!r:.60} is not in the text that it writes. Give another template, or leave the message out"
            )
        except ValueError as error:
            first = first or error
    assert first is not None
    raise first


def _tools_lost(options: Mapping[str, Any], text: str) -> str | None:
    """The name of a tool that is not in what a template wrote; None: all are, or none has a name."""
    for tool in options.get("tools") or ():
        given = tool.get("function", tool) if isinstance(tool, Mapping) else {}
        name = given.get("name") if isinstance(given, Mapping) else None
        if isinstance(name, str) and name not in text:
            return name
    return None


def _in_parts(message: Message) -> dict[str, Any]:
    text = message["content"]
    return dict(message) | ({"content": [{"type": "text", "text": text}]} if isinstance(text, str) and text else {})


def _as_they_stand(message: Message, text: str) -> bool:
    """Whether a template wrote a message's list of parts as Python or JSON would."""
    parts = _in_parts(message)["content"]
    written = (str(parts), json.dumps(parts, ensure_ascii=False)) if isinstance(parts, list) else ()
    return any(_squeezed(one) in _squeezed(text) for one in written)


def _check_roles(messages: Sequence[Message], template: str) -> None:
    for index, message in enumerate(messages):
        role, content = message["role"], message["content"]
        if role not in ROLES and not any(quote + role + quote in template for quote in "'\""):
            raise ValueError(
                f"has message {index} with the role {role!r}; expected one of {', '.join(ROLES)}, or a role that the "
                f"chat template names ({', '.join(sorted(OTHER_NAMES))} are read as user, assistant and tool)"
            )
        if not isinstance(content, str) and not (isinstance(content, Mapping) and role == "tool"):
            raise ValueError(f"has message {index} with content that is no text: {content!r:.60}")


def lost(messages: Sequence[Message], text: str, *, reasoning: bool = False) -> tuple[int, str] | None:
    """The first message of which something is not in a text, and what; None: all is there.

    White space and JSON's escapes do not count, and what an assistant says before `REASONING_ENDS` need not be there,
    unless `reasoning` is asked for: many templates leave it out of earlier turns.
    """
    there = _squeezed(text)
    said = [(index, words, _squeezed(words)) for index, m in enumerate(messages) for words in _said(m, reasoning)]
    for _, words, short in said:
        # what others say may hold it too: "a" is in most of what a user asks
        wanted = sum(other.count(short) for _, _, other in said)
        escaped = json.dumps(short, ensure_ascii=False)[1:-1]
        if short and max(there.count(short), there.count(escaped)) < wanted:
            return max(place for place, _, other in said if other == short), words
    return None


def _said(message: Message, reasoning: bool = False) -> list[str]:
    """Texts of a message that a template must write: its content, and the names of the functions it calls."""
    content = message["content"] if isinstance(message["content"], str) else ""
    if message["role"] == "assistant" and not reasoning:
        content = content.rpartition(REASONING_ENDS)[2]
    calls = message.get("tool_calls") or ()
    names = [c.get("function", c).get("name") for c in calls if isinstance(c, Mapping)]
    return [content, *(name for name in names if isinstance(name, str))]


def _squeezed(text: str) -> str:
    return "".join(text.split())
