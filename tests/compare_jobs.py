"""Jobs for processes of their own, which find this module on the path of the tests."""

import os


def job(kind: str) -> str:
    """Does what its argument says."""
    if kind == "dies":
        os._exit(3)
    if kind == "refuses":
        raise ValueError("expected\nsomething else")
    if kind == "diverges":
        raise FloatingPointError("the loss is nan")
    return kind.upper()
