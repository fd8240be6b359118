"""Simulated annotators: their answers have the shares that their parameters say, and a seed gives the same bytes."""

import json
import math

import numpy as np
import pytest
from small_models import letter_reward, small_lm

from lm_gym.cli import main
from lm_gym.preference_data import Annotators, Pair, draw_pairs, label_pairs, write_preferences
from lm_gym.preferences import load_preferences
from lm_gym.prompts import Prompt, load_prompts

PROMPT = Prompt(0, "p", (1,), {"kind": "x"})


def same_pair(count, difference=0.5, texts=("one", "two words")):
    return [Pair(PROMPT, texts, (difference, 0.0))] * count


def share(labelled, text="one"):
    """Of the answers (ties left out) that take the text."""
    decided = [p for p in labelled if p.label != 0.5]
    return sum(p.chosen == text for p in decided) / len(decided)


@pytest.mark.parametrize("temperature", [0.25, 1.0])
def test_bradley_terry_noise(temperature):
    expected = 1 / (1 + math.exp(-0.5 / temperature))
    assert share(label_pairs(same_pair(4000), Annotators(temperature=temperature))) == pytest.approx(
        expected, abs=0.025
    )
    assert share(label_pairs(same_pair(50), Annotators(temperature=0))) == 1
    assert share(label_pairs(same_pair(50), Annotators(temperature=0, flipped=1))) == 0


def test_ties_are_those_of_rao_and_kupper():
    labelled = label_pairs(same_pair(4000), Annotators(temperature=0.5, tie=0.7))
    win, lose = 1 / (1 + math.exp(0.7 - 1)), 1 / (1 + math.exp(0.7 + 1))
    counted = np.mean([p.label == 0.5 for p in labelled])
    assert counted == pytest.approx((math.exp(1.4) - 1) * win * lose, abs=0.025)
    assert share(labelled) == pytest.approx(win / (win + lose), abs=0.025)
    ties = [p for p in labelled if p.label == 0.5]
    assert np.mean([p.chosen == "one" for p in ties]) == pytest.approx(0.5, abs=0.05)  # its place says nothing


def test_flips_and_biases():
    flipped = label_pairs(same_pair(4000), Annotators(temperature=0.05, flipped=0.2))
    assert share(flipped) == pytest.approx(0.8, abs=0.025)
    long = label_pairs(same_pair(4000, 0.0), Annotators(length_bias=1.0))
    assert share(long) == pytest.approx(1 / (1 + math.e), abs=0.025)  # the other is longer by a word
    first = label_pairs(same_pair(4000, 0.0), Annotators(position_bias=1.0))
    assert np.mean([p.columns["shown_first"] == "chosen" for p in first]) == pytest.approx(
        math.e / (1 + math.e), abs=0.025
    )


def test_several_annotators():
    annotators = Annotators(temperature=0.5, annotators=3, annotator_spread=1.0, labels_per_pair=2)
    labelled = label_pairs(same_pair(3000), annotators)
    assert len(labelled) == 6000
    assert all(labelled[i].annotator != labelled[i + 1].annotator for i in range(0, 6000, 2))
    low, middle, high = annotators.scales()
    assert (low * high, middle) == pytest.approx((1, 1))
    for place, scale in enumerate((low, middle, high)):
        own = [p for p in labelled if p.annotator == f"annotator-{place}"]
        assert share(own) == pytest.approx(1 / (1 + math.exp(-scale)), abs=0.04)


def test_scores_and_columns_stand_beside_the_texts():
    [found] = label_pairs(same_pair(1), Annotators(temperature=0))
    assert (found.prompt, found.chosen, found.rejected, found.annotator) == ("p", "one", "two words", None)
    assert found.columns["gold_chosen"] == 0.5 and found.columns["gold_rejected"] == 0.0
    assert found.columns["kind"] == "x" and found.columns["shown_first"] in ("chosen", "rejected")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature expected"),
        ({"flipped": 2}, "share between 0 and 1"),
        ({"labels_per_pair": 2}, "labels_per_pair <= annotators"),
        ({"annotator_spread": 1}, "no effect on one annotator"),
        ({"temperature": 0, "length_bias": 1}, "length_bias would do nothing"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        Annotators(**options)


def test_pairs_of_a_model_are_different_texts_with_their_scores(tmp_path):
    lm = small_lm()
    prompts = load_prompts(["abc", "a", "bad"], lm.tokenizer)
    pairs = draw_pairs(lm, prompts, letter_reward, 7, max_new_tokens=6, seed=3)
    assert [p.prompt.text for p in pairs] == ["abc", "a", "bad", "abc", "a", "bad", "abc"]
    assert all(one.strip() != two.strip() for one, two in (p.texts for p in pairs))
    for pair in pairs:
        assert list(pair.scores) == pytest.approx(letter_reward(list(pair.texts)))
    again, other = (draw_pairs(lm, prompts, letter_reward, 7, max_new_tokens=6, seed=seed) for seed in (3, 4))
    assert again == pairs != other
    path = write_preferences(tmp_path / "pairs.jsonl", label_pairs(pairs, Annotators()))
    assert load_preferences(path) == label_pairs(pairs, Annotators())


def test_a_model_that_always_writes_the_same_is_named():
    lm = small_lm()
    prompts = load_prompts(["abc"], lm.tokenizer)
    with pytest.raises(ValueError, match="the same text twice for 1 of 1 prompts, such as 'abc'"):
        draw_pairs(lm, prompts, letter_reward, 1, max_new_tokens=2, temperature=1e-4)


def test_the_command_writes_disjoint_prompts_and_the_same_bytes(tmp_path, capsys):
    flags = "--prompts tiny:requests --pairs 6 --test-pairs 4 --max-new-tokens 4 --flipped .1".split()
    for name in ("one", "two"):
        assert main(["preferences", "make", "--out", str(tmp_path / name), *flags]) == 0
    parts = [(tmp_path / "one" / part).read_bytes() for part in ("train.jsonl", "test.jsonl")]
    assert parts == [(tmp_path / "two" / part).read_bytes() for part in ("train.jsonl", "test.jsonl")]
    train, test = ([json.loads(line) for line in part.splitlines()] for part in parts)
    assert (len(train), len(test)) == (6, 4)
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}
    assert "6 rows, 6 prompts" in capsys.readouterr().out
    assert main(["preferences", "make", "--out", str(tmp_path / "one"), *flags]) == 2
    assert "already holds train.jsonl and test.jsonl" in capsys.readouterr().err
