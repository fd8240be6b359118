"""A comparison from its settings: the problems, the trials of tuning, the final runs; what is done stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_gym.compare.ledger import Ledger
from lm_gym.compare.pool import Outcome, run_all
from lm_gym.compare.problems import Found, ProblemJob, make_problems
from lm_gym.compare.rows import Problem, Row
from lm_gym.compare.settings import TUNING_SEED, Job, Settings
from lm_gym.compare.training import Trained, train
from lm_gym.compare.tuning import trials
from lm_gym.folders import locked

Say = Callable[[str], None]


@dataclass
class Compared:
    """What a comparison came to.

    Attributes:
        rows: final runs. problems: what they are measured on. failures: runs that broke off, with their errors.
        diverged: trials whose numbers blew up. warnings: what the runs said, by who said it.
        tuned: (agent, env, kl_coef) -> trials that were made. revisions: of the code that made what the folder holds.
    """

    rows: list[Row] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    diverged: list[str] = field(default_factory=list)
    warnings: dict[str, str] = field(default_factory=dict)
    tuned: dict[tuple[str, str, float], int] = field(default_factory=dict)
    revisions: list[str] = field(default_factory=list)


def compare(settings: Settings, folder: Path, say: Say) -> Compared:
    """Run what is not yet in the folder, and return all that was asked for.

    Args:
        say: called with a line for every run that ends.

    Raises:
        ValueError: the folder was made with other settings. FolderInUse: another process goes on with it.
    """
    with locked(folder):
        return _Comparison(settings, Ledger(folder, settings), say).run()


class _Comparison:
    def __init__(self, settings: Settings, ledger: Ledger, say: Say) -> None:
        self.settings, self.ledger, self.say = settings, ledger, say
        self.result = Compared(revisions=ledger.revisions)

    def run(self) -> Compared:
        self._problems()
        groups = [
            (agent, env, beta)
            for env, betas in self.settings.problems.items()
            for beta in betas
            for agent in self.settings.agents
            if (env, beta) in self.ledger.problems
        ]
        space = {name: self._space(name) for name in self.settings.agents}
        self._trials(groups, space)
        self._finals([(group, *self._winner(group, space)) for group in groups])
        wanted = [(*group, seed) for group in groups for seed in range(self.settings.seeds)]
        self.result.rows = [self.ledger.rows[key] for key in wanted if key in self.ledger.rows]
        self.result.problems = [
            self.ledger.problems[env, beta]
            for env, betas in self.settings.problems.items()
            for beta in betas
            if (env, beta) in self.ledger.problems
        ]
        return self.result

    def _space(self, agent: str) -> list[tuple[dict[str, Any], float]]:
        if not self.settings.tune_trials:
            return []
        fixed = self.settings.fixed.get(agent, {})
        return trials(agent, self.settings.agents[agent], fixed, self.settings.tune_trials)

    def _problems(self) -> None:
        jobs = []
        for env, betas in self.settings.problems.items():
            missing = tuple(beta for beta in betas if (env, beta) not in self.ledger.problems)
            if missing:
                jobs.append(ProblemJob(env, missing, self.settings.eval_texts))
        for outcome in self._outcomes(make_problems, jobs, "problem"):
            found: Found = outcome.value
            if found.reference is not None and outcome.job.env not in self.ledger.reference:
                self.ledger.add_reference(outcome.job.env, found.reference)
            for problem in found.problems:
                self.ledger.add_problem(problem)

    def _trials(self, groups: Sequence[Any], space: Mapping[str, Any]) -> None:
        jobs = [
            self._job(group, TUNING_SEED + trial, config, trial=trial, factor=factor)
            for group in groups
            for trial, (config, factor) in enumerate(space[group[0]])
            if trial not in self.ledger.trials.get(group, {})
        ]
        for outcome in self._outcomes(train, jobs, "trial", finished=self._diverged):
            trained: Trained = outcome.value
            self.ledger.add_trial(outcome.job, trained.config, trained.row.j)
        for group in groups:
            if space[group[0]]:
                self.result.tuned[group] = len(self.ledger.trials.get(group, {}))

    def _diverged(self, outcome: Outcome[Any]) -> bool:
        """A trial whose numbers blew up has ended: the configuration is no good."""
        if outcome.diverged:
            self.ledger.add_trial(outcome.job, outcome.job.config, None, outcome.error)
        return outcome.diverged

    def _winner(self, group: Any, space: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
        """The fields of final runs; None, and why, where tuning has not ended."""
        agent = group[0]
        if not space[agent]:
            return dict(self.settings.fixed.get(agent, {})), ""
        if len(self.ledger.trials.get(group, {})) < len(space[agent]):
            return None, "its tuning has not ended"
        winner = self.ledger.winner(group)
        return winner, "" if winner is not None else "every trial of its tuning diverged"

    def _finals(self, chosen: Sequence[tuple[Any, dict[str, Any] | None, str]]) -> None:
        jobs = []
        for group, config, why in chosen:
            if config is None:
                self.result.failures.append(f"{group[0]} on {group[1]} at β={group[2]:g}: no final runs, {why}")
                continue
            for seed in range(self.settings.seeds):
                if (*group, seed) not in self.ledger.rows:
                    reference = self.ledger.reference.get(group[1])
                    jobs.append(self._job(group, seed, config, reference=reference))
        for outcome in self._outcomes(train, jobs, "run"):
            self.ledger.add_row(outcome.value.row)

    def _job(
        self,
        group: tuple[str, str, float],
        seed: int,
        config: Mapping[str, Any],
        *,
        trial: int | None = None,
        factor: float = 1.0,
        reference: Mapping[str, tuple[float, ...]] | None = None,
    ) -> Job:
        agent, env, kl_coef = group
        s = self.settings
        return Job(
            agent=agent,
            kind=s.agents[agent],
            env=env,
            kl_coef=kl_coef,
            seed=seed,
            total_tokens=s.total_tokens,
            eval_texts=s.eval_texts,
            points=s.points if trial is None else 1,
            config=config,
            trial=trial,
            step_factor=factor,
            reference=reference,
        )

    def _outcomes(
        self,
        function: Callable[[Any], Any],
        jobs: Sequence[Any],
        what: str,
        finished: Callable[[Outcome[Any]], bool] = lambda outcome: False,
    ) -> Iterator[Outcome[Any]]:
        """Run jobs; what failed is written down and said, the others come back one by one.

        Args:
            finished: whether a failure is a result in itself, and was written down as one.
        """
        for number, outcome in enumerate(run_all(function, jobs, self.settings.processes), 1):
            at = f"{what} {number} of {len(jobs)}: {outcome.job}"
            for message in outcome.warnings:
                if message not in self.result.warnings:
                    self.result.warnings[message] = str(outcome.job)
            if outcome.error is None:
                yield outcome
                worth = f", J {outcome.value.row.j:.4f}" if isinstance(outcome.value, Trained) else ""
                self.say(f"{at}{worth}")
                continue
            self.say(f"{at} failed: {outcome.error}")
            if finished(outcome):
                self.result.diverged.append(f"{outcome.job}: {outcome.error}")
            else:
                self.ledger.add_failure(str(outcome.job), outcome.error)
                self.result.failures.append(f"{outcome.job}: {outcome.error}")
