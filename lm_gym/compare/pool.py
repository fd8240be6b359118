"""Jobs, each in a process of its own, a few at a time. A process that dies takes its own job with it and no other."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import connection, get_all_start_methods, get_context, parent_process
from typing import Any, Generic, TypeVar

Job = TypeVar("Job")
PRELOAD = ("torch", "lm_gym.agent", "lm_gym.exact", "lm_gym.env", "transformers.models.llama.modeling_llama")
"""What the server that children are forked from has imported: 4 of the 5 CPU seconds that a short run took."""


@dataclass(frozen=True)
class Outcome(Generic[Job]):
    """What became of a job: a value, or an error in words.

    Attributes:
        diverged: the error is a number that blew up, which it would do again. warnings: said in the process, each once.
        seconds: that it took.
    """

    job: Job
    value: Any = None
    error: str | None = None
    diverged: bool = False
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0


def warm_up() -> Any:
    """Start the server that children are forked from, which imports while the caller does other things.

    Returns:
        The context that makes children; where the system has no such server, one that starts each anew.
    """
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    from multiprocessing import forkserver

    context = get_context("forkserver")
    context.set_forkserver_preload(list(PRELOAD))
    forkserver.ensure_running()
    return context


def run_all(function: Callable[[Job], Any], jobs: Sequence[Job], processes: int) -> Iterator[Outcome[Job]]:
    """``function(job)`` of every job, in the order in which they finish; function and jobs are pickled.

    Where this is left early (Ctrl-C), the processes that still run are stopped.
    """
    if not jobs:
        return
    context = warm_up()
    waiting = list(reversed(jobs))
    running: dict[Any, tuple[Any, Job, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                job = waiting.pop()
                mine, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(function, job, theirs), daemon=True)
                process.start()
                theirs.close()
                running[mine] = (process, job, time.monotonic())
            for pipe in connection.wait(list(running)):
                process, job, since = running.pop(pipe)
                yield replace(_outcome(process, job, pipe), seconds=time.monotonic() - since)
    finally:
        for process, *_ in running.values():
            process.terminate()
        for process, *_ in running.values():
            process.join()


def _outcome(process: Any, job: Job, pipe: Any) -> Outcome[Job]:
    try:
        found = pipe.recv()
    except EOFError:
        found = None
    pipe.close()
    process.join()
    if found is None:
        code = process.exitcode
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Outcome(job, error=f"its process ended with {how} (out of memory, or killed)")
    return Outcome(job, **found)


def _work(function: Callable[[Any], Any], job: Any, pipe: Any) -> None:
    """In the child: run, and send what came of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which stops us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)
    found: dict[str, Any]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        try:
            found = {"value": function(job)}
        except Exception as error:  # whatever an agent or a judge may raise, the other runs go on
            words = " ".join(str(error).split())
            found = {"error": f"{type(error).__name__}: {words}", "diverged": isinstance(error, FloatingPointError)}
    ours = {" ".join(str(w.message).split()) for w in seen if issubclass(w.category, (UserWarning, RuntimeWarning))}
    pipe.send(found | {"warnings": tuple(sorted(ours))})


def _end_with_parent() -> None:
    """A parent that was killed leaves nobody to report to."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
