"""A mistyped path is an error at once, at every door, and never a question to the hub."""

import functools
from pathlib import Path
from typing import Any

import datasets
import pytest
import transformers

from lm_gym.cli import main
from lm_gym.loading import load_model, load_tokenizer
from lm_gym.local_paths import refuse_missing_path
from lm_gym.reward_specs import load_reward_model


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "first").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    for owner, name in (
        (transformers.AutoModelForCausalLM, "from_pretrained"),
        (transformers.AutoModelForSequenceClassification, "from_pretrained"),
        (transformers.AutoTokenizer, "from_pretrained"),
        (datasets, "load_dataset"),
    ):
        monkeypatch.setattr(owner, name, functools.partial(local_alone, getattr(owner, name)))


def local_alone(load: Any, source: str, *args: Any, **options: Any) -> Any:
    assert Path(source).exists(), f"the hub was asked for {source!r}"
    return load(source, *args, **options)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("runs/nothing", r"'.*/runs' has first"),
        ("runs/frist", "did you mean 'runs/first'"),
        ("./runs/nothing", "has first"),
        ("../nothing/at/all", "no such file"),
        ("/nowhere/model", "'/' has "),
        ("~/nowhere-of-mine", "no such file"),
        ("a/b/c", r"has runs"),
        ("runs/first/deeper/model", "is empty"),
    ],
)
def test_what_can_only_be_a_path_is_one(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=rf"model: could not load .*{hint}"):
        load_model(name)


@pytest.mark.parametrize("name", ["gpt2", "org/name", "runs", "runs/first"])
def test_what_may_be_a_hub_id_or_exists_is_not_refused(name: str) -> None:
    refuse_missing_path(name, "model")


@pytest.mark.parametrize(
    "args",
    [
        ["sample", "--model", "runs/x", "--prompt", "x"],
        ["train", "ppo", "--model", "runs/x"],
        ["train", "ppo", "--reference", "runs/x"],
        ["train", "ppo", "--tokenizer", "runs/x"],
        ["train", "ppo", "--prompts", "runs/x"],
        ["train", "ppo", "--reward", "hf:runs/x"],
        ["train", "dpo", "--pairs", "runs/x"],
        ["train", "sft", "--data", "runs/x"],
    ],
    ids=lambda args: args[-2],
)
def test_every_door_of_the_command_line(args: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*args, *(["--total-tokens", "10"] if args[0] == "train" else [])]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert "could not load 'runs/x', there is no such file or folder" in lines[-1], lines


def test_a_tokenizer_too() -> None:
    with pytest.raises(ValueError, match=r"judge: could not load '\./x'"):
        load_tokenizer("./x", "judge")
    with pytest.raises(ValueError, match="classifier: could not load"):
        load_reward_model("hf:./x")
