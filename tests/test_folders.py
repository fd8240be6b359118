"""Locks that end with their process, and folders that come whole."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lm_gym import folders
from lm_gym.folders import FolderInUse, filled_aside, locked

HOLDER = """
import os, sys, time
from lm_gym.folders import locked
with locked(sys.argv[1]):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_second_process_is_told_who_has_the_folder_until_that_is_killed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(out)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        try:
            since = r"since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC: wait until"
            with (
                pytest.raises(FolderInUse, match=rf"run is in use by process {holder.pid} on \S+, {since}"),
                locked(out),
            ):
                pass
            holder.send_signal(signal.SIGKILL)
            holder.wait()
            with locked(out):  # the child that it forked lives, and holds nothing
                assert [path.name for path in out.iterdir()] == [".lock"]
        finally:
            os.kill(child, signal.SIGKILL)
    assert list(out.iterdir()) == []  # it was there before our block, and stays


def test_one_thread_may_take_it_again_and_another_may_not(tmp_path: Path) -> None:
    out, said = tmp_path / "a" / "run", []

    def other() -> None:
        try:
            with locked(out):
                said.append("taken")
        except FolderInUse as error:
            said.append(str(error))

    with locked(out):
        with locked(tmp_path / "a" / ".." / "a" / "run"):  # the same by another name
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "in use by another thread of this process" in said[0]
    assert list(tmp_path.iterdir()) == []  # what was made for the lock and stayed empty is gone
    other()
    assert said[1:] == ["taken"]


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(number: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(folders, "_lock", refuse)
    with pytest.warns(UserWarning, match="file system without locks .*nothing keeps a second process out"):
        with locked(tmp_path / "run"):
            (tmp_path / "run" / "file").touch()
    assert (tmp_path / "run" / "file").exists()


def test_a_folder_filled_aside_comes_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "model"
    with pytest.raises(OSError, match="full"):
        fill_half(out)
    assert list(tmp_path.iterdir()) == []
    with filled_aside(out) as aside:
        (aside / "weights").write_text("first")
        assert not out.exists()
        with pytest.raises(FolderInUse):
            subprocess_takes(out)
    (out / "notes").write_text("mine")
    with pytest.raises(OSError, match="full"):
        fill_half(out)
    assert (out / "weights").read_text() == "first"
    with filled_aside(out) as aside:
        (aside / "weights").write_text("second")
    assert {path.name: path.read_text() for path in out.iterdir()} == {"weights": "second", "notes": "mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def fill_half(out: Path) -> None:
    with filled_aside(out) as aside:
        (aside / "weights").write_text("half")
        raise OSError("full")


def subprocess_takes(out: Path) -> None:
    """Another process writes to the folder; its refusal is raised here."""
    code = "import sys; from lm_gym.folders import filled_aside\nwith filled_aside(sys.argv[1]): pass"
    done = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, check=False)
    if "FolderInUse" in done.stderr:
        raise FolderInUse(done.stderr)
