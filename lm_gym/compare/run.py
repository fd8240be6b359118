"""A comparison from its settings: the problems, the trials of tuning, the final runs; what is done stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

from lm_gym.compare.ledger import Ledger
from lm_gym.compare.pool import Outcome, run_all
from lm_gym.compare.problems import ProblemJob, measure_reference, problem_jobs, put_together
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
        ledger = Ledger(folder, settings)
        try:
            return _Comparison(settings, ledger, say).run()
        finally:
            ledger.let_go()


class _Comparison:
    def __init__(self, settings: Settings, ledger: Ledger, say: Say) -> None:
        self.settings, self.ledger, self.say = settings, ledger, say
        self.result = Compared(revisions=ledger.revisions)
        self.took: dict[Any, list[float]] = {}

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
        waiting: dict[str, list[ProblemJob]] = {}
        for env, betas in self.settings.problems.items():
            missing = tuple(beta for beta in betas if (env, beta) not in self.ledger.problems)
            sampled = [p for (name, _), p in self.ledger.problems.items() if name == env and not p.exact]
            if sampled:  # the reference's texts have no β
                for beta in missing:
                    self.ledger.add_problem(replace(sampled[0], kl_coef=beta))
            elif missing:
                waiting[env] = problem_jobs(env, missing, self.settings.eval_texts)
        found: dict[ProblemJob, Any] = {}
        jobs = sorted((job for jobs in waiting.values() for job in jobs), key=lambda job: job.prompts[1] == 0)
        for outcome in self._outcomes(measure_reference, jobs, "reference"):
            env = outcome.job.env
            found[outcome.job] = outcome.value
            if any(job not in found for job in waiting[env]):
                continue
            known = put_together(waiting[env], [found[job] for job in waiting[env]])
            if known.reference is not None and env not in self.ledger.reference:
                self.ledger.add_reference(env, known.reference)
            for problem in known.problems:
                self.ledger.add_problem(problem)
        self.took.clear()  # which says nothing of how long a run takes

    def _trials(self, groups: Sequence[Any], space: Mapping[str, Any]) -> None:
        jobs = [
            self._job(group, TUNING_SEED + trial, config, trial=trial, factor=factor)
            for group in groups
            for trial, (config, factor) in enumerate(space[group[0]])
            if trial not in self.ledger.trials.get(group, {})
        ]
        later = [group for group in groups for _ in range(self._seeds_left(group))]
        for outcome in self._outcomes(train, self._in_order(jobs), "trial", self._diverged, later):
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
                    reference, j_ref = self.ledger.reference.get(group[1]), self.ledger.problems[group[1:]].j_ref
                    jobs.append(replace(self._job(group, seed, config), reference=reference, j_ref=j_ref))
        for outcome in self._outcomes(train, self._in_order(jobs), "run"):
            self.ledger.add_row(outcome.value.row)

    def _seeds_left(self, group: Any) -> int:
        return sum((*group, seed) not in self.ledger.rows for seed in range(self.settings.seeds))

    def _in_order(self, jobs: Sequence[Job]) -> list[Job]:
        """Every agent's first seed before the second ones, and those that take longest first.

        So how long the rest will take is soon known, and no process is left alone with a long run at the end.
        """
        return sorted(jobs, key=lambda job: (job.seed, self.ledger.problems[job.env, job.kl_coef].exact))

    def _job(
        self,
        group: tuple[str, str, float],
        seed: int,
        config: Mapping[str, Any],
        *,
        trial: int | None = None,
        factor: float = 1.0,
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
        )

    def _outcomes(
        self,
        function: Callable[[Any], Any],
        jobs: Sequence[Any],
        what: str,
        finished: Callable[[Outcome[Any]], bool] = lambda outcome: False,
        later: Sequence[Any] = (),
    ) -> Iterator[Outcome[Any]]:
        """Run jobs; what failed is written down and said, the others come back one by one.

        Args:
            finished: whether a failure is a result in itself, and was written down as one.
            later: groups of the jobs that will follow these, for the time that is left.
        """
        left = [*(job.group for job in jobs), *later]
        for number, outcome in enumerate(run_all(function, jobs, self.settings.processes), 1):
            left.remove(outcome.job.group)
            self.took.setdefault(outcome.job.group, []).append(outcome.seconds)
            at = f"{what} {number} of {len(jobs)}: {outcome.job}"
            time_left = self._time_left(left, " for the reference" if function is measure_reference else "")
            for message in outcome.warnings:
                if message not in self.result.warnings:
                    self.result.warnings[message] = str(outcome.job)
            if outcome.error is None:
                yield outcome
                worth = f", J {outcome.value.row.j:.4f}" if isinstance(outcome.value, Trained) else ""
                self.say(f"{at}{worth}{time_left}")
                continue
            self.say(f"{at} failed: {outcome.error}{time_left}")
            if finished(outcome):
                self.result.diverged.append(f"{outcome.job}: {outcome.error}")
            else:
                self.ledger.add_failure(str(outcome.job), outcome.error)
                self.result.failures.append(f"{outcome.job}: {outcome.error}")

    def _time_left(self, left: Sequence[Any], of: str) -> str:
        """In words: what these groups of jobs took so far; those of which none has ended, as the others did."""
        known = {group: mean(seconds) for group, seconds in self.took.items()}
        seconds = sum(known.get(group, mean(known.values())) for group in left) / self.settings.processes
        if not left:
            return ""
        about = f"{seconds / 60:.0f} min" if seconds >= 100 else f"{max(seconds, 1):.0f} s"
        return f" (about {about} left{of})"
