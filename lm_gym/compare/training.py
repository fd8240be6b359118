"""One run, in a process of its own: an agent trains, and is measured at the end of training, never at its best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lm_gym.agents.sft import SFT
from lm_gym.compare.demonstrations import Demonstrations, best_of_the_reference, of_the_optimum
from lm_gym.compare.measuring import Meter, measure, worth
from lm_gym.compare.problems import Place, place
from lm_gym.compare.rows import Row
from lm_gym.compare.settings import DEMONSTRATION_SEED, Job

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
        curve.append((tokens, found.reward - job.kl_coef * found.kl))
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
        curve=tuple(curve) or None,
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


def _learn(job: Job, here: Place, agent: Any, data: Demonstrations | None, meter: Meter) -> list[tuple[int, float]]:
    """Train; (tokens, J) at the start and at equal distances, the end left out."""
    spent, tokens = 0, job.total_tokens
    curve = [(0, worth(job, here, agent))]
    if data is not None and data.tokens:
        spent, tokens = data.tokens, max(1, job.total_tokens - data.tokens)
        curve.append((spent, curve[0][1]))
    marks = [tokens * k / job.points for k in range(1, job.points)]
    if isinstance(agent, SFT):
        meter.leave_out(agent, "collect")  # which it measures itself with, and learns nothing from

    def after_update(trained: Any, metrics: Any) -> None:
        if marks and trained.tokens >= marks[0] and trained.progress < 1.0:
            del marks[: sum(mark <= trained.tokens for mark in marks)]
            with meter.count(False):
                curve.append((spent + trained.tokens, worth(job, here, trained)))

    with meter.count(True):
        agent.learn(tokens, callback=after_update)
    return curve


def _examples(agent: Any) -> int:
    """Demonstrations, pairs or labelled texts that were trained on, each counted once."""
    if agent.name not in TEXTS_AN_EXAMPLE:
        return 0
    kept = agent.data if isinstance(agent, SFT) else agent.example_source.examples
    seen = int(agent.episodes // TEXTS_AN_EXAMPLE[agent.name])
    return seen if kept is None else min(seen, len(kept))
