"""HH transcripts ("\\n\\nHuman: ...\\n\\nAssistant: ...") as messages, and back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

ROLES = {"Human": "user", "Assistant": "assistant"}
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def is_transcript(text: Any) -> bool:
    """Whether a text is such a transcript."""
    return isinstance(text, str) and re.match(r"\s*Human:", text) is not None and "\n\nAssistant:" in text


def transcript(text: str) -> list[dict[str, str]]:
    """The messages of a transcript; turns of the same speaker behind each other stay apart.

    Raises:
        ValueError: something stands before the first speaker.
    """
    parts = _TURN.split(text.lstrip("\n"))
    if parts[0].strip():
        raise ValueError(f"has a transcript that begins with {parts[0]!r:.40}, expected Human:")
    return [
        {"role": ROLES[speaker], "content": said.strip()}
        for speaker, said in zip(parts[1::2], parts[2::2], strict=True)
    ]


def as_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Messages as the end of such a transcript; other roles keep their names."""
    names = {role: speaker for speaker, role in ROLES.items()}
    return "".join(f"\n\n{names.get(m['role'], m['role'])}: {m['content']}" for m in messages)
