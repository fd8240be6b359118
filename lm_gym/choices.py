"""Options that are one of a few words."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any


def check_choice(name: str, value: Any, known: tuple[Any, ...]) -> None:
    """Refuse a value that is none of the known ones, with the nearest of them."""
    if value in known:
        return
    near = difflib.get_close_matches(str(value), [k for k in known if isinstance(k, str)], 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{name} expected one of {known}, got {value!r}{hint}")


def check_no_misspelling(name: str, value: str, known: tuple[str, ...]) -> None:
    """Of an option that is one of the known words or else a folder or hub id: refuse what is neither, but nearly one.

    Without it "seperate" is asked of the hub, which takes three quarters of a minute where there is no network.
    """
    near = difflib.get_close_matches(value, known, 1, 0.8)
    if near and not Path(value).exists():
        raise ValueError(f"{name} expected one of {known} or a folder, got {value!r}; did you mean {near[0]!r}?")
