"""Sums, minima, products and lexicographic orders of judges: numbers worked out by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judges import Learns, Says, ask, logged
from small_models import small_mdp

from lm_gym.decoding import Engine
from lm_gym.reward_models import Lexicographic, Minimum, Product, WeightedSum
from lm_gym.rewards import (
    RewardModelError,
    load_reward_state,
    reward_model_hash,
    reward_model_name,
    reward_state,
    update_reward_model,
)

TEXTS = ["a", "b", "c"]
TASTE = Says({"a": 1.0, "b": -2.0, "c": 0.5})
STYLE = Says({"a": 4.0, "b": None, "c": 0.25})  # does not apply to b


def test_a_weighted_sum_leaves_out_what_does_not_apply():
    total = WeightedSum({"taste": TASTE, "style": STYLE}, {"style": 0.5})
    assert ask(total, TEXTS).scores.tolist() == [1 + 2, -2, 0.5 + 0.125]


def test_every_part_is_logged():
    result = ask(WeightedSum({"taste": TASTE, "style": STYLE}), TEXTS)
    assert result.extra == {"taste": [1, -2, 0.5], "style": [4, None, 0.25]}
    assert result.metrics == pytest.approx({"taste": -0.5 / 3, "style": 4.25 / 2})


def test_the_minimum_leaves_out_what_does_not_apply():
    assert ask(Minimum({"taste": TASTE, "style": STYLE}), TEXTS).scores.tolist() == [1, -2, 0.25]


def test_a_product_leaves_out_what_does_not_apply():
    gate = Says({"a": 0.0, "b": 1.0, "c": 1.0})
    assert ask(Product({"gate": gate, "style": STYLE}), TEXTS).scores.tolist() == [0, 1, 0.25]


def test_a_negative_factor_is_an_error():
    with pytest.raises(RewardModelError, match="part 'taste' is -2.0, expected at least 0") as caught:
        ask(Product({"taste": TASTE, "style": STYLE}), TEXTS)
    assert caught.value.row == 1


@pytest.mark.parametrize("kind", [WeightedSum, Minimum, Product])
def test_where_no_part_applies_it_is_an_error(kind):
    silent = Says({"a": 1.0, "b": None, "c": 1.0})
    with pytest.raises(RewardModelError, match="no part of .* applies") as caught:
        ask(kind({"style": STYLE, "silent": silent}), TEXTS)
    assert caught.value.row == 1


def test_strings_and_objects_and_names():
    total = WeightedSum(["vader", "length?target=2&unit=words", TASTE])
    assert list(total.parts) == ["vader", "length", "says"]
    assert reward_model_name(total) == total.__name__ == "sum(vader, length, says)"
    assert ask(total, ["a"]).scores.tolist() == [0 - 0.5 + 1]


def test_columns_reach_the_parts():
    def graded(completions, grade):
        return [float(mark) for mark in grade]

    assert ask(WeightedSum([graded, TASTE]), ["a", "b"], grade=[3, 4]).scores.tolist() == [4, 2]


def test_the_logs_of_a_combination_within_a_combination():
    def notes(completions, log_extra, log_metric):
        log_extra("seen", list(completions))
        log_metric("calls", 1)
        return [0.0] * len(completions)

    result = ask(WeightedSum({"outer": TASTE, "inner": Minimum({"notes": notes, "style": STYLE})}), ["a"])
    assert result.extra == {
        "outer": [1],
        "inner": [0],
        "inner/notes": [0],
        "inner/notes/seen": ["a"],
        "inner/style": [4],
    }
    assert result.metrics["inner/notes/calls"] == 1
    assert result.metrics["inner/style"] == 4


def test_the_error_of_a_part_names_the_part():
    def broken(completions):
        return [float("nan")] * len(completions)

    with pytest.raises(RewardModelError, match=r"broken returned nan") as caught:
        ask(WeightedSum([TASTE, broken]), ["a"])
    assert "completion: 'a'" in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightedSum([]), "at least 1 part"),
        (lambda: WeightedSum({}), "at least 1 part"),
        (lambda: WeightedSum({"": TASTE}), "the empty name"),
        (lambda: WeightedSum([TASTE, STYLE]), "'says' is there 2 times; give the parts names"),
        (lambda: WeightedSum({"taste": TASTE}, {"tast": 1}), "weight of 'tast', which is no part"),
        (lambda: WeightedSum({"taste": TASTE}, {"taste": float("nan")}), "expected a finite number"),
        (lambda: WeightedSum({"taste": TASTE}, {"taste": "2"}), "expected a finite number"),
        (lambda: WeightedSum({"taste": "vadr"}), "Did you mean 'vader'"),
        (lambda: Lexicographic({"taste": TASTE}, {}), r"ranges of 'taste' expected two numbers"),
        (lambda: Lexicographic({"taste": TASTE}, {"taste": 3}), r"ranges of 'taste' expected two numbers"),
        (lambda: Lexicographic({"taste": TASTE}, {"taste": [1, 1]}), "expected low below enough"),
        (lambda: Lexicographic({"taste": TASTE}, {"taste": [0, 1], "x": [0, 1]}), "'x', which is no part"),
    ],
)
def test_wrong_combinations(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_parts_of_another_type():
    with pytest.raises(TypeError, match="expected reward models by name"):
        WeightedSum("vader")


# One after the other.


def test_lexicographic():
    safe = Says({"a": 0.2, "b": 0.9, "c": 1.0, "d": None, "e": -5.0, "f": 0.95})
    good = Says({"a": 10.0, "b": 2.0, "c": 4.0, "d": 1.0, "e": 10.0, "f": 12.0})
    order = Lexicographic({"safe": safe, "good": good}, {"safe": (0, 0.8), "good": (0, 10)})
    # a: .2 of .8, and the second does not count yet. d: the first does not apply, and counts as satisfied.
    assert ask(order, list("abcdef")).scores.tolist() == pytest.approx([0.25, 1.2, 1.4, 1.1, 0, 2])


SCORE = st.floats(-2, 2)


@given(st.lists(st.tuples(SCORE, SCORE, SCORE), min_size=2, max_size=8))
@settings(max_examples=60)
def test_lexicographic_is_the_thresholded_order(rows):
    ranges = {"first": (-1.0, 0.5), "second": (-1.0, 1.0), "third": (-2.0, 2.0)}
    parts = {
        name: (lambda completions, k=k: [rows[int(text)][k] for text in completions]) for k, name in enumerate(ranges)
    }
    found = ask(Lexicographic(parts, ranges), [str(row) for row in range(len(rows))]).scores

    def key(row):  # Python's own order of tuples, up to the first part that is not satisfied
        cut = [min(max(score, low), enough) for score, (low, enough) in zip(row, ranges.values(), strict=True)]
        short = [cut[k] < enough for k, (_, enough) in enumerate(ranges.values())]
        end = short.index(True) + 1 if True in short else len(cut)
        return tuple(cut[:end])

    for (one, a), (two, b) in itertools.combinations(zip(rows, found, strict=True), 2):
        if key(one) < key(two):
            assert a <= b + 1e-12
        if a < b - 1e-12:
            assert key(one) < key(two)


# State, hashes, and the problem around it.


def test_state_goes_through_the_parts():
    inner, outer = Learns(), Learns()
    nested = WeightedSum({"taste": TASTE, "deep": Minimum({"within": inner, "taste": TASTE})})
    total = WeightedSum({"nested": nested, "direct": outer})
    metrics = logged(ask(total, ["a"]).metrics)
    update_reward_model(total, metrics)
    assert (inner.offset, outer.offset) == (1.5, 1.5)  # the metric of its own, not that of the whole
    state = reward_state(total)
    assert state == {"nested": {"deep": {"within": {"offset": 1.5}}}, "direct": {"offset": 1.5}}
    inner.offset = outer.offset = 0.0
    load_reward_state(total, state)
    assert (inner.offset, outer.offset) == (1.5, 1.5)


def test_a_combination_without_state_has_none():
    total = WeightedSum({"taste": TASTE, "style": STYLE})
    assert reward_state(total) is None
    load_reward_state(total, None)
    with pytest.raises(ValueError, match="state of 'tast', which is no part"):
        load_reward_state(total, {"tast": {"offset": 1}})


def test_the_hash_follows_parts_and_weights():
    hashes = {
        reward_model_hash(reward_model)
        for reward_model in (
            WeightedSum({"a": "vader", "b": "length?target=3"}),
            WeightedSum({"a": "vader", "b": "length?target=4"}),
            WeightedSum({"a": "vader", "b": "length?target=3"}, {"a": 2}),
            Minimum({"a": "vader", "b": "length?target=3"}),
        )
    }
    assert len(hashes) == 4
    again = WeightedSum({"a": "vader", "b": "length?target=3"}, {"b": 1})
    assert reward_model_hash(again) in hashes


def test_the_problem_pays_the_sum_and_logs_its_parts():
    mdp = small_mdp(reward_model=WeightedSum({"length": "length?target=4", "same": "repetition?n=1&unit=tokens"}))
    completions = Engine(mdp.reference, seed=0).generate([p.token_ids for p in mdp.prompts], mdp.generation_params)
    for completion, prompt in zip(completions, mdp.prompts, strict=True):
        completion.prompt = prompt
    scored = mdp.score(completions)
    lengths = np.array([-abs(len(c.tokens) - 4) / 4 for c in completions])
    same = np.array([len(set(c.tokens)) / len(c.tokens) - 1 for c in completions])
    assert scored.extra["length"] == pytest.approx(lengths.tolist())
    assert scored.extra["same"] == pytest.approx(same.tolist())
    assert scored.scores.tolist() == pytest.approx((lengths + same).tolist(), abs=1e-6)
    assert scored.metrics == pytest.approx({"length": lengths.mean(), "same": same.mean()})
