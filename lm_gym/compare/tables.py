"""A comparison as text (Markdown, padded so that a terminal shows it well) and as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from itertools import combinations, zip_longest
from statistics import mean

import numpy as np

from lm_gym.compare.results import Estimate, Results, Run, Setting
from lm_gym.compare.rows import Row
from lm_gym.compare.statistics import Interval, improvement, improvement_interval
from lm_gym.terminal import printable

NONE = "–"
"""What stands for a number that is not known: never a 0."""

Cell = str | int | float | None
Improvements = dict[tuple[str, str], tuple[float, Interval | None, int]]

MEASURES: dict[str, Callable[[Run], float | None]] = {
    "score": lambda run: run.score,
    "regret": lambda run: run.regret,
    "gain": lambda run: run.gain,
    "j": lambda run: run.row.j,
    "reward": lambda run: run.row.reward,
    "kl": lambda run: run.row.kl,
    "length": lambda run: run.row.length,
    "distinct_2": lambda run: run.row.distinct_2,
    "win_rate": lambda run: run.row.win_rate,
}
"""Results of a run, given as interquartile means over seeds."""

COSTS: dict[str, Callable[[Row], float | None]] = {
    "tokens": lambda row: row.tokens,
    "prompts": lambda row: row.prompts,
    "reward_calls": lambda row: row.reward_calls,
    "offline_pairs": lambda row: row.offline_pairs,
    "cpu_seconds": lambda row: row.cpu_seconds,
}
"""What a run took, given as means over seeds."""


def text(results: Results) -> str:
    """The whole comparison: two tables a problem (results, cost), one over all exact problems, and the notes."""
    parts = []
    for setting in results.settings:
        parts += [_heading(setting), _results_table(results, setting), _cost_table(results, setting)]
    if len(results.scored) > 1 and results.complete():
        parts.append(_together_table(results))
    if results.notes:
        parts.append("\n".join(["Notes", "", *(f"- {note}" for note in results.notes)]))
    return "\n\n".join(parts) + "\n"


def runs_csv(results: Results) -> str:
    """A line a run: the fields of its row but ``curve``, then J, gain, regret, score and tokens to the gap's shares.

    What is not known is empty; ``inf`` tokens: never reached.
    """
    derived = ["j", "gain", "regret", "score", "tokens_to_half", "tokens_to_95"]
    lines: list[Sequence[Cell]] = []
    names = ["agent", "env", "kl_coef", "seed", "reward", "kl", "length", "distinct_2", "win_rate", *COSTS]
    for run in _in_order(results):
        row = run.row
        numbers: list[Cell] = [row.j, run.gain, run.regret, run.score, run.half, run.most]
        config = json.dumps(dict(row.config), ensure_ascii=False)
        lines.append([*(getattr(row, name) for name in names), *numbers, row.source, config])
    return _csv([*names, *derived, "source", "config"], lines)


def curves_csv(results: Results) -> str:
    """A line a point of every run's curve: agent, env, kl_coef, seed, tokens, J, and its standard error if known."""
    points: list[Sequence[Cell]] = [
        [run.row.agent, run.row.env, run.row.kl_coef, run.row.seed, *point, sem]
        for run in _in_order(results)
        for point, sem in zip_longest(run.row.curve or (), run.row.curve_sem or ())
    ]
    return _csv(["agent", "env", "kl_coef", "seed", "tokens", "j", "j_sem"], points)


def summary_csv(results: Results) -> str:
    """A line an agent and problem: IQM and 95 % interval of every result, median tokens to the gap, means of the cost.

    Then a line an agent for all problems with a known optimum together (env "all", no kl_coef): its score alone.
    """
    header = ["agent", "env", "kl_coef", "seeds"]
    header += [f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high")]
    header += ["tokens_to_half", "reached_half", "tokens_to_95", "reached_95", *COSTS]
    lines: list[Sequence[Cell]] = []
    for setting in results.settings:
        for agent in results.agents:
            group = results.runs.get((agent, setting.key), ())
            if not group:
                continue
            line: list[Cell] = [agent, setting.problem.env, setting.problem.kl_coef, len(group)]
            for of in MEASURES.values():
                line += _three(results.estimate(agent, setting, of))
            for times in ([run.half for run in group], [run.most for run in group]):
                line += [_median(times), _reached(times)]
            lines.append([*line, *(_mean(of, group) for of in COSTS.values())])
    if len(results.scored) > 1:
        for agent in results.complete():
            seeds = min(len(results.heights(agent, setting)) for setting in results.scored)
            filled = ["all", None, seeds, *_three(results.aggregate(agent))]
            lines.append([agent, *filled, *[None] * (len(header) - 1 - len(filled))])
    return _csv(header, lines)


def improvements(results: Results) -> Improvements:
    """P(X > Y) of every pair, its interval, and on how many problems both ran; pairs that share none are absent."""
    found = {}
    for x, y in combinations(results.agents, 2):
        both = [setting for setting in results.settings if all((name, setting.key) in results.runs for name in (x, y))]
        if not both:
            continue
        of_x, of_y = ([results.heights(name, setting) for setting in both] for name in (x, y))
        p, interval = improvement(of_x, of_y), improvement_interval(of_x, of_y)
        found[x, y] = (p, interval, len(both))
        found[y, x] = (1 - p, interval and (1 - interval[1], 1 - interval[0]), len(both))
    return found


def improvement_csv(found: Improvements) -> str:
    """A line an ordered pair: P(x > y), its 95 % interval, and the number of problems that both ran on."""
    lines: list[Sequence[Cell]] = [
        [x, y, p, *(interval or (None, None)), count] for (x, y), (p, interval, count) in found.items()
    ]
    return _csv(["x", "y", "p_x_above_y", "low", "high", "problems"], lines)


def _heading(setting: Setting) -> str:
    problem = setting.problem
    if problem.j_star is None:
        return f"### {setting.title}\n\nJ of the reference {problem.j_ref:.4f}; the optimum is not known."
    known = f"J* {problem.j_star:.4f}, J of the reference {problem.j_ref:.4f}, gap {setting.gap:.4f}"
    return f"### {setting.title}\n\n{known}; score = (J − J_ref) / (J* − J_ref)."


def _results_table(results: Results, setting: Setting) -> str:
    of = (lambda run: run.score) if setting.scored else (lambda run: run.gain)
    what = "score" if setting.scored else "J − J_ref"
    rest = [("regret" if setting.problem.j_star is not None else "j", 4), ("reward", 3), ("kl", 3), ("length", 1)]
    rest += [("distinct_2", 3), ("win_rate", 3)]
    titles = {"regret": "J* − J", "j": "J", "reward": "E[R]", "kl": "KL, nats", "distinct_2": "distinct-2"}
    header = ["agent", "seeds", f"{what}, IQM", "95 % interval"]
    lines = []
    for agent in _by_height(results, setting):
        cells = [agent, str(len(results.runs[agent, setting.key]))]
        cells += _with_interval(results.estimate(agent, setting, of), 4)
        cells += [_fixed(results.estimate(agent, setting, MEASURES[name]), digits) for name, digits in rest]
        lines.append(cells)
    return _markdown([*header, *(titles.get(name, name.replace("_", " ")) for name, _ in rest)], lines)


def _cost_table(results: Results, setting: Setting) -> str:
    header = ["agent", "tokens", "to half the gap", "to 95 %", "prompts", "reward calls", "offline pairs", "CPU s"]
    lines = []
    for agent in _by_height(results, setting):
        group = results.runs[agent, setting.key]
        cost = {name: _mean(of, group) for name, of in COSTS.items()}
        counts = [NONE if cost[name] is None else f"{cost[name]:,.0f}" for name in list(COSTS)[:-1]]
        seconds = NONE if cost["cpu_seconds"] is None else f"{cost['cpu_seconds']:.1f}"
        times = [_time([run.half for run in group]), _time([run.most for run in group])]
        lines.append([agent, counts[0], *times, *counts[1:], seconds])
    return _markdown(header, lines)


def _together_table(results: Results) -> str:
    """Over all problems with a known optimum. The mean stands beside the IQM, which leaves out the worst quarter."""
    ends = {name: results.aggregate(name) for name in results.complete()}
    lines = []
    for name in sorted(ends, key=lambda name: -ends[name].value):
        means = [mean(results.heights(name, setting)) for setting in results.scored]
        lines.append([name, *_with_interval(ends[name], 4), _number(mean(means), 4), _number(min(means), 4)])
    header = ["agent", "score, IQM", "95 % interval", "mean", "worst problem, mean"]
    title = f"### All {len(results.scored)} problems with a known optimum together"
    return f"{title}\n\n{_markdown(header, lines)}"


def _by_height(results: Results, setting: Setting) -> list[str]:
    ends = {name: results.estimate(name, setting, lambda run: run.gain) for name in results.agents}
    there = {name: end.value for name, end in ends.items() if end is not None}
    return sorted(there, key=lambda name: -there[name])


def _in_order(results: Results) -> list[Run]:
    keys = [(agent, setting.key) for setting in results.settings for agent in results.agents]
    return [run for key in keys for run in results.runs.get(key, ())]


def _mean(of: Callable[[Row], float | None], group: Sequence[Run]) -> float | None:
    """The mean over seeds; None where a seed does not say, for the mean of the others would be another number."""
    values = [of(run.row) for run in group]
    known = [value for value in values if value is not None]
    return mean(known) if len(known) == len(values) else None


def _median(times: Sequence[float | None]) -> float | None:
    """The median, which seeds that never got there (inf) do not upset; None where a seed has no curve."""
    known = [time for time in times if time is not None]
    # The upper one of two: between a number and inf there is no middle.
    return sorted(known)[len(known) // 2] if len(known) == len(times) else None


def _reached(times: Sequence[float | None]) -> int | None:
    return None if None in times else sum(time is not None and math.isfinite(time) for time in times)


def _time(times: Sequence[float | None]) -> str:
    median, reached = _median(times), _reached(times)
    if median is None:
        return NONE
    share = "" if reached == len(times) else f" ({reached}/{len(times)})"
    return ("not reached" if math.isinf(median) else f"{median:,.0f}") + share


def _fixed(estimate: Estimate | None, digits: int) -> str:
    return NONE if estimate is None else _number(estimate.value, digits)


def _with_interval(estimate: Estimate | None, digits: int) -> list[str]:
    if estimate is None or estimate.interval is None:
        return [_fixed(estimate, digits), NONE]
    low, high = (_number(end, digits) for end in estimate.interval)
    return [_number(estimate.value, digits), f"[{low}, {high}]"]


def _number(value: float, digits: int) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no "-0.0000"


def _three(estimate: Estimate | None) -> list[Cell]:
    return [None] * 3 if estimate is None else [estimate.value, *(estimate.interval or (None, None))]


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table with padded columns, the first one to the left, the others to the right."""
    cells = [[printable(cell).replace("|", "\\|") for cell in line] for line in [header, *lines]]
    widths = np.max([[len(cell) for cell in line] for line in cells], axis=0)
    padded = [
        [cell.ljust(w) if not i else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))] for line in cells
    ]
    rule = ["-" * w if not i else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [padded[0], rule, *padded[1:]])


def _csv(header: Sequence[str], lines: Sequence[Sequence[Cell]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(_no_formula, header))
    writer.writerows(map(_no_formula, line) for line in lines)
    return out.getvalue()


def _no_formula(cell: Cell) -> Cell:
    """A cell for a spreadsheet: a text that would be a formula there stays a text, a number stays a number.

    Source of the characters that begin one: OWASP, "CSV Injection".
    """
    if cell is None:
        return ""
    if not isinstance(cell, str):
        return cell
    shown = printable(cell)
    if not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        return shown
    try:
        float(cell)
    except ValueError:
        return f"'{shown}"
    return shown
