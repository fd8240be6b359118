"""The files of a run that grow: JSONL and CSV."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_gym.runinfo import naming, write_atomically


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file; a last line that a killed or still running process left unfinished is passed over."""
    lines = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number}: expected JSON, got {line[:80]!r}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected an object, got {line[:80]!r}")
        rows.append(row)
    return rows


def append(path: Path, text: str) -> None:
    # A lone surrogate has no UTF-8; backslashreplace writes it as \udXXX, which inside a JSON string is its own escape.
    with naming(path), open(path, "a", encoding="utf-8", newline="", errors="backslashreplace") as file:
        file.write(text)


def append_csv(path: Path, row: Mapping[str, int | float]) -> None:
    """Append a row; where it has a new column, rewrite the file with that column empty in the rows before."""
    if path.exists() and path.stat().st_size:
        with open(path, encoding="utf-8", newline="") as file:
            columns = next(csv.reader(file))
        new = [name for name in row if name not in columns]
        if not new:
            return append(path, csv_text(columns, [row], header=False))
        rows: list[Mapping[str, Any]] = [*read_csv(path)[1], row]
        return write_atomically(path, csv_text([*columns, *new], rows))
    write_atomically(path, csv_text(list(row), [row]))


def csv_text(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], *, header: bool = True) -> str:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def step_of(row: Mapping[str, Any], path: Path) -> int:
    """The step of a row of a run's file, 0 where it names none."""
    step = row.get("step", 0)
    with contextlib.suppress(TypeError, ValueError):
        if not isinstance(step, float):
            return int(step)
    raise ValueError(f"{path}: expected a whole number as step of each row, got {step!r:.80}")


def read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        return list(reader.fieldnames or []), list(reader)
