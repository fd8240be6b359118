"""KL divergence to the reference: estimators, the exact per-state value, the shaped reward, the adaptive coefficient.

Every function is pure and works on torch tensors; :func:`shape` also on numpy arrays and floats. All values are in
nats. Notation: π is the policy's own distribution over what may be chosen, π_ref the whole-vocabulary distribution of
the reference model.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

from lm_gym.ratios import expm1

if TYPE_CHECKING:
    import torch

ESTIMATORS = ("k1", "k2", "k3", "exact")
Array = TypeVar("Array")


def shape(rewards: Array, logprobs: Array, kl_coef: float) -> Array:
    """Add the agent's half of the KL penalty to rewards of ``kl_mode="reference"``: r_t − β·log π(a_t|s_t).

    In that mode the environment pays R + β·log π_ref(a_t|s_t), because it cannot know π. The sum over a text is then
    R − β·(log π(y|x) − log π_ref(y|x)), whose expectation is the objective J(π).

    Args:
        rewards: what ``step()`` returned, any shape, one number a token.
        logprobs: log π(a_t|s_t) of the same tokens in the agent's own distribution, same shape, ≤ 0.
        kl_coef: β, the environment's ``kl_coef``, in reward per nat.
    """
    got, want = tuple(getattr(logprobs, "shape", ())), tuple(getattr(rewards, "shape", ()))
    if got != want:
        raise ValueError(f"shape expected logprobs of the rewards' shape {want}, got {got}: one log-prob a reward")
    shaped: Any = rewards - kl_coef * logprobs  # type: ignore[operator]
    return shaped  # type: ignore[no-any-return]


def estimate(logprobs: torch.Tensor, ref_logprobs: torch.Tensor, estimator: str) -> torch.Tensor:
    """Per-token KL estimates from samples of π (Schulman, "Approximating KL divergence", 2020).

        k1 = log π − log π_ref;    k2 = ½·k1²;    k3 = exp(−k1) − 1 + k1

    As numbers k1 and k3 are unbiased for KL(π‖π_ref) and k2 is not. As losses it is the other way round: k1 has zero
    expected gradient, k2 has that of the per-state KL(π‖π_ref), k3 that of KL(π_ref‖π). As losses none of the three
    carries an importance ratio: see docs/interop.md for several passes over a rollout, and for TRL's.

    e^(−k1) of k3 is :func:`lm_gym.ratios.expm1`, which stays finite where the policy all but excludes a token.

    Args:
        logprobs: log π(a_t|s_t), any shape. ref_logprobs: log π_ref(a_t|s_t), same shape.
        estimator: "k1", "k2" or "k3".
    """
    k1 = logprobs - ref_logprobs
    if estimator == "k1":
        return k1
    if estimator == "k2":
        return 0.5 * k1.square()
    if estimator == "k3":
        return expm1(-k1) + k1
    raise ValueError(
        f"estimator expected 'k1', 'k2' or 'k3', got {estimator!r} ('exact' needs both distributions: kl.exact)"
    )


def exact(logp: torch.Tensor, ref_logp: torch.Tensor) -> torch.Tensor:
    """Per-state KL(π(·|s)‖π_ref(·|s)) = Σ_a π(a|s)·(log π(a|s) − log π_ref(a|s)), with least variance.

    Args:
        logp: (..., V) log-probs of π; −inf where π may not choose. ref_logp: (..., V) log-probs of π_ref.

    Returns:
        (...) in nats, ≥ 0 up to rounding.
    """
    p = logp.exp()
    return (p * (logp - ref_logp).masked_fill(p == 0, 0.0)).sum(-1)


def exact_and_entropy(logp: torch.Tensor, ref_logp: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`exact` and the entropy −Σ_a π·log π of n states, (n,) each in nats, in few passes over (n, V)."""
    p = logp.exp()
    dot = lambda x: p[:, None].matmul(x[:, :, None]).flatten()  # no tensor of (n, V) for the products
    kl, entropy = dot(logp - ref_logp), -dot(logp)
    if not math.isfinite(float(kl.sum() + entropy.sum())):  # something may not be chosen, and 0·log 0 = 0
        logp, ref_logp = (x.masked_fill(p == 0, 0.0) for x in (logp, ref_logp))
        kl, entropy = dot(logp - ref_logp), -dot(logp)
    return kl, entropy


class AdaptiveKL:
    """The adaptive coefficient of Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", §2.2.

        β ← β·(1 + clip(KL/target − 1, −.2, .2)·n/horizon)

    KL is the mean over texts of the per-sequence sum (k1, the penalty's own estimator), n the number of texts seen. β
    stays within a factor of `RANGE` of the one it began with: further off it would take hundreds of updates to come
    back, and from 0 or infinity none.
    """

    RANGE = 1e9

    def __init__(self, init: float, target: float, horizon: int) -> None:
        if not (0 < init < math.inf and 0 < target < math.inf and 1 <= horizon < math.inf):
            raise ValueError(
                f"adaptive KL expected kl_coef and kl_target above 0 and kl_horizon of at least 1, got {init}, "
                f"{target}, {horizon}: a coefficient of 0 would stay 0"
            )
        self.value, self.target, self.horizon = float(init), float(target), int(horizon)
        self.least, self.most = self.value / self.RANGE, self.value * self.RANGE

    def check(self, n: int) -> None:
        """Refuse updates of ``n`` texts of which one could take the coefficient to 0 or below: n at least 5·horizon."""
        if 0.2 * n >= self.horizon:
            raise ValueError(
                f"kl_horizon expected above {n / 5:g} for updates of {n} texts (batch_size), got {self.horizon}: it "
                "counts texts, not updates, and one update below kl_target would multiply the coefficient by "
                f"1 - .2·{n}/{self.horizon} = {1 - 0.2 * n / self.horizon:.3g}; {n} lets an update move it by a fifth"
            )

    def update(self, kl: float, n: int) -> float:
        """Move the coefficient after ``n`` texts whose mean sequence KL was ``kl`` nats; returns the new value."""
        self.check(n)
        if math.isnan(kl):
            raise ValueError("adaptive KL expected the mean KL of some texts in nats, got NaN")
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        self.value = min(max(self.value * (1.0 + error * n / self.horizon), self.least), self.most)
        return self.value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = float(state["value"])
