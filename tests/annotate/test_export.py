"""Every answer that stands is exported, as it was meant, in a format that the Bradley-Terry model reads."""

import json
from pathlib import Path
from typing import Any

import pytest
from annotate_stores import new_id, person, say, store_with

from lm_gym.annotate.answers import Answer, submit, undo
from lm_gym.annotate.export import export
from lm_gym.annotate.lending import next_items
from lm_gym.annotate.store import Pair, Store, StoreError, add_pairs
from lm_gym.preferences import load_preferences

SAID = {
    "ada": {"p0": -3, "p1": 2, "p2": 0, "p3": 1, "p4": -1},
    "bob": {"p0": -1, "p1": -1, "p2": 1, "p3": 2, "p4": -2},
    "cem": {"p0": 1, "p1": 3, "p2": 0, "p3": 3},
}
"""Strengths, above 0: b is better. Cem has no answer to p4, but a flag."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = store_with(tmp_path, 5, need=3)
    for name, strengths in SAID.items():
        who = person(store, name)
        while loans := next_items(store, who, 1):
            (loan,) = loans
            if loan.prompt not in strengths:
                submit(store, who, Answer(new_id(), loan.item, "flag", reason="nonsense", comment="see p3"))
            else:
                mistake = say(store, who, loan, 3)
                undo(store, who, new_id(), mistake)  # said otherwise at first: never exported
                (loan,) = next_items(store, who, 1)
                say(store, who, loan, strengths[str(loan.prompt)], comment=f"{name}'s", seconds=2.0)
                store.clock.now += 5  # type: ignore[attr-defined]
    return store


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_answer_is_in_one_of_the_three_files(store: Store, tmp_path: Path) -> None:
    done = export(store, tmp_path / "out.jsonl", how="none")
    preferences, ties, flags = rows(done.preferences), rows(done.ties), rows(done.flags)
    assert (done.rows, done.tied, done.flagged) == (len(preferences), len(ties), len(flags)) == (12, 2, 1)
    for row in preferences + ties:
        side = row["chosen"][0]
        assert row["chosen"] == f"{side}{row['prompt'][1]}" and row["rejected"][0] == {"a": "b", "b": "a"}[side]
        strength = row["strength"] if side == "b" else -row["strength"]
        assert SAID[row["annotator"]][row["prompt"]] == strength
        assert row["margin"] == row["strength"] and row["label"] == (1.0 if strength else 0.5)
        assert row["seconds"] == 2.0 and row["comment"] == f"{row['annotator']}'s" and row["time"].startswith("2027-")
    (flag,) = flags
    assert [flag[name] for name in ("kind", "annotator", "reason", "prompt")] == ["flag", "cem", "nonsense", "p4"]
    answers = {(row["item"], row["annotator"]): row for row in preferences + ties}
    for stored in store.rows("SELECT * FROM live JOIN annotators ON annotators.id = annotator WHERE kind <> 'flag'"):
        row = answers[stored["item"], stored["name"]]
        assert row["shown_first"] == ("chosen" if (row["chosen"][0] == "b") == bool(stored["swapped"]) else "rejected")


@pytest.mark.parametrize("how", ["majority", "mean"])
def test_votes_are_put_together(how: Any, store: Store, tmp_path: Path) -> None:
    expected = {"p0": ("a", 2 / 3, 1.0), "p1": ("b", 2 / 3, 4 / 3), "p3": ("b", 1.0, 2.0), "p4": ("a", 1.0, 1.5)}
    if how == "mean":  # the label says how strong the mean is: 0 is .5, 3 is 1
        expected = {prompt: (side, (1 + margin / 3) / 2, margin) for prompt, (side, _, margin) in expected.items()}
    done = export(store, tmp_path / "out.jsonl", how=how)
    found = {row["prompt"]: row for row in rows(done.preferences)}
    assert found.keys() == expected.keys()
    for prompt, (side, label, margin) in expected.items():
        row = found[prompt]
        assert row["chosen"] == f"{side}{prompt[1]}"
        assert (row["label"], row["margin"]) == pytest.approx((label, margin), abs=1e-6)
        toward = 1 if side == "b" else -1
        said = {name: toward * strengths[prompt] for name, strengths in SAID.items() if prompt in strengths}
        assert dict(zip(row["annotators"], row["strengths"], strict=True)) == said and row["votes"] == len(said)
    ties = rows(done.ties)
    assert {row["prompt"] for row in ties} == {"p2"} and {row["label"] for row in ties} == {0.5}
    assert export(store, tmp_path / "all.jsonl", how=how, with_ties=True).rows == done.rows + done.tied


def test_dawid_skene_uses_gold_which_is_exported_only_if_asked(tmp_path: Path) -> None:
    store = store_with(tmp_path, 6, need=2)
    add_pairs(store, [Pair(f"g{i}", "x", "y", gold=-2) for i in range(6)], source="gold", gold=True)
    for name, honest in (("ada", True), ("liar", False)):
        who = person(store, name)
        while loans := next_items(store, who, 1):
            truth = -2 if str(loans[0].prompt).startswith("g") else 2
            say(store, who, loans[0], truth if honest else -truth)
    done = export(store, tmp_path / "out.jsonl", how="dawid-skene")
    found = rows(done.preferences)
    assert {row["prompt"] for row in found} == {f"p{i}" for i in range(6)}
    assert all(row["chosen"].startswith("b") and row["agreement"] > 0.9 and row["margin"] == 0.0 for row in found)
    assert export(store, tmp_path / "out.jsonl", how="dawid-skene", gold=True).rows == 12


@pytest.mark.parametrize("how", ["none", "majority", "mean", "dawid-skene"])
@pytest.mark.parametrize("layout", ["standard", "conversational"])
def test_what_is_exported_is_read_as_preferences(store: Store, tmp_path: Path, how: Any, layout: Any) -> None:
    done = export(store, tmp_path / "out.jsonl", how=how, layout=layout)
    read = load_preferences(done.preferences)
    ties = load_preferences(done.ties)
    assert (len(read), len(ties)) == (done.rows, done.tied)
    assert all(pair.label > 0.5 and pair.margin is not None for pair in read)
    assert all(pair.label == 0.5 and pair.margin == 0 for pair in ties)
    assert {pair.annotator for pair in read} == ({"ada", "bob", "cem"} if how == "none" else {None})
    assert {type(pair.prompt) for pair in read} == {str if layout == "standard" else list}


def test_conversations_become_texts_as_hh_writes_them(tmp_path: Path) -> None:
    store = Store(tmp_path / "prefs.sqlite", create=True)
    prompt = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "?"},
    ]
    a, b = ([{"role": "assistant", "content": text}] for text in ("yes", "no"))
    add_pairs(store, [Pair(prompt, a, b, {"label": 7, "topic": "x"})], source="s")
    ada = person(store, "ada")
    say(store, ada, next_items(store, ada, 1)[0], -2)
    (row,) = rows(export(store, tmp_path / "as.jsonl").preferences)
    assert (row["prompt"], row["chosen"], row["rejected"]) == (prompt, a, b)
    assert (row["topic"], row["imported_label"], row["label"]) == ("x", 7, 1.0)
    (row,) = rows(export(store, tmp_path / "text.jsonl", layout="standard").preferences)
    assert row["prompt"] == "\n\nHuman: one\n\nAssistant: two\n\nHuman: ?\n\nAssistant:"
    assert (row["chosen"], row["rejected"]) == (" yes", " no")


def test_what_cannot_be_exported_is_refused(store: Store, tmp_path: Path) -> None:
    for options, message in (
        ({"how": "median"}, "expected one of none, majority"),
        ({"layout": "xml"}, "expected one of as-is"),
    ):
        with pytest.raises(StoreError, match=message):
            export(store, tmp_path / "out.jsonl", **options)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match=r"ends in \.jsonl"):
        export(store, tmp_path / "out.csv")
    with pytest.raises(StoreError, match="nobody has answered"):
        export(Store(tmp_path / "new.sqlite", create=True), tmp_path / "out.jsonl")
    assert not list(tmp_path.glob("out*"))
