"""Where training with exact gradients ends.

Most algorithms for language models do not follow the gradient of J. With the KL estimator in the loss, normalised
advantages or 1/length weights they follow another vector field, and end where that field vanishes. A biased method is
not a bug: its expected end point is the number to hit, and this file computes it.

The update of a softmax table, in expectation over texts y ~ π, is the sum over visited states of

    E[ ℓ(y)·( A(y, t) − β·k(a_t|s_t) )·∇log π(a_t|s_t) ]

with the weight ℓ = 1 or 1/|y|, the advantage A, and k what the KL in the loss contributes for the chosen token
(samples come from π and are held fixed, as in every implementation):

    k1: 1 (zero in expectation)    k2: log π − log π_ref    k3: 1 − π_ref/π
    exact: log π − log π_ref, weighted per state            entropy: log π, weighted per state

At an end point G(s, a) − β·m(s, a)·k(a|s) is the same for all a of a state, with G = E[ℓ·A|s, a] and m = E[ℓ|s, a].
Given the means and standard deviations in A, G depends on later states only, so one backward pass over depth solves
every state in turn; an outer loop repeats it until the means and standard deviations are those of the solution. The
returned residual is the largest entry of the expected gradient itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lm_gym.exact.field import Field, reference_reward
from lm_gym.exact.language import ExactLanguage
from lm_gym.exact.solve import Evaluation, beta_of, evaluate, soft_backward
from lm_gym.exact.states import FloatArray

KL_IN = ("reward", "loss", "entropy-bonus", "reference")
ESTIMATORS = ("k1", "k2", "k3", "exact", "entropy")


@dataclass(frozen=True)
class Objective:
    """What is trained: see `endpoint` for the fields."""

    kl_in: str = "reward"
    estimator: str = "k1"
    baseline: str = "mean"
    whiten: bool = False
    std_normalize: str | None = None
    group_size: int | None = None
    length_normalize: bool = False
    gamma: float = 1.0
    lam: float = 1.0
    kl_coef: float = 0.5
    eps: float = 1e-4

    def __post_init__(self) -> None:
        _one_of("kl_in", self.kl_in, KL_IN)
        _one_of("baseline", self.baseline, ("mean", "value"))
        _one_of("std_normalize", self.std_normalize, (None, "population", "sample"))
        allowed = {"loss": ESTIMATORS[:4], "entropy-bonus": ("entropy",)}.get(self.kl_in, ("k1",))
        if self.estimator not in allowed:
            why = " (only k1 has the right gradient through the reward: k2, k3 and the exact sum do not)"
            raise ValueError(
                f"kl_in={self.kl_in!r} takes estimator {' or '.join(map(repr, allowed))}, got {self.estimator!r}"
                + (why if self.kl_in == "reward" else "")
            )
        if not (0 < self.gamma <= 1 and 0 <= self.lam <= 1):
            raise ValueError(f"gamma must be in (0, 1] and lam in [0, 1], got {self.gamma} and {self.lam}")
        if self.group_size is not None and self.group_size < 2:
            raise ValueError(f"group_size must be at least 2 (None: the limit of a large group), got {self.group_size}")
        if self.whiten and self.std_normalize:
            raise ValueError("whiten is over the whole batch, std_normalize within a prompt: choose one")
        per_text = self.length_normalize or self.std_normalize or self.group_size
        if self.gamma != 1 and per_text:
            raise ValueError("gamma != 1 needs a value per step: not with length_normalize, std_normalize, group_size")
        if self.baseline == "value" and (self.std_normalize or self.group_size):
            raise ValueError("std_normalize and group_size use the mean of the group; baseline must be 'mean'")
        if self.kl_in == "loss" and self.estimator == "k1" and (self.length_normalize or self.whiten):
            raise ValueError("k1 in the loss has no end point of its own with length_normalize or whiten")


@dataclass(frozen=True, eq=False)
class Endpoint:
    """An end point of training. `evaluation` says what it is worth under the true objective."""

    objective: Objective
    policy: FloatArray  # (S, V) over `language.table()`'s states
    evaluation: Evaluation
    converged: bool
    residual: float  # largest entry of the expected gradient, per logit
    iterations: int

    @property
    def regret(self) -> float:
        return self.evaluation.regret

    @property
    def reward(self) -> float:
        return self.evaluation.reward

    @property
    def kl(self) -> float:
        return self.evaluation.kl


# What named algorithms follow: endpoint(language, **PRESETS["grpo"], group_size=8).
PRESETS: dict[str, dict[str, object]] = {
    "ppo": {"kl_in": "reward"},
    "rloo": {"kl_in": "reward"},
    "reinforce": {"kl_in": "reward"},
    "ppo-k2-loss": {"kl_in": "loss", "estimator": "k2", "baseline": "value"},
    "ppo-k3-loss": {"kl_in": "loss", "estimator": "k3", "baseline": "value"},
    "ppo-entropy": {"kl_in": "entropy-bonus", "estimator": "entropy", "baseline": "value"},
    "grpo": {"kl_in": "loss", "estimator": "k3", "std_normalize": "sample", "length_normalize": True},
    "dr-grpo": {"kl_in": "loss", "estimator": "k3"},
    "reinforce++": {"kl_in": "reward"},
    "reinforce++-baseline": {"kl_in": "loss", "estimator": "k2", "whiten": True, "group_size": 8},
    "a2c": {"kl_in": "reward"},
}


def endpoint(
    language: ExactLanguage,
    *,
    kl_in: str = "reward",
    estimator: str | None = None,
    baseline: str = "mean",
    whiten: bool = False,
    std_normalize: str | None = None,
    group_size: int | None = None,
    length_normalize: bool = False,
    gamma: float = 1.0,
    lam: float = 1.0,
    kl_coef: float | None = None,
    eps: float = 1e-4,
    tolerance: float = 1e-10,
    max_iterations: int = 2000,
) -> Endpoint:
    """The stationary point of the expected gradient that training from the reference ends at, for a softmax table.

    Args:
        kl_in: where the KL is. "reward": −β·(log π − log π_ref) in the return. "loss": `estimator` beside the policy
            loss. "entropy-bonus": reward R + β·Σ log π_ref, and β times the entropy in the loss. "reference": that
            reward alone, which is `kl_mode="reference"` optimised as it stands: one single text.
        estimator: "k1", "k2", "k3" or "exact" (Σ_a per state) in the loss. "k1" in the loss has no KL effect: what
            comes back is where E[R] is largest, ties going to the reference's most likely token.
        baseline: "mean": scores less their mean per prompt (REINFORCE, RLOO, GRPO). "value": less V(s_t), an exact
            critic (PPO, A2C). They differ only under `whiten` and `length_normalize`.
        whiten: advantages of the batch's tokens to mean 0, standard deviation 1 (ε = 1e-8 inside the root). With
            group_size the mean of the group is subtracted first (REINFORCE++'s baseline variant).
        std_normalize: scores divided by their standard deviation + `eps` per prompt, with a finite group's
            "population" or "sample" (n − 1) one; the two are the same for a large group.
        group_size: texts per prompt, when mean and std are taken over so few that it matters (the group contains the
            text itself: without `std_normalize`, advantages shrink by 1 − 1/n, as in Dr. GRPO). None: the limit of a
            large group, and also leave-one-out baselines (RLOO), which are unbiased.
        length_normalize: each text's tokens are weighted by 1/|y|.
        gamma: discount, with the score paid on the last action.
        lam: GAE's λ. With an exact critic it changes no expected gradient, but what `whiten` divides by, and the result
            under `length_normalize`.
        kl_coef: β; the language's own by default.

    Returns an `Endpoint`; `converged` is False where the outer loop did not settle within `max_iterations`.
    """
    objective = Objective(
        kl_in=kl_in,
        estimator=estimator or {"reward": "k1", "entropy-bonus": "entropy", "reference": "k1"}.get(kl_in, ""),
        baseline=baseline,
        whiten=whiten,
        std_normalize=std_normalize,
        group_size=group_size,
        length_normalize=length_normalize,
        gamma=gamma,
        lam=lam,
        kl_coef=beta_of(language, kl_coef),
        eps=eps,
    )
    if objective.kl_coef <= 0:
        raise ValueError("an end point needs kl_coef > 0: without a KL, use optimal_policy(language, 0.0)")
    if kl_in == "reference" or (kl_in == "loss" and objective.estimator == "k1"):
        return _greedy(language, objective)
    field = Field(language, objective)
    policy = language.table().ref_probs.copy()
    step, smallest, stalls, iterations = 1.0, np.inf, 0, 0
    while iterations < max_iterations:
        iterations += 1
        change = field.sweep(policy) - policy
        policy = policy + step * change
        size = float(np.abs(change).max())
        if size < 1e-13:
            break
        if iterations % 20 == 0:
            if size > 0.9 * smallest:  # going round in a circle: shorter steps settle it, unless sampling is the cause
                step, stalls = max(0.5 * step, 1 / 32), stalls + 1
                if stalls == 10:
                    break
            smallest = min(smallest, size)
    residual = field.residual(policy)
    return Endpoint(objective, policy, evaluate(language, policy, kl_coef), residual < tolerance, residual, iterations)


def _greedy(language: ExactLanguage, objective: Objective) -> Endpoint:
    """The end without a KL that the policy feels: the best text, written with certainty.

    Where several tokens are equally good the reference's most likely one is taken: of two equal logits' gradients,
    π·(Q − V), the likelier token's is the larger, so that it wins in the end.
    """
    table = language.table()
    if objective.kl_in == "reference":
        reward = reference_reward(language, table, objective.kl_coef, at_end=False)
        table = replace(table, step_reward=reward, pays_at_end=False)
    policy = soft_backward(table, 0.0, gamma=objective.gamma)[1]
    policy = np.where(np.arange(table.n_tokens) == policy.argmax(axis=1)[:, None], 1.0, 0.0)
    return Endpoint(objective, policy, evaluate(language, policy, objective.kl_coef), True, 0.0, 1)


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
