"""What an update frees stays the process's own; each case in a process of its own, since it holds for all of it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from lm_gym.host_memory import SETTINGS

ROUNDS = """
import resource, sys
from lm_gym.host_memory import keep_freed_memory
if sys.argv[1] == "keep":
    print(keep_freed_memory())
held = []
for _ in range(20):  # 8 blocks of 4 MB at a time, each page written to
    blocks = [bytearray(4 << 20) for _ in range(8)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def ran(*args: str, **env: str) -> list[str]:
    clean = {k: v for k, v in os.environ.items() if k not in SETTINGS}
    out = subprocess.run([sys.executable, "-c", ROUNDS, *args], env={**clean, **env}, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    return out.stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator alone is told")
def test_pages_are_not_asked_for_again() -> None:
    [usual] = ran("plain")
    kept, faults = ran("keep")
    assert kept == "True"
    assert int(faults) < int(usual) / 3


def test_what_the_user_set_stays() -> None:
    assert ran("keep", MALLOC_TRIM_THRESHOLD_="100000")[0] == "False"
