"""The judges without a model: VADER, length, and the gold of the tiny world."""

import numpy as np
import pytest

from lm_gym import tiny
from lm_gym.reward_models.length import LengthTarget
from lm_gym.reward_models.vader import Vader
from lm_gym.rewards import load_reward_model, score_texts
from lm_gym.tiny import gold


def score(reward_model, completions, prompts=None, **columns):
    size = len(completions)
    prompts = prompts or [""] * size
    completion_ids = [[1] * len(text) for text in completions]
    return score_texts(
        reward_model, prompts=prompts, completions=completions, completion_ids=completion_ids, columns=columns
    ).scores


def test_vader_is_the_compound_of_the_completion_alone():
    texts = ["It was wonderful, I love it!", "It was awful and I hated it.", "It was a table.", "", "not good"]
    scores = score(Vader(), texts, prompts=["a terrible, awful prompt"] * 5)
    assert scores[0] > 0.8
    assert scores[1] < -0.7
    assert scores[2:4].tolist() == [0, 0]
    assert scores[4] == pytest.approx(-0.3412)  # VADER's own value
    assert np.all(np.abs(scores) <= 1)


def test_vader_reads_messages():
    (plain,) = score(Vader(), ["I love it"])
    (message,) = score(Vader(), [[{"role": "assistant", "content": "I love it"}]])
    assert plain == message > 0


def test_length_in_tokens_and_words():
    assert score(LengthTarget(4), ["", "ab", "abcd", "abcdefgh"]).tolist() == [-1, -0.5, 0, -1]
    assert score(LengthTarget(2, "words"), ["", "one", "one two", "a b c d"]).tolist() == [-1, -0.5, 0, -1]


@pytest.mark.parametrize("target", [0, -1, 2.5, True, "3"])
def test_length_refuses_a_target_that_is_no_count(target):
    with pytest.raises(ValueError, match="expected a whole number of at least 1"):
        LengthTarget(target)


@pytest.mark.parametrize("kind", ["sentiment", "helpfulness", "harmlessness"])
def test_the_gold_of_tiny_row_by_row(kind):
    rows = tiny.prompts("all", "test")[::150]
    names = [name for name in rows[0] if name != "prompt"]
    columns = {name: [row[name] for row in rows] for name in names}
    prompts = [row["prompt"] for row in rows]
    completions = [" It was lovely and I am happy."] * len(rows)
    reward_model = load_reward_model(f"tiny-{kind}")
    # A dataset of prompts and completions has its own column "completion", which is not what was written now.
    scores = score(reward_model, completions, prompts, completion=["x"] * len(rows), **columns)
    expected = [
        getattr(gold, kind)(row["prompt"], text, **{name: row[name] for name in names})
        for row, text in zip(rows, completions, strict=True)
    ]
    assert scores.tolist() == expected
    assert reward_model.__doc__
