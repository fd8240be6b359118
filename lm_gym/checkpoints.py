"""Checkpoints: safetensors and JSON only, no pickle; written to a temporary name and renamed.

A checkpoint is a folder: ``state.json`` (counters, random states, the controller) and one ``<name>.safetensors`` for
each group of tensors.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

STATE = "state.json"


def save(folder: str | Path, tensors: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping[str, Any]) -> Path:
    """Write a checkpoint whole or not at all: a folder beside it is filled, flushed to disk and renamed."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for name, group in tensors.items():
        plain = {k: v.detach().cpu().contiguous().clone() for k, v in group.items()}
        save_file(plain, str(aside / f"{name}.safetensors"))
        _flush(aside / f"{name}.safetensors")
    with open(aside / STATE, "w", encoding="utf-8") as f:
        json.dump(dict(state), f, indent=1)
        f.flush()
        os.fsync(f.fileno())
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
        os.replace(aside, folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(aside, folder)
    return folder


def _flush(path: Path) -> None:
    with open(path, "rb") as f:
        os.fsync(f.fileno())


def load(folder: str | Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """The groups of tensors and the state of a checkpoint.

    Raises:
        ValueError: if it is no checkpoint or a file of it is damaged; names the file.
    """
    folder = Path(folder)
    if not (folder / STATE).is_file():
        raise ValueError(f"expected a checkpoint folder with {STATE}, got {str(folder)!r}")
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as e:
        raise ValueError(f"{folder / STATE} is damaged: {e}") from e
    if not isinstance(state, dict):
        raise ValueError(f"{folder / STATE} is damaged: expected an object, got a {type(state).__name__}")
    groups = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            groups[path.stem] = load_file(str(path))
        except (SafetensorError, OSError) as e:
            raise ValueError(f"{path} is damaged: {e}") from e
    return groups, state


def latest(run: str | Path) -> Path:
    """The newest checkpoint of a run's folder, or the folder itself if it is one."""
    run = Path(run)
    if (run / STATE).is_file():
        return run
    found = [p for p in (run / "checkpoints").glob("step-*") if (p / STATE).is_file()]
    if not found:
        raise ValueError(f"expected a run's folder with checkpoints/step-N, or a checkpoint, got {str(run)!r}")
    return max(found, key=lambda p: int(p.name.removeprefix("step-")))


def generator_state(generator: torch.Generator) -> str:
    """A generator's state as hex digits."""
    return bytes(generator.get_state().tolist()).hex()


def set_generator_state(generator: torch.Generator, state: str) -> None:
    generator.set_state(torch.tensor(list(bytes.fromhex(state)), dtype=torch.uint8))


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
