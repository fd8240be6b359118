"""A document of the little world: a prompt, what follows it, and what is true about both."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Document:
    """One generated text, `prompt + completion`, with the labels that the gold scores are checked against.

    `answer` is a list of groups of words: a complete answer has a word of every group. `rivals` are the words that
    would be wrong in its place. `unsafe` says whether the prompt asks for something harmful.
    """

    kind: str
    label: str
    prompt: str
    completion: str
    topic: str
    subject: tuple[str, ...] = ()
    answer: tuple[tuple[str, ...], ...] = ()
    rivals: tuple[str, ...] = ()
    unsafe: bool = False

    @property
    def text(self) -> str:
        """The whole text, as the language model reads it."""
        return self.prompt + self.completion

    def columns(self) -> dict[str, Any]:
        """The row that a prompt file holds: plain JSON, the same keys for every kind, nothing of the completion."""
        return {
            "prompt": self.prompt,
            "kind": self.kind,
            "topic": self.topic,
            "subject": list(self.subject),
            "answer": [list(group) for group in self.answer],
            "rivals": list(self.rivals),
            "unsafe": self.unsafe,
        }


def plain(marked: str) -> str:
    """The text without the brackets that mark the words with an opinion in them."""
    return marked.replace("[", "").replace("]", "")


def marked_phrases(text: str) -> list[str]:
    """The words in brackets, lower case."""
    return [phrase.lower() for phrase in re.findall(r"\[([^\]]*)\]", text)]


def capital(text: str) -> str:
    """The text with a capital first letter, the rest as it was."""
    return text[:1].upper() + text[1:]


def article(noun: str) -> str:
    """The noun with "a" or "an" in front, by its first letter."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun
