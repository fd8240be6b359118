"""What help says: docstrings without their markup, and the options that most runs need."""

from __future__ import annotations

import re
from typing import Any


def plain_markup(text: str) -> str:
    """A docstring's text for a terminal: no roles (``:class:`X```), no double backticks."""
    return re.sub(r":\w+:`~?([^`]+)`", r"\1", text).replace("``", "`")


def first_line(target: Any) -> str:
    """The first line of an object's docstring, plain."""
    return plain_markup((target.__doc__ or "").strip().split("\n")[0])


MAIN = (
    ("model", "what to train: tiny, a hub id, a folder, or a GGUF file"),
    ("prompts", "what it writes from: a file, a hub id, or tiny:reviews"),
    ("reward", "what judges its texts: a name, py:./file.py:function, hf:org/model, http://host/score"),
    ("total-tokens", "how long: tokens to train on"),
    ("out", "the folder that the run leaves; with --resume it goes on there"),
    ("max-new-tokens", "how long a text may get"),
    ("kl-coef", "β, the price of a nat of KL in units of reward"),
    ("learning-rate", "Adam's step size"),
    ("batch-size", "texts an update"),
    ("seed", "of every draw"),
)
"""The options that matter first, and what they are in half a line."""


def overview(description: str) -> str:
    """A command's description with the main options under it."""
    width = max(len(name) for name, _ in MAIN)
    rows = [f"  {name:<{width}}  {what}" for name, what in MAIN]
    return "\n".join(
        [description, "", "Most runs need only some of these options, which stand below with all others:", *rows]
    )
