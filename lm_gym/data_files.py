"""Rows of local files, each with the place it came from. What a file says stays as it is written.

JSON keeps its types, `.csv`, `.tsv` and `.txt` are text throughout (numbers too), Parquet has the types of its schema.
None of them goes through `datasets`, whose reader changes the values of a JSON Lines column of several types: version
5.2 makes 7, 7 and 1000.0 of "007", 7 and "1e3".
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

TABLES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""Files whose rows have named columns. All but Parquet may be compressed, `.jsonl.gz`."""
SUFFIXES = (*TABLES, ".txt")

Item = tuple[str, Any]
"""Where a row is, for errors, and what stands there."""
Broken = Callable[[str, str], None]
"""Is told of a row that cannot be read: where it is, and why."""


def names_a_file(name: str | Path, suffixes: Sequence[str]) -> bool:
    """Whether a name ends as a file of one of these kinds does, compressed or not."""
    return _suffix(Path(name)) in suffixes


def kinds(suffixes: Sequence[str]) -> str:
    """The kinds of file in words."""
    text = [suffix for suffix in suffixes if suffix != ".parquet"]
    return f"{', '.join(text)} (each also .gz)" + " or .parquet" * (".parquet" in suffixes)


def read_file(path: Path, suffixes: Sequence[str], broken: Broken | None = None) -> list[Item]:
    """The rows of a file.

    Args:
        suffixes: of the kinds that are taken. broken: is told of rows that cannot be read; None: they are an error.

    Raises:
        ValueError: another kind of file, one that is not what its name says, or a row that cannot be read (named).
    """
    suffix = _suffix(path)
    if suffix not in suffixes:
        ending = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
        raise ValueError(
            f"{path} ends in {ending!r}; expected {kinds(suffixes)}: save it as one of these, such as .jsonl, an "
            "object a line"
        )
    if suffix == ".parquet":
        return list(_parquet(path))
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _csv, ".txt": _txt}
    return list(readers[suffix](path, _bytes(path), broken or _refuse))


def _suffix(path: Path) -> str:
    """The kind of a file by its name; of a compressed one, which Parquet never is, by the name without `.gz`."""
    suffix = path.suffix.lower()
    inner = Path(path.stem).suffix.lower()
    return inner if suffix == ".gz" and inner in SUFFIXES and inner != ".parquet" else suffix


def _refuse(where: str, why: str) -> None:
    raise ValueError(f"{where} {why}")


def _bytes(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix.lower() != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as gzip: {error}") from error


def _lines(path: Path, data: bytes, broken: Broken) -> Iterator[tuple[int, str]]:
    """Line number (from 1) and text of every line. Only a line feed ends a line."""
    for number, line in enumerate(data.split(b"\n"), start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\r")
        except UnicodeDecodeError as error:
            place = f"{line[error.start]:#04x} at column {error.start + 1}"
            broken(f"{path.name}, line {number},", f"has the byte {place}, which is not UTF-8; save the file as UTF-8")
            continue
        yield number, text


def _full_lines(path: Path, data: bytes, broken: Broken) -> Iterator[tuple[int, str]]:
    return ((number, text) for number, text in _lines(path, data, broken) if text.strip())


def _text(path: Path, data: bytes) -> str:
    """All of a file with its line ends as they are, which may stand in a field; names a line that is not UTF-8."""
    for _ in _lines(path, data, _refuse):
        pass
    return data.decode("utf-8-sig")


def _txt(path: Path, data: bytes, broken: Broken) -> Iterator[Item]:
    for number, text in _full_lines(path, data, broken):
        yield f"{path.name}, line {number},", text


def _jsonl(path: Path, data: bytes, broken: Broken) -> Iterator[Item]:
    for number, text in _full_lines(path, data, broken):
        where = f"{path.name}, line {number},"
        try:
            yield where, json.loads(text)
        except json.JSONDecodeError as error:
            broken(where, f"is not JSON: {error.msg} at column {error.colno}: {text[:80]!r}")
        except RecursionError:
            broken(where, "is not JSON that can be read: it is nested too deep")
        except ValueError:  # of a number with more digits than Python reads
            broken(where, "is not JSON that can be read: it has a number of too many digits")


def _json(path: Path, data: bytes, broken: Broken) -> Iterator[Item]:
    text = _text(path, data)
    try:
        items = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and _is_an_object(text[: error.pos]):  # as OpenAI's comparisons are published
            yield from _jsonl(path, data, broken)
            return
        raise ValueError(
            f"{path}, line {error.lineno}: not JSON: {error.msg}; expected a list of rows, or an object a line"
        ) from error
    except RecursionError as error:
        raise ValueError(f"{path} is not JSON that can be read: it is nested too deep") from error
    if not isinstance(items, list):
        raise ValueError(f"{path} holds a {type(items).__name__}; expected a list of rows")
    for index, item in enumerate(items):
        yield f"{path.name}, row {index}", item


def _is_an_object(text: str) -> bool:
    return "\n" not in text.strip() and text.lstrip().startswith("{")


def _csv(path: Path, data: bytes, broken: Broken) -> Iterator[Item]:
    """Comma-separated, or separated by tabs; a field that begins with a quotation mark ends with one."""
    tabs = _suffix(path) == ".tsv"
    text = _text(path, data)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # 131,072 characters by default: texts may be longer
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter="\t" if tabs else ",")
    try:
        names = reader.fieldnames or ()
        if twice := sorted({name for name in names if list(names).count(name) > 1}):
            raise ValueError(f"{path}, line 1: the column {twice[0]!r} stands in the header twice; rename one")
        for item in reader:
            where = f"{path.name}, line {reader.line_num},"
            if None in item or None in item.values():
                what = f"has another number of fields than the header {reader.fieldnames}"
                broken(where, f"{what}; quote {'tabs' if tabs else 'commas'}")
                continue
            yield where, item
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num}: not {'TSV' if tabs else 'CSV'}: {error}; a field that begins with a "
            "quotation mark ends with one, and those inside are doubled"
        ) from error


def _parquet(path: Path) -> Iterator[Item]:
    import pyarrow  # comes with datasets
    import pyarrow.parquet

    try:
        items = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from error
    for index, item in enumerate(items):
        yield f"{path.name}, row {index}", item
