"""Where learning from preferences ends on an exact language: DPO, conservative DPO, IPO, their online forms, KTO.

All end at policies π(y) = π_ref(y)·w(R(y)), of which the score's distribution tells everything. K scores a prompt.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lm_gym.exact.language import ExactLanguage
from lm_gym.exact.policies import Tilted, tilt
from lm_gym.exact.solve import beta_of
from lm_gym.exact.states import FloatArray

LABELS = ("bradley-terry", "hard")


def dpo_endpoint(
    language: ExactLanguage,
    beta: float | None = None,
    *,
    label_smoothing: float = 0.0,
    variant: str = "dpo",
    tau: float | None = None,
    labels: str = "bradley-terry",
    on_policy: bool = False,
) -> Tilted:
    """Where preference optimisation ends on pairs of independent draws.

    variant "dpo" (Rafailov et al. 2023): minimises −log σ(h) with h = β·(log-ratio of the chosen − of the rejected).
        On Bradley-Terry labels, without smoothing, it ends at π*. `label_smoothing` ε (conservative DPO) trains
        −(1 − ε)·log σ(h) − ε·log σ(−h): no policy matches every pair then, and the best fit is found by Newton's
        method.
    variant "ipo" (Azar et al. 2023): minimises (h − 1/(2τ))² with h the difference of log-ratios; in closed form
        log-ratio(y) = E_{y'}[2·p(y ≻ y') − 1]/(2τ) + const.

    Args:
        beta: β of the DPO loss; τ of IPO is `tau`. Both are the language's kl_coef by default.
        labels: "bradley-terry": y_1 is preferred with probability p = σ(R_1 − R_2). "hard": the higher score is, and
            equal ones are a tie, p = ½. Without smoothing "dpo" then has no finite end: h grows without bound, towards
            the reference among the best texts, which is what comes back.
        on_policy: pairs are drawn from the policy as it is (and held fixed in the gradient, as online DPO does; Guo et
            al. 2024), not from the reference. Where some policy matches every pair that changes nothing; smoothing and
            IPO then fit the pairs that the end point itself draws.

    Regret is against the language's own objective with kl_coef = `beta` (for IPO `tau`).
    """
    if variant not in ("dpo", "ipo"):
        raise ValueError(f"variant must be 'dpo' or 'ipo', got {variant!r}")
    if labels not in LABELS:
        raise ValueError(f"labels must be one of {LABELS}, got {labels!r}")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5), got {label_smoothing}")
    if variant == "dpo" and tau is not None or variant == "ipo" and (label_smoothing or beta is not None):
        raise ValueError("'dpo' takes beta and label_smoothing, 'ipo' takes tau")
    strength = beta_of(language, beta if variant == "dpo" else tau)
    if strength <= 0:
        raise ValueError("beta and tau must be above 0")

    def chance(scores: FloatArray, ref: FloatArray) -> FloatArray:
        preferred = _preferred(scores, labels)
        if variant == "dpo" and label_smoothing == 0:
            # h = R_1 − R_2 fits every Bradley-Terry pair; hard labels: the limit of ever larger differences
            log_ratio = scores / strength if labels == "bradley-terry" else np.where(scores == scores.max(), 0.0, -1e3)
            return _tilted(ref, log_ratio)
        target = (1 - 2 * label_smoothing) * preferred + label_smoothing

        def fitted(drawn: FloatArray) -> FloatArray:
            log_ratio = (2 * preferred - 1) @ drawn / (2 * strength)
            return log_ratio if variant == "ipo" else _fit_preferences(target, drawn) / strength

        return _self_consistent(ref, fitted) if on_policy else _tilted(ref, fitted(ref))

    return tilt(language, chance, strength)


def kto_endpoint(
    language: ExactLanguage,
    beta: float | None = None,
    *,
    labels: str = "bradley-terry",
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tilted:
    """Where KTO (Ethayarajh et al. 2024) ends on the texts of pairs that the reference draws, one prompt.

    A text y is good where it wins against a second draw, d(y) = E_{y'}[P(y ≻ y')], and bad otherwise. The loss is
    E[λ_y − v(y)] with v = λ_D·σ(β·(r − z_0)) for good, λ_U·σ(β·(z_0 − r)) for bad texts, r = log(π/π_ref)(y).

    z_0 is estimated, and held fixed in the gradient, by the mean log-ratio of texts of the data under other prompts
    of the batch, clipped at 0 (as in HALOs and TRL). With one prompt these are draws of π_ref, whose mean log-ratio is
    −KL(π_ref‖π) ≤ 0, so that z_0 = 0. What is left to maximise is E_ref[w·σ(β·r)], w = λ_D·d − λ_U·(1 − d), under
    E_ref[exp(r)] = 1. Texts with w ≤ 0 end with probability 0; for the others, with μ that of the constraint,

        w·β·σ'(β·r) = μ·exp(r),

    whose left side over its right one falls in r for β ≤ 1: one solution, by bisection in r within one in log μ.

    Args:
        beta: β, at most 1; the language's kl_coef by default. labels: P(y ≻ y'), as in `dpo_endpoint`.
        desirable_weight: λ_D. undesirable_weight: λ_U.
    """
    if labels not in LABELS:
        raise ValueError(f"labels must be one of {LABELS}, got {labels!r}")
    strength = beta_of(language, beta)
    if not 0 < strength <= 1:
        raise ValueError(f"beta must be above 0 and at most 1 (above 1 there are several end points), got {strength}")
    if language.n_prompts > 1:
        raise ValueError(f"expected a language of one prompt, where z_0 is 0; this one has {language.n_prompts}")

    def chance(scores: FloatArray, ref: FloatArray) -> FloatArray:
        good = _preferred(scores, labels) @ ref
        weight = desirable_weight * good - undesirable_weight * (1 - good)
        up = weight > 1e-12
        if not up.any():
            raise ValueError(
                f"no text gains with desirable_weight={desirable_weight} and undesirable_weight={undesirable_weight}"
            )

        def log_ratios(log_mu: float) -> FloatArray:
            log_weight = np.log(strength * weight[up])
            low, high = np.full((2, int(up.sum())), 200.0) * [[-1], [1]]
            for _ in range(200):
                r = (low + high) / 2
                x = strength * r
                too_low = log_weight - np.logaddexp(0, x) - np.logaddexp(0, -x) - r > log_mu
                low, high = np.where(too_low, r, low), np.where(too_low, high, r)
            return np.asarray((low + high) / 2)

        low, high = -100.0, 100.0
        for _ in range(200):
            middle = (low + high) / 2
            mass = float(ref[up] @ np.exp(log_ratios(middle)))
            low, high = (middle, high) if mass > 1 else (low, middle)
        out = np.zeros(len(ref))
        out[up] = ref[up] * np.exp(log_ratios((low + high) / 2))
        assert abs(out.sum() - 1) < 1e-9, f"the constraint is met to {out.sum() - 1} only"
        return out

    return tilt(language, chance, strength)


def _preferred(scores: FloatArray, labels: str) -> FloatArray:
    """(K, K) P(a text with the first score is preferred to one with the second)."""
    difference = scores[:, None] - scores[None, :]
    return np.asarray((np.sign(difference) + 1) / 2) if labels == "hard" else _sigmoid(difference)


def _tilted(ref: FloatArray, log_ratio: FloatArray) -> FloatArray:
    """(K,) ∝ ref·exp(log_ratio)."""
    out = ref * np.exp(log_ratio - log_ratio[ref > 0].max())
    return np.asarray(out / out.sum())


def _self_consistent(ref: FloatArray, fitted: Callable[[FloatArray], FloatArray]) -> FloatArray:
    """(K,) the π ∝ ref·exp(fitted(π)), by damped steps on the log-ratio from π = `ref`."""
    found, log_ratio = ref, np.zeros(len(ref))
    for _ in range(10_000):
        change = fitted(found) - log_ratio
        log_ratio = log_ratio + 0.3 * change
        found = _tilted(ref, log_ratio)
        if np.abs(change).max() < 1e-12:
            return found
    raise ValueError(f"no fixed point was found: the last step was {np.abs(change).max()}")


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
