"""Pairs come out of every format that preference data has, and a row that cannot be used is named."""

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from lm_gym.annotate.importing import Imported, read_pairs
from lm_gym.annotate.store import Pair
from lm_gym.annotate.transcripts import as_text, transcript

USER = [{"role": "user", "content": "Hello"}]


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "p", "a": "x", "b": "y", "score": 2}, Pair("p", "x", "y", {"score": 2})),
        ({"prompt": "p", "completion_a": "x", "completion_b": ""}, Pair("p", "x", "")),
        ({"prompt": "p", "response_a": "x", "response_b": "y", "gold": -1}, Pair("p", "x", "y", gold=-1)),
        ({"prompt": "p", "chosen": "x", "rejected": "y"}, Pair("p", "x", "y", gold=-2)),
        ({"prompt": USER, "chosen": said("x"), "rejected": said("y")}, Pair(USER, said("x"), said("y"), gold=-2)),
        ({"chosen": USER + said("x"), "rejected": USER + said("y")}, Pair(USER, said("x"), said("y"), gold=-2)),
        (
            {"chosen": "The sky is blue.", "rejected": "The sky is green."},
            Pair("The sky is", " blue.", " green.", gold=-2),
        ),
        (
            {"chosen": "\n\nHuman: Hello\n\nAssistant: x", "rejected": "\n\nHuman: Hello\n\nAssistant: y"},
            Pair(USER, said("x"), said("y"), gold=-2),
        ),
    ],
)
def test_a_row_of_each_format(row: dict[str, Any], expected: Pair) -> None:
    found = read_pairs([row])
    assert (found.pairs, found.unusable) == ([expected], [])


@pytest.mark.parametrize(
    ("label", "gold"),
    [(1, -2), (1.0, -2), ("", -2), (None, -2), (0, 2), ("0", 2), (0.5, 0), (0.6, -1), (0.75, -1), (0.3, 1), (0.9, -2)],
)
def test_the_label_says_which_is_better_and_how_sure_that_is(label: Any, gold: int) -> None:
    rows = [{"prompt": "p", "chosen": "x", "rejected": "y", "label": label}, {"chosen": "a b", "rejected": "a c"}]
    rows.append({"chosen": "\n\nHuman: h\n\nAssistant: x", "rejected": "\n\nHuman: h\n\nAssistant: y", "label": label})
    found = read_pairs(rows)
    assert [pair.gold for pair in found.pairs] == [gold, -2, gold]
    [pair] = read_pairs([rows[0] | {"gold": 3}]).pairs  # which says it outright
    assert pair.gold == 3


def test_a_label_that_is_no_probability_is_named() -> None:
    for label in (2, "good", float("nan")):
        [(where, why)] = read_pairs([{"prompt": "p", "chosen": "x", "rejected": "y", "label": label}]).unusable
        assert where == "row 0" and "expected P(chosen is better), 0 to 1" in why


def test_ranks_are_known_answers() -> None:
    found = read_pairs([{"prompt": "p", "completions": ["x", "y", "z"], "ranks": [2, 1, 2]}])
    assert [(pair.a, pair.b, pair.gold) for pair in found.pairs] == [("x", "y", 2), ("x", "z", 0), ("y", "z", -2)]
    [(_, why)] = read_pairs([{"prompt": "p", "completions": ["x", "y"], "ranks": [1]}]).unusable
    assert why == "has the ranks [1]; expected 2 numbers, 1 for the best"


def test_several_completions_make_every_pair() -> None:
    found = read_pairs([{"prompt": "p", "completions": ["x", "y", "z"]}])
    assert [(pair.a, pair.b) for pair in found.pairs] == [("x", "y"), ("x", "z"), ("y", "z")]


def tree() -> dict[str, Any]:
    def reply(name: str, rank: int | None, *replies: dict[str, Any], role: str = "assistant") -> dict[str, Any]:
        return {"message_id": name, "text": name, "role": role, "rank": rank, "replies": list(replies)}

    follow_up = reply("and then?", None, reply("u", 1), reply("v", 0), role="prompter")
    top = reply("q", None, reply("x", 2), reply("y", 0, follow_up), reply("z", 1), reply("w", None), role="prompter")
    return {"message_tree_id": "q", "prompt": top}


OASST = [("y", "z"), ("y", "x"), ("z", "x"), ("v", "u")]


def test_oasst_trees_give_ranked_pairs_of_replies_to_the_same_message() -> None:
    found = read_pairs([tree()])
    assert [(pair.a[0]["content"], pair.b[0]["content"]) for pair in found.pairs] == OASST
    assert [message["content"] for message in found.pairs[-1].prompt] == ["q", "y", "and then?"]
    assert {pair.gold for pair in found.pairs} == {-2}


def test_oasst_as_flat_messages_is_the_same() -> None:
    rows: list[dict[str, Any]] = []

    def flatten(node: dict[str, Any], parent: str | None) -> None:
        rows.append({key: value for key, value in node.items() if key != "replies"} | {"parent_id": parent})
        for reply in node["replies"]:
            flatten(reply, node["message_id"])

    flatten(tree()["prompt"], None)
    rows.append({"message_id": "lost", "parent_id": "nobody", "text": "?", "role": "assistant", "rank": 0})
    found = read_pairs(rows)
    assert [(pair.a[0]["content"], pair.b[0]["content"]) for pair in found.pairs] == OASST
    assert found.unusable == [("row 8", "answers the message 'nobody', which is not in the data")]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("text", "is str, expected an object"),
        ({"prompt": "p"}, "has only 'prompt'"),
        ({"prompt": "p", "completion": "x", "label": True}, "expected prompt and two completions"),
        ({"a": "x", "b": "y"}, "has no prompt"),
        ({"prompt": "  ", "a": "x", "b": "y"}, "has an empty prompt"),
        ({"prompt": "p", "a": "x", "b": "x"}, "has the same completion twice"),
        ({"prompt": "p", "a": "x", "b": said("y")}, "mixes texts and conversations"),
        ({"prompt": USER, "a": said("x"), "b": []}, "second completion with no message"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}], "a": said("x"), "b": said("y")}, "is no text"),
        ({"prompt": "p", "a": 1, "b": 2}, "has a first completion that is int"),
        ({"prompt": "p", "a": "x", "b": "y", "gold": 5}, "has the gold answer 5"),
        ({"prompt": "p", "a": "x\ud800", "b": "y"}, "lone surrogate"),
        ({"chosen": "x", "rejected": "y"}, "do not begin with a prompt"),
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"},
            "no beginning in common",
        ),
        ({"prompt": {"role": "prompter", "text": "q", "replies": []}}, "without two ranked replies"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_and_the_others_are_read(row: Any, why: str) -> None:
    found = read_pairs([{"prompt": "p", "a": "1", "b": "2"}, row, {"prompt": "p", "a": "1", "b": "3"}])
    assert len(found.pairs) == 2
    assert [where for where, _ in found.unusable] == ["row 1"] and why in found.unusable[0][1]


def test_the_same_pair_twice_is_one() -> None:
    found = read_pairs([{"prompt": "p", "a": "1", "b": "2"}, {"prompt": "p", "chosen": "2", "rejected": "1"}])
    assert len(found.pairs) == 1 and found.unusable == [("row 1", "is the pair of row 0 again")]


ROWS = [{"prompt": f"p{i}", "chosen": f"é{i}", "rejected": f"y{i}"} for i in range(3)]


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "csv", "parquet", "folder", "dataset"])
def test_every_kind_of_source(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"pairs.{kind}"
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    dataset = datasets.Dataset.from_list(ROWS)
    source: Any = path
    if kind == "jsonl":
        path.write_bytes(b"\xef\xbb\xbf" + lines.encode() + b"\n")
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif kind == "json":
        path.write_text(json.dumps(ROWS), encoding="utf-8")
    elif kind == "csv":
        path.write_text("prompt,chosen,rejected\n" + "".join(f"p{i},é{i},y{i}\n" for i in range(3)), encoding="utf-8")
    elif kind == "parquet":
        dataset.to_parquet(path)
    elif kind == "folder":
        dataset.save_to_disk(path)
    else:
        source = dataset
    found = read_pairs(source)
    assert [(pair.prompt, pair.a) for pair in found.pairs] == [("p0", "é0"), ("p1", "é1"), ("p2", "é2")]


def test_broken_lines_of_a_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b'{"prompt": "p", "a": "1", "b": "2"}\n{"prompt": \n\xff\n' + b"[" * 100_000 + b"\n")
    found: Imported = read_pairs(str(path))
    assert len(found.pairs) == 1
    assert [where for where, _ in found.unusable] == [f"pairs.jsonl, line {n}," for n in (2, 3, 4)]


def test_a_source_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no file .*nothing.jsonl"):
        read_pairs(tmp_path / "nothing.jsonl")
    (tmp_path / "one.json").write_text('{"prompt": 1}')
    with pytest.raises(ValueError, match="holds a dict; expected a list"):
        read_pairs(tmp_path / "one.json")


def test_transcripts_there_and_back() -> None:
    text = "\n\nHuman: one\n\ntwo\n\nAssistant: three\n\nHuman: four\n\nAssistant: five"
    assert as_text(transcript(text)) == text
    with pytest.raises(ValueError, match="expected Human"):
        transcript("System: x\n\nHuman: one")
