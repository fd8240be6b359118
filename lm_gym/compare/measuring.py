"""What a policy is worth at the end of a run, and what its training cost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_gym import exact
from lm_gym.agents.best_of_n import BestOfN
from lm_gym.compare.problems import Place, win_rate
from lm_gym.compare.settings import EVALUATION_SEED, Job
from lm_gym.evaluation import Drawn
from lm_gym.held_out import spread

LEAST_CURVE_TEXTS = 16


@dataclass(frozen=True)
class Measured:
    """What a policy is worth; see :class:`lm_gym.compare.rows.Row`. ``sem``: of J − J_ref; None where it is exact."""

    reward: float
    kl: float
    length: float
    distinct_2: float
    win_rate: float | None
    sem: float | None = None


def measure(job: Job, place: Place, agent: Any) -> Measured:
    """Exactly, where the language is; else on fresh texts of the held-out prompts, of a seed that trains nothing.

    distinct_2 is of fresh texts everywhere.
    """
    drawn = agent.evaluate_on(spread(place.prompts, job.eval_texts), EVALUATION_SEED + job.seed)
    length, distinct = float(np.mean(drawn.lengths)), float(drawn.metrics["text/distinct_2"])
    if place.language is None:
        rate = None if job.reference is None else win_rate(drawn.prompts, drawn.scores, job.reference)
        reward, kl = drawn.metrics["objective/scores"], max(0.0, drawn.metrics["objective/kl"])  # -1e-8 is rounding
        return Measured(reward, kl, length, distinct, rate, beside_reference(job, drawn)[1])
    found = _exactly(place.language, agent)
    return Measured(found.reward, found.kl, length if found.length is None else found.length, distinct, found.rate)


@dataclass(frozen=True)
class _Exactly:
    reward: float
    kl: float
    length: float | None
    rate: float


def _exactly(language: Any, agent: Any) -> _Exactly:
    reference = exact.score_distribution(language)
    if isinstance(agent, BestOfN) and language.states != "prefixes":  # no policy over steps knows the score so far
        best = exact.best_of_n(language, agent.config.n)
        return _Exactly(best.reward, best.kl, None, exact_win_rate(best.probs, [p for _, p in reference]))
    policy = exact.as_policy(language, agent)
    found = exact.evaluate(language, policy)
    ours = [p for _, p in exact.score_distribution(language, policy)]
    return _Exactly(found.reward, max(0.0, found.kl), found.length, exact_win_rate(ours, [p for _, p in reference]))


def exact_win_rate(ours: list[np.ndarray], reference: list[np.ndarray]) -> float:
    """P(R > R') + ½·P(R = R'), mean over prompts, from how likely each score is, (K,) each, scores ascending."""
    return float(np.mean([p @ (np.cumsum(q) - 0.5 * q) for p, q in zip(ours, reference, strict=True)]))


def worth(job: Job, place: Place, agent: Any) -> tuple[float, float | None]:
    """J in the middle of a run, and its standard error (None: it is exact).

    Of a language that is not exact it is measured on as many texts as do not cost more than the training between two
    points, of prompts that the end is measured on too.
    """
    if place.language is not None:
        return float(exact.evaluate(place.language, agent).objective), None
    affordable = job.total_tokens // (job.points * agent.mdp.max_new_tokens)
    texts = min(job.eval_texts, max(LEAST_CURVE_TEXTS, affordable))
    prompts = spread(spread(place.prompts, job.eval_texts), texts)
    return beside_reference(job, agent.evaluate_on(prompts, EVALUATION_SEED + job.seed))


def beside_reference(job: Job, drawn: Drawn) -> tuple[float, float]:
    """J and its standard error, from some texts by what they are better than the reference's on the same prompts.

    J_ref + mean of R(y) − β·KL(y) − R̄_ref(x): some prompts are easier than others, and a few of them, taken as they
    are, would begin a curve beside J_ref. Without the reference's scores it is the plain mean.
    """
    each = np.array(drawn.scores) - job.kl_coef * np.array(drawn.kls)
    if job.reference is not None and job.j_ref is not None:
        each = job.j_ref + each - np.array([np.mean(job.reference[p.text]) for p in drawn.prompts])
    return float(each.mean()), float(each.std(ddof=1) / np.sqrt(len(each)))


class Meter:
    """What training costs: CPU seconds, texts that the judge saw, prompts that were drawn; not what measures it."""

    def __init__(self, mdp: Any) -> None:
        self.judged = self.prompts = 0
        self.seconds = 0.0
        self._running, self._since = False, 0.0
        judge = mdp.judge

        def counted(prompts: Any, *args: Any, **options: Any) -> Any:
            self.judged += len(prompts) if self._running else 0
            return judge(prompts, *args, **options)

        mdp.judge = counted

    def follow(self, agent: Any) -> None:
        """Count the prompts that an agent draws."""
        take = agent.prompt_order.take

        def counted(n: int) -> Any:
            self.prompts += n if self._running else 0
            return take(n)

        agent.prompt_order.take = counted

    def leave_out(self, agent: Any, method: str) -> None:
        """Count nothing of what a method of an agent does."""
        own = getattr(agent, method)

        def uncounted() -> Any:
            with self.count(False):
                return own()

        setattr(agent, method, uncounted)

    @contextlib.contextmanager
    def count(self, running: bool) -> Iterator[None]:
        """Training (True), or a measurement within it (False)."""
        before = self._switch(running)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, running: bool) -> bool:
        before, now = self._running, time.process_time()
        self.seconds += now - self._since if before else 0.0
        self._running, self._since = running, now
        return before
