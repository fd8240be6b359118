"""The worked language again, by listing its texts: no state table, no dynamic program, nothing from lm_gym."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

Text = tuple[int, ...]
Policy = dict[Text, np.ndarray]  # prefix -> (V,)

ROWS = np.array([[0.1, 0.4, 0.3, 0.2], [0.2, 0.2, 0.4, 0.2], [0.3, 0.3, 0.1, 0.3], [0.4, 0.2, 0.2, 0.2]])


def score(text: Text) -> float:
    return text.count(3) - 0.5 * text.count(2) + (1.0 if text[-1] == 0 else 0.0)


def all_texts(vocabulary: int, horizon: int) -> list[Text]:
    """Every string of `horizon` tokens, cut behind its first 0, once."""
    cut = {y[: y.index(0) + 1] if 0 in y else y for y in itertools.product(range(vocabulary), repeat=horizon)}
    return sorted(cut)


def reference(texts: list[Text], rows: np.ndarray = ROWS, start: np.ndarray | None = None) -> Policy:
    start = rows[0] if start is None else start
    return {y[:t]: (rows[y[t - 1]] if t else start) for y in texts for t in range(len(y))}


def prob(text: Text, policy: Policy) -> float:
    return math.prod(policy[text[:t]][a] for t, a in enumerate(text))


def log_ratio(text: Text, policy: Policy, ref: Policy) -> float:
    return sum(math.log(policy[text[:t]][a] / ref[text[:t]][a]) for t, a in enumerate(text))


def objective(texts: list[Text], policy: Policy, ref: Policy, beta: float) -> float:
    return sum(prob(y, policy) * (score(y) - beta * log_ratio(y, policy, ref)) for y in texts)


def gradient(texts: list[Text], policy: Policy, coefficient: Callable[[Text, int], float]) -> Policy:
    """Σ_y π(y) Σ_t coefficient(y, t)·∇_logits log π(a_t|s_t), prefix by prefix."""
    out = {prefix: np.zeros(len(row)) for prefix, row in policy.items()}
    for y in texts:
        p = prob(y, policy)
        for t, a in enumerate(y):
            c = p * coefficient(y, t)
            out[y[:t]] -= c * policy[y[:t]]
            out[y[:t]][a] += c
    return out


def largest(grad: Policy) -> float:
    return max(float(np.abs(row).max()) for row in grad.values())


def expectation(texts: list[Text], policy: Policy, f: Callable[[Text], float], prefix: Text = ()) -> float:
    """E[f(y) | y starts with prefix]."""
    chosen = [y for y in texts if y[: len(prefix)] == prefix and len(y) > len(prefix)]
    weights = [math.prod(policy[y[:t]][y[t]] for t in range(len(prefix), len(y))) for y in chosen]
    return sum(w * f(y) for w, y in zip(weights, chosen, strict=True)) / sum(weights)


def group_advantages(texts: list[Text], policy: Policy, n: int, ddof: int, eps: float) -> dict[float, float]:
    """E[(r − mean)/(std + eps)] over every ordered choice of the n − 1 other scores."""
    chance: dict[float, float] = {}
    for y in texts:
        chance[score(y)] = chance.get(score(y), 0.0) + prob(y, policy)
    out = dict.fromkeys(chance, 0.0)
    for others in itertools.product(chance, repeat=n - 1):
        weight = math.prod(chance[r] for r in others)
        for r in chance:
            group = np.array([r, *others])
            out[r] += weight * (r - group.mean()) / (group.std(ddof=ddof) + eps)
    return out


def whitened_groups(texts: list[Text], policy: Policy, n: int) -> tuple[float, float]:
    """Mean and deviation over tokens of r − mean of its group, over every group of n texts (ε = 1e-8 in the root)."""
    first = second = tokens = 0.0
    for group in itertools.product(texts, repeat=n):
        weight = math.prod(prob(y, policy) for y in group)
        scores = [score(y) for y in group]
        for y, r in zip(group, scores, strict=True):
            advantage = r - sum(scores) / n
            first += weight * len(y) * advantage
            second += weight * len(y) * advantage**2
            tokens += weight * len(y)
    return first / tokens, math.sqrt(second / tokens - (first / tokens) ** 2 + 1e-8)
