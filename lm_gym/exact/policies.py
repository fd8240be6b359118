"""Known policies of an exact language besides the optimum: best-of-n, masks, preference optimisation, discounting.

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

    return _tilt(language, chance, beta_of(language, kl_coef))


def dpo_endpoint(
    language: ExactLanguage,
    beta: float | None = None,
    *,
    label_smoothing: float = 0.0,
    variant: str = "dpo",
    tau: float | None = None,
) -> Tilted:
    """Where preference optimisation ends on pairs drawn from the reference with Bradley-Terry labels.

    Both texts of a pair are independent draws, and y_1 is preferred with probability p = σ(R_1 − R_2).

    variant "dpo" (Rafailov et al. 2023): minimises −log σ(h) with h = β·(log-ratio of the chosen − of the rejected).
        Without smoothing it ends at π*. `label_smoothing` ε (conservative DPO) trains −(1 − ε)·log σ(h) − ε·log σ(−h):
        no policy matches every pair then, and the best fit is found by Newton's method.
    variant "ipo" (Azar et al. 2023): minimises (h − 1/(2τ))² with h the difference of log-ratios; in closed form
        log-ratio(y) = E_{y'}[2·p(y ≻ y') − 1]/(2τ) + const.

    Args:
        beta: β of the DPO loss; τ of IPO is `tau`. Both are the language's kl_coef by default.

    Regret is against the language's own objective with kl_coef = `beta` (for IPO `tau`).
    """
    if variant not in ("dpo", "ipo"):
        raise ValueError(f"variant must be 'dpo' or 'ipo', got {variant!r}")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5), got {label_smoothing}")
    if variant == "dpo" and tau is not None or variant == "ipo" and (label_smoothing or beta is not None):
        raise ValueError("'dpo' takes beta and label_smoothing, 'ipo' takes tau")
    strength = beta_of(language, beta if variant == "dpo" else tau)
    if strength <= 0:
        raise ValueError("beta and tau must be above 0")

    def chance(scores: FloatArray, ref: FloatArray) -> FloatArray:
        preferred = _sigmoid(scores[:, None] - scores[None, :])
        if variant == "ipo":
            log_ratio = (2 * preferred - 1) @ ref / (2 * strength)
        elif label_smoothing == 0:
            log_ratio = scores / strength  # h = R_1 − R_2 fits every pair
        else:
            log_ratio = _fit_preferences((1 - 2 * label_smoothing) * preferred + label_smoothing, ref) / strength
        tilted = ref * np.exp(log_ratio - log_ratio[ref > 0].max())
        return np.asarray(tilted / tilted.sum())

    return _tilt(language, chance, strength)


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


def _tilt(language: ExactLanguage, chance: Callable[[FloatArray, FloatArray], FloatArray], beta: float) -> Tilted:
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


def _sigmoid(x: FloatArray) -> FloatArray:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def _fit_preferences(target: FloatArray, ref: FloatArray) -> FloatArray:
    """(K,) u minimising Σ_ij ref_i·ref_j·cross-entropy(target_ij, σ(u_i − u_j)); convex, u fixed to mean 0.

    Newton on the gradient divided by ref_i, Σ_j ref_j·(σ(u_i − u_j) − target_ij) = 0: rare scores, which the loss
    hardly feels, matter once they are multiplied by exp(u/β).
    """
    u = np.zeros(len(ref))
    for _ in range(1000):
        fitted = _sigmoid(u[:, None] - u[None, :])
        gradient = (fitted - target) @ ref
        curvature = fitted * (1 - fitted) * ref
        jacobian = np.diag(curvature.sum(axis=1)) - curvature + ref  # + ref: pins the mean, as shifts cost nothing
        step = -np.linalg.solve(jacobian, gradient + u @ ref)
        size = float(np.abs(step).max())
        u = u + step * min(1.0, 1.0 / size if size > 0 else 1.0)
        if size < 1e-13:
            break
    residual = float(np.abs((_sigmoid(u[:, None] - u[None, :]) - target) @ ref).max())
    assert residual < 1e-10, f"the preference fit stopped at residual {residual}"
    return u
