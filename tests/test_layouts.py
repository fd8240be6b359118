"""Published layouts by their own columns, at every door where data enters, and files of every kind."""

import gzip
import json
import logging
import math

import datasets
import gymnasium as gym
import pandas
import published_rows as published
import pytest
import torch
from preference_runs import TEMPLATE
from small_models import llama, tokenizer

from lm_gym.agents import DPO, KTO, SFT
from lm_gym.annotate.importing import read_pairs
from lm_gym.cli import main
from lm_gym.demonstrations import load_demonstrations
from lm_gym.layout_rows import layout_rows
from lm_gym.layouts import LAYOUTS
from lm_gym.mdp import AlignmentMDP
from lm_gym.models import TransformersLM
from lm_gym.preferences import load_feedback, load_preferences, load_rankings
from lm_gym.prompts import load_prompts
from lm_gym.reward_models.bradley_terry import RewardModelConfig, train_reward_model


def chat_tokenizer():
    tok = tokenizer()
    tok.chat_template = TEMPLATE
    return tok


def numbered(rows):
    return [(f"row {i}", row) for i, row in enumerate(rows)]


def test_every_layout_of_the_table_has_rows_here():
    here = {*published.PAIRS, *published.DEMONSTRATIONS, *published.KTO} - {"Alpaca with history"}
    assert here == {layout.name for layout in LAYOUTS}


@pytest.mark.parametrize("name", published.PAIRS)
def test_pairs_come_out_by_what_was_said_of_them(name, caplog):
    rows, expected = published.PAIRS[name]
    found = load_preferences(rows)
    assert [(p.prompt, p.chosen, p.rejected, p.label, p.margin) for p in found] == [pair[:5] for pair in expected]
    ties = f" ({sum(p.label == 0.5 for p in found)} of them ties)" * any(p.label == 0.5 for p in found)
    [line] = caplog.messages
    assert line.startswith(f"note: recognised {name} (columns ")
    assert f"): {len(rows)} row{'s' * (len(rows) > 1)}, pairs: {len(found)}{ties}" in line


@pytest.mark.parametrize("name", published.PAIRS)
def test_pairs_to_annotate_have_the_known_answer(name):
    rows, expected = published.PAIRS[name]
    found = read_pairs(rows)
    assert [(p.prompt, p.a, p.b, p.gold) for p in found.pairs] == [(*pair[:3], pair[5]) for pair in expected]
    assert found.unusable == []


def test_other_columns_travel():
    [pair, _] = load_preferences(published.PAIRS["SHP"][0])
    assert pair.columns["score_ratio"] == 1.8 and pair.columns["labels"] == 0 and "history" not in pair.columns
    [pair, *_] = load_preferences(published.PAIRS["HelpSteer"][0])
    assert (pair.columns["helpfulness_chosen"], pair.columns["helpfulness_rejected"]) == (4, 1)
    [pair, *_] = load_preferences(published.PAIRS["Nectar"][0])
    assert (pair.columns["model_chosen"], pair.columns["model_rejected"], pair.columns["turns"]) == ("my", "mx", 1)


def test_an_answer_without_another_to_its_prompt_is_counted(caplog):
    assert len(load_preferences(published.PAIRS["HelpSteer"][0])) == 4
    assert "6 rows, pairs: 4 (2 of them ties); left out, without another answer to the prompt: 1" in caplog.text


def test_a_row_of_several_that_is_broken_is_named_alone():
    rows = published.PAIRS["HelpSteer"][0]
    with pytest.raises(ValueError, match="1 of 7 rows .* row 6 has the helpfulness None; expected a number. To do"):
        load_preferences([*rows, rows[0] | {"response": "a4", "helpfulness": None}])
    [row] = published.PAIRS["Nectar"][0]
    found = read_pairs([row, row | {"answers": row["answers"][:1]}])  # one answer alone is nothing to compare
    assert (len(found.pairs), found.unusable) == (3, [])


def test_nothing_left_is_an_error():
    with pytest.raises(ValueError, match="nothing is left of the 1 rows of the preference data: no prompt has two ans"):
        load_preferences(published.PAIRS["HelpSteer"][0][2:3])
    with pytest.raises(ValueError, match="nothing is left of the 1 rows of the demonstrations: their answers were rej"):
        load_demonstrations(published.KTO["KTO with messages"][1:], chat_tokenizer())


def test_nectar_is_a_ranking():
    [found] = load_rankings(published.PAIRS["Nectar"][0])
    assert found.completions == ("y", "x", "z")


@pytest.mark.parametrize("name", published.DEMONSTRATIONS)
def test_demonstrations_are_what_their_columns_say(name):
    rows, expected = published.DEMONSTRATIONS[name]
    tok = chat_tokenizer()
    assert load_demonstrations(rows, tok) == load_demonstrations(expected, tok)


@pytest.mark.parametrize("name", published.KTO)
def test_judged_answers_of_llama_factory(name, caplog):
    rows = published.KTO[name]
    plain = "instruction" in rows[0]
    prompt = "Name a colour." if plain else [published.ASK]
    found = load_feedback(rows)
    assert [(f.prompt, f.completion, f.good) for f in found] == [
        (prompt, text if plain else published.said(text), text == "Red.") for text in ("Red.", "Mud.")
    ]
    # SFT imitates the good answers alone
    [text] = load_demonstrations(rows, tok := chat_tokenizer())
    assert "Red." in tok.decode(text.token_ids) and "Mud." not in tok.decode(text.token_ids)
    assert "note: 1 of 2 demonstrations are left out: their answers were rejected" in caplog.text


def test_sft_leaves_out_the_rejected_answers_of_trls_unpaired_format_too(caplog):
    rows = [{"prompt": "a", "completion": c, "label": good} for c, good in (("b", True), ("c", False), ("d", None))]
    assert len(load_demonstrations(rows, tokenizer())) == 2
    assert "1 of 3 demonstrations are left out" in caplog.text
    classes = [{"prompt": "a", "completion": "b", "label": 0}, {"text": "ab", "label": False}]  # which may be classes
    assert len(load_demonstrations(classes, tokenizer())) == 2


PROMPTS = [
    (published.PAIRS["SHP"][0][0], "How to bake?"),
    (published.PAIRS["WebGPT comparisons"][0][0], "Why 0?"),
    (published.PAIRS["HelpSteer"][0][0], "Say a"),
    (published.PAIRS["Orca-DPO"][0][1], [published.ASK]),
    (published.PAIRS["Chatbot Arena"][0][0], [published.ASK]),
    (published.PAIRS["Chatbot Arena, JSON"][0][0], [published.ASK]),
    (published.PAIRS["OpenAI preferences"][0][0], [published.ASK]),
    (published.DEMONSTRATIONS["Alpaca"][0][0], "Translate:\nrouge"),
    (
        published.DEMONSTRATIONS["ShareGPT"][0][1],
        [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}],
    ),
]


@pytest.mark.parametrize(("row", "expected"), PROMPTS)
def test_prompts(row, expected):
    [prompt] = load_prompts([row], chat_tokenizer())
    assert prompt.for_reward == expected
    assert prompt.columns.get("answer_0") == row.get("answer_0")


def test_all_layouts_train(tmp_path):
    """Pairs of every layout through DPO and a reward model, demonstrations through SFT, judged texts through KTO."""
    tok = chat_tokenizer()
    lm = TransformersLM(llama(len(tok), positions=256), tok, "random")
    env = gym.make(
        "LMAlign-v0", mdp=AlignmentMDP(model=lm, prompts=["a"], reward_model="length?target=9", max_new_tokens=40)
    )
    rows = [row for given, _ in published.PAIRS.values() for row in given]
    one_turn = [row for row in rows if "response_a" not in row]
    agents = [
        DPO(env, pairs=one_turn, batch_size=8),
        SFT(env, data=[row for given, _ in published.DEMONSTRATIONS.values() for row in given], batch_size=8),
        KTO(env, feedback=[row for given in published.KTO.values() for row in given], batch_size=8),
    ]
    for agent in agents:
        before = [p.detach().clone() for p in agent.params.values()]
        agent.learn(50)
        assert any(not torch.equal(a, b) for a, b in zip(before, agent.params.values()))
    data = load_preferences(rows)
    assert len(data) == sum(len(expected) for _, expected in published.PAIRS.values())
    lm.model.save_pretrained(tmp_path), tok.save_pretrained(tmp_path)
    fit = train_reward_model(data, RewardModelConfig(model=str(tmp_path), epochs=1, batch_size=8, held_out=0))
    assert math.isfinite(fit.history[-1]["train_loss"])


# ---- which layout it is ----------------------------------------------------------------------------------------------


def test_trls_own_columns_come_first():
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "system": "s", "question": "q", "winner": "tie"}
    [found] = load_preferences([row])
    assert found.prompt == "p" and found.columns["question"] == "q"
    assert layout_rows("demonstrations", [("row 0", {"messages": [], "instruction": "i", "output": "o"})])[1] == []


def test_chosen_and_rejected_with_a_question_are_no_implicit_prompt():
    row = {"instruction": "Colour?", "input": "", "chosen": "It is red", "rejected": "It is mud"}
    [found] = load_preferences([row])
    assert (found.prompt, found.chosen, found.rejected) == ("Colour?", "It is red", "It is mud")


def test_alpaca_pairs_with_a_system_prompt_are_not_argillas_orca():
    row = {"instruction": "Say", "input": "hi", "system": "Be.", "history": [], "chosen": "a", "rejected": "b"}
    [found] = load_preferences([row])
    assert found.prompt == [{"role": "system", "content": "Be."}, {"role": "user", "content": "Say\nhi"}]


def test_what_is_said_behind_the_last_answer_is_left_out():
    rows = [{"conversations": [published.turn(who, who) for who in ("human", "gpt", "human")]}]
    wanted = [{"messages": [{"role": "user", "content": "human"}, *published.said("gpt")]}]
    assert load_demonstrations(rows, tok := chat_tokenizer()) == load_demonstrations(wanted, tok)


def test_values_may_be_written_out_as_in_a_table_of_texts():
    [row, *_] = published.PAIRS["SHP"][0]
    for said in (0, 0.0, "0", "0.0", " 0 "):
        [pair] = load_preferences([row | {"labels": said}])
        assert pair.chosen == "Hot."


@pytest.mark.parametrize(
    ("load", "row", "message"),
    [
        (
            load_preferences,
            published.PAIRS["SHP"][0][0] | published.PAIRS["WebGPT comparisons"][0][0],
            r"row 0 fits two layouts, SHP \(history.*\) and WebGPT comparisons \(.*\): rename the columns of one",
        ),
        (load_preferences, published.DEMONSTRATIONS["Alpaca"][0][1], "is laid out as Alpaca, which has demonstrations"),
        (
            load_feedback,
            published.PAIRS["SHP"][0][0],
            r"is laid out as SHP, which has pairs \(for dpo.*\); expected feedback data",
        ),
        (load_preferences, published.PAIRS["SHP"][0][0] | {"labels": 2}, "row 0 has the labels 2; expected 1, 0"),
        (
            load_preferences,
            published.PAIRS["SHP"][0][0] | {"chosen": "x"},
            "has the column 'chosen' beside those of its",
        ),
        (
            load_preferences,
            published.PAIRS["HelpSteer3"][0][0] | {"overall_preference": None},
            "has the overall_preference None; expected a number",
        ),
        (load_preferences, published.PAIRS["WebGPT comparisons"][0][0] | {"question": "q"}, "has nothing at question"),
        (
            load_preferences,
            published.PAIRS["Nectar"][0][0] | {"answers": ["x", "y"]},
            "has nothing at answer",
        ),
        (
            load_preferences,
            published.PAIRS["WebGPT comparisons"][0][0] | {"score_0": 10**400},
            "has the score_0 1000.*; expected a number",
        ),
        (
            load_preferences,
            published.PAIRS["Chatbot Arena, JSON"][0][0] | {"winner_model_b": True},
            "has winner_model_a=1, winner_model_b=True, winner_tie=0; expected one 1",
        ),
        (
            load_preferences,
            published.PAIRS["Chatbot Arena, JSON"][0][0] | {"winner_model_a": 0},
            "has winner_model_a=0, winner_model_b=0, winner_tie=0; expected one 1",
        ),
        (
            load_preferences,
            published.PAIRS["ShareGPT pairs"][0][0] | {"chosen": 3},
            "has the answer 3; expected a text, a message or a list of them",
        ),
        (
            lambda rows: load_demonstrations(rows, None),
            {"instruction": "Say a", "input": "", "output": None, "text": "Say a. a"},
            "has no answer in output",
        ),
        (
            lambda rows: load_demonstrations(rows, None),
            {"instruction": "Say a", "input": "", "output": "a", "history": ["q"]},
            "has the history 'q'; expected pairs",
        ),
        (
            load_feedback,
            {"conversations": [published.turn("human", "a")], "kto_tag": True},
            "has conversations without an answer of the assistant",
        ),
        (
            load_feedback,
            {"conversations": [published.turn("narrator", "a")], "kto_tag": True},
            "has a message from 'narrator'; expected one of system, developer, user",
        ),
    ],
)
def test_rows_that_a_layout_cannot_be_read_from_are_named(load, row, message):
    with pytest.raises(ValueError, match=message):
        load([row])


@pytest.mark.parametrize("name", published.PAIRS)
def test_a_table_of_texts_has_its_lists_and_objects_as_json(name):
    rows, expected = published.PAIRS[name]
    as_json = lambda value: json.dumps(value) if isinstance(value, (list, dict)) else value
    found = load_preferences([{column: as_json(value) for column, value in row.items()} for row in rows])
    assert [(p.prompt, p.chosen, p.rejected, p.label, p.margin) for p in found] == [pair[:5] for pair in expected]


@pytest.mark.parametrize("name", published.PAIRS)
def test_rows_of_pandas_are_those_of_their_file(name, tmp_path):
    rows, expected = published.PAIRS[name]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "rows.parquet"))
    found = load_preferences(pandas.read_parquet(tmp_path / "rows.parquet").to_dict("records"))
    assert [(p.prompt, p.chosen, p.rejected, p.label, p.margin) for p in found] == [pair[:5] for pair in expected]


def test_the_nan_of_an_empty_field_is_nothing():
    row = {"instruction": "Say a", "output": "a"}
    expected = load_demonstrations([row | {"input": ""}], tokenizer())
    assert load_demonstrations([row | {"input": math.nan}], tokenizer()) == expected
    expected = load_demonstrations([row | {"input": "", "system": None}], chat_tokenizer())
    assert load_demonstrations([row | {"input": "", "system": math.nan}], chat_tokenizer()) == expected
    [pair] = load_preferences([{"prompt": "p", "chosen": "a", "rejected": "b", "annotator": math.nan}])
    assert pair.annotator is None


def test_a_column_that_stands_twice_in_a_header_is_named(tmp_path):
    (tmp_path / "twice.csv").write_text("prompt,chosen,chosen,rejected\na,b,c,d\n")
    with pytest.raises(ValueError, match="line 1: the column 'chosen' stands in the header twice; rename one"):
        load_preferences(str(tmp_path / "twice.csv"))


def test_an_answer_that_is_missing_takes_no_other_along():
    rows = [{"prompt": "p", "response": said, "helpfulness": h} for said, h in ((None, 4), ("a", 3), ("b", 1))]
    with pytest.warns(UserWarning, match="row 0 has no answer in response. 1 rows are left"):
        [pair] = load_preferences(rows, unusable="drop")
    assert (pair.chosen, pair.rejected, pair.margin) == ("a", "b", 2.0)


@pytest.mark.parametrize("write", [json.dumps, str])
def test_messages_that_are_written_as_a_text_are_no_text(write):
    prompt = [{"content": "Hi", "role": "user"}]
    answers = [write([*prompt, {"content": said, "role": "assistant"}]) for said in ("a", "b")]
    doors = [
        lambda: load_preferences([{"prompt": "Hi", "chosen": answers[0], "rejected": answers[1]}]),
        lambda: load_feedback([{"prompt": "Hi", "completion": answers[0], "label": True}]),
        lambda: load_demonstrations([{"prompt": "Hi", "completion": answers[0]}], tokenizer()),
        lambda: load_prompts([write(prompt)], tokenizer()),
    ]
    for door in doors:
        with pytest.raises(ValueError, match="a list of messages written out as text"):
            door()
    assert load_preferences([{"prompt": "Hi", "chosen": '[{"role": 1}]', "rejected": "[]"}])  # JSON may be an answer


def test_nothing_is_said_of_trls_own_columns(caplog):
    load_preferences([{"prompt": "p", "chosen": "a", "rejected": "b"}])
    assert caplog.messages == []


# ---- files -----------------------------------------------------------------------------------------------------------

ROWS = [{"prompt": f"p{i}", "chosen": f"a\t{i}", "rejected": '"b", c', "code": "007"} for i in range(2)]


def write(path, kind):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    if kind.startswith(("jsonl", "json lines")):
        data = lines
    elif kind.startswith("json"):
        data = json.dumps(ROWS)
    else:
        import csv
        import io

        out = io.StringIO()
        table = csv.DictWriter(out, list(ROWS[0]), dialect="excel-tab" if kind.startswith("tsv") else "excel")
        table.writeheader()
        table.writerows(ROWS)
        data = out.getvalue()
    path.write_bytes(gzip.compress(data.encode()) if kind.endswith(".gz") else data.encode())


KINDS = ["jsonl", "jsonl.gz", "json", "json.gz", "csv", "csv.gz", "tsv", "tsv.gz", "parquet", "json lines"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_at_every_door(tmp_path, kind):
    path = tmp_path / f"rows.{'json' if kind == 'json lines' else kind}"
    if kind == "parquet":
        datasets.Dataset.from_list(ROWS).to_parquet(str(path))
    else:
        write(path, kind)
    expected = load_preferences(ROWS)
    assert load_preferences(str(path)) == expected
    assert read_pairs(path) == read_pairs(ROWS)
    prompts = load_prompts(str(path), tokenizer())
    assert prompts == load_prompts(ROWS, tokenizer())
    assert list(prompts[0].columns) == ["chosen", "rejected", "code"]


def test_texts_may_be_compressed(tmp_path):
    (tmp_path / "p.txt.gz").write_bytes(gzip.compress(b"one\n\ntwo\n"))
    assert [p.text for p in load_prompts(tmp_path / "p.txt.gz", tokenizer())] == ["one", "two"]


def test_a_csv_field_may_be_longer_than_the_readers_default_limit(tmp_path):
    (tmp_path / "p.csv").write_text(f"prompt,note\nhi,{'x' * 200_000}\n")
    assert len(load_prompts(tmp_path / "p.csv", tokenizer())[0].columns["note"]) == 200_000


def test_line_ends_within_a_field_stay(tmp_path):
    (tmp_path / "p.csv").write_bytes(b'\xef\xbb\xbfprompt,note\r\nhi,"a\r\nb\nc"\r\n')
    [prompt] = load_prompts(tmp_path / "p.csv", tokenizer())
    assert (prompt.text, prompt.columns) == ("hi", {"note": "a\r\nb\nc"})


def test_a_column_of_mixed_types_stays_as_it_is_written(tmp_path):
    values = ["007", 7, "1e3", True, None, [1], "nan"]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"prompt": "p", "answer": value}) + "\n" for value in values))
    found = [prompt.columns["answer"] for prompt in load_prompts(path, tokenizer())]
    assert found == values and [type(a) for a in found] == [type(a) for a in values]


def test_the_command_line_says_what_it_recognised(tmp_path, capsys, caplog):
    rows = [{"history": f"Q{i}:", "human_ref_A": " no", "human_ref_B": " yes", "labels": 0} for i in range(12)]
    path = tmp_path / "shp.parquet"
    datasets.Dataset.from_list(rows).to_parquet(str(path))
    small = "--layers 1 --epochs 1 --batch-size 8 --threads 1".split()
    with caplog.at_level(logging.WARNING, "lm_gym.data"):
        assert main(["train", "reward-model", "--data", str(path), "--out", str(tmp_path / "judge"), *small]) == 0
    assert "recognised SHP (columns history, human_ref_A, human_ref_B, labels): 12 rows, pairs: 12" in caplog.text
    assert "accuracy 100.0%" in capsys.readouterr().out
