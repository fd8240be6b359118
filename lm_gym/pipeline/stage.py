"""A stage's result: made once for the same inputs, written aside and renamed, checked before it is used again.

A result is a folder with `stage.json`: the inputs that it was made from and their hash, the SHA-256 of its products,
and what it cost. While it is made it stands beside, as `.<name>.writing`; a process that is killed leaves either the
earlier result or the new one, and a stage with checkpoints goes on from the newest.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lm_gym.data_files import SUFFIXES, names_a_file
from lm_gym.local_paths import refuse_missing_path
from lm_gym.runinfo import file_hash, plain, write_atomically

RECORD, UNFINISHED, SPENT = "stage.json", "unfinished.json", "spent.json"
ABOUT = ("README.md", "lm_gym.json", "bradley_terry.json")
"""Files in a model's folder that say how it came about, with times and commands: no part of what it is."""
LOCAL = ("hf:", "py:", "combine:")
"""Prefixes of names of reward models behind which a path may stand."""


def digest(path: Path) -> str:
    """SHA-256 of a file, or of the files of a folder without those that only say how it came about."""
    if path.is_file():
        return file_hash(path)
    files = sorted(f for f in path.rglob("*") if f.is_file() and f.name not in ABOUT)
    lines = [f"{f.relative_to(path).as_posix()} {file_hash(f)}" for f in files]
    return f"sha256:{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()}"


@dataclass(frozen=True)
class Record:
    """What `stage.json` holds."""

    stage: str
    inputs: dict[str, Any]
    """Configuration, and the hashes of what earlier stages made and of files."""
    products: dict[str, str]
    """File or folder in the stage's folder -> its SHA-256."""
    numbers: dict[str, Any]
    """What the stage says of itself."""
    cpu_seconds: float
    """Of all processes that worked on it, as far as their work was kept."""
    key: str
    """SHA-256 of the inputs."""


def key_of(inputs: Mapping[str, Any]) -> str:
    """SHA-256 of a stage's inputs and of the package's version, as hex digits."""
    text = json.dumps({"lm-gym": version("lm-gym"), **plain(inputs)}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def identity(source: str | None) -> str | None:
    """What tells a source from others: the hash of a local file or folder, the name of anything else."""
    if source is None:
        return None
    prefix = next((p for p in LOCAL if source.startswith(p)), "")
    name, mark, options = source.removeprefix(prefix).partition("?")
    attribute = ""
    if prefix == "py:" and ":" in name:
        name, _, attribute = name.rpartition(":")
    return f"{prefix}{digest(Path(name))}:{attribute}{mark}{options}" if Path(name).exists() else source


def check_there(what: str, source: str | None) -> None:
    """Refuse a source that can only be a file or folder here and is not.

    Raises:
        ValueError: names it, and what is near.
    """
    if source is None or "://" in source:
        return
    prefix = next((p for p in LOCAL if source.startswith(p)), "")
    name = source.removeprefix(prefix).partition("?")[0]
    if Path(name).exists():
        return
    name = name.rpartition(":")[0] if prefix == "py:" else name.partition(":")[0]
    if names_a_file(name, SUFFIXES) and not Path(name).expanduser().exists():
        raise ValueError(f"{what}: there is no file {name} (looked in {Path.cwd()})")
    refuse_missing_path(name, what)


def kept(out: Path, stage: str, key: str | None = None) -> Record | str:
    """The result of a stage for these inputs (None: whatever they were), or in words why there is none."""
    folder = out / stage
    _finish(folder)
    if not (folder / RECORD).is_file():
        return "it was not made yet"
    try:
        record = Record(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        return f"{folder / RECORD} is damaged ({error})"
    if key is not None and record.key != key:
        return "its inputs have changed"
    for name, hashed in record.products.items():
        if not (folder / name).exists() or digest(folder / name) != hashed:
            return f"{folder / name} is not as it was made"
    return record


def make(
    out: Path, stage: str, inputs: Mapping[str, Any], products: tuple[str, ...], work: Callable[[Workplace], Any]
) -> Record:
    """Make a stage's result, going on with what a process that was stopped left for the same inputs.

    Args:
        work: fills the folder of the workplace that it is given, and returns the stage's numbers.

    Raises:
        ValueError: the folder of the stage's name is not a stage's result, and so not replaced.
    """
    folder, key = out / stage, key_of(inputs)
    _finish(folder)
    if folder.exists() and not (folder / RECORD).is_file():
        raise ValueError(f"{folder} holds something that no pipeline made: choose another --out")
    aside = _aside(folder)
    if not _is_for(aside, key):
        (aside / UNFINISHED).unlink(missing_ok=True)  # first: half of what it was must not count as work for its inputs
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        write_atomically(aside / UNFINISHED, json.dumps({"key": key}))
    place = Workplace(aside)
    numbers = work(place)
    place.account()
    hashes = {name: digest(aside / name) for name in products}
    record = Record(stage, plain(inputs), hashes, plain(numbers), round(place.cpu_seconds, 2), key)
    write_atomically(aside / RECORD, json.dumps(vars(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    for spare in place.spare:  # not before the record: a full disk or a kill would take with it what is gone on from
        shutil.rmtree(spare, ignore_errors=True)
    _finish(folder)
    return record


class Workplace:
    """Where a stage is being made, and the CPU seconds that it took in this process and in stopped ones before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spare: list[Path] = []
        """Folders that nothing needs once the result is recorded."""
        self._started = time.process_time()
        spent = folder / SPENT
        self._before = float(json.loads(spent.read_text())["cpu_seconds"]) if spent.is_file() else 0.0

    @property
    def cpu_seconds(self) -> float:
        return self._before + time.process_time() - self._started

    def account(self) -> None:
        """Write down what was spent: with a checkpoint, so that it counts what is kept."""
        write_atomically(self.folder / SPENT, json.dumps({"cpu_seconds": self.cpu_seconds}))


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.writing")


def _is_for(aside: Path, key: str) -> bool:
    try:
        return bool(json.loads((aside / UNFINISHED).read_text(encoding="utf-8"))["key"] == key)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _finish(folder: Path) -> None:
    """Put a finished result in its place, also one whose process was stopped between the two renames."""
    aside, old = _aside(folder), folder.with_name(f".{folder.name}.old")
    if (aside / RECORD).is_file():
        for name in (UNFINISHED, SPENT):
            (aside / name).unlink(missing_ok=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(folder, old)
        os.replace(aside, folder)
    shutil.rmtree(old, ignore_errors=True)
