"""vLLM inside this process: how it is imported, what it must not change for others, and how engines are let go."""

from __future__ import annotations

import contextlib
import gc
import os
import random
from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import torch

from lm_gym.extras import install_command

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # weights are handed over in memory: the model must be in this process
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else it moves our threads to cores of its choice
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""What vLLM reads from the environment; set where the user has not."""
_open: dict[int, Any] = {}
_parked: list[Any] = []
_keys = count()


def import_vllm() -> Any:
    """The module ``vllm``.

    Raises:
        ImportError: it is not installed. ValueError: the environment asks for what cannot work.
    """
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    if os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] != "0":
        raise ValueError(
            "engine='vllm' expected VLLM_ENABLE_V1_MULTIPROCESSING=0 (it hands over weights in memory), got "
            f"{os.environ['VLLM_ENABLE_V1_MULTIPROCESSING']!r}: unset it"
        )
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise ValueError(
            "engine='vllm' expected a process of its own, got one of several under torch.distributed: use "
            "engine='builtin'"
        )
    try:
        import vllm
    except ImportError as e:
        raise ImportError(f"engine='vllm' needs vLLM ({e}): {install_command('vllm')}, or use engine='builtin'") from e
    return vllm


@contextlib.contextmanager
def process_as_it_was() -> Iterator[None]:
    """vLLM seeds the global generators, and takes ``torch.set_num_threads`` away on a CPU: both are the caller's."""
    python, numpy, set_threads = random.getstate(), np.random.get_state(), torch.set_num_threads  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_num_threads = set_threads


def open_llm(vllm: Any, **options: Any) -> tuple[Any, int]:
    """A ``vllm.LLM``, and the number that :func:`release` lets it go by."""
    if _open:
        gc.collect()  # agents out of use hold theirs in reference cycles
    llm, key = vllm.LLM(**options), next(_keys)
    _open[key] = llm
    return llm, key


def release(key: int) -> None:
    """Let an ``LLM`` go. A second call does nothing.

    To shut one down takes away process groups that all of them share (seen in vLLM 0.32: the others then fail), so it
    waits until none is in use.
    """
    if key in _open:
        _parked.append(_open.pop(key))
    while _parked and not _open:
        _parked.pop().llm_engine.engine_core.shutdown()
