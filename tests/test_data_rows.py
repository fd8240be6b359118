"""Rows that cannot be used or are too long: refused by name, or left out or cut by the documented rule, and counted."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from chat_tokenizers import says, user
from preference_runs import small_env, weights
from small_models import LETTERS, llama, tokenizer

from lm_gym.agents import DPO, KTO, SFT
from lm_gym.cli import main
from lm_gym.data_rows import Rows, end_of, shorten
from lm_gym.demonstrations import Demonstration, load_demonstrations
from lm_gym.preferences import Preference, load_feedback, load_preferences, load_rankings
from lm_gym.reward_models.bradley_terry import train_reward_model

BOS = 1
GOOD = [{"prompt": "ab", "chosen": "cd", "rejected": "ef"}, {"prompt": "h", "chosen": "a", "rejected": "b"}]
BAD = [{"prompt": "a", "chosen": "b", "rejected": "b"}, {"prompt": "a", "chosen": None, "rejected": "b"}]
LONG = {"prompt": "a", "chosen": "b" * 20, "rejected": "c"}


def said(read: Any) -> tuple[Any, list[str]]:
    """What a call gives, and its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = read()
    return found, [str(w.message) for w in caught]


# ---- the rule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "answers", "room", "wanted"),
    [
        ([2, 3, 4, 5], [[6], [7, 8]], 6, ([2, 3, 4, 5], [[6], [7, 8]])),  # it fits
        ([2, 3, 4, 5], [[6], [7, 8]], 5, ([3, 4, 5], [[6], [7, 8]])),  # the prompt's beginning, by the longer answer
        ([BOS, 3, 4, 5], [[7, 8]], 5, ([BOS, 4, 5], [[7, 8]])),  # BOS stays
        ([2, 3, 4, 5], [[6, 7, 8, 9, 9]], 6, ([3, 4, 5], [[6, 7, 8]])),  # down to half, then the answer's end
        ([2], [[6, 7, 8, 9, 9]], 4, ([2], [[6, 7, 8]])),  # a short prompt stays whole
        ([BOS, 3, 4], [[6, 7, 8]], 2, ([4], [[6]])),  # one token of prompt is the last
        ([], [[6, 7, 8]], 2, ([], [[6, 7]])),
    ],
)
def test_what_is_cut(prompt: Any, answers: Any, room: int, wanted: Any) -> None:
    assert shorten(prompt, answers, room, BOS) == wanted
    assert end_of(prompt, 99, BOS) == prompt


def test_what_makes_no_sense_is_refused() -> None:
    for options in ({"unusable": "skip"}, {"too_long": "truncate"}, {"max_length": 1}):
        with pytest.raises(ValueError, match="expected"):
            Rows("rows", **options)
    for agent, options in ((DPO, {"unusable": "drop"}), (KTO, {"too_long": "cut"}), (DPO, {"max_length": 9})):
        with pytest.raises(ValueError, match="asks for; got none"):
            agent(small_env(), **options)


# ---- rows that cannot be used ----------------------------------------------------------------------------------------


def test_unusable_rows_are_left_out_where_that_is_asked_for() -> None:
    rows = [GOOD[0], *BAD, GOOD[1]]
    with pytest.raises(
        ValueError, match=r"2 of 4 rows .* row 1 has the same text .* \(unusable=drop leaves them out\)"
    ):
        load_preferences(rows)
    found, [warning] = said(lambda: load_preferences(rows, unusable="drop"))
    assert found == load_preferences(GOOD)
    assert warning.startswith("2 of 4 rows of the preference data cannot be used and are left out: row 1 has the same")
    assert "row 2 has no 'chosen'" in warning and warning.endswith("2 rows are left")
    assert said(lambda: load_preferences(GOOD, unusable="drop"))[1] == []
    with pytest.raises(ValueError, match="2 of 2 rows of the preference data cannot be used"):
        load_preferences(BAD, unusable="drop")  # nothing is left
    with pytest.raises(ValueError, match="unusable expected one of"):
        load_preferences(GOOD, unusable="ignore")


def test_a_line_that_is_no_json_is_a_row_that_cannot_be_used(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    good = json.dumps({"prompt": "Say", "chosen": " yes", "rejected": " no"})
    file.write_text(f"{good}\n{{not json\n" + "[" * 3000 + f"\n{good}\n")
    with pytest.raises(ValueError, match="line 2, is not JSON"):
        load_preferences(str(file))
    with pytest.warns(UserWarning, match=r"2 of 4 rows of the preference data .*line 2, is not JSON.*nested too deep"):
        assert len(load_preferences(str(file), unusable="drop")) == 2


def test_every_kind_of_data_has_it() -> None:
    good = {"prompt": "a", "completion": "b", "label": True}
    assert len(said(lambda: load_feedback([good, {**good, "label": 0.5}], unusable="drop"))[0]) == 1
    good = {"prompt": "a", "completions": ["b", "c"]}
    assert len(said(lambda: load_rankings([good, {**good, "completions": []}], unusable="drop"))[0]) == 1
    rows = [{"text": "a"}, {"text": ""}, "a"]
    found, [warning] = said(lambda: load_demonstrations(rows, tokenizer(LETTERS), unusable="drop"))
    assert len(found) == 1 and warning.startswith("2 of 3 rows of the demonstrations cannot be used")


def test_what_the_template_refuses_is_a_row_that_cannot_be_used() -> None:
    bad = {"prompt": [{"role": "narrator", "content": "a"}], "chosen": [says("b")], "rejected": [says("c")]}
    rows = [{"prompt": [user("a")], "chosen": [says("b")], "rejected": [says("c")]}, bad]
    with pytest.raises(ValueError, match="1 of 2 rows of the preference data cannot be used: row 1 has message 0 with"):
        DPO(small_env(), pairs=rows, batch_size=2)
    agent, [warning] = said(lambda: DPO(small_env(), pairs=rows, batch_size=2, unusable="drop"))
    assert len(agent.example_source.examples) == 1 and "row 1 has message 0 with the role 'narrator'" in warning


# ---- rows that are too long ------------------------------------------------------------------------------------------


def test_long_pairs_are_refused_left_out_or_cut() -> None:
    """max_new_tokens is 8: twenty letters and EOS are cut to eight letters, without EOS, as a text at the limit."""
    rows = [*GOOD, LONG]
    with pytest.raises(ValueError, match=r"1 of 3 rows .*: row 2 has a response of 21 tokens .*too_long=cut or"):
        DPO(small_env(), pairs=rows, batch_size=2)
    dropped, [warning] = said(lambda: DPO(small_env(), pairs=rows, batch_size=2, too_long="drop"))
    assert dropped.example_source.examples.fingerprint() == DPO(small_env(), pairs=GOOD).config.pairs.split()[-1]
    assert warning.startswith("1 of 3 rows of the preference data are too long and are left out: row 2 has a response")
    assert dropped.data_rows == {"preference data": {"rows": 3, "unusable_dropped": 0, "too_long_dropped": 1}}
    cut, [warning] = said(lambda: DPO(small_env(), pairs=rows, batch_size=2, too_long="cut"))
    ids = tokenizer(LETTERS)("bc", add_special_tokens=False)["input_ids"]
    assert cut.example_source.examples.tokens[4:] == [[ids[0]] * 8, [ids[1], 2]]
    assert "were cut" in warning and warning.endswith("3 rows are left")
    assert cut.run_info()["data"] == {"preference data": {"rows": 3, "unusable_dropped": 0, "cut": 1}}


def test_long_prompts_lose_their_beginning() -> None:
    """128 positions less 8 new tokens leave 120 for the prompt; a max_length of 10 less the answer's 3 leaves 7."""
    row = {"prompt": "a" * 130 + "bcdefgh", "chosen": "cd", "rejected": "e"}
    with pytest.raises(ValueError, match=r"row 0 has a prompt of 137 tokens \(at most 120 beside max_new_tokens=8\)"):
        DPO(small_env(), pairs=[row], batch_size=2)
    tok = tokenizer(LETTERS)
    for options, wanted in (({}, "a" * 113 + "bcdefgh"), ({"max_length": 10}, "bcdefgh"), ({"max_length": 4}, "gh")):
        agent, warned = said(lambda o=options: DPO(small_env(), pairs=[row], batch_size=2, too_long="cut", **o))
        examples = agent.example_source.examples
        assert tok.decode(examples.prompt_ids[0]) == wanted and len(warned) == 1
    assert [tok.decode(t) for t in examples.tokens] == ["cd", "e<eos>"]  # half of 4 is the prompt's, half the answer's
    with pytest.raises(ValueError, match=r"row 0 has 10 tokens \(at most 9, by max_length\)"):
        KTO(small_env(), feedback=[{"prompt": "a" * 7, "completion": "cd", "label": True}], batch_size=2, max_length=9)


def test_answers_that_are_the_same_once_they_are_cut_are_no_pair() -> None:
    row = {"prompt": "a", "chosen": "b" * 20, "rejected": "b" * 21}
    agent, found = said(lambda: DPO(small_env(), pairs=[*GOOD, row], batch_size=2, too_long="cut", unusable="drop"))
    assert len(agent.example_source.examples) == 2
    assert any("the same once they are cut" in warning for warning in found)


def test_long_demonstrations() -> None:
    """aaaa and bcd.: eight tokens; seven have an a less, in smaller rooms prompt and answer have half each."""
    row, tok = {"prompt": "aaaa", "completion": "bcd"}, tokenizer(LETTERS)

    def cut(room: int, given: Any = row) -> tuple[str, int]:
        [found], _ = said(lambda: load_demonstrations([given], tok, max_tokens=room, too_long="cut"))
        return tok.decode(found.token_ids), sum(found.imitated)

    assert [cut(room) for room in (8, 7, 6, 4, 2)] == [
        ("aaaabcd<eos>", 4),
        ("aaabcd<eos>", 4),
        ("aaabcd", 3),
        ("aabc", 2),
        ("ab", 1),
    ]
    assert cut(3, {"text": "abcdef"}) == ("abc", 3)
    made = Demonstration((3, 4, 5, 6, 7, 8), (False, True, False, False, True, True))
    [found], _ = said(lambda: load_demonstrations([made], tok, max_tokens=4, too_long="cut"))
    assert found == Demonstration((3, 4), (False, True))  # what is left behind the last imitated token is of no use
    found, [warning] = said(lambda: load_demonstrations([row, {"text": "a"}], tok, max_tokens=6, too_long="drop"))
    assert len(found) == 1 and "row 0 has 8 tokens (at most 6)" in warning


def test_sft_takes_its_own_limit_and_no_more_than_the_models() -> None:
    rows = [{"prompt": "aaaa", "completion": "bcd"}, {"text": "a" * 200}]
    with pytest.raises(ValueError, match=r"row 1 has 201 tokens \(at most 128\)"):
        SFT(small_env(), data=rows)
    agent, _ = said(lambda: SFT(small_env(), data=rows, eval_data=rows, too_long="cut", max_length=6))
    assert [len(d.token_ids) for d in agent.data] == [6, 6] == [len(d.token_ids) for d in agent.eval_data]
    assert agent.data_rows["demonstrations"] == {"rows": 2, "unusable_dropped": 0, "cut": 2}
    with pytest.raises(ValueError, match="max_length expected 2"):
        SFT(small_env(), data=rows, max_length=0)


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_a_run_that_goes_on_has_the_same_rows(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*GOOD, *BAD, LONG, {**GOOD[0], "prompt": "c"}]))
    options = {"pairs": str(path), "batch_size": 4, "unusable": "drop", "too_long": "cut"}
    whole, _ = said(lambda: DPO(small_env(), **options).learn(120))
    half, _ = said(lambda: DPO(small_env(), **options))
    half.learn(120, callback=lambda agent, _: agent.updates < 2, out=tmp_path / "run")
    again, found = said(lambda: DPO.load(tmp_path / "run", small_env()))
    assert len(found) == 2  # said once more: left out, and cut
    again.learn(120, resume=True)
    assert again.updates == whole.updates and torch.equal(weights(again), weights(whole))


def test_demonstrations_that_changed_begin_a_new_pass(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "ab"}\n{"text": "cd"}\n{"text": "ef"}\n{"text": "gh"}\n')
    SFT(small_env(), data=str(path), batch_size=1).learn(4, out=tmp_path / "run")
    path.write_text('{"text": "ab"}\n')
    with pytest.warns(UserWarning, match="not those that the checkpoint was trained on: a new pass over them begins"):
        agent = SFT.load(tmp_path / "run", small_env())
    assert agent.order.left == []


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "data.jsonl", tmp_path / "run"
    rows = [{"prompt": "The film", "chosen": f" was good {i}.", "rejected": " was bad."} for i in range(3)]
    rows += [BAD[0], {**rows[0], "chosen": " and so on" * 30}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = f"--pairs {path} --total-tokens 20 --batch-size 4 --eval-texts 0 --threads 1".split()
    assert main(["train", "dpo", *flags, "--out", str(tmp_path / "no")]) == 2
    assert "1 of 5 rows of the preference data cannot be used: data.jsonl, line 4, has the same" in (
        capsys.readouterr().err
    )
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["train", "dpo", *flags, "--unusable", "drop", "--too-long", "drop", "--out", str(out)]) == 0
    text = capsys.readouterr().err
    assert "warning: 1 of 5 rows of the preference data cannot be used and are left out: data.jsonl, line 4" in text
    assert "warning: 1 of 5 rows of the preference data are too long and are left out: data.jsonl, line 5" in text
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["run"]["data"] == {"preference data": {"rows": 5, "unusable_dropped": 1, "too_long_dropped": 1}}
    assert config["agent"]["unusable"] == config["agent"]["too_long"] == "drop"


def test_a_reward_model_cuts_leaves_out_or_refuses(tmp_path: Path) -> None:
    tok = tokenizer()
    llama(len(tok)).save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    data = [Preference("p", "a" * (4 + (i == 3) * 40), "b") for i in range(12)]
    options: dict[str, Any] = {"model": str(tmp_path), "max_length": 16, "epochs": 1, "batch_size": 6, "held_out": 0.0}
    with pytest.raises(ValueError, match=r"1 of 12 rows of the comparisons are too long: comparison 3 has 45 tokens"):
        train_reward_model(data, **options, too_long="error")
    _, [warning] = said(lambda: train_reward_model(data, **options))
    assert "1 of 12 rows of the comparisons are too long and were cut" in warning
    less, [warning] = said(lambda: train_reward_model(data, **options, too_long="drop"))
    assert warning.endswith("11 rows are left")
    plain = train_reward_model(data[:3] + data[4:], **options)
    assert less.judge(["p"], ["ab"]) == plain.judge(["p"], ["ab"])
    talk = Preference([user("a")], [says("b")], [says("c")])
    with pytest.raises(ValueError, match="comparison 12 .*its tokenizer has no chat template"):
        train_reward_model([*data, talk], **options)
