"""What the rows of a comparison say: every run's score against its problem, and what cannot be said, as notes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lm_gym.compare.rows import Problem, Row, check_distinct
from lm_gym.compare.statistics import Interval, iqm, iqm_interval, pooled_iqm, tokens_to

Key = tuple[str, float]
"""A problem: (env, kl_coef)."""

FEW = 5
"""With fewer seeds a percentile interval holds the truth much less often than it says (docs/compare.md)."""

UNEQUAL = 0.05
"""Tokens may differ by so much of them before a comparison says so."""


@dataclass(frozen=True)
class Run:
    """A row with what its problem makes of it.

    Attributes:
        row: the run. gain: J − J_ref. regret: J* − J; None where J* is not known. score: gain / (J* − J_ref); None
            where J* is not known or the reference is the optimum.
        half, most: tokens to 50 % and to 95 % of the gap (:attr:`Setting.gap`); ``inf``: not reached, None: no curve.
    """

    row: Row
    gain: float
    regret: float | None
    score: float | None
    half: float | None
    most: float | None


@dataclass(frozen=True)
class Setting:
    """A problem, and the gap that ``tokens to half of the gap`` speaks of.

    Attributes:
        problem: of the rows. scored: whether there are scores: J* is known and above J_ref. gap: J* − J_ref; where J*
            is not known, what the best agent gained (IQM of J at the end). leader: its name; None where J* is known.
    """

    problem: Problem
    scored: bool
    gap: float
    leader: str | None

    @property
    def key(self) -> Key:
        return self.problem.env, self.problem.kl_coef

    @property
    def title(self) -> str:
        return f"{self.problem.env}, β = {self.problem.kl_coef:g}"

    def height(self, run: Run) -> float:
        """What runs of this problem are compared by: the score, or the gain where there is no score."""
        return run.gain if run.score is None else run.score


@dataclass(frozen=True)
class Estimate:
    """An interquartile mean over seeds with its 95 % bootstrap interval (None: a single run)."""

    value: float
    interval: Interval | None


@dataclass(frozen=True)
class Results:
    """All runs by agent and problem.

    Attributes:
        agents: best first, by their mean rank on the problems that they ran on. settings: the problems. runs: by
            (agent, problem), sorted by seed; absent where there are none. notes: sentences for the reader.
    """

    agents: tuple[str, ...]
    settings: tuple[Setting, ...]
    runs: dict[tuple[str, Key], tuple[Run, ...]]
    notes: tuple[str, ...] = ()

    def heights(self, agent: str, setting: Setting) -> list[float]:
        """(n,) scores, or gains, of the agent's seeds on a problem; empty where it did not run."""
        return [setting.height(run) for run in self.runs.get((agent, setting.key), ())]

    def estimate(self, agent: str, setting: Setting, of: Callable[[Run], float | None]) -> Estimate | None:
        """IQM and interval of a number a run, over the runs that have it; None where none has."""
        values = [of(run) for run in self.runs.get((agent, setting.key), ())]
        known = [value for value in values if value is not None]
        return Estimate(pooled_iqm([known]), iqm_interval([known])) if known else None

    @property
    def scored(self) -> tuple[Setting, ...]:
        """The problems that have scores, which can be put together."""
        return tuple(setting for setting in self.settings if setting.scored)

    @property
    def few_seeds(self) -> bool:
        """Whether an interval rests on so few seeds that it means little."""
        return any(len(group) < FEW for group in self.runs.values())

    def seeds(self, x: str, y: str) -> int:
        """The fewest runs that either of two agents has on a problem that both ran on; 0 where there is none."""
        shared = [setting.key for setting in self.settings if all((a, setting.key) in self.runs for a in (x, y))]
        return min((len(self.runs[agent, key]) for agent in (x, y) for key in shared), default=0)

    def complete(self) -> tuple[str, ...]:
        """The agents that ran on every scored problem: nothing is imputed for the others."""
        if not self.scored:
            return ()
        return tuple(name for name in self.agents if all((name, setting.key) in self.runs for setting in self.scored))

    def aggregate(self, agent: str) -> Estimate:
        """IQM of an agent's scores over all scored problems, seeds resampled within each."""
        strata = [self.heights(agent, setting) for setting in self.scored]
        return Estimate(pooled_iqm(strata), iqm_interval(strata))


def gather(rows: Sequence[Row], problems: Sequence[Problem]) -> Results:
    """Puts rows and problems together.

    Args:
        rows: of all agents, each (agent, env, kl_coef, seed) once. problems: each (env, kl_coef) once; those without
            rows are left out.

    Raises:
        ValueError: no rows, a run twice, a problem twice, or rows of a problem that is not there.
    """
    if not rows:
        raise ValueError("expected the rows of at least one run, got none")
    check_distinct(rows)
    known = {(problem.env, problem.kl_coef): problem for problem in problems}
    if len(known) < len(problems):
        raise ValueError("expected every (env, kl_coef) once among the problems; one is there twice")
    for row in rows:
        if (row.env, row.kl_coef) not in known:
            there = ", ".join(f"{env} at {kl_coef:g}" for env, kl_coef in known) or "none"
            raise ValueError(
                f"{row.source}: a row of {row.agent} is of {row.env} at kl_coef {row.kl_coef:g}, and what that is "
                f"measured against is not known (known: {there}). Name it with --env and --kl-coef, or leave it out."
            )
    grouped: dict[tuple[str, Key], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.agent, row.seed)):
        grouped.setdefault((row.agent, (row.env, row.kl_coef)), []).append(row)
    settings = tuple(
        _setting(problem, {agent: group for (agent, there), group in grouped.items() if there == key})
        for key, problem in known.items()
        if any(there == key for _, there in grouped)
    )
    by_key = {setting.key: setting for setting in settings}
    runs = {(a, key): tuple(_run(row, by_key[key]) for row in group) for (a, key), group in grouped.items()}
    results = Results(_ranked(runs, settings), settings, runs)
    return replace(results, notes=tuple(_notes(results)))


def _setting(problem: Problem, groups: dict[str, list[Row]]) -> Setting:
    if problem.j_star is not None:
        gap = problem.j_star - problem.j_ref
        return Setting(problem, gap > 0, gap, None)
    ends = {agent: float(iqm([row.j for row in group])) for agent, group in groups.items()}
    leader = max(ends, key=lambda agent: ends[agent])
    return Setting(problem, False, ends[leader] - problem.j_ref, leader)


def _run(row: Row, setting: Setting) -> Run:
    problem = setting.problem
    gain = row.j - problem.j_ref
    regret = None if problem.j_star is None else problem.j_star - row.j
    half, most = (
        None if row.curve is None or setting.gap <= 0 else tokens_to(row.curve, problem.j_ref + share * setting.gap)
        for share in (0.5, 0.95)
    )
    return Run(row, gain, regret, gain / setting.gap if setting.scored else None, half, most)


def _ranked(runs: dict[tuple[str, Key], tuple[Run, ...]], settings: Sequence[Setting]) -> tuple[str, ...]:
    shares: dict[str, list[float]] = {agent: [] for agent, _ in runs}
    for setting in settings:
        ends = {
            agent: float(iqm([run.gain for run in group])) for (agent, key), group in runs.items() if key == setting.key
        }
        for agent, end in ends.items():
            shares[agent].append(sum(other > end for other in ends.values()) / len(ends))
    return tuple(sorted(shares, key=lambda agent: (float(np.mean(shares[agent])), agent)))


def _notes(results: Results) -> list[str]:
    notes = []
    seeds: dict[int, set[str]] = {}
    for (agent, _), group in results.runs.items():
        seeds.setdefault(len(group), set()).add(agent)
    for count in sorted(seeds):
        if count < FEW:
            what = (
                "one run tells nothing of the spread, there is no interval" if count == 1 else "intervals mean little"
            )
            notes.append(f"{count} seed{'s' * (count > 1)} for {_names(results, seeds[count])}: {what}.")
    if len(seeds) > 1:
        what = "where an agent has more of them on one problem, that one weighs more in its IQM over all"
        notes.append(f"The number of seeds differs (column seeds): {what}.")
    found: dict[str, list[str]] = {}
    for setting in results.settings:
        for note in _setting_notes(results, setting):
            found.setdefault(note, []).append(setting.title)
    for note, titles in found.items():
        notes.append(f"{'everywhere' if len(titles) == len(results.settings) > 1 else '; '.join(titles)}: {note}.")
    outside = set(results.agents) - set(results.complete())
    if len(results.scored) > 1 and outside:
        what = f"not in what is put together over the {len(results.scored)} problems, for they did not run on all"
        notes.append(f"{_names(results, outside)}: {what}; nothing is imputed.")
    return notes


def _setting_notes(results: Results, setting: Setting) -> list[str]:
    notes = []
    here = {agent: results.runs[agent, setting.key] for agent in results.agents if (agent, setting.key) in results.runs}
    absent = set(results.agents) - set(here)
    if absent:
        notes.append(f"no runs of {_names(results, absent)}")
    if setting.leader is not None and setting.gap > 0:
        what = (
            f"the gap is what the best agent gained, {setting.leader} (IQM of J at the end − J_ref = {setting.gap:.4f})"
        )
        notes.append(f"J* is not known; {what}")
    elif setting.leader is not None:
        notes.append("J* is not known, and no agent gained anything: there is no gap")
    elif not setting.scored:
        notes.append("the reference is the best policy already: there is no gap, and no score")
    above = {agent for agent, group in here.items() if any((run.regret or 0.0) < -1e-6 for run in group)}
    if above:
        notes.append(f"J above J* for {_names(results, above)}: reward and KL are estimates, or of another problem")
    tokens = sorted((run.row.tokens, agent) for agent, group in here.items() for run in group if run.row.tokens)
    if tokens and tokens[-1][0] > (1 + UNEQUAL) * tokens[0][0]:
        (least, fewer), (most, more) = tokens[0], tokens[-1]
        notes.append(f"the runs had unequal data, from {least:,} tokens ({fewer}) to {most:,} ({more})")
    for name, what in _OPTIONAL.items():
        known = {agent: [getattr(run.row, name) is not None for run in group] for agent, group in here.items()}
        partly = {agent for agent, has in known.items() if any(has) and not all(has)}
        if partly:
            notes.append(f"{what} of some runs of {_names(results, partly)} is not known")
    without = {agent for agent, group in here.items() if all(run.row.curve is None for run in group)}
    if without:
        notes.append(f"no curve of {_names(results, without, here)}, and so no tokens to the gap")
    return notes


_OPTIONAL = {
    "length": "the length (the IQM is that of the others)",
    "distinct_2": "distinct-2 (the IQM is that of the others)",
    "win_rate": "the win rate (the IQM is that of the others)",
    "curve": "the curve (fig-curves shows the others)",
}


def _names(results: Results, names: set[str], among: Collection[str] = ()) -> str:
    everybody = set(among or results.agents)
    listed = ", ".join(sorted(names, key=results.agents.index))
    return "all agents" + (" there" if among else "") if len(everybody) > 1 and names == everybody else listed
