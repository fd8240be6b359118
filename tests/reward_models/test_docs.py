"""The snippets of docs/reward_models.md about putting reward models together run as they stand there."""

import re
from pathlib import Path

import gymnasium as gym
import pytest
from judges import ask

import lm_gym
from lm_gym.reward_models.combination_file import KINDS
from lm_gym.rewards import load_reward_model, reward_model_names

TEXT = (Path(__file__).parents[2] / "docs" / "reward_models.md").read_text(encoding="utf-8")
SECTION = TEXT.partition("## Putting reward models together\n")[2].partition("\n## ")[0]


def snippets(language):
    return re.findall(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)


def test_the_python_runs(capsys):
    names = {"gym": gym}
    for code in snippets("python"):
        exec(compile(code, "docs/reward_models.md", "exec"), names)
    assert lm_gym.__version__
    mean, std = map(float, capsys.readouterr().out.split())
    said = re.search(r"print\(reward.mean, reward.std\)  # ([\d.]+) ([\d.]+);", SECTION)
    assert [mean, std] == pytest.approx([float(number) for number in said.groups()], abs=5e-4)
    scores = ask(names["by_weight"], ["lovely", "lovely"], ids=[[1] * 5] * 2, user=["ann", "bob"]).scores
    assert scores.tolist() == pytest.approx([0.5859, 0.2 * 0.5859 - 0.5])  # VADER's own value of "lovely"


def test_the_yaml_is_a_reward_model(tmp_path):
    [text] = snippets("yaml")
    (tmp_path / "my_rewards.yaml").write_text(text, encoding="utf-8")
    judge = load_reward_model(f"combine:{tmp_path}/my_rewards.yaml")
    # neutral; 4 of 20 words: −.8·.3; a full stop, and one of three words: .5/3
    assert ask(judge, ["It is a film."]).scores.tolist() == pytest.approx([-0.24 + 0.5 / 3])


def test_every_kind_and_class_is_in_the_table():
    for kind, target in KINDS.items():
        name = target.partition(":")[2]
        assert re.search(rf"^\| `{name}\([a-z_, ]+\)`, `{kind}` \|", SECTION, re.MULTILINE), (kind, name)
    assert not set(KINDS) & set(reward_model_names())
