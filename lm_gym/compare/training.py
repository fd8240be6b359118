"""One run, in a process of its own: an agent trains, and is measured at the end of training, never at its best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_gym.agents.sft import SFT
from lm_gym.compare.demonstrations import Demonstrations, best_of_the_reference, of_the_optimum
from lm_gym.compare.measuring import Meter, measure, worth
from lm_gym.compare.problems import Place, place
from lm_gym.compare.rows import Row
from lm_gym.compare.settings import DEMONSTRATION_SEED, EVALUATION_SEED, Job
from lm_gym.held_out import spread

Point = tuple[int, float, float | None]
"""Of a curve: tokens, J, and its standard error; None: J is exact."""
LENGTH_TEXTS = 64
TEXTS_AN_EXAMPLE = {"dpo": 2, "kto": 1, "sft": 1}
"""Agents that learn from examples which were not written by the policy, by the texts of an example."""


@dataclass(frozen=True)
class Trained:
    """A finished run: its row, and the agent's fields as they were given, to give them again."""

    row: Row
    config: dict[str, Any]


def train(job: Job) -> Trained:
    """Train as the job says, and measure.

    Raises:
        ValueError: a configuration that the agent or the environment refuses. FloatingPointError: it diverged.
    """
    here = place(job.env, job.kl_coef, tuning=job.trial is not None)
    meter = Meter(here.env.unwrapped.mdp)
    config = dict(job.config)
    data = _demonstrations(job, here, meter) if issubclass(job.kind, SFT) and config.get("data") is None else None
    given = {} if data is None else {"data": data.texts}
    if job.step_factor != 1.0:
        default = job.kind(here.env, **config, **given, seed=job.seed).base_lr
        config["learning_rate"] = float(f"{default * job.step_factor:.4g}")
    agent = job.kind(here.env, **config, **given, seed=job.seed)
    meter.follow(agent)
    curve = _learn(job, here, agent, data, meter) if job.kind.trains else []
    found = measure(job, here, agent)
    tokens = agent.tokens + (0 if data is None else data.tokens)
    if curve:
        curve.append((tokens, found.reward - job.kl_coef * found.kl, found.sem))
    sems = [sem for *_, sem in curve if sem is not None]
    row = Row(
        agent=job.agent,
        env=job.env,
        kl_coef=job.kl_coef,
        seed=job.seed,
        tokens=tokens,
        reward=found.reward,
        kl=found.kl,
        length=found.length,
        distinct_2=found.distinct_2,
        win_rate=found.win_rate,
        curve=tuple((at, j) for at, j, _ in curve) or None,
        curve_sem=tuple(sems) or None,
        prompts=meter.prompts,
        reward_calls=meter.judged,
        offline_pairs=_examples(agent),
        cpu_seconds=round(meter.seconds, 3),
        config=config if data is None else config | {"data": data.what},
    )
    return Trained(row, config)


def _demonstrations(job: Job, here: Place, meter: Meter) -> Demonstrations:
    """What SFT imitates. Of an exact language it is given; else drawing and judging it is part of the training."""
    seed = DEMONSTRATION_SEED + job.seed
    if here.language is not None:
        return of_the_optimum(here.language, job.total_tokens // here.language.horizon + 1, seed)
    with meter.count(True):
        found = best_of_the_reference(here.env.unwrapped.mdp, job.total_tokens, seed)
    meter.prompts += len(found.texts)
    return found


def _learn(job: Job, here: Place, agent: Any, data: Demonstrations | None, meter: Meter) -> list[Point]:
    """Train; (tokens, J, its error) at the start and at equal distances, the end left out. Trials have no curve."""
    spent, tokens = 0, job.total_tokens
    curve = [] if job.trial is not None else [(0, *_start(job, here, agent))]
    if data is not None and data.tokens:
        spent, tokens = data.tokens, max(1, job.total_tokens - data.tokens)
        curve += [(spent, j, sem) for _, j, sem in curve]
    last = LastUpdate(agent, tokens, _first_length(here, agent, data, tokens))
    marks = [tokens * k / job.points for k in range(1, job.points)]
    if isinstance(agent, SFT):
        meter.leave_out(agent, "collect")  # which it measures itself with, and learns nothing from

    def after_update(trained: Any, metrics: Any) -> bool:
        goes_on = last.follows()
        if goes_on and curve and marks and trained.tokens >= marks[0]:
            del marks[: sum(mark <= trained.tokens for mark in marks)]
            with meter.count(False):
                curve.append((spent + trained.tokens, *worth(job, here, trained)))
        return goes_on

    with meter.count(True):
        agent.learn(tokens, callback=after_update)
    return curve


def _start(job: Job, here: Place, agent: Any) -> tuple[float, float | None]:
    """J before training: of the reference, where the policy starts as it, which is known from far more texts."""
    if job.j_ref is None or not agent.mdp.shares_model:
        return worth(job, here, agent)
    return job.j_ref, None if here.language is not None else 0.0


class LastUpdate:
    """Ends a run as near to its tokens as whole texts allow: the last update has as many texts as are left.

    ``learn`` ends with the update that passes its tokens, which gives an agent with large updates up to a third more
    data than another one. Here the batch of that update is made smaller instead, a multiple of a group's texts. Less
    than half a group is not trained on.

    Args:
        tokens: of the run. first: mean length of the first update's texts; None: it cannot pass the tokens.
    """

    def __init__(self, agent: Any, tokens: int, first: float | None) -> None:
        self.agent, self.tokens, self.whole, self.shortened = agent, tokens, agent.config.batch_size, False
        named = (getattr(agent.config, name, None) for name in ("group_size", "texts_per_prompt"))
        # two: a pair, and the least that has a baseline or a spread
        self.multiple = min(max(2, *(n or 1 for n in named)), self.whole)
        if first is not None:
            self._shorten(max(self._texts(tokens / first), self.multiple))

    def follows(self) -> bool:
        """Whether there is another update; after the one before it, whose texts' length it goes by."""
        left = self.tokens - self.agent.tokens
        if left <= 0 or self.shortened:
            return False
        return self._shorten(self._texts(left * self.whole / self.agent.last.tokens))

    def _texts(self, count: float) -> int:
        return round(count / self.multiple) * self.multiple

    def _shorten(self, texts: int) -> bool:
        if 0 < texts < self.whole:
            self.agent.config.batch_size, self.shortened = texts, True
        return texts > 0


def _first_length(here: Place, agent: Any, data: Demonstrations | None, tokens: int) -> float | None:
    """Mean tokens of a text of the first update, where it may pass the run's tokens: of texts that nobody trains on."""
    if agent.config.batch_size * agent.mdp.max_new_tokens <= tokens:
        return None
    if data is not None:
        return float(np.mean([sum(text.imitated) for text in data.texts]))
    drawn = agent.complete(spread(here.prompts, LENGTH_TEXTS), seed=EVALUATION_SEED)
    return float(np.mean([len(completion.tokens) for completion in drawn]))


def _examples(agent: Any) -> int:
    """Demonstrations, pairs or labelled texts that were trained on, each counted once."""
    if agent.name not in TEXTS_AN_EXAMPLE:
        return 0
    kept = agent.data if isinstance(agent, SFT) else agent.example_source.examples
    seen = int(agent.episodes // TEXTS_AN_EXAMPLE[agent.name])
    return seen if kept is None else min(seen, len(kept))
