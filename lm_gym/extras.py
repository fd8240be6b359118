"""How an optional part is installed: what errors tell users to type."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent


def install_command(extra: str) -> str:
    """A ``pip install`` line that works where LM Gym came from: its checkout, or a wheel.

    From a checkout it installs the extra of the checkout. Elsewhere it names the packages that the extra stands for:
    LM Gym is on no index, and a line with its bare name would fetch whatever somebody put there.
    """
    if (CHECKOUT / "pyproject.toml").is_file():
        return f"pip install -e '.[{extra}]' (in {CHECKOUT})"
    try:
        lines = requires("lm-gym") or []
    except PackageNotFoundError:
        lines = []
    needed = [line.split(";")[0].strip() for line in lines if f"extra == '{extra}'" in line.replace('"', "'")]
    return "pip install " + " ".join(f"'{line}'" for line in needed)
