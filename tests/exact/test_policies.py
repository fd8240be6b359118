"""Best-of-n, masks, preference optimisation and discounting on the worked example."""

import itertools

import numpy as np
import pytest
from exact import brute
from scipy.optimize import minimize

from lm_gym.exact import (
    ExactLanguage,
    best_of_n,
    discounted_optimum,
    dpo_endpoint,
    endpoint,
    evaluate,
    optimal_policy,
    optimum,
    reference_policy,
    text_probs,
    top_k_mask,
    top_p_mask,
)


@pytest.mark.parametrize("states", ["prefixes", "steps"])
@pytest.mark.parametrize(("n", "reward", "kl"), [(4, 1.68054, 0.60651), (16, 2.29559, 1.68104)])
def test_best_of_n(n: int, reward: float, kl: float, states: str) -> None:
    language = ExactLanguage(states=states)
    best = best_of_n(language, n)
    assert best.reward == pytest.approx(reward, abs=5.1e-6)
    assert best.kl == pytest.approx(kl, abs=5.1e-6)
    assert best.kl < np.log(n) - (n - 1) / n
    if states == "prefixes":
        found = evaluate(language, best.policy)
        assert (found.reward, found.kl, found.regret) == pytest.approx((best.reward, best.kl, best.regret), abs=1e-12)


def test_best_of_three_by_listing_every_triple() -> None:
    language = ExactLanguage()
    texts = brute.all_texts(4, 3)
    ref = brute.reference(texts)
    chance = np.array([brute.prob(y, ref) for y in texts])
    scores = np.array([brute.score(y) for y in texts])
    won = np.zeros(len(texts))
    for triple in itertools.product(range(len(texts)), repeat=3):
        best = [i for i in triple if scores[i] == scores[list(triple)].max()]
        for i in best:
            won[i] += chance[list(triple)].prod() / len(best)
    rank = {y: i for i, y in enumerate(texts)}
    order = [rank[tuple(language.texts.ids(i))] for i in range(len(texts))]
    np.testing.assert_allclose(text_probs(language, best_of_n(language, 3).policy), won[order], atol=1e-12)


def test_best_of_one_is_the_reference() -> None:
    language = ExactLanguage()
    np.testing.assert_allclose(best_of_n(language, 1).policy, reference_policy(language))
    with pytest.raises(ValueError, match="n must be at least 1"):
        best_of_n(language, 0)


@pytest.mark.parametrize(("p", "regret"), [(0.9, 0.017), (0.8, 0.543), (0.7, 1.179)])
def test_what_a_top_p_mask_costs(p: float, regret: float) -> None:
    language = ExactLanguage()
    mask = top_p_mask(language, p)
    best = optimal_policy(language, mask=mask)
    assert not best[~mask].any()
    found = evaluate(language, best)
    assert found.regret == pytest.approx(regret, abs=5.1e-4)
    assert found.objective == pytest.approx(optimum(language, mask=mask), abs=1e-12)
    rng = np.random.default_rng(0)
    for _ in range(20):  # no other policy under the mask does better
        other = best * rng.uniform(0.5, 2.0, best.shape)
        assert evaluate(language, other / other.sum(axis=1, keepdims=True)).objective < found.objective


def test_top_k_mask_keeps_eos() -> None:
    language = ExactLanguage()
    np.testing.assert_array_equal(top_k_mask(language, 2)[0], [True, True, False, False])
    np.testing.assert_array_equal(top_k_mask(language, 2, keep_eos=False)[0], [False, True, True, False])
    assert (top_k_mask(language, 2).sum(axis=1) == 2).all()
    assert top_p_mask(language, 1.0).all()
    for wrong in (lambda: top_p_mask(language, 0.0), lambda: top_k_mask(language, 5)):
        with pytest.raises(ValueError, match="must be in"):
            wrong()
    with pytest.raises(ValueError, match="bool of shape"):
        optimum(language, mask=np.ones((13, 4)))
    with pytest.raises(ValueError, match="no token"):
        optimum(language, mask=np.zeros((13, 4), dtype=bool))


@pytest.mark.parametrize("states", ["prefixes", "steps"])
@pytest.mark.parametrize(
    ("arguments", "regret"), [({}, 0.0), ({"label_smoothing": 0.1}, 0.069), ({"variant": "ipo"}, 0.505)]
)
def test_preference_optimisation(arguments: dict, regret: float, states: str) -> None:
    language = ExactLanguage(states=states)
    end = dpo_endpoint(language, **arguments)
    assert end.regret == pytest.approx(regret, abs=5.1e-4)
    if end.policy is not None:
        assert evaluate(language, end.policy).regret == pytest.approx(end.regret, abs=1e-12)


@pytest.mark.parametrize("variant", ["dpo", "ipo"])
def test_preference_losses_are_minimal(variant: str) -> None:
    """Against a general optimiser on the loss itself, over the log-ratios of all 40 texts."""
    beta, smoothing = 0.5, 0.1
    language = ExactLanguage()
    ref, scores = np.exp(language.texts.ref_logprob), language.texts.reward
    p = 1 / (1 + np.exp(-(scores[:, None] - scores[None, :])))
    pairs = ref[:, None] * ref[None, :]

    def loss(log_ratio: np.ndarray) -> float:
        h = log_ratio[:, None] - log_ratio[None, :]
        if variant == "ipo":
            return float((pairs * p * (h - 1 / (2 * beta)) ** 2).sum())
        win, lose = np.logaddexp(0, -beta * h), np.logaddexp(0, beta * h)
        return float((pairs * p * ((1 - smoothing) * win + smoothing * lose)).sum())

    end = dpo_endpoint(language, **({"variant": "ipo"} if variant == "ipo" else {"label_smoothing": smoothing}))
    ours = np.log(text_probs(language, end.policy)) - language.texts.ref_logprob
    best = minimize(loss, np.zeros(40), method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-15, "gtol": 1e-10})
    assert loss(ours) <= best.fun + 1e-12
    assert loss(ours) == pytest.approx(best.fun, abs=1e-7)


def test_preference_fit_holds_for_scores_that_hardly_occur() -> None:
    language = ExactLanguage(horizon=48)
    assert dpo_endpoint(language).regret == pytest.approx(0.0, abs=1e-10)
    almost = dpo_endpoint(language, label_smoothing=1e-9)
    assert almost.regret < dpo_endpoint(language, label_smoothing=0.1).regret


def test_preference_arguments() -> None:
    language = ExactLanguage()
    assert dpo_endpoint(language, 1.0).regret == pytest.approx(0.0, abs=1e-12)
    assert dpo_endpoint(language, variant="ipo", tau=1.0).kl_coef == 1.0
    for wrong in ({"variant": "kto"}, {"label_smoothing": 0.5}, {"tau": 1.0}, {"variant": "ipo", "beta": 1.0}):
        with pytest.raises(ValueError, match="variant|label_smoothing|tau"):
            dpo_endpoint(language, **wrong)


@pytest.mark.parametrize(("horizon", "regret"), [(3, 0.0002), (16, 0.0685), (48, 2.34)])
def test_what_a_discount_costs(horizon: int, regret: float) -> None:
    found = discounted_optimum(ExactLanguage(horizon=horizon, states="steps"), 0.99)
    assert found.regret == pytest.approx(regret, abs={3: 5.1e-5, 16: 5.1e-5, 48: 5.1e-3}[horizon])


def test_a_discount_on_prefixes_is_where_training_ends() -> None:
    language = ExactLanguage()
    found = discounted_optimum(language, 0.9)
    assert evaluate(language, found.policy).regret == pytest.approx(found.regret, abs=1e-12)
    np.testing.assert_allclose(endpoint(language, gamma=0.9).policy, found.policy, atol=1e-12)
    assert discounted_optimum(language, 1.0).regret == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match="gamma"):
        discounted_optimum(language, 0.0)
