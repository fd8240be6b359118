"""Whether a name that is no file here may be asked of the hub, or is a path that somebody mistyped."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

SHOWN = 8
"""Names of a folder that an error lists."""


def refuse_missing_path(name: str, what: str) -> None:
    """Refuse a name that can only be a path of this machine, or looks like one, and leads nowhere.

    A hub id is ``org/name`` or ``name``. A path begins with ``/``, ``./``, ``../`` or ``~``, has a backslash or more
    than one slash, or has a first part that exists here, as in ``runs/nothing``: to ask the hub for that would take a
    minute offline, and could fetch somebody's model by accident online.

    Args:
        name: what the user wrote. what: the argument's name, for the error.

    Raises:
        ValueError: names the nearest folder that exists and what is in it.
    """
    path = Path(name).expanduser()
    if path.exists():
        return
    first = path.parts[0] if path.parts else ""
    written = re.match(r"[/~.\\]", name) is not None or "\\" in name or name.count("/") > 1 or name.endswith("/")
    if not written and not ("/" in name and Path(first).exists()):
        return
    raise ValueError(f"{what}: could not load {name!r}, there is no such file or folder: {_nearby(path)}")


def _nearby(path: Path) -> str:
    """What there is where the path stops to exist."""
    missing = path
    while not missing.parent.exists() and missing.parent != missing:
        missing = missing.parent
    folder = missing.parent
    if not folder.is_dir():
        return f"{folder} is a file"
    found = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    near = difflib.get_close_matches(missing.name, found, 1)
    if near:
        return f"did you mean {str(folder / near[0])!r}?"
    if not found:
        return f"the folder {str(folder.resolve())!r} is empty"
    more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"{str(folder.resolve())!r} has {', '.join(found[:SHOWN])}{more}"
