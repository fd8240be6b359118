"""Trackers of others: TensorBoard, trackio and Weights & Biases, each opened as a pair of functions."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lm_gym.extras import install_command
from lm_gym.reward_errors import PASSING, told

PROJECT = "lm-gym"

Row = dict[str, int | float]
Send = Callable[[Row, int], None]
Finish = Callable[[], None]


class OutsideTrackerError(RuntimeError):
    """What a tracker of others raised: it has no account, no network, no place to write."""


@contextlib.contextmanager
def outside(package: str, does: str) -> Iterator[None]:
    """Whatever a tracker's package raises, or however it ends, as an :class:`OutsideTrackerError` that names it."""
    try:
        yield
    except (*PASSING, ImportError):  # a missing package has a message of its own
        raise
    except BaseException as error:
        raise OutsideTrackerError(
            f"the {package} tracker {does} ({told(error)}): put that right, or leave it out of trackers"
        ) from error


def tensorboard(folder: Path | None, name: str, config: dict[str, Any], resumed: bool) -> tuple[Send, Finish]:
    """What sends a row of a step to ``folder``/tensorboard, and what closes it."""
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise ImportError(_missing("tensorboard", error)) from error
    writer: Any = None

    def send(row: Row, step: int) -> None:
        nonlocal writer
        if writer is None:  # only now is it known where a resumed run goes on: events from there are hidden
            assert folder is not None
            writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step if resumed else None)
            writer.add_text("config", f"```\n{json.dumps(config, indent=2)}\n```")
        for metric, value in row.items():
            writer.add_scalar(metric, value, global_step=step)
        writer.flush()

    def finish() -> None:
        if writer is not None:
            writer.close()

    return send, finish


def trackio(folder: Path | None, name: str, config: dict[str, Any], resumed: bool) -> tuple[Send, Finish]:
    """What sends a row of a step to trackio, and what closes it."""
    try:
        import trackio
    except ImportError as error:
        raise ImportError(_missing("trackio", error)) from error
    trackio.init(project=PROJECT, name=name, group=name, config=config)
    return (lambda row, step: trackio.log(row, step=step)), trackio.finish


def wandb(folder: Path | None, name: str, config: dict[str, Any], resumed: bool) -> tuple[Send, Finish]:
    """What sends a row of a step to Weights & Biases, and what closes it."""
    try:
        import wandb
    except ImportError as error:
        raise ImportError(_missing("wandb", error)) from error
    where = None if folder is None else str(folder)
    run = wandb.init(project=PROJECT, name=name, group=name, config=config, dir=where)
    return (lambda row, step: run.log(row, step=step)), run.finish


OPENERS = {"tensorboard": tensorboard, "trackio": trackio, "wandb": wandb}
"""Name -> function of the run's folder (None: it writes no files), name, configuration, and whether it goes on."""


def _missing(package: str, error: ImportError) -> str:
    return f"the {package} tracker could not be imported ({error}): run {install_command('track')}"
