"""Small stores for the tests of lm_gym.annotate."""

import uuid
from pathlib import Path
from typing import Any

from lm_gym.annotate.answers import Answer, submit
from lm_gym.annotate.lending import Loan, next_items
from lm_gym.annotate.people import Annotator, holder, invite
from lm_gym.annotate.store import Pair, Store, add_pairs


class Clock:
    """Seconds since 1970 that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def store_with(folder: Path, n: int, *, need: int = 1, clock: Clock | None = None, **options: Any) -> Store:
    """A store of n pairs: the prompt "p<i>", the completions "a<i>" and "b<i>"."""
    store = Store(folder / "prefs.sqlite", create=True, clock=clock or Clock())
    add_pairs(store, [Pair(f"p{i}", f"a{i}", f"b{i}") for i in range(n)], source="test", need=need, **options)
    return store


def person(store: Store, name: str) -> Annotator:
    found = holder(store, invite(store, name))
    assert found is not None
    return found


def new_id() -> str:
    return str(uuid.uuid4())


def say(store: Store, who: Annotator, loan: Loan, strength: int, **fields: Any) -> str:
    """Answer in terms of the pair (above 0: b is better), whatever order it was shown in; the answer's id."""
    shown = -strength if loan.swapped else strength
    answer = Answer(new_id(), loan.item, "preference", shown, **fields)
    submit(store, who, answer)
    return answer.id


def answer_all(store: Store, who: Annotator, strengths: dict[str, int]) -> None:
    """Answer everything there is for `who`, by prompt."""
    while loans := next_items(store, who, 3):
        for loan in loans:
            say(store, who, loan, strengths[str(loan.prompt)])
