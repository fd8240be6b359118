"""What is exported trains the Bradley-Terry model as it is, with ties, strengths and annotators."""

import random
from pathlib import Path

import pytest
from annotate_stores import person, say

from lm_gym.annotate.export import export
from lm_gym.annotate.lending import next_items
from lm_gym.annotate.store import Pair, Store, add_pairs
from lm_gym.preferences import load_preferences
from lm_gym.reward_models.bradley_terry import RewardModelConfig, train_reward_model

GOOD, BAD = ("lovely", "wonderful", "great", "kind"), ("awful", "dirty", "rude", "cold")


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """Answers of two annotators, of whom one is careless, to pairs in which a good word is better than a bad one."""
    rng = random.Random(0)
    store = Store(tmp_path / "prefs.sqlite", create=True)
    pairs = {}
    for i in range(48):
        words = rng.sample(GOOD + BAD, 2)
        prompt = f"In room {i} the staff was"
        pairs[prompt] = (int(words[1] in GOOD) - int(words[0] in GOOD)) * 2
        add_pairs(store, [Pair(prompt, f" {words[0]}.", f" {words[1]}.")], source="made", need=2)
    for name, careless in (("ada", 0.0), ("bob", 0.4)):
        who = person(store, name)
        while loans := next_items(store, who, 3):
            for loan in loans:
                said = pairs[str(loan.prompt)]
                say(store, who, loan, rng.randint(-3, 3) if rng.random() < careless else said)
    return export(store, tmp_path / "prefs.jsonl", how="none", with_ties=True).preferences


def config(**options: object) -> RewardModelConfig:
    fast = {"model": "tiny", "layers": 1, "epochs": 4, "batch_size": 16, "held_out": 0.0, "learning_rate": 3e-3}
    return RewardModelConfig(**{**fast, **options})  # type: ignore[arg-type]


def test_ties_and_annotators_are_learned_from(exported: Path) -> None:
    data = load_preferences(exported)
    assert len(data) == 96 and {row.annotator for row in data} == {"ada", "bob"}
    assert {row.label for row in data} == {0.5, 1.0}
    fit = train_reward_model(data, config(ties="davidson", annotators="accuracy"))
    prompts = ["In room 99 the staff was"] * 4
    good, bad = (fit.judge(prompts=prompts, completions=[f" {word}." for word in words]) for words in (GOOD, BAD))
    assert min(good) > max(bad)


def test_strengths_are_margins(exported: Path, tmp_path: Path) -> None:
    data = load_preferences(exported)
    assert {row.margin for row in data} >= {0.0, 2.0}
    fit = train_reward_model(data, config(epochs=1, use_margin=True))
    assert fit.history[-1]["train_loss"] > 0
