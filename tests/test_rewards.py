"""lm_gym.rewards: what a reward model is given, what it may return, and how a string becomes one."""

import asyncio
import functools
import threading

import numpy as np
import pytest
import torch
from judges import by_length, score

from lm_gym.rewards import (
    RewardModelError,
    load_reward_model,
    score_texts,
)

# What is passed.


def test_only_the_accepted_keywords_are_passed():
    seen = {}

    def takes_some(prompts, completions, grade, log_extra):
        seen.update(prompts=prompts, completions=completions, grade=grade)
        log_extra("doubled", [2 * g for g in grade])
        return [0.0, 1.0]

    result = score(takes_some, columns={"grade": [3, 4], "unused": ["a", "b"]})
    assert seen == {"prompts": ["prompt 0", "prompt 1"], "completions": ["one", "two two"], "grade": [3, 4]}
    assert result.scores.tolist() == [0, 1]
    assert result.scores.dtype == np.float64
    assert result.extra == {"doubled": [6, 8]}


def test_kwargs_take_everything_that_trl_passes():
    seen = {}

    def takes_all(**kwargs):
        seen.update(kwargs)
        return [0, 0]

    state = object()
    score(takes_all, columns={"grade": [3, 4]}, trainer_state=state)
    assert set(seen) == {
        *("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "grade")
    }
    assert seen["trainer_state"] is state
    assert seen["completion_ids"] == [[0, 1], [1, 2]]


def test_callable_objects_partials_and_defaults():
    class Judge:
        def __call__(self, completions, weight=2.0):
            return [weight * len(text) for text in completions]

    assert score(Judge()).scores.tolist() == [6, 14]
    assert score(functools.partial(Judge(), weight=1.0)).scores.tolist() == [3, 7]


def test_a_torch_module_of_texts_is_a_reward_model():
    class Judge(torch.nn.Module):
        def forward(self, completions, grade):
            return torch.tensor([len(text) + mark for text, mark in zip(completions, grade, strict=True)])

    judge = load_reward_model(Judge())
    assert score(judge, columns={"grade": [1, 2], "other": [0, 0]}).scores.tolist() == [4, 9]


def test_a_reward_model_cannot_change_the_texts():
    prompts = [[{"role": "user", "content": "Hi"}], "plain"]

    def vandal(prompts, completions, grade):
        prompts[0][0]["content"] = "changed"
        prompts[0].append("more")
        completions.clear()
        grade.clear()
        return [0, 0]

    columns = {"grade": [1, 2]}
    score(vandal, prompts=prompts, columns=columns)
    assert prompts == [[{"role": "user", "content": "Hi"}], "plain"]
    assert columns == {"grade": [1, 2]}


def test_a_parameter_that_nothing_fills_is_an_error_with_the_nearest_name():
    def wants_singular(completion):
        return [0.0]

    with pytest.raises(RewardModelError, match=r"asks for 'completion'.*Did you mean 'completions'"):
        score(wants_singular)


def test_metrics_are_averaged_and_forwarded():
    forwarded = []

    def logs(completions, log_metric):
        log_metric("judge/calls", 1)
        log_metric("judge/calls", 2)
        return [0, 0]

    result = score(logs, log_metric=lambda name, value: forwarded.append((name, value)))
    assert result.metrics == {"judge/calls": 1.5}
    assert forwarded == [("judge/calls", 1.0), ("judge/calls", 2.0)]


@pytest.mark.parametrize(("values", "message"), [([1], "1 values for 2"), ([1, 2, 3], "3 values for 2")])
def test_log_extra_of_another_length_is_an_error(values, message):
    def logs(completions, log_extra):
        log_extra("part", values)
        return [0, 0]

    with pytest.raises(RewardModelError, match=message):
        score(logs)


def test_log_metric_refuses_nan():
    def logs(completions, log_metric):
        log_metric("judge/part", float("nan"))
        return [0, 0]

    with pytest.raises(RewardModelError, match="judge/part"):
        score(logs)


# Async.


async def slow_length(completions):
    await asyncio.sleep(0)
    return [float(len(text)) for text in completions]


def test_async_functions_are_awaited():
    assert score(slow_length).scores.tolist() == [3, 7]


def test_async_functions_are_awaited_inside_a_running_loop():
    async def notebook():
        return score(slow_length)

    threads = threading.active_count()
    assert asyncio.run(notebook()).scores.tolist() == [3, 7]
    assert threading.active_count() == threads


def test_async_errors_name_the_completion():
    async def fails(completions):
        if "two two" in completions:
            raise KeyError("no such thing")
        return [0.0] * len(completions)

    async def notebook():
        return score(fails)

    for call in (lambda: score(fails), lambda: asyncio.run(notebook())):
        with pytest.raises(RewardModelError, match="completion 1 of 2") as caught:
            call()
        assert isinstance(caught.value.__cause__, KeyError)


# What is returned.


@pytest.mark.parametrize(
    "values",
    [
        [1, 2],
        (1.0, 2.0),
        np.array([1, 2]),
        np.array([[1.0], [2.0]]),
        torch.tensor([1.0, 2.0], requires_grad=True),
        torch.tensor([[1.0], [2.0]], dtype=torch.bfloat16),
        [torch.tensor(1.0), np.float32(2)],
        [True, 2],
        (value for value in (1, 2)),
    ],
    ids=lambda values: type(values).__name__,
)
def test_numbers_in_any_container(values):
    assert score(lambda completions: values).scores.tolist() == [1, 2]


BAD_RETURNS = [
    (None, "returned None, expected a sequence of 2 numbers"),
    (0.5, "returned 0.5, expected a sequence of 2 numbers"),
    (torch.tensor(0.5), "expected a sequence of 2 numbers"),
    ("ab", "returned 'ab', expected a sequence"),
    ({"rewards": [1, 2]}, "expected a sequence"),
    ([1.0], "returned 1 scores for 2 completions"),
    ([1.0, 2.0, 3.0], "returned 3 scores for 2 completions"),
    ([], "returned 0 scores for 2 completions"),
    (torch.zeros(2, 2), "expected a finite number"),
    ([1.0, None], r"returned None. None \(does not apply\) is for the parts of a combination"),
    ([1.0, float("nan")], "returned nan, expected a finite number"),
    ([1.0, float("-inf")], "returned -inf"),
    (np.array([1.0, np.inf]), "returned np.float64"),
    ([1.0, "2.0"], "returned '2.0', expected a finite number"),
    ([1.0, [2.0]], r"returned \[2.0\], expected a finite number"),
    ([1.0, 1j], "returned 1j"),
]


@pytest.mark.parametrize(("values", "message"), BAD_RETURNS, ids=[str(case[0]) for case in BAD_RETURNS])
def test_anything_else_is_an_error_that_names_model_prompt_and_completion(values, message):
    def odd_judge(completions):
        return values

    with pytest.raises(RewardModelError, match=message) as caught:
        score(odd_judge)
    text = str(caught.value)
    assert "odd_judge" in text
    assert "prompt: 'prompt " in text
    assert "completion: '" in text


def test_the_row_at_fault_is_named():
    with pytest.raises(RewardModelError) as caught:
        score(lambda completions: [1.0, 2.0, float("nan"), 3.0], completions=["a", "b", "c", "d"])
    assert caught.value.row == 2
    assert "completion 2 of 4" in str(caught.value)
    assert "prompt: 'prompt 2'" in str(caught.value)
    assert "completion: 'c'" in str(caught.value)


def test_none_is_nan_for_the_parts_of_a_combination():
    scores = score(lambda completions: [1.0, None], allow_none=True).scores
    assert scores[0] == 1
    assert np.isnan(scores[1])


def test_nan_stays_an_error_for_the_parts_of_a_combination():
    with pytest.raises(RewardModelError, match="nan"):
        score(lambda completions: [1.0, float("nan")], allow_none=True)


def test_an_exception_is_traced_to_its_completion():
    calls = []

    def fragile(completions):
        calls.append(len(completions))
        return [1 / (text != "bad") for text in completions]

    with pytest.raises(RewardModelError, match="raised ZeroDivisionError") as caught:
        score(fragile, completions=["good"] * 40 + ["bad"] + ["good"] * 23)
    assert caught.value.row == 40
    assert "completion: 'bad'" in str(caught.value)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert len(calls) <= 13


def test_a_batch_that_raises_only_whole_is_named_by_its_first():
    def broken(completions):
        if len(completions) > 1:
            raise RuntimeError("out of memory")
        return [0.0]

    with pytest.raises(RewardModelError, match="a batch of 2, of which the first is") as caught:
        score(broken)
    assert caught.value.row is None


def test_a_reward_model_can_name_the_row_itself():
    def remote(completions):
        raise RewardModelError("server said no", row=1)

    with pytest.raises(RewardModelError, match="server said no") as caught:
        score(remote)
    assert caught.value.row == 1
    assert "prompt 1" in str(caught.value)


def test_an_inner_reward_model_is_the_one_that_is_named():
    def inner(completions):
        return [float("nan")] * len(completions)

    def outer(prompts, completions, completion_ids):
        return score_texts(inner, prompts=prompts, completions=completions, completion_ids=completion_ids).scores

    with pytest.raises(RewardModelError, match="inner") as caught:
        score(outer)
    assert "outer returned" not in str(caught.value)


def test_keyboard_interrupts_pass():
    def interrupted(completions):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(interrupted)


def test_no_completions_are_no_call():
    def never(completions):
        raise AssertionError

    assert score(never, completions=[]).scores.shape == (0,)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="one value a completion everywhere, got .*'completion_ids': 1"):
        score(by_length, completion_ids=[[1]])
    with pytest.raises(ValueError, match="column 'grade'"):
        score(by_length, columns={"grade": [1]})


def test_reserved_columns_are_refused():
    with pytest.raises(ValueError, match="completions"):
        score(by_length, columns={"completions": ["x", "y"]})
