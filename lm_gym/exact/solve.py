"""The best policy of an exact language, and what any policy is worth in it.

Everything here is a dynamic program over `StateTable`: backward over depth for values, forward for visit
probabilities. No sampling, float64 throughout. Numbers are in nats and in units of the reward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lm_gym.exact.language import ExactLanguage
from lm_gym.exact.states import FloatArray, StateTable

BoolArray = NDArray[np.bool_]


@runtime_checkable
class HasExactPolicy(Protocol):
    """An agent that can be evaluated exactly."""

    def exact_policy(self, language: ExactLanguage) -> ArrayLike:
        """(S, V) probabilities over `language.table()`'s states."""
        ...


Policy = ArrayLike | Callable[..., Sequence[float]] | HasExactPolicy


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a policy is worth: means over prompts, and `per_prompt` the same names as (P,) arrays."""

    reward: float  # E[R]
    kl: float  # KL(π‖π_ref) between whole texts, nats; inf if π goes where π_ref never does
    length: float  # E[tokens], the EOS counted
    entropy: float  # of the whole text, nats
    ended: float  # share of texts that end in EOS
    objective: float  # J = E[R] − β·KL
    optimum: float  # J*
    regret: float  # J* − J
    kl_to_optimum: float  # KL(π‖π*), nats; regret = β·kl_to_optimum
    kl_coef: float  # β
    per_prompt: dict[str, FloatArray]


def soft_values(language: ExactLanguage, kl_coef: float | None = None, *, mask: ArrayLike | None = None) -> FloatArray:
    """(S,) V(s) = β·log Σ_a π_ref(a|s)·exp((r(s, a) + V(s'))/β): the value of the best policy from each state.

    `mask` (S, V) restricts the sum to what may be chosen; the reference stays whole, so that V pays for the
    restriction. With β = 0 it is the largest reward within reach. Where states are steps, V is the value of what is
    still to come (the score so far is not in the state).
    """
    return soft_backward(language.table(), beta_of(language, kl_coef), mask)[0]


def optimal_policy(
    language: ExactLanguage, kl_coef: float | None = None, *, mask: ArrayLike | None = None
) -> FloatArray:
    """(S, V) π*(a|s) = π_ref(a|s)·exp((r + V(s') − V(s))/β), under `mask` if given.

    As a distribution of texts that is π_ref(y)·exp(R(y)/β)/Z. With β = 0: the reference among the best texts.
    """
    return soft_backward(language.table(), beta_of(language, kl_coef), mask)[1]


def optimum(language: ExactLanguage, kl_coef: float | None = None, *, mask: ArrayLike | None = None) -> float:
    """J* = V(s_0) = β·log Z, mean over prompts; under `mask`, the best that a restricted policy can do."""
    values = soft_values(language, kl_coef, mask=mask)
    return float(values[language.table().start_states].mean())


def reference_policy(language: ExactLanguage) -> FloatArray:
    """(S, V) π_ref."""
    return language.table().ref_probs.copy()


def as_policy(language: ExactLanguage, policy: Policy) -> FloatArray:
    """(S, V) float64 probabilities from whatever describes a policy.

    Args:
        policy: an (S, V) array; an object with `exact_policy(language) -> (S, V)`; or, where states are prefixes, a
            function from a prefix (tuple of token ids) to V probabilities, called `policy(prefix)` with one prompt and
            `policy(prefix, prompt)` with several.

    Rows must sum to 1 within 1e-4 (float32 agents) and are then normalised in float64.
    """
    table = language.table()
    rows: Any
    if isinstance(policy, HasExactPolicy):
        rows = policy.exact_policy(language)
    elif callable(policy):
        prefixes = [language.prefix(s) for s in range(table.n_states)]
        if language.n_prompts == 1:
            rows = [policy(prefix) for prefix in prefixes]
        else:
            rows = [policy(prefix, int(p)) for prefix, p in zip(prefixes, table.prompt, strict=True)]
    else:
        rows = policy
    probs = np.array(rows, dtype=np.float64)
    expected = (table.n_states, table.n_tokens)
    if probs.shape != expected:
        raise ValueError(
            f"a policy of {language!r} must be {expected} probabilities (states, tokens); got shape {probs.shape}"
        )
    sums = probs.sum(axis=1)
    bad = np.nonzero(~np.isfinite(sums) | (probs < 0).any(axis=1) | (np.abs(sums - 1) > 1e-4))[0]
    if len(bad):
        raise ValueError(
            f"row {bad[0]} of the policy (and {len(bad) - 1} more) must be probabilities that sum to 1, "
            f"got {probs[bad[0]].tolist()}; log-probs need an exp first"
        )
    probs /= sums[:, None]
    return probs


def evaluate(language: ExactLanguage, policy: Policy, kl_coef: float | None = None) -> Evaluation:
    """E[R], KL, length, entropy, J and regret of a policy, exactly. See `as_policy` for what a policy may be."""
    beta = beta_of(language, kl_coef)
    table = language.table()
    probs = as_policy(language, policy)
    values, best = soft_backward(table, beta)
    ended = np.zeros_like(probs)
    ended[:, 0] = 1.0
    logs = xlogy(probs, probs)
    sums = {
        "reward": (probs * table.step_reward).sum(axis=1),
        "kl": (logs - xlogy(probs, table.ref_probs)).sum(axis=1),
        "length": np.ones(table.n_states),
        "entropy": -logs.sum(axis=1),
        "ended": (probs * ended).sum(axis=1),
        "kl_to_optimum": (logs - xlogy(probs, best)).sum(axis=1),
    }
    start = table.start_states
    per_prompt = {name: expected_sum(table, probs, per_state)[start] for name, per_state in sums.items()}
    penalty = beta * per_prompt["kl"] if beta > 0 else np.zeros(len(start))  # 0·inf is not a price
    per_prompt["objective"] = per_prompt["reward"] - penalty
    per_prompt["optimum"] = values[start]
    per_prompt["regret"] = per_prompt["optimum"] - per_prompt["objective"]
    means = {name: float(array.mean()) for name, array in per_prompt.items()}
    return Evaluation(**means, kl_coef=beta, per_prompt=per_prompt)


def kl_between(language: ExactLanguage, policy: Policy, other: Policy) -> float:
    """KL(policy‖other) between whole texts, nats, mean over prompts."""
    table = language.table()
    p, q = as_policy(language, policy), as_policy(language, other)
    per_state = (xlogy(p, p) - xlogy(p, q)).sum(axis=1)
    return float(expected_sum(table, p, per_state)[table.start_states].mean())


def expected_sum(table: StateTable, probs: FloatArray, per_state: FloatArray) -> FloatArray:
    """(S,) expected sum of `per_state` (S,) over the states visited from s on, s included."""
    total = np.array(per_state, dtype=np.float64)
    for level in reversed(table.levels()[:-1]):
        following = table.next_state[level]
        weight = np.where(following >= 0, probs[level], 0.0)
        later = total[np.maximum(following, 0)]
        with np.errstate(invalid="ignore"):
            total[level] += np.where(weight > 0, weight * later, 0.0).sum(axis=1)
    return total


def visits(table: StateTable, probs: FloatArray) -> FloatArray:
    """(S,) probability of passing through each state, given its prompt."""
    reach = np.zeros(table.n_states)
    reach[table.start_states] = 1.0
    for level in table.levels():
        following = table.next_state[level]
        goes_on = following >= 0
        flow = probs[level] * reach[level, None]
        np.add.at(reach, following[goes_on], flow[goes_on])
    return reach


def text_probs(language: ExactLanguage, policy: Policy) -> FloatArray:
    """(N,) probability of each of `language.texts` given its prompt (only where states are prefixes)."""
    texts, table = language.texts, language.table()
    if language.states != "prefixes":
        raise ValueError("text_probs needs states='prefixes'; use score_distribution for a language of steps")
    probs = as_policy(language, policy)
    return visits(table, probs)[texts.state] * probs[texts.state, texts.action]


def score_distribution(
    language: ExactLanguage, policy: Policy | None = None, *, on_score_table: bool = False
) -> list[tuple[FloatArray, FloatArray]]:
    """For each prompt (scores, probs): the distinct values R can take, ascending, and how likely each is.

    `policy` None is the reference. Where states are steps it is a dynamic program over step, last token and score so
    far. Scores closer than 1e-9 count as one. With `on_score_table` the policy is an array over
    `language.score_table()`'s states instead.
    """
    table, base = language.score_table()
    if on_score_table:
        probs = np.asarray(policy, dtype=np.float64)
    else:
        probs = (language.table().ref_probs if policy is None else as_policy(language, policy))[base]
    mass = visits(table, probs)[:, None] * probs
    out = []
    for p in range(table.n_prompts):
        here = table.ends & (table.prompt == p)[:, None]
        scores, inverse = np.unique(np.round(table.step_reward[here], 9), return_inverse=True)
        weights = np.bincount(inverse.reshape(-1), weights=mass[here], minlength=len(scores))
        out.append((scores.astype(np.float64), weights.astype(np.float64)))
    return out


def check_mask(table: StateTable, mask: ArrayLike) -> BoolArray:
    """(S, V) bool, or a ValueError: wrong shape, or a state that leaves no choice."""
    array = np.asarray(mask)
    if array.shape != (table.n_states, table.n_tokens) or array.dtype != np.bool_:
        raise ValueError(
            f"a mask must be bool of shape {(table.n_states, table.n_tokens)}, True where a token may be chosen; got "
            f"{array.dtype} of shape {array.shape}"
        )
    empty = np.nonzero(~(array & (table.ref_probs > 0)).any(axis=1))[0]
    if len(empty):
        raise ValueError(f"the mask leaves no token that the reference can write in {len(empty)} states ({empty[:5]})")
    return array


def soft_backward(
    table: StateTable, beta: float, mask: ArrayLike | None = None, gamma: float = 1.0
) -> tuple[FloatArray, FloatArray]:
    """(S,) soft values and (S, V) their policy, by one backward pass over depth; γ discounts the next state's value."""
    allowed = table.ref_probs > 0
    if mask is not None:
        allowed = allowed & check_mask(table, mask)
    log_ref = np.where(allowed, table.ref_logprobs, -np.inf)
    values = np.zeros(table.n_states)
    log_mass = np.zeros(table.n_states)  # β = 0: reference mass of the best texts from here
    policy = np.zeros((table.n_states, table.n_tokens))
    for level in reversed(table.levels()):
        following = table.next_state[level]
        goes_on = following >= 0
        q = table.step_reward[level] + gamma * np.where(goes_on, values[np.maximum(following, 0)], 0.0)
        if beta > 0:
            logits = log_ref[level] + q / beta
            values[level], policy[level] = log_sum_exp(logits)
            values[level] *= beta
        else:
            q = np.where(allowed[level], q, -np.inf)
            top = q.max(axis=1)
            ties = q >= (top - 1e-12 * np.maximum(1.0, np.abs(top)))[:, None]
            mass = np.where(goes_on, log_mass[np.maximum(following, 0)], 0.0)
            log_mass[level], policy[level] = log_sum_exp(np.where(ties, log_ref[level] + mass, -np.inf))
            values[level] = top
    return values, policy


def log_sum_exp(logits: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Row-wise log Σ exp and softmax."""
    top = logits.max(axis=1, keepdims=True)
    weights = np.exp(logits - top)
    total = weights.sum(axis=1, keepdims=True)
    return (top + np.log(total))[:, 0], weights / total


def xlogy(p: FloatArray, q: FloatArray) -> FloatArray:
    """p·log q, 0 where p = 0; −inf where p > 0 and q = 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, p * np.log(q), 0.0)


def beta_of(language: ExactLanguage, kl_coef: float | None) -> float:
    beta = language.kl_coef if kl_coef is None else float(kl_coef)
    if not (np.isfinite(beta) and beta >= 0):
        raise ValueError(f"kl_coef must be a finite number of at least 0, got {kl_coef!r}")
    return beta
