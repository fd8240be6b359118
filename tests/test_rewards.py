"""lm_gym.rewards: what a reward model is given, what it may return, and how a string becomes one."""

import asyncio
import functools
import re
import subprocess
import sys
import threading
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import torch

from lm_gym.reward_specs import GROUP, PREFIXES
from lm_gym.rewards import (
    RESERVED_COLUMNS,
    RewardModelError,
    load_reward_model,
    plain_text,
    reward_model_hash,
    reward_model_name,
    reward_model_names,
    score_texts,
)


def score(reward_model, completions=("one", "two two"), **options):
    size = len(completions)
    options.setdefault("prompts", [f"prompt {row}" for row in range(size)])
    options.setdefault("completion_ids", [[row, row + 1] for row in range(size)])
    return score_texts(reward_model, completions=list(completions), **options)


def by_length(completions):
    return [float(len(text)) for text in completions]


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


# Strings.


def test_names_come_from_the_entry_points():
    assert {"vader", "length", "tiny-sentiment"} <= set(reward_model_names())
    assert not {"hf", "http"} & set(reward_model_names())
    assert reward_model_name(load_reward_model("vader")) == "vader"


def test_arguments_behind_a_question_mark():
    length = load_reward_model("length?target=2&unit=words")
    assert score(length).scores.tolist() == [-0.5, 0]


def test_a_name_of_another_package(monkeypatch):
    from importlib.metadata import EntryPoint

    import lm_gym.reward_specs as specs

    theirs = EntryPoint("theirs", f"{__name__}:by_length", specs.GROUP)
    monkeypatch.setitem(sys.modules, __name__, sys.modules[by_length.__module__])
    monkeypatch.setattr(specs, "entry_points", lambda group: [theirs])
    assert score(load_reward_model("theirs")).scores.tolist() == [3, 7]


@pytest.fixture
def user_file(tmp_path):
    (tmp_path / "my_helper.py").write_text("SCALE = 3\n")
    path = tmp_path / "my_reward.py"
    path.write_text(
        "from dataclasses import dataclass\n"
        "from my_helper import SCALE\n"
        "def fn(completions, scale: float = 1.0, **kwargs):\n"
        "    return [scale * SCALE * len(text) for text in completions]\n"
        "@dataclass\n"
        "class Judge:\n"
        "    weight: float = 1.0\n"
        "    words: str = ''\n"
        "    deep: bool = False\n"
        "    limit: int | None = 5\n"
        "    def __call__(self, completions):\n"
        "        return [self.weight] * len(completions)\n"
        "number = 3\n"
    )
    return path


def test_a_function_of_a_file(user_file):
    assert score(load_reward_model(f"py:{user_file}:fn")).scores.tolist() == [9, 21]
    assert score(load_reward_model(f"py:{user_file}:fn?scale=2")).scores.tolist() == [18, 42]


def test_a_file_beside_the_command(user_file, monkeypatch):
    monkeypatch.chdir(user_file.parent)
    assert score(load_reward_model("py:./my_reward.py:fn")).scores.tolist() == [9, 21]
    assert score(load_reward_model("py:my_reward:fn")).scores.tolist() == [9, 21]


def test_arguments_follow_annotations(user_file):
    judge = load_reward_model(f"py:{user_file}:Judge?weight=2&words=1&deep=true&limit=none")
    assert (judge.weight, judge.words, judge.deep, judge.limit) == (2.0, "1", True, None)
    assert isinstance(judge.weight, float)
    assert load_reward_model(f"py:{user_file}:Judge?limit=7").limit == 7


def test_a_module_of_the_path():
    judge = load_reward_model("py:lm_gym.reward_models.length:LengthTarget?target=2")
    assert score(judge).scores.tolist() == [0, 0]


def test_a_callable_is_itself():
    assert load_reward_model(by_length) is by_length


BAD_SPECS = [
    ("vadr", r"unknown reward model 'vadr'. Did you mean 'vader'\? Names: .*tiny-sentiment"),
    ("hf", "unknown reward model 'hf'"),
    ("hf:", "expected hf:<hub id or folder>"),
    ("file:x", "prefixes are py:, hf:, http:// and https://"),
    ("length?targt=3", r"unknown argument 'targt'. Did you mean 'target'\? \(it takes target, unit\)"),
    ("length", r"lacks target: write length\?target=..."),
    ("length?target=3&target=4", "given twice"),
    ("length?target", "expected name=value behind the question mark"),
    ("length?target=x", "expected a whole number"),
    ("length?target=3&unit=lines", "expected one of tokens, words"),
    ("vader?scale=2", "it takes none"),
    ("py:math", "expected py:module:attribute"),
    ("py:no_such_module_here:fn", "there is no module 'no_such_module_here'"),
    ("py:math:sqroot", r"math has no 'sqroot'. Did you mean 'sqrt'\?"),
    ("py:math:pi", "not a function"),
    ("py:./nowhere.py:fn", "there is no file"),
    ("", "unknown reward model ''"),
]


@pytest.mark.parametrize(("spec", "message"), BAD_SPECS, ids=[case[0] for case in BAD_SPECS])
def test_a_wrong_string_says_what_is_there(spec, message):
    with pytest.raises(ValueError, match=message):
        load_reward_model(spec)


def test_a_missing_import_inside_a_module_is_not_hidden(tmp_path):
    path = tmp_path / "broken_reward.py"
    path.write_text("import no_such_dependency\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        load_reward_model(f"py:{path}:fn")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "reward_model is 3; expected a callable"),
        (["vader"], "expected a callable"),
        (torch.nn.Linear(1, 1), "takes token ids and not texts"),
        (dict, "reward_model is the class dict"),
    ],
)
def test_other_types_are_refused(value, message):
    with pytest.raises(TypeError, match=message):
        load_reward_model(value)


# Names and hashes.


def test_names():
    assert reward_model_name(by_length).endswith(":by_length")
    assert reward_model_name(functools.partial(by_length)).endswith(":by_length")
    assert reward_model_name(torch.nn.Identity()).endswith(":Identity")


def test_hashes_tell_reward_models_apart_and_stay_the_same():
    def make(weight):
        return lambda completions: [weight] * len(completions)

    specs = ["length?target=3", "length?target=4", "length?target=3&unit=words", "vader"]
    hashes = [reward_model_hash(load_reward_model(spec)) for spec in specs]
    hashes += [reward_model_hash(make(1)), reward_model_hash(make(2)), reward_model_hash(by_length)]
    hashes += [reward_model_hash(functools.partial(slow_length, completions=[])), reward_model_hash(slow_length)]
    assert len(set(hashes)) == len(hashes)
    assert hashes[0] == reward_model_hash(load_reward_model("length?target=3"))
    assert all(re.fullmatch("[0-9a-f]{16}", text) for text in hashes)


def test_functions_without_a_source_file_are_told_apart():
    made = [eval(f"lambda completions: [{value}.0] * len(completions)") for value in (1, 2, 2)]
    one, two, again = map(reward_model_hash, made)
    assert one != two == again


def test_the_hash_is_the_same_in_another_process():
    code = "from lm_gym.rewards import *; print(reward_model_hash(load_reward_model('vader')))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == reward_model_hash(load_reward_model("vader"))


def test_importing_rewards_and_prompts_loads_nothing_heavy():
    code = (
        "import sys, lm_gym.rewards, lm_gym.prompts; "
        "print([n for n in ('torch', 'transformers', 'datasets', 'lm_gym.reward_models') if n in sys.modules])"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == "[]"


def test_plain_text():
    assert plain_text("a") == "a"
    assert plain_text([{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]) == "a\n"
    assert plain_text([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}]) == "a"


def test_every_name_is_in_the_docs():
    text = (Path(__file__).parent.parent / "docs" / "reward_models.md").read_text(encoding="utf-8")
    ours = {point.name for point in entry_points(group=GROUP) if point.value.startswith("lm_gym.")} - set(PREFIXES)
    assert [name for name in sorted(ours) if f"| `{name}` |" not in text] == []
    assert [name for name in RESERVED_COLUMNS if f"`{name}" not in text] == []
