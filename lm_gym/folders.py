"""Folders that one process writes at a time, and what is put into one only when it is whole."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

LOCK = ".lock"
"""The file in a folder that whoever writes there holds a lock on; it is gone when the folder is free."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
"""What file systems say that know no locks."""


class FolderInUse(OSError):
    """Another process, or another thread, writes to the folder; the message says which, and since when."""


_held: dict[Path, list[int]] = {}
"""Lock's file -> [file number, thread, how often it was taken in that thread], of the locks of this process."""
_changing = threading.Lock()
WAY_OUT = "wait until that has ended, or choose another folder"


@contextlib.contextmanager
def locked(folder: str | Path, *, beside: bool = False) -> Iterator[None]:
    """Keep other processes and threads out of a folder while the block runs.

    The lock is the operating system's (``flock``; a locked byte on Windows), so that it ends with its process, however
    that ends. The thread that holds it may take it again. Where the file system knows no locks, a warning says so, and
    nothing is locked.

    Args:
        folder: is made if it is missing, with those above it, and removed again if it stayed empty.
        beside: the lock is a file beside the folder, which need not be there.

    Raises:
        FolderInUse: somebody else holds it. OSError: the folder cannot be made or written.
    """
    folder = Path(folder)
    path = folder.with_name(f".{folder.name}{LOCK}") if beside else folder / LOCK
    made = [parent for parent in path.parents if not parent.exists()]
    key, me = path.resolve(), threading.get_ident()
    with _changing:
        mine = _held.get(key)
        if mine is not None and mine[1] != me:
            raise FolderInUse(f"{folder} is in use by another thread of this process: {WAY_OUT}")
        if mine is None:
            number = _take(path, folder)
            if number is not None:
                _held[key] = mine = [number, me, 0]
        if mine is not None:
            mine[2] += 1
    try:
        yield
    finally:
        if mine is not None:
            with _changing:
                mine[2] -= 1
                if not mine[2]:
                    _free(path, mine[0])
                    del _held[key]
        with contextlib.suppress(OSError):
            for parent in made:
                parent.rmdir()


def _take(path: Path, folder: Path) -> int | None:
    """The number of the locked file; None where there are no locks."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            number = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            continue  # whoever made the folder has just removed it
        try:
            _lock(number)
        except OSError as error:
            os.close(number)
            if error.errno in _NO_LOCKS:
                warnings.warn(
                    f"{folder} is on a file system without locks ({error.strerror}): nothing keeps a second process "
                    "out of it",
                    stacklevel=4,
                )
                return None
            raise FolderInUse(f"{folder} is in use by {_holder(path)}: {WAY_OUT}") from None
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(number), os.stat(path)):
                break
        os.close(number)  # its holder removed the file between our two calls: what we hold is nobody's any more
    since = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    who = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
    with contextlib.suppress(OSError):  # a full disk: the lock holds without a name on it
        os.ftruncate(number, 0)
        os.write(number, json.dumps(who).encode())
    return number


def _free(path: Path, number: int) -> None:
    if sys.platform == "win32":  # an open file cannot be removed there
        os.close(number)
    with contextlib.suppress(OSError):
        path.unlink()
    if sys.platform != "win32":
        os.close(number)


if sys.platform == "win32":
    import msvcrt

    def _lock(number: int) -> None:
        os.lseek(number, 1 << 30, os.SEEK_SET)  # behind what others read
        msvcrt.locking(number, msvcrt.LK_NBLCK, 1)
        os.lseek(number, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(number: int) -> None:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(path: Path) -> str:
    """Who holds a lock, in words. Between taking it and writing that down pass a few microseconds."""
    for _ in range(5):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            who = json.loads(path.read_text(encoding="utf-8"))
            return f"process {who['pid']:d} on {who['host']}, since {who['since']}"
        time.sleep(0.01)
    return "another process"


def _not_mine() -> None:
    """In a forked child, which would keep its parent's locks after the parent was killed."""
    global _changing
    _changing = threading.Lock()
    for number, _, _ in _held.values():
        os.close(number)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_not_mine)


@contextlib.contextmanager
def filled_aside(folder: str | Path) -> Iterator[Path]:
    """A folder beside ``folder`` to write to, under its lock; what is in it takes its place when the block ended well.

    A full disk or a kill while the block writes leaves ``folder`` as it was, and missing if it was missing. A new
    folder comes whole, by one rename. In an old one file after file is replaced, and others stay.

    Raises:
        FolderInUse: another process writes it.
    """
    folder = Path(folder).absolute()
    aside = folder.with_name(f".{folder.name}.writing")
    with locked(folder, beside=True):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        try:
            yield aside
            if not folder.exists():
                os.replace(aside, folder)
                return
            for path in sorted(aside.iterdir()):
                if (folder / path.name).is_dir():
                    shutil.rmtree(folder / path.name)
                os.replace(path, folder / path.name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
