"""Runs of somebody else, or of an earlier comparison: rows in a JSONL file, or in the files of a folder."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

from lm_gym.compare.rows import Row, check_distinct, read_rows

OWN = "rows.jsonl"
"""The file that `lm-gym compare` leaves its rows in: in a folder that has it, no other file is looked at."""


def read(path: Path) -> list[Row]:
    """The rows of a JSONL file, or those of a folder: its ``rows.jsonl``, else every ``*.jsonl`` in it that holds rows.

    A file holds rows if its first line is a JSON object with the key "agent". Others (a run's metrics and samples) are
    left out with a warning. The form of a row: :class:`lm_gym.compare.rows.Row` and docs/compare.md.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: no rows at all, or a bad one; file and line, what was expected and what came.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a JSONL file with a run a line, or a folder of them; there is none")
    rows = read_rows(path)
    if not rows:
        raise ValueError(f"{path}: expected a run a line, got an empty file")
    return rows


def _read_folder(folder: Path) -> list[Row]:
    if (folder / OWN).is_file():
        return read(folder / OWN)
    files = sorted(folder.glob("*.jsonl"))
    holding = [file for file in files if _holds_rows(file)]
    if not holding:
        found = ", ".join(file.name for file in files) or "no *.jsonl"
        raise ValueError(
            f"{folder}: expected {OWN}, or *.jsonl with a run a line (an object with 'agent'); got {found}"
        )
    for file in files:
        if file not in holding:
            warnings.warn(f"{file} is left out: its first line is no run (an object with 'agent', 'env', …)")
    rows, places = [], []
    for file in holding:
        found_here = read_rows(file)
        rows += found_here
        places += [str(file)] * len(found_here)
    check_distinct(rows, places)
    return rows


def _holds_rows(file: Path) -> bool:
    with file.open(encoding="utf-8-sig", errors="replace") as lines:
        first = next((line for line in lines if line.strip()), "")
    try:
        record = json.loads(first)
    except ValueError:
        return False
    return isinstance(record, dict) and "agent" in record
