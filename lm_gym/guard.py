"""The guard: every few updates the policy is evaluated on held-out prompts, and one that got worse is taken back.

A policy is refused where

- it holds a NaN or an infinity, or an update could not be finished for one;
- its exact KL to the reference is above ``max_kl``; or
- it is worse than the best one so far by more than its noise: with J_i = R_i − β·KL_i of text i, the mean of
  d_i = J_i(now) − J_i(best) over the n texts lies more than ``sigmas`` (3) of its standard errors, sd(d)/√n, below 0.
  Every evaluation has the same prompts and the same random numbers, so that d_i is paired: texts that did not change
  add no noise.

Then weights, optimizer, the models that follow the policy and an adaptive β become those of the last evaluation that
was not refused, and the step size is halved, for good. Counters, random states and the order of prompts go on: the next
updates see other texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lm_gym import agent_state
from lm_gym.agent_texts import records_of

if TYPE_CHECKING:
    from lm_gym.agent import LMAgent

SEED = 7321
"""Of the draws of every evaluation."""
MOST_IN_A_ROW = 10
"""Rollbacks without an accepted policy between them after which training stops: the step size is .001 of itself."""


@dataclass(frozen=True)
class Guard:
    """What ``learn(guard=...)`` takes; the module's docstring has the rule."""

    every: int = 10
    """Updates between evaluations."""
    prompts: Any = None
    """Held-out prompts, a prompt source or a list of :class:`lm_gym.prompts.Prompt`; None: the environment's own."""
    n: int = 64
    """Texts an evaluation."""
    max_kl: float | None = None
    """Nats a text that the exact KL to the reference may have at most; None: no limit."""
    sigmas: float = 3.0
    """Standard errors of the paired difference that a policy may lie below the best."""

    def __post_init__(self) -> None:
        for name, value, low in (("every", self.every, 1), ("n", self.n, 8)):
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f"guard {name} expected a whole number of at least {low}, got {value!r}")
        if self.max_kl is not None and not self.max_kl > 0:
            raise ValueError(f"guard max_kl expected above 0 nats, or None, got {self.max_kl!r}")
        if not self.sigmas > 0:
            raise ValueError(f"guard sigmas expected above 0, got {self.sigmas!r}")


class Watch:
    """A guard at work on one agent.

    Args:
        saved: what a checkpoint kept of an earlier one, :meth:`state`; None: the policy as it is now is the first good
            one, and is evaluated here.
    """

    def __init__(
        self, agent: LMAgent, guard: Guard, saved: tuple[dict[str, Any], agent_state.Groups] | None = None
    ) -> None:
        if agent.wrappers:
            raise ValueError("guard expected an environment without wrappers: it evaluates what the problem pays")
        if not agent.trains:
            raise ValueError(f"guard expected an agent that trains, and {agent.name} has nothing to take back")
        self.agent, self.guard = agent, guard
        records = agent.mdp.prompts if guard.prompts is None else records_of(agent.mdp, guard.prompts)
        self.prompts = [records[i * len(records) // guard.n] for i in range(guard.n)]
        ids = repr([p.token_ids for p in self.prompts])
        self.fingerprint = hashlib.sha256(ids.encode()).hexdigest()[:16]
        self.rollbacks, self.tokens, self.in_a_row = 0, 0, 0
        self.best: dict[str, list[float]] = {}
        if saved is not None:
            self._load(*saved)
            return
        self.good, self.good_control = self._copy()
        metrics = self._evaluate()
        if guard.max_kl is not None and metrics["guard/kl"] > guard.max_kl:
            raise ValueError(
                f"the policy is {metrics['guard/kl']:.3g} nats from the reference before training, and the guard "
                f"allows {guard.max_kl:g}: raise max_kl"
            )

    def after_update(self, note: Callable[[str], None]) -> dict[str, float]:
        """Look at the policy where it is time to; what to log. A refused policy is taken back, and ``note`` told."""
        metrics: dict[str, float] = {}
        if self.agent.updates % self.guard.every == 0:
            why = self._broken()
            if why is None:
                metrics = self._evaluate()
                why = self.why
            if why is None:
                self.good, self.good_control = self._copy()
                self.in_a_row = 0
            else:
                note(self.roll_back(why))
        return metrics | {"guard/rollbacks": self.rollbacks, "guard/tokens": self.tokens}

    def roll_back(self, why: str) -> str:
        """The last good weights, with half the step size; says so.

        Raises:
            FloatingPointError: it was the tenth in a row.
        """
        agent = self.agent
        agent_state.set_weights(agent, self.good, "the guard's last good weights")
        agent.optimizer.zero_grad(set_to_none=True)
        if agent.kl_control is not None:
            agent.kl_control.load_state_dict(self.good_control)
        agent.step_size_factor /= 2
        self.rollbacks += 1
        self.in_a_row += 1
        if self.in_a_row >= MOST_IN_A_ROW:
            raise FloatingPointError(
                f"the guard took the policy back {MOST_IN_A_ROW} times in a row, the last time because {why}; its last "
                "good weights are in place. The step size is not what is wrong: look at the reward and the samples"
            )
        return f"guard: the policy was taken back after update {agent.updates}, since {why}; the step size is halved"

    def _broken(self) -> str | None:
        for name, p in self.agent.optimizer.values().items():
            if not bool(torch.isfinite(p).all()):
                return f"the weight {name} holds a NaN or an infinity"
        return None

    def _evaluate(self) -> dict[str, float]:
        """Measure the policy; ``why`` is then the reason to refuse it, or None, and ``best`` the best so far."""
        agent = self.agent
        drawn = agent.evaluate_on(self.prompts, SEED)
        self.tokens += sum(drawn.lengths)
        found = {"scores": drawn.scores, "kls": drawn.kls}
        now, kl = self._objective(found), drawn.metrics["objective/kl"]
        self.why = None
        if self.guard.max_kl is not None and kl > self.guard.max_kl:
            self.why = f"its KL is {kl:.4g} nats a text, above the limit of {self.guard.max_kl:g}"
        elif self.best:
            best = self._objective(self.best)
            self.why = worse(now, best, self.guard.sigmas)
        if self.why is None and (not self.best or float(now.mean()) > float(self._objective(self.best).mean())):
            self.best = found
        return {"guard/j": float(now.mean()), "guard/kl": kl}

    why: str | None = None

    def _objective(self, found: dict[str, list[float]]) -> torch.Tensor:
        """(n,) J_i at the coefficient in force, for texts of now and of then alike."""
        scores, kls = (torch.tensor(found[key], dtype=torch.float64) for key in ("scores", "kls"))
        return scores - self.agent.kl_coef * kls

    def _copy(self) -> tuple[agent_state.Groups, dict[str, Any] | None]:
        groups = agent_state.weights(self.agent)
        control = self.agent.kl_control
        kept = {name: {k: t.detach().clone() for k, t in group.items()} for name, group in groups.items()}
        return kept, None if control is None else control.state_dict()

    def state(self) -> tuple[dict[str, Any], agent_state.Groups]:
        """What a checkpoint keeps: plain data, and the last good weights."""
        plain = {
            "prompts": self.fingerprint,
            "rollbacks": self.rollbacks,
            "tokens": self.tokens,
            "in_a_row": self.in_a_row,
            "best": self.best,
            "control": self.good_control,
        }
        return plain, self.good

    def _load(self, state: dict[str, Any], groups: agent_state.Groups) -> None:
        if state.get("prompts") != self.fingerprint:
            raise ValueError(
                "guard expected the prompts and the number of texts that the checkpoint's best policy was measured "
                f"on ({state.get('prompts')}), got others ({self.fingerprint})"
            )
        own = agent_state.weights(self.agent)
        if set(groups) != set(own):
            raise ValueError(f"the checkpoint's guard expected the groups {sorted(own)}, got {sorted(groups)}")
        self.rollbacks, self.tokens, self.in_a_row = state["rollbacks"], state["tokens"], state["in_a_row"]
        self.best, self.good_control, self.good = state["best"], state["control"], groups


def worse(now: torch.Tensor, best: torch.Tensor, sigmas: float) -> str | None:
    """Whether J (n,) of the texts of a policy lies below that of the best by more than the noise; how, or None."""
    d = now - best
    error = float(d.std(unbiased=True)) / len(d) ** 0.5
    mean = float(d.mean())
    if mean < -sigmas * error:
        return (
            f"its objective is {float(now.mean()):.4g}, {-mean:.3g} below the best, more than {sigmas:g} standard "
            f"errors of {error:.3g}"
        )
    return None
