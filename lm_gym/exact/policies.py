"""Known policies of an exact language besides the optimum: best-of-n, masks, discounting.

All but the masks depend on a text through its score alone: π(y) = π_ref(y)·w(R(y)). That is a table over prefixes, by
one backward pass, and where states are steps everything about it follows from the reference's distribution of R.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lm_gym.exact.language import ExactLanguage
from lm_gym.exact.solve import beta_of, expected_sum, optimum, score_distribution, soft_backward, xlogy
from lm_gym.exact.states import FloatArray


@dataclass(frozen=True, eq=False)
class Tilted:
    """A policy π(y) = π_ref(y)·w(R(y)): means over prompts."""

    reward: float  # E[R]
    kl: float  # KL(π‖π_ref) between whole texts, nats
    objective: float  # J = E[R] − β·KL
    regret: float  # J* − J
    kl_coef: float  # β
    scores: list[FloatArray]  # per prompt, (K,) the values R takes
    probs: list[FloatArray]  # per prompt, (K,) how likely each is under π
    policy: FloatArray | None  # (S, V); None where states are steps, which cannot express it


def best_of_n(language: ExactLanguage, n: int, kl_coef: float | None = None) -> Tilted:
    """The best of n draws from the reference, ties broken evenly. Exact.

    P(R = r_k) = F_k^n − F_{k−1}^n with F the reference's distribution of R; within a tie the reference's proportions
    stay. KL is at most log n − (n − 1)/n (equal only where no two texts tie).
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")

    def chance(scores: FloatArray, ref: FloatArray) -> FloatArray:
        below = np.concatenate([[0.0], np.minimum(np.cumsum(ref)[:-1], 1.0), [1.0]])
        return np.diff(below**n)

    return tilt(language, chance, beta_of(language, kl_coef))


def discounted_optimum(language: ExactLanguage, gamma: float, kl_coef: float | None = None) -> Tilted:
    """What a discount costs: the best policy for the discounted return, valued without a discount.

    The return is Σ_t γ^t·r_t of the shaped rewards (KL on every token, R on the last), so that
    V(s) = β·log Σ_a π_ref·exp(γ·V(s')/β), with V = R where the text ends. The policy knows the score so far.
    """
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma must be in (0, 1], got {gamma}")
    beta = beta_of(language, kl_coef)
    table = language.score_table()[0]
    policy = soft_backward(table, beta, gamma=gamma)[1]
    kl = (xlogy(policy, policy) - xlogy(policy, table.ref_probs)).sum(axis=1)
    start = table.start_states
    total_kl = float(expected_sum(table, policy, kl)[start].mean())
    reward = float(expected_sum(table, policy, (policy * table.step_reward).sum(axis=1))[start].mean())
    objective = reward - beta * total_kl
    distributions = score_distribution(language, policy, on_score_table=True)
    return Tilted(
        reward=reward,
        kl=total_kl,
        objective=objective,
        regret=optimum(language, beta) - objective,
        kl_coef=beta,
        scores=[r for r, _ in distributions],
        probs=[c for _, c in distributions],
        policy=policy if language.states == "prefixes" else None,
    )


def top_p_mask(language: ExactLanguage, p: float) -> NDArray[np.bool_]:
    """(S, V) True for the reference's likeliest tokens whose probabilities first reach p; ties go to the lower id."""
    if not 0 < p <= 1:
        raise ValueError(f"p must be in (0, 1], got {p}")
    probs = language.table().ref_probs
    order = np.argsort(-probs, axis=1, kind="stable")
    ranked = np.take_along_axis(probs, order, axis=1)
    before = np.cumsum(ranked, axis=1) - ranked
    mask = np.zeros(probs.shape, dtype=bool)
    np.put_along_axis(mask, order, (before < p - 1e-9) & (ranked > 0), axis=1)  # .4 + .3 + .2 reaches .9
    return mask


def top_k_mask(language: ExactLanguage, k: int, *, keep_eos: bool = True) -> NDArray[np.bool_]:
    """(S, V) True for the reference's k likeliest tokens, ties to the lower id; EOS takes the last place if it is
    not among them (`keep_eos`), as in the environment's `top_k` actions."""
    table = language.table()
    if not 1 <= k <= table.n_tokens:
        raise ValueError(f"k must be in 1..{table.n_tokens}, got {k}")
    order = np.argsort(-table.ref_probs, axis=1, kind="stable")[:, :k].copy()
    if keep_eos:
        order[~(order == 0).any(axis=1), -1] = 0
    mask = np.zeros(table.ref_probs.shape, dtype=bool)
    np.put_along_axis(mask, order, True, axis=1)
    return mask


def tilt(language: ExactLanguage, chance: Callable[[FloatArray, FloatArray], FloatArray], beta: float) -> Tilted:
    """The policy with P(R = r_k) = chance(r, ref)_k in each prompt and the reference's proportions within a score."""
    reference = score_distribution(language)
    scores, probs, reward, kl = [], [], [], []
    for r, ref in reference:
        tilted = chance(r, ref)
        scores.append(r)
        probs.append(tilted)
        reward.append(tilted @ r)
        kl.append((xlogy(tilted, tilted) - xlogy(tilted, ref)).sum())
    mean_reward, mean_kl = float(np.mean(reward)), float(np.mean(kl))
    objective = mean_reward - beta * mean_kl
    policy = None
    if language.states == "prefixes":
        policy = _as_prefix_policy(language, reference, probs)
    regret = optimum(language, beta) - objective
    return Tilted(mean_reward, mean_kl, objective, regret, beta, scores, probs, policy)


def _as_prefix_policy(
    language: ExactLanguage, reference: list[tuple[FloatArray, FloatArray]], probs: list[FloatArray]
) -> FloatArray:
    """(S, V) π(a|s) ∝ π_ref(a|s)·h(s'), with h = E_ref[w(R)|s] and w the ratio of the score's probabilities."""
    table = language.table()
    ratio = np.zeros_like(table.step_reward)
    for p, ((scores, ref), tilted) in enumerate(zip(reference, probs, strict=True)):
        here = table.ends & (table.prompt == p)[:, None]
        w = np.divide(tilted, ref, out=np.zeros_like(ref), where=ref > 0)
        ratio[here] = w[np.searchsorted(scores, np.round(table.step_reward[here], 9))]
    h = expected_sum(table, table.ref_probs, (table.ref_probs * ratio).sum(axis=1))
    joint = table.ref_probs * np.where(table.ends, ratio, h[np.maximum(table.next_state, 0)])
    never = joint.sum(axis=1, keepdims=True) <= 0  # a state that π never visits keeps the reference's row
    joint = np.where(never, table.ref_probs, joint)
    return np.asarray(joint / joint.sum(axis=1, keepdims=True))
