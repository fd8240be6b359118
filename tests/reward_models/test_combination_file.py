"""combine:<file.yaml>: files of judges, read as a user would write them."""

import json

import pytest
from judges import ask

from lm_gym.reward_models.combination_file import KINDS, load_combination
from lm_gym.rewards import load_reward_model, reward_model_name

NESTED = r"""
kind: sum
parts:
  length: length?target=2&unit=words
  gate:
    kind: product
    parts:
      - regex?pattern=\d+
      - words?words=good,film
  again: {kind: cached, reward: "repetition?n=1"}
weights: {gate: 4, again: 0.5}
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="rewards.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return f"combine:{path}"

    return write


def test_a_file_of_nested_judges(write):
    judge = load_reward_model(write(NESTED))
    assert reward_model_name(judge) == "sum(length, gate, again)"
    # 4 words: −1; a number, and one of two target words: 4·½; "good" twice of 4: ½·(¾ − 1)
    assert ask(judge, ["good 3 Good times"]).scores.tolist() == [pytest.approx(-1 + 2 - 0.125)]


def test_json_and_a_path_of_the_current_folder(write, tmp_path, monkeypatch):
    write(json.dumps({"kind": "min", "parts": ["vader", "repetition"]}), "rewards.json")
    monkeypatch.chdir(tmp_path)
    assert reward_model_name(load_reward_model("combine:rewards.json")) == "min(vader, repetition)"


def test_a_file_within_a_file(write):
    inner = write(NESTED)
    outer = write(f"kind: normalised\nreward: {inner}\nmean: 1\nstd: 2\n", "outer.yaml")
    assert ask(load_reward_model(outer), ["good 3 Good times"]).scores.tolist() == [pytest.approx((0.875 - 1) / 2)]


FILES = {
    "sum": "parts: [vader]",
    "min": "parts: {a: vader, b: vader}",
    "product": "parts:\n  - words?words=a",
    "lexicographic": "parts: {first: vader, second: repetition}\nranges: {first: [0, .5], second: [-1, 0]}",
    "constrained": "objective: vader\nconstraints:\n  short: length?target=3\nat_least: {short: -0.5}\nlimits: [.1, 5]",
    "ensemble": "parts: [vader, vader]\nhow: mean-variance\npenalty: 0.5",
    "judge-by-column": "column: user\njudges: {ann: vader, 7: {kind: cached, reward: repetition}}",
    "weights-by-column": "column: user\nparts: {x: vader}\nweights: {ann: {x: 1}, 7: {x: 2}}",
    "normalised": "reward: vader\nmean: 0\nstd: 1",
    "cached": "reward: vader",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(write, kind):
    judge = load_reward_model(write(f"kind: {kind}\n{FILES[kind]}\n"))
    assert ask(judge, ["a good film"], user=["7"]).scores.shape == (1,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: summ\nparts: [vader]", r"has kind 'summ'. Did you mean 'sum'\? Kinds: sum, min"),
        ("kind: sum\nparts: [vader]\nweight: {}", r"unknown argument 'weight'. Did you mean 'weights'\?"),
        ("kind: sum", "missing 1 required positional argument: 'parts'"),
        ("kind: sum\nparts: {a: vadr}", "unknown reward model 'vadr'. Did you mean 'vader'"),
        ("kind: sum\nparts: {a: 3}", "parts, a expected a reward model, .* got 3"),
        ("kind: sum\nparts: {a: {reward: vader}}", "parts, a expected a reward model"),
        ("kind: sum\nparts: {a: {kind: min, parts: [vader], x: 1}}", "parts, a has the unknown argument 'x'"),
        ("vader", "expected a mapping with kind"),
        ("kind: [", "is no YAML"),
        ("kind: sum\nparts: [length?target=3]", 'needs quotes: "length'),
    ],
)
def test_a_wrong_file_says_where(write, text, message):
    with pytest.raises(ValueError, match=message):
        load_reward_model(write(text))


def test_no_such_file_and_arguments_outside_it(write):
    with pytest.raises(ValueError, match="there is no file .*nowhere.yaml"):
        load_reward_model("combine:nowhere.yaml")
    with pytest.raises(ValueError, match="with all arguments inside the file"):
        load_reward_model(write(NESTED) + "?weights=1")
    with pytest.raises(ValueError, match="expected combine:<file.yaml>"):
        load_reward_model("combine:")


def test_a_file_that_contains_itself(write, tmp_path):
    with pytest.raises(ValueError, match="contains itself"):
        load_reward_model(write(f"kind: sum\nparts: ['combine:{tmp_path}/rewards.yaml']"))
    assert load_combination(write(NESTED).removeprefix("combine:"))  # nothing is left open
