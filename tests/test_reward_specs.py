"""Reward models by name: what strings lead to, names and hashes."""

import asyncio
import functools
import importlib
import linecache
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
from judges import by_length, score

from lm_gym.reward_specs import GROUP, PREFIXES
from lm_gym.rewards import (
    RESERVED_COLUMNS,
    load_reward_model,
    plain_text,
    reward_model_hash,
    reward_model_name,
    reward_model_names,
)


async def slow_length(completions):
    await asyncio.sleep(0)
    return [float(len(text)) for text in completions]


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

    theirs = EntryPoint("theirs", "judges:by_length", specs.GROUP)
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
    ("file:x", "prefixes are py:, hf:, combine:, http:// and https://"),
    ("length?targt=3", r"unknown argument 'targt'. Did you mean 'target'\? \(it takes target, unit\)"),
    ("length", r"lacks target: write length\?target=..."),
    ("length?target=3&target=4", "given twice"),
    ("length?target", "expected name=value behind the question mark"),
    ("length?target=x", "expected a whole number"),
    ("length?target=3&unit=lines", "expected one of tokens, words"),
    ("vader?scale=2", "it takes none"),
    ("http://h/get_reward?timeout=nan", "timeout expected a number, got 'nan'"),
    ("http://h/get_reward?retries=1.5", "retries expected a whole number, got '1.5'"),
    ("http://h/get_reward?batch_size=many", "batch_size expected a whole number or none, got 'many'"),
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


def test_a_judge_of_a_file_is_called_as_it_was_written(tmp_path: Path) -> None:
    """Not by the name of the module that it was loaded as, and with one hash wherever the file lies."""
    hashes = set()
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        (folder / "rm1.py").write_text("def rhyme(completions):\n    return [0.0 for _ in completions]\n")
        judge = load_reward_model(f"py:{folder}/rm1.py:rhyme")
        assert reward_model_name(judge) == "rm1.py:rhyme"
        hashes.add(reward_model_hash(judge))
    assert len(hashes) == 1


# Factories: functions whose result is the reward model.


@pytest.fixture
def factories(tmp_path):
    path = tmp_path / "factories.py"
    path.write_text(
        "from collections.abc import Callable\n"
        "def plain(weight: float):\n"
        "    return lambda completions: [weight] * len(completions)\n"
        "def annotated(prompts: str, **more) -> Callable:\n"
        "    return lambda completions: [float(len(prompts))] * len(completions)\n"
        "def maybe(weight=2.0) -> 'Callable[..., list[float]] | None':\n"
        "    return lambda completions: [weight] * len(completions)\n"
        "def of_a_column(grade) -> list[float]:\n"
        "    return [float(g) for g in grade]\n"
        "def of_anything(**columns):\n"
        "    return [float(g) for g in columns['grade']]\n"
        "async def waits(grade=0):\n"
        "    return [1.0, 2.0]\n"
        "def forgets(weight=1.0):\n"
        "    return [weight]\n"
    )
    return f"py:{path}:"


def test_a_factory_is_called_and_a_function_is_bound(factories):
    def scores(spec, **columns):
        return score(load_reward_model(factories + spec), columns=columns).scores.tolist()

    assert scores("plain?weight=3") == [3, 3]
    assert scores("annotated?prompts=abc&other=1") == [3, 3]  # what it returns decides
    assert scores("maybe") == scores("maybe?weight=2") == [2, 2]
    assert scores("of_a_column", grade=[4, 5]) == scores("of_anything", grade=[4, 5]) == [4, 5]
    assert scores("waits") == [1, 2]
    for spec, message in (
        ("plain", r"lacks weight: write .*plain\?weight=... \(it takes no completions, so it is taken for a factory"),
        ("plain?wieght=3", "Did you mean 'weight'"),
        ("plain?weight=heavy", r"plain\?weight=heavy': weight expected a number, got 'heavy'"),
        ("forgets", "makes a list, which cannot be called .it takes no completions"),
    ):
        with pytest.raises(ValueError, match=message):
            load_reward_model(factories + spec)


CALLS = "return [inner(c) for c in completions]"
WRAPS = "import functools\n{}def wraps(function):\n    @functools.wraps(function)\n"
USES = {
    "a default": f"{{}}def judge(completions, inner=inner): {CALLS}",
    "a dict of functions": "{}ALL = {'x': [inner]}\ndef judge(completions): return list(map(ALL['x'][0], completions))",
    "a local import": f"def judge(completions):\n    {{}}    {CALLS}",
    "a folder below": "import below.deeper\ndef judge(completions): return list(map(below.deeper.inner, completions))",
    "a decorator": (
        f"{WRAPS}    def wrapper(completions): {CALLS}\n    return wrapper\n"
        "@wraps\ndef judge(completions): return [0.0]"
    ),
    "what is decorated": (
        f"{WRAPS}    def wrapper(completions): return function(completions)\n    return wrapper\n"
        f"@wraps\ndef judge(completions): {CALLS}"
    ),
    "an array": "import numpy\n{}A = numpy.array([inner('')])\ndef judge(completions): return [A[0]]",
    "a tensor": "import torch\n{}A = torch.tensor([inner('')])\ndef judge(completions): return [A[0]]",
}


@pytest.mark.parametrize("how", USES)
def test_the_hash_changes_with_what_is_used_from_files_beside_and_below(how, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "below").mkdir()
    hashes = []
    for value in (1.0, 1.0, 2.0):
        text = f"VALUE = {value}\ndef inner(completion):\n    return {value}\n"
        (tmp_path / "lm_gym_beside.py").write_text(text)
        (tmp_path / "below" / "deeper.py").write_text(text)
        (tmp_path / "judge.py").write_text(USES[how].replace("{}", "from lm_gym_beside import inner\n"))
        linecache.clearcache()
        importlib.invalidate_caches()
        hashes.append(reward_model_hash(load_reward_model(f"py:{tmp_path}/judge.py:judge")))
        for name in ("lm_gym_beside", "below", "below.deeper"):  # as a new process would begin
            sys.modules.pop(name, None)
    assert hashes[0] == hashes[1] != hashes[2]
