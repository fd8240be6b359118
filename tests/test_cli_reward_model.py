"""`lm-gym train reward-model`: from a file of pairs to a folder that judges."""

import dataclasses
import json
import re

import pytest

from lm_gym.cli import main
from lm_gym.reward_models.bradley_terry import RewardModelConfig
from lm_gym.rewards import load_reward_model

SMALL = "--layers 1 --epochs 1 --batch-size 8 --threads 1".split()


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"Text {i}:", "chosen": " good.", "rejected": " bad."} for i in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_field_is_a_flag(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["train", "reward-model", "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(RewardModelConfig):
        assert re.search(f"--{field.name.replace('_', '-')}[ ,]", text), field.name


def test_pairs_become_a_folder_that_judges(pairs, tmp_path, capsys):
    out = tmp_path / "judge"
    assert main(["train", "reward-model", "--data", str(pairs), "--out", str(out), *SMALL]) == 0
    shown = capsys.readouterr().out
    assert "accuracy 100.0% on held-out pairs (2 of 24 prompts)" in shown
    assert f"--reward hf:{out}" in shown
    good, bad = load_reward_model(f"hf:{out}")(prompts=["Text 99:"] * 2, completions=[" good.", " bad."])
    assert good > bad
    assert main(["train", "reward-model", "--data", str(pairs), "--out", str(out), *SMALL]) == 2
    assert "holds a model already" in capsys.readouterr().err


def test_rankings_and_held_out_data_of_ones_own(tmp_path, capsys):
    path = tmp_path / "rankings.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i}", "completions": [" a", " b", " c"]}) + "\n" for i in range(9)))
    flags = ["--rankings", "--held-out-data", str(path), "--out", str(tmp_path / "judge"), *SMALL]
    assert main(["train", "reward-model", "--data", str(path), *flags]) == 0
    assert "(given)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ties", "davidson"], "expected rows with the label .5, got none"),
        (["--layers", "9"], "layers expected at most the 4 of 'tiny', got 9"),
        (["--data", "nowhere.jsonl"], "there is no file nowhere.jsonl"),
    ],
)
def test_what_a_user_can_put_right_is_one_line(pairs, tmp_path, capsys, flags, message):
    data = [] if "--data" in flags else ["--data", str(pairs)]
    assert main(["train", "reward-model", *data, "--out", str(tmp_path / "judge"), *flags]) == 2
    assert message in capsys.readouterr().err
