"""Checkpoints: safetensors and JSON only, no pickle; written to a temporary name and renamed.

A checkpoint is a folder: ``state.json`` (counters, random states, the controller) and one ``<name>.safetensors`` for
each group of tensors. ``state.json`` holds the SHA-256 of every file and of itself: what was damaged or changed is
refused with its name. That tells accidents; whoever means harm can write a hash too, and so nothing is executed either.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

STATE = "state.json"
INTEGRITY = "integrity"
"""The key of ``state.json`` that holds the hashes."""


def save(folder: str | Path, tensors: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping[str, Any]) -> Path:
    """Write a checkpoint whole or not at all: a folder beside it is filled, flushed to disk and renamed.

    Raises:
        ValueError: the state holds a NaN or an infinity, or the folder holds something that is no checkpoint.
        OSError: the disk is full or the folder cannot be written; names it, and what was there before is whole.
    """
    folder = Path(folder)
    _refuse_others(folder)
    aside, old = _aside(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        _fill(aside, tensors, state)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(folder, old)
        os.replace(aside, folder)
        _flush(folder.parent)
    except (OSError, SafetensorError) as e:
        shutil.rmtree(aside, ignore_errors=True)  # half a checkpoint is of no use, and the disk may be full of it
        recover(folder)
        raise _unwritten(folder, e) from e
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        recover(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return folder


def _refuse_others(folder: Path) -> None:
    """What is there is replaced as a whole: it has to be a checkpoint."""
    if not folder.exists():
        return
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else [folder.name]
    odd = sorted(name for name in names if name != STATE and not name.endswith(".safetensors"))
    if odd or (names and STATE not in names):
        raise ValueError(
            f"{folder} holds {', '.join((odd or names)[:3])} and is no checkpoint, which a new one could replace: "
            "give a folder of its own, such as <run>/checkpoints/step-N"
        )


def _aside(folder: Path) -> tuple[Path, Path]:
    """Where a checkpoint is written, and where the one that it replaces waits meanwhile."""
    return folder.with_name(f".{folder.name}.writing"), folder.with_name(f".{folder.name}.old")


def _fill(aside: Path, tensors: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping[str, Any]) -> None:
    if INTEGRITY in state:
        raise ValueError(f"state expected no key {INTEGRITY!r}: it is this module's")
    files = {}
    for name, group in tensors.items():
        path = aside / f"{name}.safetensors"
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in group.items()}, str(path))
        _flush(path)
        files[path.name] = _file_digest(path)
    plain = json.loads(json.dumps(dict(state), allow_nan=False))
    plain[INTEGRITY] = {"files": files, "state": _digest(plain)}
    with open(aside / STATE, "w", encoding="utf-8") as f:
        json.dump(plain, f, indent=1, allow_nan=False)
        f.flush()
        os.fsync(f.fileno())


def _unwritten(folder: Path, error: Exception) -> OSError:
    number = error.errno if isinstance(error, OSError) else None
    if number is None and "No space left" in str(error):  # safetensors writes by itself, and has errors of its own
        number = errno.ENOSPC
    what = {
        errno.ENOSPC: "the disk is full: make room",
        errno.EDQUOT: "the disk quota is used up: make room",
        errno.EACCES: "the folder may not be written to: change its permissions, or choose another",
        errno.EROFS: "the file system is read-only: choose another folder",
    }.get(number or 0, str(error))
    return OSError(f"checkpoint {folder} could not be written: {what}. What was saved before is whole")


def _digest(state: Mapping[str, Any]) -> str:
    """SHA-256 of a state's JSON with sorted keys."""
    return hashlib.sha256(json.dumps(state, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """Bring a file, or a folder's names, to the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def load(folder: str | Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """The groups of tensors and the state of a checkpoint.

    Raises:
        ValueError: if it is no checkpoint, or a file of it is damaged, changed, missing or too many; names the file.
    """
    folder = Path(folder)
    state = _read_state(folder / STATE)
    files = state.pop(INTEGRITY)["files"]
    there = {path.name for path in folder.iterdir()} - {STATE}
    if missing := sorted(set(files) - there):
        raise ValueError(f"checkpoint {folder} is damaged: {missing} are missing")
    if odd := sorted(there - set(files)):
        raise ValueError(f"checkpoint {folder} holds {odd}, which were not saved with it: take them out")
    groups = {}
    for name, digest in files.items():
        path = folder / name
        try:
            if _file_digest(path) != digest:
                raise ValueError(f"{path} is damaged: its SHA-256 is not the one that {STATE} holds")
            groups[path.stem] = load_file(str(path))
        except (SafetensorError, OSError, KeyError) as e:
            raise ValueError(f"{path} is damaged: {e}") from e
    return groups, state


def _read_state(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"expected a checkpoint folder with {STATE}, got {str(path.parent)!r}")
    try:
        text = path.read_bytes().decode("utf-8")
        state = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path} is damaged: {e}") from e
    if not isinstance(state, dict):
        raise ValueError(f"{path} is damaged: expected an object, got a {type(state).__name__}")
    kept = state.get(INTEGRITY)
    files = kept.get("files") if isinstance(kept, dict) else None
    if not isinstance(files, dict) or not all(
        isinstance(digest, str) and name.endswith(".safetensors") and Path(name).name == name
        for name, digest in files.items()
    ):
        raise ValueError(f"{path} is damaged: it expected the hashes of its files under {INTEGRITY!r}")
    assert isinstance(kept, dict)
    own = {k: v for k, v in state.items() if k != INTEGRITY}
    if kept.get("state") != _digest(own) or text != json.dumps(state, indent=1):
        raise ValueError(f"{path} is damaged: its contents are not those that were saved (SHA-256)")
    return state


def _refuse_constant(name: str) -> float:
    raise ValueError(f"expected finite numbers, got {name}")


def recover(folder: Path) -> None:
    """Put back what a save was about to replace when it was stopped between its two renames."""
    _, old = _aside(folder)
    if not folder.exists() and (old / STATE).is_file():
        os.replace(old, folder)


def latest(run: str | Path) -> Path:
    """The newest checkpoint of a run's folder, or the folder itself if it is one."""
    run = Path(run)
    if (run / STATE).is_file():
        return run
    found = numbered(run)
    if not found:
        raise ValueError(f"expected a run's folder with checkpoints/step-N, or a checkpoint, got {str(run)!r}")
    newest = max(found)
    if broken := {n: path for n, path in _broken(run).items() if n > newest}:
        warnings.warn(
            f"{broken[max(broken)]} has no {STATE} and is no whole checkpoint: {found[newest]} is taken, the newest "
            "whole one",
            stacklevel=3,
        )
    return found[newest]


def older_whole(checkpoint: Path) -> str:
    """What a run can go on from where this checkpoint is damaged, in words; looks at every byte of the older ones."""
    number = checkpoint.name.removeprefix("step-")
    if checkpoint.parent.name != "checkpoints" or not number.isdecimal():
        return ""
    whole = []
    for n, path in sorted(numbered(checkpoint.parent.parent).items(), reverse=True):
        with contextlib.suppress(ValueError):
            if n < int(number):
                load(path)
                whole.append(path.name)
    if not whole:
        return f". No older one in {checkpoint.parent} is whole"
    which = f"{whole[0]} is" if len(whole) == 1 else f"{', '.join(whole)} are"
    return f". {which} whole: remove {checkpoint} to go on from {whole[0]}"


def _broken(run: Path) -> dict[int, Path]:
    """Folders of a run that have a checkpoint's name and no state."""
    found = {path.name.removeprefix("step-"): path for path in (run / "checkpoints").glob("step-*")}
    return {int(n): path for n, path in found.items() if n.isdecimal() and not (path / STATE).is_file()}


def numbered(run: Path) -> dict[int, Path]:
    """The finished checkpoints of a run by their number of updates."""
    for left in (run / "checkpoints").glob(".step-*.old"):
        recover(left.with_name(left.name.removeprefix(".").removesuffix(".old")))
    found = {}
    for path in (run / "checkpoints").glob("step-*"):
        number = path.name.removeprefix("step-")
        if number.isdecimal() and (path / STATE).is_file():
            found[int(number)] = path
    return found


def rewind(run: str | Path, step: int) -> None:
    """Remove what a run that goes on from ``step`` would contradict: later checkpoints, and broken ones."""
    run = Path(run)
    for number, path in (numbered(run) | _broken(run)).items():
        if number > step:
            _remove(path)
    for left in (run / "checkpoints").glob(".step-*"):
        shutil.rmtree(left, ignore_errors=True)


def prune(run: str | Path, keep: int | None) -> None:
    """Remove all but the newest ``keep`` checkpoints of a run; None keeps all."""
    found = numbered(Path(run))
    for number in [] if keep is None else sorted(found)[:-keep]:
        _remove(found[number])


def _remove(folder: Path) -> None:
    """Under another name first: one that is half removed must not be taken for the newest."""
    doomed = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def generator_state(generator: torch.Generator) -> str:
    """A generator's state as hex digits."""
    return bytes(generator.get_state().tolist()).hex()


def set_generator_state(generator: torch.Generator, state: str) -> None:
    """Put :func:`generator_state` back."""
    try:
        generator.set_state(torch.tensor(list(bytes.fromhex(state)), dtype=torch.uint8))
    except (ValueError, RuntimeError) as e:
        raise ValueError(f"a generator's state expected hex digits of its own, got {state[:20]!r}…: {e}") from e


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, torch.Tensor]:
    """An optimizer's state as ``<parameter name>|<key>`` tensors; ``names`` in the order of its parameters."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        f"{name}|{key}": torch.as_tensor(value)
        for name, p in zip(names, params, strict=True)
        for key, value in optimizer.state.get(p, {}).items()
    }


def set_optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: list[str], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Put :func:`optimizer_tensors` back."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    by_name = dict(zip(names, params, strict=True))
    for key, value in tensors.items():
        name, slot = key.rsplit("|", 1)
        if name not in by_name:
            raise ValueError(f"checkpoint holds optimizer state for {name!r}, which this agent does not train")
        optimizer.state[by_name[name]][slot] = value.detach().clone().to(by_name[name].device)
