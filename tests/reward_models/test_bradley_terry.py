"""Training a Bradley-Terry reward model: what it learns, what it leaves behind, and what it refuses."""

import json
import math
import random

import numpy as np
import pytest
import torch
from small_models import llama, tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lm_gym.preferences import Preference, Ranking
from lm_gym.reward_models.bradley_terry import RewardModelConfig, train_reward_model
from lm_gym.reward_models.classifier import Classifier
from lm_gym.reward_models.scalar_model import scalar_model
from lm_gym.rewards import load_reward_model

FAST = {"epochs": 6, "learning_rate": 1e-2, "batch_size": 16, "evals_per_epoch": 1}


def worth(text):
    """1.5 for every a, -1.5 for every b."""
    return 1.5 * (text.count("a") - text.count("b"))


def pairs(count, seed=0, noise=True):
    rng = random.Random(seed)
    found = []
    for place in range(count):
        one, two = ("".join(rng.choices("abcd", k=5)) for _ in range(2))
        if one == two:
            two = one + "a"
        p = 1 / (1 + math.exp(worth(two) - worth(one)))
        if (rng.random() if noise else 0.5) > p:
            one, two = two, one
        found.append(Preference(f"p{place}", one, two))
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tok = tokenizer()
    model = llama(len(tok))
    with torch.no_grad():  # its texts need not be sharp, and a flat start learns faster
        for weight in model.parameters():
            if weight.ndim > 1:
                weight *= 0.4
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def fit(base):
    return train_reward_model(pairs(600), model=base, **FAST)


def test_it_learns_what_is_better_on_prompts_held_out(fit):
    best = fit.history[fit.best]
    test = pairs(200, seed=5, noise=False)
    chosen, rejected = (
        np.array(fit.judge([p.prompt for p in test], [getattr(p, side) for p in test]))
        for side in ("chosen", "rejected")
    )
    different = np.array([worth(p.chosen) != worth(p.rejected) for p in test])
    assert (chosen > rejected)[different].mean() > 0.9
    assert best["loss"] < math.log(2) - 0.2 and best["accuracy"] > 0.75
    assert fit.held_out == "60 of 600 prompts"


def test_the_folder_gives_the_same_scores_here_and_elsewhere(fit, tmp_path):
    fit.save(tmp_path)
    test = pairs(20, seed=6)
    prompts, texts = [p.prompt for p in test], [p.chosen for p in test]
    expected = fit.judge(prompts, texts)
    ours = load_reward_model(f"hf:{tmp_path}")(prompts=prompts, completions=texts)
    assert ours == pytest.approx(expected, abs=1e-5)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    tok = AutoTokenizer.from_pretrained(tmp_path)
    batch = tok([a + b for a, b in zip(prompts, texts, strict=True)], padding=True, return_tensors="pt")
    theirs = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    assert theirs.shape == (20, 1)
    assert theirs[:, 0].tolist() == pytest.approx(expected, abs=1e-5)
    record = json.loads((tmp_path / "bradley_terry.json").read_text())
    assert record["config"]["epochs"] == 6 and record["estimates"][0]["name"] == "gain"


def test_the_weights_are_those_of_the_best_look(base):
    data = pairs(150)
    looked = []
    fit = train_reward_model(data[:60], model=base, **FAST | {"epochs": 30, "learning_rate": 1e-2, "patience": 2},
                             held_out_data=data[60:], log=looked.append)  # fmt: skip
    assert looked == fit.history
    assert fit.best == min(range(len(fit.history)), key=lambda i: fit.history[i]["loss"])
    assert fit.best + 2 == len(fit.history) - 1 < 29  # two looks without a smaller loss
    chosen, rejected = (
        torch.tensor(fit.judge([p.prompt for p in data[60:]], [getattr(p, side) for p in data[60:]]))
        for side in ("chosen", "rejected")
    )
    loss = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
    assert float(loss) == pytest.approx(fit.history[fit.best]["loss"], abs=1e-5)


def test_the_same_seed_gives_the_same_numbers(base):
    runs = [train_reward_model(pairs(40), model=base, **FAST | {"epochs": 1, "seed": seed}) for seed in (0, 0, 1)]
    losses = [run.history[-1]["train_loss"] for run in runs]
    assert losses[0] == losses[1] != losses[2]


def test_it_starts_from_the_first_layers_of_the_trunk_with_scores_of_zero(base):
    lm, tok, _ = scalar_model(base, layers=1)
    whole, _, _ = scalar_model(base)
    assert len(lm.model.layers) == 1 and len(whole.model.layers) == 2
    first = lm.model.layers[0].self_attn.q_proj.weight
    assert torch.equal(first, whole.model.layers[0].self_attn.q_proj.weight)
    assert Classifier(lm, tokenizer=tok)(["ab"], ["cd"]) == [0.0]
    with pytest.raises(ValueError, match="layers expected at most the 2"):
        scalar_model(base, layers=3)


def test_fewer_layers_survive_the_folder(base, tmp_path):
    fit = train_reward_model(pairs(20), model=base, layers=1, epochs=1, held_out=0.0)
    fit.save(tmp_path)
    again = load_reward_model(f"hf:{tmp_path}")
    assert again.model.config.num_hidden_layers == 1
    assert again(prompts=["ab"], completions=["cd"]) == pytest.approx(fit.judge(["ab"], ["cd"]), abs=1e-6)


def test_margins_widen_the_difference(base):
    plain = [Preference(f"p{i}", "a" * (1 + i % 3), "b" * (1 + i % 3)) for i in range(60)]
    wide = [Preference(p.prompt, p.chosen, p.rejected, margin=4.0) for p in plain]
    options = {"model": base, "held_out": 0.0, **FAST}
    without = train_reward_model(plain, **options)
    with_ = train_reward_model(wide, use_margin=True, **options)
    differences = [run.judge(["x"], ["aa"])[0] - run.judge(["x"], ["bb"])[0] for run in (without, with_)]
    assert differences[1] > differences[0] + 1
    smooth = train_reward_model(plain, label_smoothing=0.3, **options)
    assert smooth.judge(["x"], ["aa"])[0] - smooth.judge(["x"], ["bb"])[0] < differences[0]


def test_rankings(base):
    rng = random.Random(0)
    data = []
    for i in range(150):
        texts = {"".join(rng.choices("abcd", k=4)) for _ in range(rng.choice([2, 3, 4]))}
        if len(texts) > 1:
            data.append(Ranking(f"p{i}", tuple(sorted(texts, key=worth, reverse=True))))
    fit = train_reward_model(data, model=base, **FAST)
    assert fit.history[fit.best]["accuracy"] > 0.75
    a, c, b = fit.judge(["p"] * 3, ["aaaa", "cdcd", "bbbb"])
    assert a > c > b


def test_centring_holds_the_mean_at_zero(base):
    data = [Preference(f"p{i}", "a" * (1 + i % 3), "b") for i in range(60)]
    runs = [train_reward_model(data, model=base, held_out=0.0, centring=c, **FAST) for c in (0.0, 1.0)]
    sums = [abs(run.judge(["x"], ["aa"])[0] + run.judge(["x"], ["b"])[0]) for run in runs]
    assert sums[1] < 0.2


def annotated(count, seed=0):
    """Ties by Davidson's model with ν = 1, an annotator who sees and one who hardly looks."""
    rng = random.Random(seed)
    found = []
    for p in pairs(count, seed):
        who, scale = rng.choice([("sees", 2.0), ("hardly", 0.5)])
        half = math.exp(scale * (worth(p.chosen) - worth(p.rejected)) / 2)
        outcome = rng.choices(["win", "tie", "lose"], [half, 1.0, 1 / half])[0]
        label = {"win": 1.0, "tie": 0.5, "lose": 0.0}[outcome]
        found.append(Preference(p.prompt, p.chosen, p.rejected, label=label, annotator=who))
    return found


def test_ties_and_annotators_are_estimated_beside_the_scores(base):
    fit = train_reward_model(annotated(600), model=base, ties="davidson", annotators="scale", held_out=0.3, **FAST)
    estimates = {e.name: e for e in fit.estimates}
    assert set(estimates) == {"gain", "tie/nu", "scale/hardly", "scale/sees"}
    assert estimates["scale/hardly"].high < 1 < estimates["scale/sees"].low
    assert estimates["tie/nu"].low < 1.0 < estimates["tie/nu"].high


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ([], {}, "expected comparisons to train on, got none"),
        (pairs(20), {"annotators": "scale"}, "expected rows by several annotators"),
        (pairs(20), {"ties": "davidson"}, "expected rows with the label .5, got none"),
        (pairs(20), {"use_margin": True}, "comparison 0 has no margin"),
        ([Ranking("p", ("a", "b", "c"))] * 3, {"label_smoothing": 0.1}, "3 rankings of three or more"),
    ],
)
def test_options_that_the_data_cannot_serve(base, data, options, message):
    with pytest.raises(ValueError, match=message):
        train_reward_model(data, model=base, **options)


@pytest.mark.parametrize(
    "options", [{"epochs": 0}, {"held_out": 1.0}, {"label_smoothing": 0.5}, {"layers": 0},
                {"ties": "davidson", "label_smoothing": 0.1}],
)  # fmt: skip
def test_wrong_options(options):
    with pytest.raises(ValueError, match=r"expected|leave"):
        RewardModelConfig(**options)
