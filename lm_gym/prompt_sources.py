"""Rows from lists, files, datasets, the hub and the package itself, each with the place it came from."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lm_gym.data_files import SUFFIXES, TABLES, Broken, Item, kinds, names_a_file, read_file
from lm_gym.layout_rows import PROMPTS, layout_rows
from lm_gym.local_paths import refuse_missing_path

TINY_KINDS = ("reviews", "questions", "requests", "all")
TINY_SPLITS = ("train", "test")


@dataclass(frozen=True)
class Row:
    """A prompt as the source has it (not yet checked), and where that is, for errors."""

    where: str
    prompt: Any
    columns: Mapping[str, Any] = field(default_factory=dict)


def read_rows(source: Any) -> list[Row]:
    """The rows of any source that `lm_gym.prompts.load_prompts` takes."""
    if isinstance(source, str) and (source == "tiny" or source.startswith("tiny:")):
        return [_row(item, where) for where, item in _from_tiny(source)]
    if isinstance(source, (list, tuple)):
        _refuse_one_conversation(source)
    rows, unread = layout_rows(PROMPTS, read_items(source, what=PROMPTS, suffixes=SUFFIXES))
    for where, why in unread:
        raise ValueError(f"{where} {why}")
    return [_row(item, where) for where, item in rows]


def read_items(source: Any, *, what: str, suffixes: Sequence[str] = TABLES, broken: Broken | None = None) -> list[Item]:
    """Where each row is, and the row, of a list, a `datasets.Dataset`, a file, a folder of one, or a hub id.

    Args:
        what: the source's name in errors ("preference data").
        suffixes: of the files that are taken.
        broken: is told of rows of a file that cannot be read; None: they are an error.

    Raises:
        ValueError: there is no such source, or a file of it is broken (names the line).
        TypeError: `source` is none of these kinds.
    """
    if isinstance(source, Path):
        return _from_path(source, suffixes, broken)
    if isinstance(source, str):
        return _from_name(source, what, suffixes, broken)
    if hasattr(source, "column_names"):  # a datasets.Dataset, recognised without importing datasets
        return _from_dataset(source, what)
    if isinstance(source, Mapping):
        raise TypeError(
            f"the {what} is a mapping with the keys {_listed(source)}; expected a list of rows "
            '([{"prompt": ...}, ...]) or one dataset of it, such as source["train"]'
        )
    if isinstance(source, (list, tuple)):
        return [(f"row {index}", _lists(item)) for index, item in enumerate(source)]
    named = ", or 'tiny:reviews'" if what == "prompt source" else ""
    raise TypeError(
        f"the {what} is of type {type(source).__name__}; expected a list of texts, dicts or message lists, a "
        f"datasets.Dataset, a path, a hub id{named}; of a pandas.DataFrame give to_dict('records')"
    )


def _lists(value: Any) -> Any:
    """A row with lists in place of arrays of objects, which is how pandas reads the lists of a Parquet file."""
    if isinstance(value, np.ndarray) and value.dtype == object:
        return [_lists(part) for part in value]
    return {name: _lists(part) for name, part in value.items()} if type(value) is dict else value


def _refuse_one_conversation(items: Sequence[Any]) -> None:
    if items and all(isinstance(item, Mapping) and "role" in item and "prompt" not in item for item in items):
        raise ValueError(
            "the prompt source is one list of messages; a source is a list of prompts: write [[{...}, {...}]] for one "
            "conversation"
        )


def _row(item: Any, where: str) -> Row:
    """A row from a text, a list of messages, or a dict with the key `prompt`. Anything else is left to the checks."""
    if not isinstance(item, Mapping):
        return Row(where, item)
    if "prompt" not in item:
        raise ValueError(f"{where} has no column 'prompt', only {_listed(item)}. {_advice(item)}")
    return Row(where, item["prompt"], {key: value for key, value in item.items() if key != "prompt"})


def _advice(row: Mapping[str, Any]) -> str:
    """What to do about a row without `prompt`, in words that are true of a file and of Python objects."""
    if {"chosen", "rejected"} <= set(row):
        return (
            "These are preference pairs whose prompt is the common beginning of both (an implicit prompt): write it "
            "into a column 'prompt' first, as trl.extract_prompt does in Python"
        )
    if "messages" in row:
        return "These are whole conversations: put the messages before the answer into a column 'prompt'"
    if {"instruction", "input"} <= set(row):
        return "Join 'instruction' and 'input' in a column 'prompt'"
    texts = [name for name, value in row.items() if isinstance(value, (str, list))]
    near = difflib.get_close_matches("prompt", texts, n=1, cutoff=0.5)
    near = near or [name for name in ("text", "question", "query", "instruction", "input") if name in texts]
    return f"Rename {near[0]!r} to 'prompt'" if near else "Give the text to be continued in a column 'prompt'"


def _from_dataset(dataset: Any, what: str, label: str = "row") -> list[Item]:
    names = dataset.column_names
    if isinstance(names, Mapping):
        raise TypeError(f"the {what} has the splits {_listed(names)}; give one of them, such as source['train']")
    if not hasattr(dataset, "__len__"):
        raise TypeError(f"the {what} is a streamed dataset; give list(dataset.take(1000)) of it")
    return [(f"{label} {index}", item) for index, item in enumerate(dataset)]


def _from_name(name: str, what: str, suffixes: Sequence[str], broken: Broken | None) -> list[Item]:
    path = Path(name).expanduser()
    if path.exists() or names_a_file(path, suffixes):
        return _from_path(path, suffixes, broken)
    refuse_missing_path(name.split(":")[0], what)
    if re.match(r"[\w.-]+/[\w.-]+(:|$)", name):
        return _from_hub(name, what)
    files = kinds(suffixes)
    if what != "prompt source":
        raise ValueError(f"there is no {what} {name!r}. Expected a file ({files}) or a hub id 'org/name'")
    known = [f"tiny:{kind}" for kind in TINY_KINDS]
    near = difflib.get_close_matches(name, known + list(TINY_KINDS), n=1, cutoff=0.5)
    hint = f" Did you mean {('tiny:' + near[0].removeprefix('tiny:'))!r}?" if near else ""
    raise ValueError(
        f"there is no prompt source {name!r}.{hint} Expected a file ({files}), a hub id 'org/name', or "
        f"one of {', '.join(known)}; for a single prompt give a list: [{name!r}]"
    )


def _from_tiny(name: str) -> list[Item]:
    from lm_gym import tiny

    kind, _, split = name.removeprefix("tiny").removeprefix(":").partition(":")
    split = split or "train"
    if kind not in TINY_KINDS or split not in TINY_SPLITS:
        known = [f"tiny:{k}{s}" for k in TINY_KINDS for s in ("", ":test")]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"there is no prompt set {name!r}.{hint} There are {', '.join(known)}")
    return [(f"row {index} of {name}", item) for index, item in enumerate(tiny.prompts(kind, split))]


def _from_hub(name: str, what: str) -> list[Item]:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"the {what} {name!r} is a hub id, which needs 'pip install datasets'") from error

    repository, *parts = re.split(r":(?![^\[]*\])", name)  # the colon of a slice, train[:100], is no separator
    if len(parts) > 2:
        raise ValueError(f"{name!r}: expected org/name, org/name:split or org/name:config:split")
    config, split = (parts[0] if len(parts) == 2 else None), (parts[-1] if parts else "train")
    try:
        dataset = datasets.load_dataset(repository, config, split=split)
    except Exception as error:
        raise ValueError(
            f"the {what} {name!r} is no file here, and as a hub id it cannot be loaded: {error}"
        ) from error
    return _from_dataset(dataset, what, f"row of {name}")


def _from_path(path: Path, suffixes: Sequence[str], broken: Broken | None) -> list[Item]:
    path = path.expanduser()
    if path.is_dir():
        return _from_folder(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path} (looked in {Path.cwd()})")
    return read_file(path, suffixes, broken)


def _from_folder(path: Path) -> list[Item]:
    if not (path / "state.json").is_file():
        raise ValueError(
            f"{path} is a folder, and none that Dataset.save_to_disk wrote (it has no state.json); give one file "
            "of it, or one split of a saved DatasetDict"
        )
    import datasets

    return _from_dataset(datasets.load_from_disk(str(path)), "folder")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "no columns"
