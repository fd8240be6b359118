"""A stage's end: a full disk or a kill there loses nothing of its work."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lm_gym.pipeline import stage


class Killed(BaseException):
    """A kill, as far as one process can play it."""


@pytest.mark.parametrize("moment", range(1, 8))
def test_a_stage_killed_at_its_end_does_not_work_again_from_nothing(
    moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before each of the renames and removals behind the work: the next call finds the result, or the work."""
    worked: list[bool] = []

    def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == moment:
                raise Killed
            return call(*args, **options)

        return wrapped

    def work(place: stage.Workplace) -> dict[str, int]:
        worked.append((place.folder / "checkpoints").exists())
        (place.folder / "checkpoints").mkdir(exist_ok=True)
        place.spare.append(place.folder / "checkpoints")
        (place.folder / "result").write_text("done")
        return {}

    (tmp_path / "rl").mkdir()  # an earlier result, of other inputs
    (tmp_path / "rl" / stage.RECORD).write_text("{}")
    calls = -(10**6)
    for owner, name in ((os, "replace"), (shutil, "rmtree"), (Path, "unlink")):
        monkeypatch.setattr(owner, name, deadly(getattr(owner, name)))
    begin = stage.Workplace.account

    def account(place: stage.Workplace) -> None:
        nonlocal calls
        begin(place)
        calls = 0  # what comes now is the stage's end

    monkeypatch.setattr(stage.Workplace, "account", account)
    with pytest.raises(Killed):
        stage.make(tmp_path, "rl", {"a": 1}, ("result",), work)
    monkeypatch.undo()
    if isinstance(stage.kept(tmp_path, "rl", stage.key_of({"a": 1})), str):
        stage.make(tmp_path, "rl", {"a": 1}, ("result",), work)
        assert worked == [False, True]  # from the first call's checkpoints
    assert isinstance(stage.kept(tmp_path, "rl", stage.key_of({"a": 1})), stage.Record)
    assert {path.name for path in (tmp_path / "rl").iterdir()} - {"checkpoints"} == {"result", "stage.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["rl"]


def test_a_full_disk_at_the_record_keeps_what_can_be_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def work(place: stage.Workplace) -> dict[str, int]:
        seen.append((place.folder / "checkpoints").exists())
        (place.folder / "checkpoints").mkdir(exist_ok=True)
        (place.folder / "result").write_text("done")
        place.spare.append(place.folder / "checkpoints")
        return {}

    write = stage.write_atomically

    def full(path: Path, text: str) -> None:
        if path.name == stage.RECORD:
            raise OSError(28, os.strerror(28), str(path))
        write(path, text)

    monkeypatch.setattr(stage, "write_atomically", full)
    with pytest.raises(OSError, match="stage.json"):
        stage.make(tmp_path, "rl", {"a": 1}, ("result",), work)
    monkeypatch.undo()
    stage.make(tmp_path, "rl", {"a": 1}, ("result",), work)
    assert seen == [False, True]  # the second call began with the first one's checkpoints
    assert {path.name for path in (tmp_path / "rl").iterdir()} == {"result", "stage.json"}
    assert json.loads((tmp_path / "rl" / "stage.json").read_text())["stage"] == "rl"
