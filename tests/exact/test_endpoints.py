"""End points of training: DESIGN.md's numbers, and the expected gradient by listing texts."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from exact import brute

from lm_gym.exact import PRESETS, ExactLanguage, endpoint, evaluate, optimal_policy
from lm_gym.exact.groups import _by_fourier, _by_multisets, _by_sampling, _lattice, group_advantage

BETA = 0.5
LOSS_K2 = {"kl_in": "loss", "estimator": "k2"}
LOSS_K3 = {"kl_in": "loss", "estimator": "k3"}
SHORT = {"length_normalize": True}

DESIGN = [  # DESIGN.md, "Where exact-gradient training ends at β = .5": objective, regret, to its digits
    ({}, 0.0, 1e-12),
    (SHORT, 0.0, 1e-12),
    (LOSS_K2, 0.00988, 5.1e-6),
    ({**LOSS_K2, "estimator": "exact"}, 0.00988, 5.1e-6),
    ({**LOSS_K2, **SHORT}, 0.02178, 5.1e-6),
    (LOSS_K3, 0.03016, 5.1e-6),
    ({**LOSS_K3, "std_normalize": "population"}, 0.02817, 5.1e-6),
    ({**LOSS_K3, "std_normalize": "population", **SHORT}, 0.02490, 5.1e-6),
    ({**PRESETS["grpo"], "group_size": 4}, 0.073, 6e-4),
    ({**PRESETS["grpo"], "group_size": 8}, 0.039, 6e-4),
    ({**PRESETS["grpo"], "group_size": 16}, 0.029, 5.1e-4),
    ({"kl_in": "entropy-bonus"}, 0.08409, 5.1e-6),
    ({"kl_in": "reference"}, 0.620, 5.1e-4),
    ({**LOSS_K2, "whiten": True, "baseline": "value"}, 0.418, 5.1e-4),
    ({**LOSS_K3, "whiten": True, "baseline": "value"}, 0.054, 5.1e-4),
    ({"kl_in": "entropy-bonus", "whiten": True, "baseline": "value"}, 0.620, 5.1e-4),
    ({"gamma": 0.99}, 0.0002, 5.1e-5),
]


@pytest.mark.parametrize(("objective", "regret", "digits"), DESIGN, ids=[str(row[0]) for row in DESIGN])
def test_designs_numbers(objective: dict, regret: float, digits: float) -> None:
    end = endpoint(ExactLanguage(), **objective)
    assert end.converged
    assert end.regret == pytest.approx(regret, abs=digits)


@pytest.mark.slow
def test_a_group_of_64() -> None:
    assert endpoint(ExactLanguage(), **PRESETS["grpo"], group_size=64).regret == pytest.approx(0.025, abs=5.1e-4)


def test_the_limit_of_a_large_group_is_the_population_one() -> None:
    assert endpoint(ExactLanguage(), **PRESETS["grpo"]).regret == pytest.approx(0.02490, abs=5.1e-6)


def test_k1_in_the_loss_has_no_kl_effect() -> None:
    end = endpoint(ExactLanguage(), kl_in="loss", estimator="k1")
    assert end.reward == 3.0
    assert end.regret > 0.6


Coefficient = Callable[[brute.Text, int], float]


def coefficient(objective: dict, texts: list[brute.Text], policy: brute.Policy, ref: brute.Policy) -> Coefficient:
    """What multiplies ∇log π(a_t|s_t) for token t of y, written from the definitions."""
    o = {"kl_in": "reward", "estimator": None, "baseline": "mean", "gamma": 1.0, "lam": 1.0, **objective}

    def log_ref(y: brute.Text) -> float:
        return sum(math.log(ref[y[:t]][a]) for t, a in enumerate(y))

    def paid(y: brute.Text) -> float:
        if o["kl_in"] == "reward":
            return brute.score(y) - BETA * brute.log_ratio(y, policy, ref)
        return brute.score(y) + (BETA * log_ref(y) if o["kl_in"] == "entropy-bonus" else 0.0)

    mean = brute.expectation(texts, policy, paid)
    std = math.sqrt(brute.expectation(texts, policy, lambda y: (paid(y) - mean) ** 2))
    value = {prefix: brute.expectation(texts, policy, paid, prefix) for prefix in policy}
    group = None
    if o.get("group_size") and o.get("std_normalize"):
        ddof = 1 if o["std_normalize"] == "sample" else 0
        group = brute.group_advantages(texts, policy, o["group_size"], ddof, 1e-4)
    shrink = 1 - 1 / o["group_size"] if o.get("group_size") else 1.0

    def raw(y: brute.Text, t: int) -> float:
        if group is not None:
            return group[brute.score(y)]
        if o["baseline"] == "value":  # GAE with the exact critic
            values = [*(value[y[:i]] for i in range(len(y))), 0.0]
            delta = [(paid(y) if i == len(y) - 1 else 0.0) + values[i + 1] - values[i] for i in range(len(y))]
            return sum(o["lam"] ** (i - t) * delta[i] for i in range(t, len(y)))
        advantage = (paid(y) - mean) * shrink
        return advantage / (std + 1e-4) if o.get("std_normalize") else advantage

    centre, scale = 0.0, 1.0
    if o.get("whiten") and o.get("group_size"):
        centre, scale = brute.whitened_groups(texts, policy, o["group_size"])
    elif o.get("whiten"):
        tokens = brute.expectation(texts, policy, len)
        centre = brute.expectation(texts, policy, lambda y: sum(raw(y, t) for t in range(len(y)))) / tokens
        squares = brute.expectation(texts, policy, lambda y: sum(raw(y, t) ** 2 for t in range(len(y)))) / tokens
        scale = math.sqrt(squares - centre**2 + 1e-8)

    def k(y: brute.Text, t: int) -> float:
        pi, q = policy[y[:t]][y[t]], ref[y[:t]][y[t]]
        ratio = math.log(pi / q)
        return {None: 0.0, "k2": ratio, "k3": 1 - q / pi}[o["estimator"]]

    def out(y: brute.Text, t: int) -> float:
        weight = 1 / len(y) if o.get("length_normalize") else 1.0
        entropy = math.log(policy[y[:t]][y[t]]) if o["kl_in"] == "entropy-bonus" else 0.0
        return weight * ((raw(y, t) - centre) / scale - BETA * (k(y, t) + entropy))

    return out


BRUTE = [
    {},
    SHORT,
    {"std_normalize": "population"},
    {"whiten": True},
    LOSS_K2,
    {**LOSS_K2, **SHORT},
    {**LOSS_K2, **SHORT, "baseline": "value"},
    {**LOSS_K2, **SHORT, "baseline": "value", "lam": 0.5},
    LOSS_K3,
    {**LOSS_K3, **SHORT, "baseline": "value"},
    {**LOSS_K3, "std_normalize": "population"},
    {**LOSS_K3, "std_normalize": "population", **SHORT},
    {**LOSS_K3, "group_size": 4},
    {**PRESETS["grpo"], "group_size": 3},
    {**LOSS_K2, "std_normalize": "population", "group_size": 3},
    {"kl_in": "entropy-bonus"},
    {**LOSS_K3, "whiten": True},
    {**LOSS_K3, "whiten": True, "baseline": "value"},
    {**LOSS_K3, "whiten": True, "baseline": "value", "lam": 0.5},
    {**LOSS_K3, "whiten": True, "baseline": "value", "lam": 0.9, **SHORT},
    {**LOSS_K2, "whiten": True, "group_size": 2},
    {**LOSS_K3, "whiten": True, "group_size": 3},
    {**LOSS_K3, "whiten": True, "group_size": 2, **SHORT},
]


@pytest.mark.parametrize("objective", BRUTE, ids=str)
def test_the_expected_gradient_vanishes(objective: dict) -> None:
    language = ExactLanguage()
    end = endpoint(language, **objective)
    texts = brute.all_texts(4, 3)
    ref = brute.reference(texts)
    policy = {prefix: end.policy[language.state(prefix)] for prefix in ref}
    at_end = brute.largest(brute.gradient(texts, policy, coefficient(objective, texts, policy, ref)))
    at_start = brute.largest(brute.gradient(texts, ref, coefficient(objective, texts, ref, ref)))
    assert at_start > 0.01
    assert at_end < 1e-11
    assert end.residual < 1e-11


@pytest.mark.parametrize("estimator", ["exact", "entropy"])
def test_sums_over_actions_are_weighted_per_state(estimator: str) -> None:
    """∇ of Σ_y π(y)/|y|·Σ_t (A + β·H or −β·KL of the state), states held fixed, by finite differences."""
    language = ExactLanguage()
    kl_in = "loss" if estimator == "exact" else "entropy-bonus"
    end = endpoint(language, kl_in=kl_in, estimator=estimator, length_normalize=True)
    texts = brute.all_texts(4, 3)
    ref = brute.reference(texts)
    held = {prefix: end.policy[language.state(prefix)] for prefix in ref}
    base = 0.0 if estimator == "exact" else BETA
    paid = {y: brute.score(y) + base * sum(math.log(ref[y[:t]][a]) for t, a in enumerate(y)) for y in texts}
    mean = sum(brute.prob(y, held) * paid[y] for y in texts)

    def surrogate(prefix: brute.Text, row: np.ndarray) -> float:
        new = {**held, prefix: row}
        total = 0.0
        for y in texts:
            for t, a in enumerate(y):
                pi, q = new[y[:t]], ref[y[:t]]
                local = (pi * (np.log(pi) - (np.log(q) if estimator == "exact" else 0.0))).sum()
                total += brute.prob(y, held) / len(y) * ((paid[y] - mean) * math.log(pi[a]) - BETA * local)
        return total

    for prefix in ((), (3,), (3, 1)):
        for a in range(4):
            sides = []
            for h in (1e-5, -1e-5):
                logits = np.log(held[prefix])
                logits[a] += h
                sides.append(surrogate(prefix, np.exp(logits) / np.exp(logits).sum()))
            assert (sides[0] - sides[1]) / 2e-5 == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    "objective",
    [{**LOSS_K3, **SHORT}, {**LOSS_K3, "std_normalize": "population"}, {**PRESETS["grpo"], "group_size": 3}],
)
def test_states_that_share_a_row(objective: dict) -> None:
    """Where states are steps, the gradient of a row sums over the prefixes that share it."""
    language = ExactLanguage(states="steps", horizon=4)
    end = endpoint(language, **objective)
    assert end.converged
    texts = brute.all_texts(4, 4)
    ref = brute.reference(texts)
    policy = {prefix: end.policy[language.state(prefix)] for prefix in ref}
    rows = np.zeros_like(end.policy)
    for prefix, row in brute.gradient(texts, policy, coefficient(objective, texts, policy, ref)).items():
        rows[language.state(prefix)] += row
    assert np.abs(rows).max() < 1e-11


def test_sums_over_tokens_need_no_prefixes() -> None:
    whole = {**LOSS_K2, "whiten": True, "group_size": 4}
    for objective in (LOSS_K2, LOSS_K3, {**LOSS_K3, "std_normalize": "population"}, {"kl_in": "entropy-bonus"}, whole):
        steps = endpoint(ExactLanguage(horizon=5, states="steps"), **objective)
        prefixes = endpoint(ExactLanguage(horizon=5, states="prefixes"), **objective)
        assert steps.regret == pytest.approx(prefixes.regret, abs=1e-10), objective
    assert endpoint(ExactLanguage(horizon=48), **LOSS_K2).residual < 1e-12


@pytest.mark.parametrize(
    ("objective", "rate", "steps"),
    [(LOSS_K2, 10.0, 4000), ({**LOSS_K3, "std_normalize": "population", **SHORT}, 10.0, 8000)],
)
def test_gradient_ascent_from_the_reference_ends_there(objective: dict, rate: float, steps: int) -> None:
    language = ExactLanguage()
    flow = Ascent(language)
    logits = flow.run(objective, rate, steps)
    assert evaluate(language, softmax(logits)).regret == pytest.approx(endpoint(language, **objective).regret, abs=1e-5)


def test_gradient_ascent_without_a_kl() -> None:
    """k1 in the loss: the way to E[R] = 3 goes past regret .6."""
    language = ExactLanguage()
    found = evaluate(language, softmax(Ascent(language).run({}, 20.0, 8000)))
    assert found.reward > 2.9999
    assert 0.61 < found.regret < endpoint(language, kl_in="loss", estimator="k1").regret


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


class Ascent:
    """Plain gradient ascent on a table of logits, with the exact expected gradient of k2 and k3 objectives."""

    def __init__(self, language: ExactLanguage) -> None:
        texts, table = language.texts, language.table()
        self.ref = table.ref_probs
        self.visited = np.zeros((len(texts), *table.ref_probs.shape))
        for i in range(len(texts)):
            state = 0
            for a in texts.ids(i):
                self.visited[i, state, a] = 1.0
                state = table.next_state[state, a]
        self.reward, self.length = texts.reward, texts.length

    def run(self, objective: dict, rate: float, steps: int) -> np.ndarray:
        logits = np.log(self.ref)
        for _ in range(steps):
            pi = softmax(logits)
            chance = np.exp((self.visited * np.log(pi)).sum(axis=(1, 2)))
            mean = chance @ self.reward
            scale = np.sqrt(chance @ (self.reward - mean) ** 2) + 1e-4 if objective.get("std_normalize") else 1.0
            weight = chance / self.length if objective.get("length_normalize") else chance
            counts = np.tensordot(weight, self.visited, 1)
            k = {"k2": np.log(pi / self.ref), "k3": 1 - self.ref / pi}.get(objective.get("estimator", ""), 0.0)
            pull = np.tensordot(weight * (self.reward - mean) / scale, self.visited, 1) - BETA * counts * k
            logits = logits + rate * (pull - pi * pull.sum(axis=1, keepdims=True))
        return logits


def test_group_advantages_by_every_method() -> None:
    scores = np.array([-1.5, 0.0, 0.5, 3.0])
    probs = np.array([0.1, 0.2, 0.3, 0.4])
    lattice = _lattice(scores)
    assert lattice is not None
    numbers, unit, origin = lattice
    np.testing.assert_allclose(origin + unit * numbers, scores)
    assert unit == pytest.approx(0.5)
    assert _lattice(np.array([0.0, 1.0, math.sqrt(2)])) is None
    for others in (3, 7):
        listed = sorted(zip(*_by_multisets(scores - origin, probs, others), strict=True))
        joint = sorted(zip(*_by_fourier(*lattice, probs, others), strict=True))
        merged: dict[tuple[float, float], float] = {}
        for s, q, w in listed:
            merged[round(s, 9), round(q, 9)] = merged.get((round(s, 9), round(q, 9)), 0.0) + w
        assert len(merged) == len(joint)
        for s, q, w in joint:
            assert merged[round(s, 9), round(q, 9)] == pytest.approx(w, abs=1e-14)
    sums, squares, weights = _by_sampling(scores, probs, 3)
    assert weights @ sums == pytest.approx(3 * probs @ scores, abs=0.05)
    assert weights @ squares == pytest.approx(3 * probs @ scores**2, abs=0.1)


def test_group_advantages_of_equal_scores_are_zero() -> None:
    np.testing.assert_allclose(group_advantage(np.array([1.3]), np.array([1.0]), 8, 1, 1e-4), 0.0)
    always = group_advantage(np.array([0.1, 0.7]), np.array([0.0, 1.0]), 64, 1, 1e-4)
    assert always[1] == pytest.approx(0.0, abs=1e-9)


def test_two_prompts_end_each_on_its_own() -> None:
    """Standard deviations are per prompt: the same end point as each language alone."""
    rows = [[0.1, 0.4, 0.3, 0.2], [0.25, 0.25, 0.25, 0.25]]
    tables = [[1, 0, -0.5, 1], [0, 10, -5, 0]]
    objective = {**LOSS_K3, "std_normalize": "population", "length_normalize": True}
    both = endpoint(ExactLanguage(token_table=tables, start_rows=rows), **objective)
    for p in range(2):
        alone = endpoint(ExactLanguage(token_table=tables[p], start_rows=rows[p : p + 1]), **objective)
        assert both.evaluation.per_prompt["regret"][p] == pytest.approx(alone.regret, abs=1e-10)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"kl_in": "rewards"}, "kl_in must be one of"),
        ({"kl_in": "loss"}, "takes estimator 'k1' or 'k2'"),
        ({"estimator": "k3"}, "only k1 has the right gradient"),
        ({"kl_in": "entropy-bonus", "estimator": "k2"}, "takes estimator 'entropy'"),
        ({"gamma": 0.9, **LOSS_K3, **SHORT}, "gamma != 1 needs a value per step"),
        ({"gamma": 0.0}, r"gamma must be in \(0, 1\]"),
        ({"group_size": 1}, "at least 2"),
        ({"whiten": True, "std_normalize": "sample"}, "over the whole batch, std_normalize within a prompt"),
        ({"baseline": "value", "group_size": 4}, "baseline must be 'mean'"),
        ({"kl_in": "loss", "estimator": "k1", "whiten": True}, "no end point of its own"),
        ({"kl_coef": 0.0}, "needs kl_coef > 0"),
    ],
)
def test_wrong_objectives_are_refused(objective: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        endpoint(ExactLanguage(), **objective)


def test_what_a_language_of_steps_cannot_tell() -> None:
    long = ExactLanguage(horizon=16)
    for objective in ({**LOSS_K2, "whiten": True}, {"kl_in": "entropy-bonus", **SHORT}):
        with pytest.raises(ValueError, match="states='prefixes'"):
            endpoint(long, **objective)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_complete(name: str) -> None:
    language = ExactLanguage()
    end = endpoint(language, **PRESETS[name])
    assert end.converged
    assert (np.abs(end.policy - optimal_policy(language)).max() < 1e-12) == (PRESETS[name]["kl_in"] == "reward")
