"""Labels drawn from a known score: its order comes back, and so do the parameters of ties and annotators (slow)."""

import random

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from lm_gym.loading import load_model
from lm_gym.preference_data import Annotators, draw_pairs, label_pairs
from lm_gym.preferences import Preference
from lm_gym.prompts import load_prompts
from lm_gym.reward_models.bradley_terry import train_reward_model
from lm_gym.reward_models.bt_losses import outcomes, with_mistakes
from lm_gym.rewards import load_reward_model

pytestmark = pytest.mark.slow

WORDS = "film book hotel phone music food room price staff game tea show".split()
OPTIONS = {"model": "tiny", "layers": 2, "learning_rate": 1e-3, "epochs": 3, "batch_size": 64}
PROMPT = "Words:"


def linear_texts(seed=0):
    """500 texts to train on and 200 others, with a score that is a sum over their words."""
    rng = np.random.default_rng(seed)
    worth = dict(zip(WORDS, rng.normal(size=len(WORDS)), strict=True))
    texts = sorted({" " + " ".join(rng.choice(WORDS, 8)) + "." for _ in range(720)})
    rng.shuffle(texts)
    return texts[:500], texts[500:700], lambda text: sum(worth[word] for word in text.strip(" .").split())


def comparisons(texts, score, *, ties=None, tie=0.0, scales=None, accuracies=None, count=5000):
    """Pairs of the texts with answers drawn from the model of the options."""
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        a, b = rng.sample(texts, 2)
        who = rng.randrange(3)
        d = torch.tensor(score(a) - score(b)) * (1.0 if scales is None else scales[who])
        answer = outcomes(d, ties=ties, tie=torch.tensor(tie))
        if accuracies is not None:
            answer = with_mistakes(answer, torch.tensor(accuracies[who]))
        chances = torch.stack([x for x in answer if x is not None]).exp()
        drawn = int(torch.multinomial(chances, 1, generator=generator))
        label = (1.0, 0.5, 0.0)[drawn] if ties else (1.0, 0.0)[drawn]
        found.append(Preference(PROMPT, a, b, label=label, annotator=f"annotator-{who}"))
    return found


def tau(fit, texts, score):
    return kendalltau(fit.judge([PROMPT] * len(texts), texts), [score(text) for text in texts])[0]


def test_the_order_of_a_linear_score_comes_back():
    train, test, score = linear_texts()
    fit = train_reward_model(comparisons(train, score), **OPTIONS)
    assert tau(fit, test, score) > 0.9


@pytest.mark.parametrize(
    ("ties", "kind", "truth"), [("rao-kupper", "scale", (0.5, 1.0, 2.0)), ("davidson", "accuracy", (0.95, 0.8, 0.65))]
)
def test_ties_and_annotators_come_back_within_their_intervals(ties, kind, truth):
    train, test, score = linear_texts()
    own = {"scales" if kind == "scale" else "accuracies": truth}
    data = comparisons(train, score, ties=ties, tie=0.8, **own)
    fit = train_reward_model(data, ties=ties, annotators=kind, held_out=0.2, **OPTIONS)
    assert tau(fit, test, score) > 0.75  # an annotator who errs in a third of the answers tells less than all others
    found = {e.name: e for e in fit.estimates}
    expected = {"tie/eta" if ties == "rao-kupper" else "tie/nu": 0.8}
    expected |= {f"{kind}/annotator-{i}": value for i, value in enumerate(truth)}
    for name, value in expected.items():
        assert found[name].low <= value <= found[name].high, (name, value, found[name])
        assert found[name].high - found[name].low < value


def test_a_reward_model_on_requests_to_tiny_comes_within_three_points_of_the_ceiling():
    lm, gold = load_model("tiny"), load_reward_model("tiny-harmlessness")
    parts = []
    for source, count, seed in (("tiny:requests", 4000, 0), ("tiny:requests:test", 1000, 1)):
        drawn = draw_pairs(lm, load_prompts(source, lm.tokenizer), gold, count, seed=seed)
        parts.append(label_pairs(drawn, Annotators(), seed=seed))
    fit = train_reward_model(parts[0], layers=2)
    sides = [np.array(fit.judge([p.prompt for p in parts[1]], [getattr(p, s) for p in parts[1]])) for s in
             ("chosen", "rejected")]  # fmt: skip
    true = np.array([p.columns["gold_chosen"] - p.columns["gold_rejected"] for p in parts[1]])
    right = [np.mean((d > 0) + 0.5 * (d == 0)) for d in (sides[0] - sides[1], true)]
    assert right[0] > right[1] - 0.03
