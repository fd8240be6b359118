"""Ensembles, and judges or weights that a column chooses: numbers worked out by hand."""

import pytest
from judges import Learns, Says, ask, logged

from lm_gym.reward_models import Ensemble, JudgeByColumn, WeightsByColumn
from lm_gym.rewards import (
    RewardModelError,
    load_reward_state,
    reward_model_hash,
    reward_model_name,
    reward_state,
    score_texts,
    update_reward_model,
)

MEMBERS = [Says({"a": 1.0, "b": 3.0}), Says({"a": 1.0, "b": -1.0}), Says({"a": 1.0, "b": 1.0})]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 1]),
        ({"how": "worst"}, [1, -1]),
        ({"how": "mean-variance", "penalty": 0.75}, [1, 1 - 0.75 * 8 / 3]),  # variance of 3, −1, 1: 8/3
    ],
)
def test_one_score_of_three(options, expected):
    assert ask(Ensemble(MEMBERS, **options)).scores.tolist() == pytest.approx(expected)


def test_the_disagreement_is_logged():
    result = ask(Ensemble(MEMBERS))
    assert result.extra["disagreement"] == pytest.approx([0, (8 / 3) ** 0.5])
    assert result.metrics["disagreement"] == pytest.approx((8 / 3) ** 0.5 / 2)
    assert [result.extra[member] for member in "012"] == [[1, 3], [1, -1], [1, 1]]


def test_a_member_that_does_not_apply_is_left_out():
    silent = Says({"a": None, "b": 5.0})
    result = ask(Ensemble({"one": MEMBERS[0], "silent": silent}))
    assert result.scores.tolist() == [1, 4]
    assert result.extra["disagreement"] == [0, 1]


@pytest.mark.parametrize(
    ("members", "options", "message"),
    [
        (MEMBERS[:1], {}, "at least 2 parts, got 1"),
        (MEMBERS, {"how": "median"}, "expected one of mean, worst, mean-variance"),
        (MEMBERS, {"penalty": 1.0}, "none with the others"),
        (MEMBERS, {"how": "mean-variance"}, "expected a number of at least 0"),
        (MEMBERS, {"how": "mean-variance", "penalty": -1.0}, "expected a number of at least 0"),
    ],
)
def test_wrong_ensembles(members, options, message):
    with pytest.raises(ValueError, match=message):
        Ensemble(members, **options)


# Judges by column.


def test_each_user_has_a_judge():
    ann, seven = Says({"a": 1.0, "b": 2.0, "c": 3.0}), Says({"a": -1.0, "b": None, "c": -3.0})
    judge = JudgeByColumn("user", {"ann": ann, 7: seven})
    result = ask(judge, ["a", "b", "c", "a"], user=["ann", "7", 7, "ann"])
    assert result.scores.tolist() == pytest.approx([1, float("nan"), -3, 1], nan_ok=True)
    assert (ann.asked, seven.asked) == (["a", "a"], ["b", "c"])
    assert result.extra == {"ann": [1, None, None, 1], "7": [None, None, -3, None]}
    assert result.metrics == {"ann": 1, "7": -3}


def test_a_judge_without_rows_is_not_asked():
    idle = Says({})
    result = ask(JudgeByColumn("user", {"ann": MEMBERS[0], "idle": idle}), ["a"], user=["ann"])
    assert result.scores.tolist() == [1]
    assert idle.calls == 0
    assert "idle" not in result.metrics


def test_columns_and_logs_of_a_judge_are_those_of_its_rows():
    def graded(completions, grade, log_extra, log_metric):
        log_extra("grade", list(grade))
        log_metric("rows", len(grade))
        return [float(mark) for mark in grade]

    result = ask(
        JudgeByColumn("user", {"x": graded, "y": MEMBERS[0]}), ["a", "a", "b"], user=["x", "y", "x"], grade=[4, 5, 6]
    )
    assert result.scores.tolist() == [4, 1, 6]
    assert result.extra["x/grade"] == [4, None, 6]
    assert result.metrics["x/rows"] == 2


WEIGHTS = {"ann": {"taste": 1, "style": 0}, "bob": {"taste": -0.5, "style": 2}}
TASTE, STYLE = Says({"a": 1.0, "b": 2.0}, "taste"), Says({"a": 10.0, "b": None}, "style")


def test_each_user_has_weights():
    total = WeightsByColumn([TASTE, STYLE], "user", WEIGHTS)
    result = ask(total, ["a", "a", "b"], user=["ann", "bob", "bob"])
    assert result.scores.tolist() == [1, -0.5 + 20, -1]
    assert result.extra["style"] == [10, 10, None]


@pytest.mark.parametrize(
    "judge", [JudgeByColumn("user", {"ann": TASTE}), WeightsByColumn([TASTE, STYLE], "user", WEIGHTS)]
)
def test_an_unknown_user_or_no_column_is_an_error(judge):
    with pytest.raises(RewardModelError, match="unknown user 'eve'; expected one of ann") as caught:
        ask(judge, user=["ann", "eve"])
    assert caught.value.row == 1
    with pytest.raises(RewardModelError, match="unknown user None"):  # a prompt of one's own, without the column
        ask(judge, user=["ann", None])
    with pytest.raises(RewardModelError, match="no column 'user'.* they have group"):
        ask(judge, group=["ann", "ann"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightsByColumn([TASTE, STYLE], "user", {"ann": {"taste": 1}}), "'ann' has no weight for 'style'"),
        (lambda: WeightsByColumn([TASTE], "user", {"ann": {"taste": 1, "x": 1}}), "'x', which is no part"),
        (lambda: WeightsByColumn([TASTE], "user", {}), "expected weights by value"),
        (lambda: JudgeByColumn("user", {}), "at least 1 part"),
    ],
)
def test_wrong_choices(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_judges_keep_their_state_and_their_hash():
    learns = Learns()
    judge = JudgeByColumn("user", {"ann": learns, "bob": MEMBERS[0]})
    update_reward_model(judge, logged(ask(judge, ["a"], user=["ann"]).metrics))
    state = reward_state(judge)
    assert state == {"ann": {"offset": 1.5}}
    learns.offset = 0.0
    load_reward_state(judge, state)
    assert learns.offset == 1.5
    assert reward_model_name(judge) == "judge-by-column(user: ann, bob)"
    assert reward_model_hash(judge) != reward_model_hash(JudgeByColumn("group", judge.parts))


def test_a_judge_by_column_alone_must_answer():
    silent = JudgeByColumn("user", {"ann": Says({"a": None})})
    with pytest.raises(RewardModelError, match="returned None"):
        score_texts(silent, prompts=["p"], completions=["a"], completion_ids=[[1]], columns={"user": ["ann"]})
