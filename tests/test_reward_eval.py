"""Evaluating a judge: measures against numbers worked out by hand, and planted faults that must show."""

import functools
import json
import random
import re

import numpy as np
import pytest

from lm_gym import tiny
from lm_gym.cli import main
from lm_gym.judged_pairs import judge_pairs
from lm_gym.preference_data import Annotators, Pair, label_pairs, write_preferences
from lm_gym.preferences import Preference
from lm_gym.prompts import Prompt
from lm_gym.reward_eval import evaluate
from lm_gym.reward_findings import findings
from lm_gym.reward_measures import (
    accuracy,
    brier,
    calibration_error,
    distinct,
    fitted_gain,
    groups_of_equal_size,
    novelty,
    partial,
    probabilities,
    reliability,
    repetition,
    through_origin,
)
from lm_gym.reward_page import write_page
from lm_gym.tiny import gold
from lm_gym.tiny.world_reviews import review


@functools.cache
def true_score(prompt, text):
    return gold.sentiment(prompt, text)


def sentiment(prompts, completions, **_):
    return [true_score(p, c) for p, c in zip(prompts, completions, strict=True)]


@functools.cache
def world_pairs(count, split="test", seed=0):
    """Reviews of tiny's world, two continuations for an opening, with their gold sentiment."""
    rng = random.Random(seed)
    rows = tiny.prompts("reviews", split)
    found = []
    for i in range(count):
        row = rows[i % len(rows)]
        texts = review(rng).completion, review(rng).completion
        scores = tuple(true_score(row["prompt"], text) for text in texts)
        columns = {name: value for name, value in row.items() if name != "prompt"}
        found.append(Pair(Prompt(i, row["prompt"], (1,), columns), texts, scores))
    return found


def evaluated(judge, annotators=None, count=500, *, truth=sentiment, **options):
    pairs = label_pairs(world_pairs(count), annotators or Annotators())
    judged = judge_pairs(pairs, judge if isinstance(judge, list) else [judge], gold=truth)
    return evaluate(judged, **options), judged


def noisy_gold(completions, prompts, noise=0.1, **_):
    """The gold in nats of the annotators, less a little that depends on the text."""
    return [
        4 * true_score(p, c) + noise * random.Random(c).gauss(0, 1) for p, c in zip(prompts, completions, strict=True)
    ]


def about(results, word):
    return [line for line in findings(results) if word in line]


# ---- measures --------------------------------------------------------------------------------------------------------


def test_accuracy_counts_equal_scores_half_and_leaves_ties_out():
    d, labels = np.array([1.0, -1.0, 0.0, 5.0, 2.0]), np.array([1.0, 1.0, 1.0, 0.5, 0.2])
    found = accuracy(d, labels, list("abcde"))
    assert found.value == pytest.approx((1 + 0 + 0.5 + 0) / 4)
    assert found.low <= found.value <= found.high


def test_intervals_draw_prompts_and_not_pairs():
    d, labels = np.tile([1.0, 1.0, 1.0, -1.0], 25), np.ones(100)
    alone = accuracy(d, labels, [str(i) for i in range(100)])
    together = accuracy(d, labels, ["wrong" if i % 4 == 3 else str(i % 4) for i in range(100)])
    assert together.high - together.low > 3 * (alone.high - alone.low)
    assert alone.high - alone.low == pytest.approx(2 * 1.96 * np.sqrt(0.75 * 0.25 / 100), rel=0.15)


def test_calibration_by_hand():
    # σ(±ln 3) = .75 or .25: of four pairs two are right, so |.75 − .5| is the error
    d, labels = np.log(3) * np.array([1.0, 1.0, -1.0, -1.0]), np.ones(4)
    [found] = reliability(d, labels)
    assert found == pytest.approx((0.75, 0.5, 4))
    assert calibration_error([found]) == pytest.approx(0.25)
    assert brier(d, labels) == pytest.approx((2 * 0.25**2 + 2 * 0.75**2) / 4)


def test_the_gain_makes_scores_calibrated():
    rng = np.random.default_rng(0)
    true = rng.normal(0, 2, 20_000)
    labels = (rng.random(20_000) < probabilities(true)).astype(float)
    assert fitted_gain(true / 5, labels) == pytest.approx(5, rel=0.05)
    assert calibration_error(reliability(true, labels)) < 0.01
    assert fitted_gain(np.array([1.0, 2.0]), np.ones(2)) < 100  # never wrong, and yet finite


def test_correlations_of_differences():
    x, rows = np.array([1.0, -1.0, 2.0, 0.0]), list("abcd")
    assert through_origin(x, 3 * x, rows).value == pytest.approx(1)
    assert through_origin(x, -x, rows).value == pytest.approx(-1)
    assert through_origin(x, np.array([1.0, 1.0, 1.0, 3.0]), rows).value == pytest.approx(2 / np.sqrt(6 * 12))
    assert through_origin(x, 0 * x, rows) == (0, 0, 0)
    rng = np.random.default_rng(0)
    x, noise, other = rng.normal(size=(3, 4000))
    rows = [str(i) for i in range(4000)]
    z = x + noise
    assert partial(z, 2 * z, x, rows).value == pytest.approx(1)
    found = partial(x + other, z, x, rows)  # they share x and nothing else
    assert found.low < 0 < found.high and found.high - found.low == pytest.approx(4 / np.sqrt(4000), rel=0.15)


def test_text_measures():
    assert repetition("good good GOOD film") == 0.5
    assert distinct(["a b a", "b"], 1) == 0.5
    assert novelty(["a b", "a c", ""], ["a b d"]).tolist() == [0.0, 0.5, 0.0]
    groups = groups_of_equal_size(np.array([0.0, 0.0, 0.0, 1.0, 2.0, 3.0]), 3)
    assert [group.tolist() for group in groups] == [[0, 1, 2], [3, 4], [5]] or len(np.concatenate(groups)) == 6


# ---- planted faults --------------------------------------------------------------------------------------------------


def test_a_good_judge_of_good_labels_has_no_findings():
    results, _ = evaluated(noisy_gold)
    assert findings(results) == []
    found = results["accuracy"]
    assert abs(found["gap"].value) < 0.03 and found["gold_order"].value > 0.93
    assert found["gold"].value == pytest.approx(0.86, abs=0.05)
    assert results["calibration"]["ece"] < 0.05


def test_flipped_labels_show():
    results, _ = evaluated(noisy_gold, Annotators(flipped=0.2))
    [line] = about(results, "Flipped labels")
    share = int(re.search(r"only (\d+)%", line).group(1))
    assert 70 <= share <= 88
    assert abs(results["accuracy"]["gap"].value) < 0.03  # not the judge's fault


def test_a_judge_biased_to_length_shows():
    def likes_length(completions, prompts, **_):
        scores = noisy_gold(completions, prompts)
        return [s + 0.3 * len(c.split()) for s, c in zip(scores, completions, strict=True)]

    results, _ = evaluated(likes_length)
    assert about(results, "Bias, length: the judge's scores rise with more")
    assert about(results, "with two sentences that say nothing")
    row = next(r for r in results["biases"] if r["name"] == "length")
    assert row["judge"].low > row["gold"].high


def test_annotators_biased_to_length_show_in_the_labels():
    results, _ = evaluated(noisy_gold, Annotators(length_bias=0.5))
    assert about(results, "Bias, length: the labels rise with more")
    assert not about(results, "Bias, length: the judge's")


def test_annotators_who_take_what_they_see_first_show():
    results, _ = evaluated(noisy_gold, Annotators(position_bias=1.5))
    assert about(results, "Bias, position (shown first): the labels")


def test_a_judge_that_pays_for_repeating_a_word_shows():
    def likes_repeating(completions, prompts, **_):
        scores = noisy_gold(completions, prompts)
        return [s + 8 * repetition(c) for s, c in zip(scores, completions, strict=True)]

    results, _ = evaluated(likes_repeating)
    [line] = about(results, "with the last word, eight times more")
    assert "(that of the gold by -" in line and "rises for 100% of the texts" in line
    assert about(results, "Bias, repetition: the judge's scores rise with more")


def test_a_judge_that_knows_nothing_is_below_the_ceiling_and_one_too_sure_is_not_calibrated():
    results, _ = evaluated(lambda completions, **_: [random.Random(c).random() for c in completions])
    assert about(results, "Below the ceiling")
    assert len(results["mistakes"]) == 10
    worst = results["mistakes"][0]
    assert worst["gold_better"] > worst["gold_worse"] and worst["score_better"] < worst["score_worse"]
    sure, _ = evaluated(lambda completions, prompts, **_: [10 * s for s in noisy_gold(completions, prompts)])
    assert about(sure, "too sure")


def test_without_a_gold_a_judge_is_held_against_chance():
    pairs = [Preference(f"{i}", "a b", "a", label=float(i % 4 != 3)) for i in range(100)]  # 75 of 100 take the longer
    for sign, words in ((1, []), (-1, ["Worse than chance: 25.0%"]), (0, ["No better than chance"])):
        judged = judge_pairs(pairs, [lambda completions, sign=sign, **_: [sign * len(c) * 1.0 for c in completions]])
        found = about(evaluate(judged), "chance")
        assert [line[: len(word)] for line, word in zip(found, words, strict=True)] == words


def test_leaks_kinds_distance_policy_and_ensembles():
    train = label_pairs(world_pairs(300, "train", seed=1), Annotators())
    policy_pairs = [
        Pair(p.prompt, (" good good good", " good good"), (0.1, 0.1)) for p in world_pairs(60, "train", seed=2)
    ]
    policy = judge_pairs(label_pairs(policy_pairs, Annotators()), [lambda completions, **_: [9.0] * len(completions)])
    unsure = lambda completions, prompts, **_: noisy_gold(completions, prompts, noise=2.0)
    results, judged = evaluated([noisy_gold, unsure], train=train, policy=policy, kind="topic")
    assert results["missing"] == []
    assert results["data"]["leaked_prompts"] == 0 and 0.7 < results["data"]["known_share"] < 1
    assert {row["name"] for row in results["by_kind"]["rows"]} == {p.columns["topic"] for p in judged.preferences}
    assert sum(row["count"] for row in results["by_novelty"]) == 500
    assert results["policy"]["judge_shift"] > 1 and about(results, "Over-optimisation")
    ensemble = results["ensemble"]
    assert ensemble["members"] == 2 and 0.5 < ensemble["correlation"] < 0.99
    assert ensemble["by_spread"][0]["judge"].value > ensemble["by_spread"][-1]["judge"].value
    leaky, _ = evaluated(noisy_gold, train=label_pairs(world_pairs(100), Annotators()))
    assert about(leaky, "Leak: ")


def test_agreement_of_annotators_is_counted_where_a_pair_was_asked_again():
    annotators = Annotators(temperature=0.5, annotators=3, labels_per_pair=3)
    results, _ = evaluated(noisy_gold, annotators, count=150)
    assert 0.3 < results["data"]["agree"] < 0.95 and results["data"]["annotators"] == 3


# ---- page and command ------------------------------------------------------------------------------------------------


def test_the_page_is_one_file_without_network_and_hides_no_markup(tmp_path):
    columns = {"gold_chosen": 1.0, "gold_rejected": 0.0}
    bad = Preference("<script>alert(1)</script>\x1b[2J\x00\u202e", " a & b\x9b", " c", columns=columns)
    judged = judge_pairs([bad, bad], [lambda completions, **_: [len(c) * -1.0 for c in completions]])
    results = evaluate(judged)
    page = write_page(tmp_path, results, judged).read_text()
    assert "&lt;script&gt;" in page and "<script>" not in page
    assert not re.search(r"(src|href)\s*=|https?://", page)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", page)
    assert json.loads((tmp_path / "reward_eval.json").read_text())["pairs"] == 2


@pytest.mark.filterwarnings("default:1 of 61 rows")
def test_the_command(tmp_path, capsys):
    data = write_preferences(tmp_path / "test.jsonl", label_pairs(world_pairs(60), Annotators(flipped=0.3)))
    flags = ["--data", str(data), "--gold", "tiny-sentiment", "--out", str(tmp_path / "page")]
    assert main(["reward", "eval", "--reward", "tiny-sentiment", *flags]) == 0
    out = capsys.readouterr().out
    assert "gap         0.0%" in out and "gold order  100.0%" in out
    assert "! Flipped labels" in out
    assert (tmp_path / "page" / "reward_eval.html").is_file()
    with data.open("a") as more:
        more.write('{"prompt": "p", "chosen": null, "rejected": "b"}\n')
    assert main(["reward", "eval", "--reward", "tiny-sentiment", *flags]) == 2
    assert "unusable=drop" in capsys.readouterr().err
    flags += ["--unusable", "drop"]
    assert main(["reward", "eval", "--reward", "tiny-sentiment", *flags]) == 0
    assert "1 of 61 rows of the preference data cannot be used and are left out" in capsys.readouterr().err
    data.write_text("".join(data.read_text().splitlines(keepends=True)[:-1]))
    assert main(["reward", "eval", "--reward", "length?target=5", *flags]) == 2
    assert "reads token ids: give a tokenizer" in capsys.readouterr().err
    assert main(["reward", "eval", "--reward", "tiny-sentiment", "--by", "colour", *flags]) == 2
    assert "kind expected a column of the pairs, got 'colour'" in capsys.readouterr().err


def test_conversations_are_measured_but_not_probed():
    def message(text):
        return [{"role": "assistant", "content": text}]

    prompt = [{"role": "user", "content": "Hello"}]
    pairs = [
        Preference(prompt, message("good day"), message("go")),
        Preference(prompt, message("hi"), message("no, no")),
    ]
    judged = judge_pairs(pairs, [lambda completions, **_: [len(c[0]["content"]) for c in completions]])
    results = evaluate(judged)
    assert results["accuracy"]["judge"].value == 0.5 and results["probes"] == []
    assert any("these are conversations" in line for line in results["missing"])
    assert results["mistakes"][0]["better"] == "hi"
