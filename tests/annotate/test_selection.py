"""The pairs asked about next are those that an answer would tell most about."""

import math
from pathlib import Path

import numpy as np
import pytest
from annotate_stores import person

from lm_gym.annotate.lending import next_items
from lm_gym.annotate.selection import disagreement, select, uncertainty
from lm_gym.annotate.store import Pair, Store, StoreError, add_pairs


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "prefs.sqlite", create=True)
    # First scores from sure for a to sure for b; second scores agree but for pairs 1 and 8.
    pairs = []
    for i in range(10):
        margin = i - 4.6
        other = -margin if i in (1, 8) else margin
        pairs.append(Pair(f"p{i}", "x" * (i + 1), "y" * 5, {"one": margin, "two": [other + 3.0, 3.0]}))
    add_pairs(store, pairs, source="pool", asked=False)
    return store


def prompts(store: Store, chosen: list[int]) -> list[str]:
    return [store.value("SELECT prompt FROM items WHERE id = ?", (item,)).strip('"') for item in chosen]


def length(completions: list[str], **_: object) -> list[float]:
    return [float(len(text)) for text in completions]


def longer_is_worse(completions: list[str], prompts: list[str], **_: object) -> list[float]:
    return [(-1.0 if prompt == "p3" else 1.0) * len(text) for text, prompt in zip(completions, prompts)]


def test_nothing_is_asked_about_before_it_is_selected(store: Store) -> None:
    ada = person(store, "ada")
    assert next_items(store, ada, 3) == []
    chosen = select(store, 2, by="margin", columns=["one"])
    assert prompts(store, chosen) == ["p5", "p4"]  # margins .4 and -.6
    assert {loan.item for loan in next_items(store, ada, 5)} == set(chosen)
    assert prompts(store, select(store, 2, by="margin", columns=["one"])) == ["p6", "p3"]  # the next round


def test_disagreement_of_columns(store: Store) -> None:
    assert set(prompts(store, select(store, 2, by="disagreement", columns=["one", "two"]))) == {"p1", "p8"}


def test_margin_and_disagreement_of_reward_models(store: Store) -> None:
    assert prompts(store, select(store, 1, by="margin", rewards=[length])) == ["p4"]  # five letters on both sides
    assert prompts(store, select(store, 1, by="disagreement", rewards=[length, longer_is_worse])) == ["p3"]


def test_random_is_seeded_and_takes_all_there_is(store: Store, tmp_path: Path) -> None:
    first = select(store, 4, seed=1)
    assert len(set(first)) == 4
    assert len(select(store, 100)) == 6
    with pytest.raises(StoreError, match="no pairs are held back"):
        select(store, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "entropy"}, "expected one of random, margin"),
        ({"n": 0}, "at least 1 pair"),
        ({"by": "random", "columns": ["one"]}, "looks at no scores"),
        ({"by": "margin"}, "needs scores"),
        ({"by": "margin", "columns": ["three"]}, "no column 'three' with scores; its columns are 'one', 'two'"),
        ({"by": "disagreement", "columns": ["one"]}, "at least two"),
        ({"by": "margin", "rewards": ["length?target=4"]}, "the same score"),  # counts tokens, and there are none
    ],
)
def test_what_cannot_be_selected_is_refused(store: Store, options: dict, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        select(store, **{"n": 1, **options})
    assert store.value("SELECT sum(asked) FROM items") == 0


def test_the_measures_by_hand() -> None:
    assert uncertainty(np.array([[0.0, 30.0]])) == pytest.approx([math.log(2), 0.0], abs=1e-9)
    p = 1 / (1 + math.exp(-2.0))
    entropy = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    assert disagreement(np.array([[2.0, 0.0], [-2.0, 0.0]])) == pytest.approx([math.log(2) - entropy, 0.0])
