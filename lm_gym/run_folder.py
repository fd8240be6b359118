"""Whose a run's folder is, and which of its files count: a folder without a step is no run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lm_gym.folders import locked
from lm_gym.runinfo import write_atomically

if TYPE_CHECKING:
    from lm_gym.agent import LMAgent

CONFIG = "config.yaml"
NEXT_CONFIG = ".config.yaml.next"
"""What becomes config.yaml with the first row of a run that goes on. It is written before, while the disk has room."""
ROWS = ("metrics.jsonl", "metrics.csv", "samples.jsonl")
"""Files that grow by a line or more in every step."""
TAIL = 1 << 20
"""Bytes."""


@dataclass(frozen=True)
class Mark:
    """How an agent found its run's folder, or left it.

    Attributes:
        folder: resolved. config: SHA-256 of its config.yaml, which every process that goes on writes anew. step: the
            newest one there.
    """

    folder: Path
    config: str
    step: int


def mark(run: Path) -> Mark | None:
    """The mark of a folder; None where there is no run in it."""
    step = newest_step(run)
    config = run / CONFIG
    digest = hashlib.sha256(config.read_bytes()).hexdigest() if config.is_file() else ""
    return None if step is None else Mark(run.resolve(), digest, step)


@contextlib.contextmanager
def taken(agent: LMAgent, out: Path, resume: bool) -> Iterator[Path]:
    """Hold a run's folder for an agent that learns, and remember how it was left."""
    with locked(out):
        _refuse_others(agent, out, resume)
        try:
            yield out
        finally:
            agent.run_mark = mark(out) or agent.run_mark


def _refuse_others(agent: LMAgent, out: Path, resume: bool) -> None:
    """Refuse a folder in which going on would overwrite what is not this agent's.

    Raises:
        FileExistsError: says whose it is, and what to do.
    """
    now = mark(out)
    if now is None or now == agent.run_mark:
        return
    load = f"{type(agent).__name__}.load({str(out)!r}, env)"
    ours = agent.run_mark
    if ours is not None and ours.folder == now.folder:
        raise FileExistsError(
            f"{out} has changed since this agent loaded or left it (update {now.step} is there, update {ours.step} was "
            f"then): another one has gone on with it, or {CONFIG} was edited. Take {load}, or choose another folder"
        )
    if agent.updates:
        raise FileExistsError(
            f"{out} holds a run that is not this agent's, up to update {now.step}: choose another folder, or go on "
            f"with that run by {load}"
        )
    if not resume:
        raise FileExistsError(
            f"{out} already holds a run ({', '.join(used(out))}); choose another folder, or resume=True to continue it"
        )
    if saved_steps(out):  # without a checkpoint it was stopped early, and begins again
        raise FileExistsError(
            f"{out} holds a run with checkpoints, and resume=True on a new agent would begin it again: take {load}"
        )


def used(run: Path) -> list[str]:
    """The names of what makes a folder a run: rows and checkpoints."""
    names = [name for name in ROWS if _last_step(run / name) is not None]
    return [*names, "checkpoints"] if saved_steps(run) else names


def newest_step(run: Path) -> int | None:
    """The newest step of which a row, a sample or a checkpoint is there; None: the folder holds no run."""
    logged = [step for name in ROWS if (step := _last_step(run / name)) is not None]
    return max([*logged, *saved_steps(run)], default=None)


def saved_steps(run: Path) -> list[int]:
    """The numbers of a run's checkpoints, also of one that waits to be put back."""
    found = (path.parent.name for path in (run / "checkpoints").glob("*step-*/state.json"))
    numbers = {name.removeprefix(".").removesuffix(".old").removeprefix("step-") for name in found}
    return sorted(int(number) for number in numbers if number.isdecimal())


def _last_step(path: Path) -> int | None:
    """The step of a file's last whole row (0: it names none). Steps only grow: the end of a long file is enough."""
    if not path.is_file():
        return None
    size, rows = path.stat().st_size, False
    with open(path, "rb") as file:
        for start in (max(0, size - TAIL), 0):
            file.seek(start)
            lines = file.read().split(b"\n")[:-1]  # what stands behind the last newline is half a row
            if path.suffix == ".csv" and start == 0:
                del lines[:1]  # the names of the columns
            rows = rows or any(line.strip() for line in lines)
            steps = (_step(line, path.suffix) for line in reversed(lines))
            if (found := next((step for step in steps if step is not None), None)) is not None:
                return found
    return 0 if rows else None


def _step(line: bytes, kind: str) -> int | None:
    try:
        step = int(line.split(b",", 1)[0]) if kind == ".csv" else json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
    return step if type(step) is int else None


def config_of(run: Path) -> Path | None:
    """A run's configuration: config.yaml, or the newest config.N.yaml where that is gone; None: there is none."""
    if (run / CONFIG).is_file():
        return run / CONFIG
    kept = kept_configs(run)
    return kept[max(kept)] if kept else None


def kept_configs(run: Path) -> dict[int, Path]:
    """config.N.yaml by N: what the earlier parts of a run that was resumed ran with."""
    found = {path.name.removeprefix("config.").removesuffix(".yaml"): path for path in run.glob("config.*.yaml")}
    return {int(number): path for number, path in found.items() if number.isdecimal()}


def renew_config(run: Path) -> None:
    """Put what waits as the next config.yaml in its place."""
    if (run / NEXT_CONFIG).is_file():
        os.replace(run / NEXT_CONFIG, run / CONFIG)


def keep_config(run: Path) -> None:
    """A copy of config.yaml as the next config.N.yaml. It stays, so that a kill here leaves a run that can go on."""
    path, kept = run / CONFIG, kept_configs(run)
    if not path.is_file():
        return

    def text_of(found: Path) -> str:
        return found.read_text(encoding="utf-8", errors="backslashreplace")

    text = text_of(path)
    if not kept or text_of(kept[max(kept)]) != text:  # a start that failed, or a kill, left the copy alone
        write_atomically(run / f"config.{max(kept, default=-1) + 1}.yaml", text)
