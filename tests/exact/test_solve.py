"""The optimum and the value of policies: DESIGN.md's numbers, brute force, and identities on random policies."""

import numpy as np
import pytest
from exact import brute

from lm_gym.exact import (
    ExactLanguage,
    as_policy,
    evaluate,
    kl_between,
    optimal_policy,
    optimum,
    reference_policy,
    score_distribution,
    soft_values,
    text_probs,
)
from lm_gym.exact.solve import expected_sum

TABLE = {  # DESIGN.md: β -> J*, E[R], KL, E[length] at π*
    0.1: (2.627059, 2.999711, 3.726521, 2.9998),
    0.5: (1.552850, 2.254846, 1.403992, 2.7007),
    1.0: (1.175239, 1.572451, 0.397213, 2.5367),
    2.0: (0.973845, 1.177580, 0.101867, 2.5117),
}


def random_policy(language: ExactLanguage, seed: int) -> np.ndarray:
    table = language.table()
    return np.random.default_rng(seed).dirichlet(np.ones(table.n_tokens), size=table.n_states)


def two_prompts(states: str) -> ExactLanguage:
    """Two prompts whose rewards differ in scale by ten."""
    rows = [[0.1, 0.4, 0.3, 0.2], [0.25, 0.25, 0.25, 0.25]]
    tables = [[1, 0, -0.5, 1], [0, 10, -5, 0]]
    return ExactLanguage(horizon=4, token_table=tables, start_rows=rows, states=states)


@pytest.mark.parametrize("states", ["prefixes", "steps"])
@pytest.mark.parametrize("beta", TABLE)
def test_the_worked_example(beta: float, states: str) -> None:
    language = ExactLanguage(kl_coef=beta, states=states)
    best = evaluate(language, optimal_policy(language))
    j, reward, kl, length = TABLE[beta]
    assert best.optimum == pytest.approx(j, abs=5.1e-7)
    assert best.objective == pytest.approx(j, abs=5.1e-7)
    assert best.reward == pytest.approx(reward, abs=5.1e-7)
    assert best.kl == pytest.approx(kl, abs=5.1e-7)
    assert best.length == pytest.approx(length, abs=5.1e-5)
    assert abs(best.regret) < 1e-12
    assert evaluate(language, reference_policy(language)).objective == pytest.approx(0.7685, abs=1e-12)


def test_longer_horizons() -> None:
    assert optimum(ExactLanguage(horizon=16)) == pytest.approx(5.486336, abs=5.1e-7)
    assert optimum(ExactLanguage(horizon=48)) == pytest.approx(14.852171, abs=5.1e-7)
    language = ExactLanguage(horizon=300)
    assert evaluate(language, optimal_policy(language)).regret == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("horizon", [1, 2, 3, 5])
def test_optimum_is_the_tilted_reference(horizon: int) -> None:
    texts = brute.all_texts(4, horizon)
    ref = brute.reference(texts)
    weights = np.array([brute.prob(y, ref) * np.exp(brute.score(y) / 0.5) for y in texts])
    language = ExactLanguage(horizon=horizon, states="prefixes")
    assert optimum(language) == pytest.approx(0.5 * np.log(weights.sum()), abs=1e-12)
    best = text_probs(language, optimal_policy(language))
    rank = {y: i for i, y in enumerate(texts)}
    order = [rank[tuple(language.texts.ids(i))] for i in range(len(texts))]
    np.testing.assert_allclose(best, (weights / weights.sum())[order], atol=1e-14)


@pytest.mark.parametrize("horizon", [3, 4, 5, 6])
def test_dynamic_program_equals_enumeration(horizon: int) -> None:
    steps = ExactLanguage(horizon=horizon, states="steps")
    prefixes = ExactLanguage(horizon=horizon, states="prefixes")
    policy = random_policy(steps, horizon)
    spread = np.array([policy[steps.state(prefixes.prefix(s))] for s in range(prefixes.table().n_states)])
    a, b = evaluate(steps, policy), evaluate(prefixes, spread)
    for name in ("reward", "kl", "length", "entropy", "ended", "objective", "optimum", "regret", "kl_to_optimum"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), abs=1e-12), name
    (scores, probs), (same, enumerated) = score_distribution(steps, policy)[0], score_distribution(prefixes, spread)[0]
    np.testing.assert_allclose(scores, same)
    np.testing.assert_allclose(probs, enumerated, atol=1e-14)


def test_evaluation_of_a_random_policy_by_brute_force() -> None:
    language = ExactLanguage()
    policy = random_policy(language, 0)
    texts = brute.all_texts(4, 3)
    ref = brute.reference(texts)
    table = {prefix: policy[language.state(prefix)] for prefix in ref}
    probs = np.array([brute.prob(y, table) for y in texts])
    found = evaluate(language, policy)
    assert probs.sum() == pytest.approx(1.0)
    assert found.reward == pytest.approx(sum(p * brute.score(y) for p, y in zip(probs, texts, strict=True)))
    assert found.kl == pytest.approx(sum(p * brute.log_ratio(y, table, ref) for p, y in zip(probs, texts, strict=True)))
    assert found.entropy == pytest.approx(-(probs * np.log(probs)).sum())
    assert found.length == pytest.approx(sum(p * len(y) for p, y in zip(probs, texts, strict=True)))
    assert found.ended == pytest.approx(sum(p for p, y in zip(probs, texts, strict=True) if y[-1] == 0))
    assert found.objective == pytest.approx(brute.objective(texts, table, ref, 0.5))


@pytest.mark.parametrize("states", ["prefixes", "steps"])
@pytest.mark.parametrize("seed", range(5))
def test_regret_is_beta_kl_to_the_optimum(seed: int, states: str) -> None:
    language = two_prompts(states)
    policy = random_policy(language, seed)
    for beta in (0.2, 0.5, 3.0):
        found = evaluate(language, policy, beta)
        assert found.regret > 0
        assert found.regret == pytest.approx(beta * found.kl_to_optimum, rel=1e-10)
        assert found.regret == pytest.approx(beta * kl_between(language, policy, optimal_policy(language, beta)))
        assert found.regret == pytest.approx(found.per_prompt["regret"].mean())


def test_prompts_are_independent_and_equally_likely() -> None:
    both = two_prompts("prefixes")
    values = []
    for p in range(2):
        assert both.token_table is not None
        alone = ExactLanguage(horizon=4, token_table=both.token_table[p], start_rows=both.start_rows[p : p + 1])
        values.append(optimum(alone))
    found = evaluate(both, optimal_policy(both))
    np.testing.assert_allclose(found.per_prompt["objective"], values)
    assert found.optimum == pytest.approx(np.mean(values))
    assert optimum(two_prompts("steps")) == pytest.approx(np.mean(values))


def test_soft_values_are_the_bellman_fixed_point() -> None:
    language = two_prompts("prefixes")
    table, values = language.table(), soft_values(language)
    later = np.where(table.ends, table.step_reward, values[np.maximum(table.next_state, 0)])
    np.testing.assert_allclose(values, 0.5 * np.log((table.ref_probs * np.exp(later / 0.5)).sum(axis=1)))


def test_without_a_kl_the_best_texts_keep_the_references_proportions() -> None:
    language = ExactLanguage(kl_coef=0.0)
    assert optimum(language) == 3.0
    best = text_probs(language, optimal_policy(language))
    cold = text_probs(language, optimal_policy(language, 0.005))
    np.testing.assert_allclose(best, cold, atol=1e-12)
    assert sorted(tuple(language.texts.ids(i)) for i in np.nonzero(best)[0]) == [(3, 3, 0), (3, 3, 3)]
    assert evaluate(language, reference_policy(language)).regret == pytest.approx(3.0 - 0.7685)


def test_ways_to_describe_a_policy() -> None:
    language = two_prompts("prefixes")
    policy = random_policy(language, 1)

    class Agent:
        def exact_policy(self, language: ExactLanguage) -> np.ndarray:
            return policy.astype(np.float32)

    by_function = as_policy(language, lambda prefix, prompt: policy[language.state(prefix, prompt)])
    np.testing.assert_allclose(by_function, policy)
    np.testing.assert_allclose(as_policy(language, Agent()), policy, atol=1e-6)
    one = ExactLanguage()
    uniform = evaluate(one, lambda prefix: [0.25] * 4)
    assert uniform.kl == pytest.approx(evaluate(one, np.full((13, 4), 0.25)).kl)


def test_wrong_policies_are_refused() -> None:
    language = ExactLanguage()
    with pytest.raises(ValueError, match=r"must be \(13, 4\) probabilities.*got shape \(12, 4\)"):
        evaluate(language, np.full((12, 4), 0.25))
    with pytest.raises(ValueError, match=r"row 0 of the policy \(and 12 more\).*log-probs need an exp"):
        evaluate(language, np.log(np.full((13, 4), 0.25)))
    with pytest.raises(ValueError, match="stands for many prefixes"):
        evaluate(ExactLanguage(horizon=48), lambda prefix: [0.25] * 4)
    with pytest.raises(ValueError, match="kl_coef"):
        evaluate(language, reference_policy(language), kl_coef=float("nan"))


def test_what_the_reference_never_writes_costs_everything() -> None:
    rows = [[0.5, 0.5, 0.0], [0.5, 0.25, 0.25], [0.5, 0.5, 0.0]]
    language = ExactLanguage(rows, token_table=[0, 0, 1])
    best = optimal_policy(language)
    assert best[0, 2] == 0
    assert np.isfinite(evaluate(language, best).objective)
    found = evaluate(language, np.full(best.shape, 1 / 3))
    assert found.kl == np.inf
    assert found.regret == np.inf


def test_expected_sum_counts_visits() -> None:
    language = ExactLanguage()
    table = language.table()
    total = expected_sum(table, table.ref_probs, np.ones(table.n_states))
    assert total[0] == pytest.approx(2.55)
