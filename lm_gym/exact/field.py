"""The expected gradient of an objective, state by state, and the policy at which it vanishes.

See lm_gym/exact/endpoints.py for the equations. Array shapes: W work states, S rows of the policy, V tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lm_gym.exact.groups import group_advantage
from lm_gym.exact.language import ExactLanguage
from lm_gym.exact.solve import score_distribution, visits
from lm_gym.exact.states import FloatArray, StateTable

if TYPE_CHECKING:
    from lm_gym.exact.endpoints import Objective


class Field:
    """The expected gradient of one objective on one language.

    It works on a table whose states know what the objective needs: prefixes; or steps, where all is a sum over tokens;
    or (step, last token, score so far). In the last case several work states share one row of the policy: `base` (W,)
    says which.
    """

    def __init__(self, language: ExactLanguage, objective: Objective) -> None:
        if objective.kl_in == "reward":
            # at π* the return is J* for every text and the advantage 0, however it is weighted or scaled
            objective = replace(objective, length_normalize=False, std_normalize=None, group_size=None, whiten=False)
        o = self.o = objective
        self.language = language
        table = language.table()
        per_text = bool(o.length_normalize or o.whiten or (o.group_size and o.std_normalize))
        if table.pays_at_end or not (per_text or o.gamma != 1):
            self.work, self.base = table, np.arange(table.n_states)
        else:
            self.work, self.base = language.score_table()
        if not table.pays_at_end and (o.whiten and not o.group_size or o.baseline == "value" and o.length_normalize):
            raise ValueError("an exact critic needs states='prefixes': a state of steps does not know the score so far")
        if o.kl_in == "entropy-bonus":
            if not table.pays_at_end and (per_text or o.gamma != 1 or o.std_normalize):
                raise ValueError("the entropy bonus with normalised advantages or gamma != 1 needs states='prefixes'")
            self.work = replace(self.work, step_reward=self._reward_with_reference())
        # the reward of a whole text is known where it ends: what baselines and deviations are taken of
        self.knows_text = self.work.pays_at_end and o.gamma == 1
        depth = np.broadcast_to(self.work.depth[:, None], self.work.next_state.shape)
        self.text_weight = 1.0 / (depth + 1.0) if o.length_normalize else np.ones(depth.shape)

    def sweep(self, policy: FloatArray) -> FloatArray:
        """(S, V) the policy that is stationary in every state, given the means and deviations of `policy`."""
        return self._backward(policy, solve=True)[0]

    def residual(self, policy: FloatArray) -> float:
        """The largest |∂/∂logit| of the expected update at `policy`."""
        _, gain, weight, scale = self._backward(policy, solve=False)
        probs = policy[self.base]
        pull = gain / scale - self.o.kl_coef * weight * self._k(probs, self.work.ref_probs)
        pull = np.where(probs > 0, pull, 0.0)
        centred = pull - (probs * pull).sum(axis=1, keepdims=True)
        gradient = np.zeros_like(policy)
        np.add.at(gradient, self.base, visits(self.work, probs)[:, None] * probs * centred)
        return float(np.abs(gradient).max())

    def _backward(self, policy: FloatArray, solve: bool) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """One pass over depth: (policy, G (W, V), m (W, V), scale (W, 1)).

        With `solve`, each state's row is replaced by the stationary one before the states above it are reached.
        """
        o, work, base = self.o, self.work, self.base
        old = policy[base]
        reach = visits(work, old)
        at_end, value, scale = self._statistics(old, reach)
        policy = policy.copy()
        gain, weight = np.zeros((2, *old.shape))
        later_gain, later_weight = np.zeros((2, work.n_states))
        for level in reversed(work.levels()):
            ends, following = work.ends[level], np.maximum(work.next_state[level], 0)
            m = np.where(ends, self.text_weight[level], later_weight[following])
            if o.baseline == "value" and o.length_normalize:
                # GAE and 1/|y| are not independent: E[ℓ·A_t|s, a] = δ·E[ℓ|s, a] + λ·E[ℓ·A_{t+1}|s']
                delta = np.where(ends, at_end[level], value[following]) - value[level, None]
                g = delta * m + np.where(ends, 0.0, o.lam * later_gain[following])
            else:
                g = o.gamma * later_gain[following]
                if not self.knows_text:
                    g = work.step_reward[level] + g
                g = np.where(ends, at_end[level] * self.text_weight[level], g)
            if o.estimator in ("exact", "entropy"):  # summed over the actions: one weight per state
                kl_weight = np.broadcast_to((old[level] * m).sum(axis=1, keepdims=True), m.shape)
            else:
                kl_weight = m
            gain[level], weight[level] = g, kl_weight
            if solve:
                self._solve_level(policy, level, gain[level], kl_weight * scale[level], reach[level])
            pi = policy[base[level]]
            paid = g - o.kl_coef * self._k(pi, work.ref_probs[level]) if o.kl_in == "reward" else g
            later_gain[level] = np.where(pi > 0, pi * paid, 0.0).sum(axis=1)
            later_weight[level] = (pi * m).sum(axis=1)
        return policy, gain, weight, scale

    def _solve_level(
        self, policy: FloatArray, level: slice, gain: FloatArray, kl_weight: FloatArray, reach: FloatArray
    ) -> None:
        """Makes gain − β·kl_weight·k(π) constant in each state of one depth, averaged over the work states of a row."""
        rows, inverse = np.unique(self.base[level], return_inverse=True)
        inverse = inverse.reshape(-1)
        mass = np.maximum(reach, 1e-290)  # a row that is never visited still gets an average
        share = (mass / np.bincount(inverse, weights=mass, minlength=len(rows))[inverse])[:, None]
        mean_gain, mean_weight = np.zeros((2, len(rows), gain.shape[1]))
        np.add.at(mean_gain, inverse, share * gain)
        np.add.at(mean_weight, inverse, share * kl_weight)
        ref = self.language.table().ref_probs[rows]
        prior = (ref > 0).astype(np.float64) if self.o.estimator == "entropy" else ref
        solver = match_k3 if self.o.estimator == "k3" else match_log_ratio
        policy[rows] = solver(mean_gain, self.o.kl_coef * mean_weight, prior)

    def _k(self, probs: FloatArray, ref: FloatArray) -> FloatArray:
        """(…, V) what the chosen token adds to the gradient of the KL; 0 where it is never chosen."""
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.o.estimator == "k3":
                k = 1.0 - ref / probs
            else:
                k = np.log(probs) - (0.0 if self.o.estimator == "entropy" else np.log(ref))
        return np.where(probs > 0, k, 0.0)

    def _statistics(self, probs: FloatArray, reach: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """What an ending action earns (W, V), the critic's value (W,), and the deviation to divide by (W, 1)."""
        o, work = self.o, self.work
        reward = work.step_reward
        value, one = np.zeros(work.n_states), np.ones((work.n_states, 1))
        if o.baseline == "value":
            value = self._value(probs)
        if o.whiten and o.group_size:
            at_end, deviation = self._whitened_groups(probs, reach)
            return at_end, value, one * deviation
        if o.whiten:
            return reward, value, one * np.sqrt(self._token_variance(probs, reach, value) + 1e-8)
        if not self.knows_text:
            scale = one
            if o.std_normalize:
                scale = self._score_deviation(probs)[work.prompt][:, None] + o.eps
            return reward, value, scale * self._group_shrink()
        if o.baseline == "value":
            return reward, value, one
        at_end, scale = np.zeros_like(reward), one.copy()
        mass = reach[:, None] * probs
        for p in range(work.n_prompts):
            here = work.ends & (work.prompt == p)[:, None]
            scores, chance = reward[here], mass[here]
            if o.group_size and o.std_normalize:
                distinct, inverse = np.unique(np.round(scores, 9), return_inverse=True)
                inverse = inverse.reshape(-1)
                merged = np.bincount(inverse, weights=chance, minlength=len(distinct))
                ddof = 1 if o.std_normalize == "sample" else 0
                at_end[here] = group_advantage(distinct, merged / merged.sum(), o.group_size, ddof, o.eps)[inverse]
                continue
            mean = (chance * scores).sum()
            at_end[here] = scores - mean
            if o.std_normalize:
                scale[work.prompt == p] = np.sqrt((chance * (scores - mean) ** 2).sum()) + o.eps
        return at_end, value, scale * self._group_shrink()

    def _group_shrink(self) -> float:
        """A group's mean contains the text itself: E[R_i − mean] = (1 − 1/n)·(R_i − E[R]); as a scale, its inverse.

        With `std_normalize`, `group_advantage` has it in already.
        """
        n = self.o.group_size
        return 1.0 if n is None or self.o.std_normalize else n / (n - 1.0)

    def _whitened_groups(self, probs: FloatArray, reach: FloatArray) -> tuple[FloatArray, float]:
        """What an ending action earns (W, V), before it is divided by the deviation that comes with it.

        A_i = R_i − mean of the group of n, text i included. Given text i it is (1 − 1/n)·(R_i − E[R]) in expectation,
        with variance (n − 1)/n²·Var[R] from the others; the deviation is over all tokens of a large batch.
        """
        o, work = self.o, self.work
        assert o.group_size is not None
        mass = np.where(work.ends, reach[:, None] * probs, 0.0)
        at_end, noise, share = np.zeros_like(mass), np.zeros_like(mass), 1.0 - 1.0 / o.group_size
        for p in range(work.n_prompts):
            here = work.ends & (work.prompt == p)[:, None]
            scores, chance = work.step_reward[here], mass[here]
            mean = (chance * scores).sum()
            at_end[here] = share * (scores - mean)
            noise[here] = share / o.group_size * (chance * (scores - mean) ** 2).sum()
        tokens = mass * (work.depth + 1.0)[:, None]
        centre = (tokens * at_end).sum() / tokens.sum()
        variance = (tokens * (at_end**2 + noise)).sum() / tokens.sum() - centre**2
        return at_end - centre, float(np.sqrt(max(variance, 0.0) + 1e-8))

    def _value(self, probs: FloatArray) -> FloatArray:
        """(W,) E[Σ_i γ^i·r_{t+i}|s]: what an exact critic says."""
        work, value = self.work, np.zeros(self.work.n_states)
        for level in reversed(work.levels()):
            later = np.where(work.ends[level], 0.0, value[np.maximum(work.next_state[level], 0)])
            value[level] = (probs[level] * (work.step_reward[level] + self.o.gamma * later)).sum(axis=1)
        return value

    def _token_variance(self, probs: FloatArray, reach: FloatArray, value: FloatArray) -> float:
        """Variance of the advantages over all tokens of a large batch.

        With a critic, A_t = Σ_i (γλ)^i δ_{t+i} with δ = r + γ·V(s') − V(s), and E[A_t|s] = 0, so that
        M(s) = E[A_t²|s] = Σ_a π·(δ² + (γλ)²·M(s')). With baseline "mean", A_t is the return less its mean over tokens.
        """
        o, work = self.o, self.work
        first, second = np.zeros((2, work.n_states))
        for level in reversed(work.levels()):
            goes_on, following = ~work.ends[level], np.maximum(work.next_state[level], 0)
            if o.baseline == "value":
                delta = work.step_reward[level] + o.gamma * goes_on * value[following] - value[level, None]
                squares = delta**2 + (o.gamma * o.lam) ** 2 * goes_on * second[following]
            else:
                now, later = work.step_reward[level], o.gamma * goes_on * first[following]
                squares = now**2 + 2 * now * later + o.gamma**2 * goes_on * second[following]
                first[level] = (probs[level] * (now + later)).sum(axis=1)
            second[level] = (probs[level] * squares).sum(axis=1)
        tokens = float(reach.sum())
        mean = float((reach * first).sum()) / tokens
        return max(float((reach * second).sum()) / tokens - mean**2, 0.0)

    def _score_deviation(self, probs: FloatArray) -> FloatArray:
        """(P,) population standard deviation of R per prompt, for a policy over steps."""
        distributions = score_distribution(self.language, probs)
        return np.array([np.sqrt(c @ (r - c @ r) ** 2) for r, c in distributions])

    def _reward_with_reference(self) -> FloatArray:
        """(W, V) R + β·Σ log π_ref: on the ending action where the text is known, else as each token is written."""
        work, beta = self.work, self.o.kl_coef
        return reference_reward(self.language, work, beta, at_end=work.pays_at_end and self.o.gamma == 1)


def reference_reward(language: ExactLanguage, table: StateTable, beta: float, at_end: bool) -> FloatArray:
    """(S, V) step rewards that sum to R + β·Σ_t log π_ref(a_t|s_t), the step reward of `kl_mode="reference"`."""
    logs = np.where(table.ref_probs > 0, table.ref_logprobs, -1e9)  # what the reference never writes is never worth it
    if not at_end:
        return np.asarray(table.step_reward + beta * logs)
    reward = table.step_reward.copy()
    so_far = np.zeros(table.n_states)
    for level in table.levels():
        total = so_far[level, None] + logs[level]
        goes_on = ~table.ends[level]
        so_far[table.next_state[level][goes_on]] = total[goes_on]
        reward[level] += np.where(goes_on, 0.0, beta * total)
    return reward


def match_log_ratio(gain: FloatArray, weight: FloatArray, prior: FloatArray) -> FloatArray:
    """(S, V) the π with gain − weight·(log π − log prior) constant in each row and Σ π = 1.

    π = prior·exp((gain − λ)/weight). log Σ π is convex and falls in λ, so Newton's steps from its left side never
    overshoot.
    """
    allowed = prior > 0
    with np.errstate(divide="ignore"):
        log_prior = np.log(prior)
    shift = np.where(allowed, gain, -np.inf).max(axis=1, keepdims=True)
    gain = np.where(allowed, gain - shift, 0.0)
    top = np.where(allowed, gain + weight * np.where(allowed, log_prior, 0.0), -np.inf).max(axis=1, keepdims=True)
    level = top
    for _ in range(200):
        logs = np.where(allowed, log_prior + (gain - level) / weight, -np.inf)
        high = logs.max(axis=1, keepdims=True)
        parts = np.exp(logs - high)
        total = parts.sum(axis=1, keepdims=True)
        slope = (parts / weight).sum(axis=1, keepdims=True) / total
        step = (high + np.log(total)) / slope
        level = level + step
        if np.all(np.abs(step) <= 1e-15 * (weight.min(axis=1, keepdims=True) + np.abs(level))):
            break
    return np.asarray(parts / total)


def match_k3(gain: FloatArray, weight: FloatArray, prior: FloatArray) -> FloatArray:
    """(S, V) the π with gain − weight·(1 − prior/π) constant in each row and Σ π = 1.

    π = weight·prior/(λ − c) with c = gain − weight; Σ π is convex and falls in λ > max c: Newton again.
    """
    allowed = prior > 0
    mass = weight * prior
    c = np.where(allowed, gain - weight, -np.inf)
    # in distances from the largest c, which keeps small probabilities exact
    top = c.max(axis=1, keepdims=True)
    below = np.where(allowed, top - c, 1.0)
    level = np.where(allowed, mass - below, -np.inf).max(axis=1, keepdims=True)
    for _ in range(200):
        parts = np.where(allowed, mass / (level + below), 0.0)
        total = parts.sum(axis=1, keepdims=True)
        slope = np.where(allowed, parts / (level + below), 0.0).sum(axis=1, keepdims=True)
        step = (total - 1.0) / slope
        level = level + step
        if np.all(np.abs(step) <= 1e-15 * level):
            break
    return np.asarray(parts / total)
