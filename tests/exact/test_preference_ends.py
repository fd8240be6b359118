"""End points of online DPO, of hard labels and of KTO, against sums over all pairs of texts and general optimisers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from exact import brute
from scipy.optimize import minimize
from scipy.special import expit

from lm_gym.exact import (
    ExactLanguage,
    dpo_endpoint,
    evaluate,
    kl_between,
    kto_endpoint,
    optimal_policy,
    reference_policy,
    text_probs,
)

BETA = 0.5


def preferred(a: brute.Text, b: brute.Text, labels: str) -> float:
    difference = brute.score(a) - brute.score(b)
    if labels == "hard":
        return 0.5 + 0.5 * float(np.sign(difference))
    return 1 / (1 + math.exp(-difference))


def expected_gradient(policy: brute.Policy, drawn: brute.Policy, objective: dict) -> float:
    """The largest entry of the expected gradient over every pair of texts of `drawn`, by the definitions."""
    texts, labels = brute.all_texts(4, 3), objective.get("labels", "bradley-terry")
    ref, eps = brute.reference(texts), objective.get("label_smoothing", 0.0)
    ratio = {y: brute.log_ratio(y, policy, ref) for y in texts}

    def pull(y: brute.Text, _: int) -> float:
        total = 0.0
        for other in texts:
            h, p = ratio[y] - ratio[other], preferred(y, other, labels)
            if objective.get("variant") == "ipo":
                slope = 2 * (h - (2 * p - 1) / (2 * BETA))
            else:
                slope = BETA * (1 / (1 + math.exp(-BETA * h)) - (p * (1 - eps) + (1 - p) * eps))
            total += brute.prob(other, drawn) * slope
        # brute.gradient weighs y by the policy; what draws the pairs may be another
        return total * brute.prob(y, drawn) / brute.prob(y, policy)

    return brute.largest(brute.gradient(texts, policy, pull))


def as_prefixes(language: ExactLanguage, policy: np.ndarray) -> brute.Policy:
    return {prefix: policy[language.state(prefix)] for prefix in brute.reference(brute.all_texts(4, 3))}


OBJECTIVES = [
    {},
    {"label_smoothing": 0.1},
    {"variant": "ipo"},
    {"labels": "hard", "label_smoothing": 0.1},
    {"labels": "hard", "variant": "ipo"},
]


@pytest.mark.parametrize("on_policy", [False, True])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_the_expected_gradient_vanishes(objective: dict, on_policy: bool) -> None:
    language = ExactLanguage()
    end = dpo_endpoint(language, on_policy=on_policy, **objective)
    policy = as_prefixes(language, end.policy)
    ref = brute.reference(brute.all_texts(4, 3))
    assert expected_gradient(policy, policy if on_policy else ref, objective) < 1e-11
    assert expected_gradient(ref, ref, objective) > 0.01
    assert evaluate(language, end.policy).regret == pytest.approx(end.regret, abs=1e-12)


@pytest.mark.parametrize(
    ("objective", "regret"),
    [({}, 0.0), ({"label_smoothing": 0.1}, 0.0517), ({"variant": "ipo"}, 0.5026), ({"labels": "hard"}, 0.4177)],
    ids=str,
)
def test_where_online_dpo_ends(objective: dict, regret: float) -> None:
    assert dpo_endpoint(ExactLanguage(), on_policy=True, **objective).regret == pytest.approx(regret, abs=6e-5)


def test_hard_labels_end_in_the_best_texts() -> None:
    """The reference among texts of score 3: ever smaller β·h is left over as the policy follows the loss down."""
    language = ExactLanguage()
    end = dpo_endpoint(language, labels="hard")
    np.testing.assert_allclose(text_probs(language, end.policy), text_probs(language, optimal_policy(language, 0.0)))
    small = dpo_endpoint(language, labels="hard", label_smoothing=1e-7, on_policy=True)
    assert kl_between(language, end.policy, small.policy) < 0.01


@pytest.mark.parametrize("labels", ["bradley-terry", "hard"])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 0.5), (1.0, 1.5)])
def test_kto_minimises_its_loss(labels: str, weights: tuple[float, float]) -> None:
    """Against a general optimiser on the loss with z_0 = 0, over the log-probs of all 40 texts."""
    language = ExactLanguage()
    ref = np.exp(language.texts.ref_logprob)
    texts = [tuple(language.texts.ids(i)) for i in range(40)]
    good = np.array([sum(q * preferred(y, other, labels) for q, other in zip(ref, texts, strict=True)) for y in texts])

    def loss(log_ratio: np.ndarray) -> float:
        better, worse = expit(-BETA * log_ratio), expit(BETA * log_ratio)
        return float(ref @ (good * weights[0] * better + (1 - good) * weights[1] * worse))

    def of_logits(logits: np.ndarray) -> tuple[float, np.ndarray]:
        shifted = logits - logits.max()
        probs = np.exp(shifted) / np.exp(shifted).sum()
        log_ratio = shifted - np.log(np.exp(shifted).sum()) - np.log(ref)
        slope = BETA * ref * expit(BETA * log_ratio) * expit(-BETA * log_ratio)
        pull = slope * ((1 - good) * weights[1] - good * weights[0])
        return loss(log_ratio), pull - probs * pull.sum()

    best = minimize(of_logits, np.log(ref), jac=True, method="L-BFGS-B", options={"maxiter": 5000, "gtol": 1e-12})
    end = kto_endpoint(language, labels=labels, desirable_weight=weights[0], undesirable_weight=weights[1])
    probs = text_probs(language, end.policy)
    with np.errstate(divide="ignore"):
        ours = np.log(probs) - np.log(ref)
    assert loss(ours) <= best.fun + 1e-9
    found = np.exp(best.x - best.x.max())
    np.testing.assert_allclose(probs, found / found.sum(), atol=5e-3)


def test_kto_numbers_of_the_docstring() -> None:
    language = ExactLanguage()
    end = kto_endpoint(language)
    assert (end.regret, end.reward, end.kl) == pytest.approx((0.1644, 1.8477, 0.9185), abs=6e-5)
    assert kto_endpoint(language, labels="hard").regret == pytest.approx(0.2133, abs=6e-5)
    assert kto_endpoint(ExactLanguage(states="steps")).regret == pytest.approx(end.regret, abs=1e-9)


def test_what_is_refused() -> None:
    two = ExactLanguage(start_rows=[[0.1, 0.4, 0.3, 0.2], [0.25, 0.25, 0.25, 0.25]])
    for wrong, message in (
        (lambda: kto_endpoint(two), "one prompt"),
        (lambda: kto_endpoint(ExactLanguage(), 1.5), "at most 1"),
        (lambda: kto_endpoint(ExactLanguage(), labels="soft"), "labels must be one of"),
        (lambda: kto_endpoint(ExactLanguage(), desirable_weight=0.0), "no text gains"),
        (lambda: dpo_endpoint(ExactLanguage(), labels="soft"), "labels must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
    assert (
        kl_between(ExactLanguage(), reference_policy(ExactLanguage()), kto_endpoint(ExactLanguage()).policy) == np.inf
    )
