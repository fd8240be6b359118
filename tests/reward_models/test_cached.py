"""The cache: what is asked twice, what makes two texts different, and what is never kept."""

import sqlite3

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from judges import Learns, Says, ask

from lm_gym.reward_models import Cached, Normalised, WeightedSum
from lm_gym.rewards import RewardModelError, reward_model_hash, score_texts


def counts(result):
    return int(result.metrics["cache_hits"]), int(result.metrics["cache_misses"])


@pytest.fixture(params=["memory", "file"])
def path(request, tmp_path):
    return None if request.param == "memory" else str(tmp_path / "scores.sqlite")


def test_a_text_is_judged_once(path):
    judge = Says({"a": 1.0, "b": 2.0, "c": 3.0})
    cached = Cached(judge, path)
    first = ask(cached, ["b", "a", "b"])  # the second b is a hit already
    assert first.scores.tolist() == [2, 1, 2]
    assert (judge.asked, counts(first)) == (["b", "a"], (1, 2))
    second = ask(cached, ["c", "a", "b"])
    assert second.scores.tolist() == [3, 1, 2]
    assert (judge.asked, counts(second)) == (["b", "a", "c"], (2, 1))
    third = ask(cached, ["c", "a"])
    assert (judge.calls, counts(third)) == (2, (2, 0))
    assert third.metrics["cache_texts_per_second"] > 0


def test_a_file_outlives_the_object_and_belongs_to_one_judge(tmp_path):
    path = str(tmp_path / "scores.sqlite")
    ask(Cached(Says({"a": 1.0}, "one"), path), ["a"])
    again, other = Says({"a": 1.0}, "one"), Says({"a": 5.0}, "other")
    assert ask(Cached(again, path), ["a"]).scores.tolist() == [1]
    assert again.calls == 0
    assert ask(Cached(other, path), ["a"]).scores.tolist() == [5]


def test_none_is_kept_as_none_and_errors_are_not_kept(path):
    scores = {"a": None, "b": float("nan"), "c": 1.0}
    judge = Says(scores)
    cached = Cached(judge, path)
    assert np.isnan(ask(cached, ["a"]).scores).all()
    assert counts(ask(cached, ["a"])) == (1, 0)
    with pytest.raises(RewardModelError, match="returned None"):
        score_texts(cached, prompts=["prompt"], completions=["a"], completion_ids=[[1]])
    for _ in range(2):
        with pytest.raises(RewardModelError, match="says returned nan"):
            ask(cached, ["c", "b"])
    scores["b"] = 4.0  # the server is back
    result = ask(cached, ["b", "c"])
    assert result.scores.tolist() == [4, 1]
    assert counts(result) == (0, 2)  # nothing of the call that failed was kept


def test_what_belongs_to_a_text_comes_back_with_it(path):
    def judge(completions, log_extra, log_metric):
        log_extra("length", np.array([len(text) for text in completions]))
        log_extra("vector", torch.tensor([[1.0, float(len(text))] for text in completions]))
        log_metric("asked", len(completions))
        return [0.0] * len(completions)

    cached = Cached(judge, path)
    ask(cached, ["a"])
    result = ask(cached, ["bb", "a"])
    assert result.extra == {"length": [2, 1], "vector": [[1, 2], [1, 1]]}
    assert result.metrics["misses/asked"] == 1  # of the judge's own call, which was about one text
    assert "misses/asked" not in ask(cached, ["a"]).metrics


def test_columns_that_the_judge_names_are_part_of_the_key():
    asked = []

    def graded(completions, grade):
        asked.extend(grade)
        return [float(mark) for mark in grade]

    cached = Cached(graded)
    ask(cached, ["a", "a"], grade=[1, 2], other=["x", "y"])
    assert ask(cached, ["a", "a"], grade=[2, 1], other=["z", "z"]).scores.tolist() == [2, 1]
    assert asked == [1, 2]


def test_every_column_is_for_a_judge_that_takes_all():
    def takes_all(completions, **columns):
        return [float(mark) for mark in columns["grade"]]

    cached = Cached(takes_all)
    assert ask(cached, ["a", "a"], grade=[1, 2]).scores.tolist() == [1, 2]
    assert counts(ask(cached, ["a"], grade=[1])) == (1, 0)
    assert counts(ask(cached, ["a"], grade=[1], other=["x"])) == (0, 1)
    with pytest.raises(RewardModelError, match="a column is no plain data"):
        ask(cached, ["a"], grade=[object()])


def test_prompts_and_token_ids_are_told_apart():
    length = Cached("length?target=2")
    assert ask(length, ["a", "a"], ids=[[1], [1, 2]]).scores.tolist() == [-0.5, 0]
    judge = Says({"a": 1.0})
    cached = Cached(judge)
    for prompt in ("one", "two", [{"role": "user", "content": "one"}], "one"):
        score_texts(cached, prompts=[prompt], completions=["a"], completion_ids=[[1]])
    assert judge.calls == 3


def test_trainer_state_stays_outside():
    def by_step(completions, trainer_state):
        assert trainer_state is None
        return [0.0] * len(completions)

    cached = Cached(by_step)
    score_texts(cached, prompts=["p"], completions=["a"], completion_ids=[[1]], trainer_state={"global_step": 3})


@pytest.mark.parametrize("judge", [Learns(), Normalised("vader", 0.0, 1.0), WeightedSum([Learns()])])
def test_a_judge_with_state_is_refused(judge):
    with pytest.raises(ValueError, match="has state, so that its scores change; put the cache inside"):
        Cached(judge)


def test_a_cache_within_a_combination():
    judge = Says({"a": 1.0, "b": 3.0})
    total = WeightedSum({"slow": Normalised(Cached(judge), 1.0, 2.0), "fast": "repetition"})
    ask(total, ["a", "b"])
    result = ask(total, ["b", "a"])
    assert result.scores.tolist() == [1, 0]
    assert judge.calls == 1
    assert result.metrics["slow/cached(says)/cache_hits"] == 2


def test_the_hash_is_that_of_the_judge_within_and_its_kind():
    one, two = Cached(Says({"a": 1.0})), Cached(Says({"a": 2.0}))
    assert reward_model_hash(one) == reward_model_hash(Cached(Says({"a": 1.0}))) != reward_model_hash(two)


def test_a_path_that_is_no_database(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("These are notes, and they are longer than the header of a database. " * 20)
    with pytest.raises(ValueError, match="expected a file of SQLite"):
        Cached(Says({}), str(file))
    assert file.read_text().startswith("These are notes")
    with pytest.raises(ValueError, match="expected a file of SQLite"):
        Cached(Says({}), str(tmp_path / "nowhere" / "scores.sqlite"))


def test_two_objects_share_a_file(tmp_path):
    path = str(tmp_path / "scores.sqlite")
    one, two = Cached(Says({"a": 1.0, "b": 2.0}), path), Cached(Says({"a": 1.0, "b": 2.0}), path)
    ask(one, ["a"])
    assert counts(ask(two, ["a", "b"])) == (1, 1)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT COUNT(*) FROM scores").fetchone() == (2,)
    connection.close()


@given(st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=6), max_size=6))
@settings(max_examples=40, deadline=None)
def test_it_says_what_the_judge_says_and_asks_about_no_text_twice(batches):
    judge = Says({letter: float(ord(letter)) for letter in "abcdef"})
    cached = Cached(judge)
    for batch in batches:
        assert ask(cached, batch).scores.tolist() == [ord(letter) for letter in batch]
    assert len(judge.asked) == len(set(judge.asked)) == len({text for batch in batches for text in batch})
