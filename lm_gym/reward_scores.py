"""From what a reward model returns to B numbers, or to what is wrong with it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Set, Sized
from typing import Any

import numpy as np

from lm_gym.reward_errors import PASSING, shown

LARGEST = float(np.finfo(np.float32).max)
"""Rewards, returns and advantages are kept in float32."""

NO_SEQUENCE = (str, bytes, bytearray, memoryview, Mapping, Set)
"""Iterable, and yet no scores: texts, bytes, and what has no order (a set's numbers would land on other texts)."""


class NoScore(Exception):
    """What was returned is no score a completion; `row` is the first completion without one, where that can be told."""

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


def read_scores(values: Any, size: int, *, allow_none: bool) -> np.ndarray:
    """(B,) float64 from a sequence of B numbers, from B rows of one number each, or from what yields them.

    Args:
        values: a list, an array, a tensor, a generator: what a reward model returned for B completions.
        size: B.
        allow_none: None is "does not apply", NaN in the result.

    Raises:
        NoScore: anything else. What `values` itself raises while it is read (a generator may) comes as it is.
    """
    if hasattr(values, "detach"):  # a torch tensor, recognised without importing torch
        values = _of_tensor(values)
    elif not isinstance(values, np.ndarray) and hasattr(values, "__array__"):
        values = np.asarray(values)  # a data frame would yield the names of its columns
    single = isinstance(values, np.ndarray) and values.ndim == 0
    if isinstance(values, NO_SEQUENCE) or not isinstance(values, Iterable) or single:
        raise NoScore(f"returned {shown(values)}, expected a sequence of {size} numbers, one a completion")
    found = list(itertools.islice(iter(values), size + 1))  # a generator may have no end
    if len(found) != size:
        count: Any = len(found)
        if count > size:
            count = len(values) if isinstance(values, Sized) else f"more than {size}"
        raise NoScore(f"returned {count} scores for {size} completions, expected one each")
    if found and all(isinstance(row, (list, tuple)) and len(row) == 1 for row in found):
        found = [row[0] for row in found]  # a column (B, 1), as models with one output have it
    scores = np.empty(size, dtype=np.float64)
    for row, value in enumerate(found):
        if value is None and allow_none:
            scores[row] = np.nan
        elif value is None:
            hint = "None (does not apply) is for the parts of a combination; return a number"
            raise NoScore(f"returned None. {hint}", row)
        else:
            scores[row] = _number(value, row)
    return scores


def _number(value: Any, row: int) -> float:
    if hasattr(value, "detach"):
        value = _of_tensor(value, row)
    if isinstance(value, np.ndarray) and value.shape in ((), (1,)) and not np.ma.is_masked(value):
        value = value.item()
    number, why = math.nan, ""
    real = not isinstance(value, (str, bytes, bytearray, complex, np.ndarray, np.void))
    kind = getattr(getattr(value, "dtype", None), "kind", "f")
    if real and kind in "biufOV":  # of numpy's kinds: no complex numbers, no times
        try:
            number = float(value)
        except PASSING:
            raise
        except (TypeError, ValueError, OverflowError):  # no number, or one of 400 digits
            pass
        except BaseException as error:
            why = f" (its __float__ raised {type(error).__name__})"
    if not math.isfinite(number):
        raise NoScore(f"returned {shown(value)}{why}, expected a finite number", row)
    if abs(number) > LARGEST:
        raise NoScore(f"returned {shown(value)}, which is beyond the range of float32 (±3.4e38), as rewards are", row)
    return number


def _of_tensor(tensor: Any, row: int | None = None) -> np.ndarray:
    """A torch tensor's numbers, (…) float64; complex ones stay complex, to be refused."""
    try:
        tensor = tensor.detach().cpu()
        return np.asarray((tensor if tensor.is_complex() else tensor.double()).numpy())
    except PASSING:
        raise
    except BaseException as error:  # on the meta device, sparse, quantised: there is nothing to read
        kind = f"{getattr(tensor, 'layout', '')} on {getattr(tensor, 'device', '')}"
        raise NoScore(f"returned a tensor ({kind}) that cannot be read: {type(error).__name__}", row) from error
