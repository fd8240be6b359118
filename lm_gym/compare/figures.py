"""The vector figures of a comparison.

Agents are told apart by shape, filling and line style, so that colour is not needed. Fonts are embedded as TrueType
(type 42), and files carry no date: the same rows give the same bytes with the same matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm_gym.compare import drawing
from lm_gym.compare.drawing import Axes, Figure, Line2D, position, style
from lm_gym.compare.results import FEW, Estimate, Results, Run, Setting
from lm_gym.compare.rows import Row
from lm_gym.compare.statistics import FloatArray, iqm, iqm_band, mean_band, profile, profile_band
from lm_gym.compare.tables import Improvements
from lm_gym.runinfo import naming

SUFFIXES = (".pdf", ".svg", ".png")
FEW_AGENTS = 6
"""Up to so many agents, curves and profiles have intervals; more hide each other."""
_METADATA: dict[str, dict[str, Any]] = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}, ".png": {}}
"""Without dates."""


def draw(results: Results, found: Improvements, stem: Path, suffix: str) -> list[Path]:
    """Writes ``<stem>-score``, ``-curves``, ``-profiles``, ``-improvement`` and ``-frontier`` with the suffix.

    A figure that there are no numbers for (no curves, a single agent) is not written, and an older file of its name
    is removed, so that it cannot be taken for one of these rows.

    Returns:
        The files written.
    """
    written = []
    with drawing.styled():
        for name, figure in {
            "score": _score(results),
            "curves": _curves(results),
            "profiles": _profiles(results),
            "improvement": _improvement(results, found),
            "frontier": _frontier(results),
        }.items():
            path = stem.with_name(f"{stem.name}-{name}{suffix}")
            if figure is None:
                path.unlink(missing_ok=True)
                continue
            with naming(path):
                figure.savefig(path, metadata=_METADATA[suffix])
            written.append(path)
    return written


def _score(results: Results) -> Figure:
    """Every run and the IQM with its interval, a panel a problem and one for all, agents from best to worst."""
    together = len(results.scored) > 1
    height = 0.19 * len(results.agents) + 0.8
    figure, axes = drawing.panels(len(results.settings) + together, height=height, sharey=True)
    for axis, setting in zip(axes, results.settings):
        lines = {}
        for agent in results.agents:
            estimate = results.estimate(agent, setting, setting.height)
            lines[agent] = None if estimate is None else (estimate, results.heights(agent, setting))
        _intervals(axis, lines, setting.scored, "no runs")
        axis.set_title(setting.title)
    if together:
        complete = results.complete()
        both = {agent: (results.aggregate(agent), ()) if agent in complete else None for agent in results.agents}
        _intervals(axes[-1], both, True, "not on all")
        axes[-1].set_title(f"{len(results.scored)} problems together")
    axes[0].set_ylim(len(results.agents) - 0.4, -0.6)
    words = f"dot: IQM over seeds; bar: 95 % stratified bootstrap interval{_doubt(results)}; strokes: runs"
    figure.supxlabel(words, fontsize=drawing.SMALL)
    return figure


def _intervals(
    axis: Axes, lines: Mapping[str, tuple[Estimate, Sequence[float]] | None], scored: bool, why_not: str
) -> None:
    """An agent a line: its runs, its IQM and the interval; ``why_not`` where there is nothing."""
    drawn: list[float] = [] if any(lines.values()) else [0.0]
    for y, line in enumerate(lines.values()):
        if line is None:
            drawing.missing(axis, y, why_not)
            continue
        estimate, runs = line
        x, low, high = position([estimate.value, *(estimate.interval or [estimate.value] * 2)], scored)
        strokes = position(runs, scored)
        axis.plot(strokes, [y] * len(strokes), "|", color="#888888", markersize=5, zorder=2)
        axis.plot([low, high], [y, y], "-", color="black", linewidth=1.6, solid_capstyle="butt", zorder=3)
        axis.plot([x], [y], "o", color="black", markersize=3.5, zorder=4)
        drawn += [low, high, *strokes]
    axis.set_xlim(drawing.limits(drawn))
    if scored:
        drawing.score_axis(axis.xaxis, *axis.get_xlim())
    else:
        drawing.plain_axis(axis.xaxis, drawing.GAIN_LABEL)
    axis.set_yticks(range(len(lines)), list(lines))


def _curves(results: Results) -> Figure | None:
    """J against tokens: the IQM over seeds with intervals, a panel a problem; of one run J and its standard error."""
    curves = {key: [run.row.curve for run in group if run.row.curve] for key, group in results.runs.items()}
    shown = [s for s in results.settings if any(curves.get((agent, s.key)) for agent in results.agents)]
    if not shown:
        return None
    figure, axes = drawing.panels(len(shown), height=2.6)
    for axis, setting in zip(axes, shown):
        drawn: list[float] = []
        for index, agent in enumerate(results.agents):
            if not curves.get((agent, setting.key)):
                continue
            runs = [run.row for run in results.runs[agent, setting.key] if run.row.curve]
            grid, j = _common(curves[agent, setting.key])
            height = (j - setting.problem.j_ref) / setting.gap if setting.scored else j
            middle = position(iqm(height.T), setting.scored)
            marked = drawing.sparse(grid >= 0, index, 4)
            axis.plot(grid, middle, **style(index), markevery=marked)
            drawn += [*middle]
            interval = iqm_band(height) if len(j) > 1 else _one_run(runs[0], height[0])
            if interval is not None and len(results.agents) <= FEW_AGENTS:
                low, high = (position(end, setting.scored) for end in interval)
                drawing.bars(axis, grid[marked], low[marked], high[marked], index)
                drawn += [*low[marked], *high[marked]]
        axis.set_ylim(drawing.limits([*drawn, 0.0 if setting.scored else setting.problem.j_ref]))
        if setting.scored:
            drawing.score_axis(axis.yaxis, *axis.get_ylim())
        else:
            drawing.plain_axis(axis.yaxis, "J, reward units")
            axis.axhline(setting.problem.j_ref, color="black", linewidth=0.8, linestyle=":")
        axis.set_xlim(left=0)
        drawing.plain_axis(axis.xaxis, "training tokens", tokens=True)
        axis.set_title(setting.title)
    bars = f"; bars: 95 % bootstrap interval{_doubt(results)}" if len(results.agents) <= FEW_AGENTS else ""
    named = [agent for agent, key in curves if curves[agent, key]]
    drawing.legend(figure, named, results.agents, words=f"IQM over seeds{bars}")
    return figure


def _one_run(row: Row, j: FloatArray) -> tuple[FloatArray, FloatArray] | None:
    """J ∓ 1.96 standard errors of a single run's points, where they are known."""
    if row.curve_sem is None:
        return None
    sem = 1.96 * np.array(row.curve_sem)
    return j - sem, j + sem


def _profiles(results: Results) -> Figure:
    """P(score > τ): one panel for all problems with a known optimum, one for every other problem."""
    groups: list[tuple[str, bool, Sequence[Setting]]] = []
    if results.scored:
        title = f"{len(results.scored)} problems together" if len(results.scored) > 1 else results.scored[0].title
        groups.append((title, True, results.scored))
    groups += [(setting.title, False, [setting]) for setting in results.settings if not setting.scored]
    figure, axes = drawing.panels(len(groups), height=3.0, width=4.0 if len(groups) < 3 else 3.0)
    drawn: list[str] = []
    bars = len(results.agents) <= FEW_AGENTS
    for axis, (title, scored, settings) in zip(axes, groups):
        strata = {agent: [results.heights(agent, setting) for setting in settings] for agent in results.agents}
        strata = {agent: runs for agent, runs in strata.items() if all(runs)}
        drawn += strata
        heights = np.concatenate([run for runs in strata.values() for run in runs] or [[0.0]])
        low, high = drawing.limits(position(heights, scored))
        axis.set_xlim(low, high)
        for agent, runs in strata.items():
            index = results.agents.index(agent)
            tau = np.unique(np.concatenate(runs))  # where a run drops out: between them the share is constant
            share, places = profile(runs, tau), position(tau, scored)
            steps = [low, *places, high], [1.0, *share, share[-1]]
            axis.plot(*steps, **{**style(index), "marker": ""}, drawstyle="steps-post")
            look, middles = {**style(index), "linestyle": ""}, (places + np.append(places[1:], high)) / 2
            marked = drawing.sparse(share > 0, index, 3)
            axis.plot(*((middles[marked], share[marked]) if marked else (places[0], 0.5)), **look)
            band = profile_band(runs, tau) if bars and min(map(len, runs)) >= FEW else None
            if band:
                drawing.bars(axis, middles[marked], band[0][marked], band[1][marked], index)
        if scored:
            drawing.score_axis(axis.xaxis, *axis.get_xlim(), f"τ: {drawing.SCORE_LABEL}")
        else:
            drawing.plain_axis(axis.xaxis, f"τ: {drawing.GAIN_LABEL}")
        axis.set_ylim(-0.03, 1.03)
        axis.set_ylabel("share of runs above τ")
        axis.set_title(title)
    words = f"bars: 95 % stratified bootstrap interval, from {FEW} seeds on" if bars else ""
    drawing.legend(figure, drawn, results.agents, words=words)
    return figure


def _improvement(results: Results, found: Improvements) -> Figure | None:
    """P(row above column) in every cell; bold where the interval leaves out one half, and is of enough seeds."""
    if not found:
        return None
    agents = results.agents
    size = 0.4 * len(agents)
    figure = Figure(figsize=(max(size + 1.8, 4.0), max(size + 1.9, 3.2)))
    axis = figure.add_subplot()
    p = np.array([[found.get((x, y), (math.nan,))[0] for y in agents] for x in agents])
    edges = np.arange(len(agents) + 1) - 0.5
    axis.pcolormesh(edges, edges, p, cmap="Greys", vmin=0, vmax=2, edgecolors="#dddddd", linewidth=0.5)
    most = max(count for _, _, count in found.values())
    for row, x in enumerate(agents):
        for column, y in enumerate(agents):
            value, interval, count = found.get((x, y), (None, None, most))
            words = "–" if value is None else f"{value:.2f}".removeprefix("0") + "*" * (count < most)
            clear = interval is not None and not interval[0] <= 0.5 <= interval[1] and results.seeds(x, y) >= FEW
            weight = "bold" if clear else "normal"
            axis.text(column, row, words if x != y else "", ha="center", va="center", fontweight=weight)
    axis.invert_yaxis()
    axis.set_xticks(range(len(agents)), agents, rotation=90)
    axis.set_yticks(range(len(agents)), agents)
    axis.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    notes = ["P(row above column), mean over problems"]
    notes.append(f"bold: the 95 % interval leaves out one half, and\nboth have at least {FEW} seeds on each problem")
    if any(count < most for _, _, count in found.values()):
        notes.append("*: on fewer problems than other pairs")
    axis.set_xlabel("\n".join(notes), fontsize=drawing.SMALL)
    return figure


def _frontier(results: Results) -> Figure:
    """Reward against KL: a faint point a run, a big one the mean of an agent at a β with intervals, the frontier."""
    environments = list(dict.fromkeys(setting.problem.env for setting in results.settings))
    figure, axes = drawing.panels(len(environments), height=2.9)
    for axis, env in zip(axes, environments):
        settings = [setting for setting in results.settings if setting.problem.env == env]
        reach = 0.0
        for index, agent in enumerate(results.agents):
            groups = [_points(results.runs[agent, s.key]) for s in settings if (agent, s.key) in results.runs]
            if not groups:
                continue
            look = style(index)
            runs = np.concatenate(groups)
            axis.plot(*runs.T, look["marker"], color=look["color"], markersize=2, alpha=0.4, linewidth=0, zorder=2)
            means = np.array([group.mean(axis=0) for group in groups])
            axis.plot(*means[np.argsort(means[:, 0])].T, **look, zorder=3)
            for group, (kl, reward) in zip(groups, means, strict=True):
                if len(group) > 1:
                    (left, below), (right, above) = mean_band(group)
                    drawing.bars(axis, [kl], [below], [above], index)
                    drawing.bars(axis, [reward], [left], [right], index, upright=False)
            reach = max(reach, float(runs[:, 0].max()))
        _frontier_line(axis, settings, reach * 1.1)
        drawing.plain_axis(axis.xaxis, "KL(π‖π_ref), nats a text")
        drawing.plain_axis(axis.yaxis, "E[R], reward units")
        betas = ", ".join(f"{setting.problem.kl_coef:g}" for setting in settings)
        axis.set_title(f"{env}, β = {betas}")
    exact = {setting.problem.exact for setting in results.settings if setting.problem.frontier}
    extra = [Line2D([], [], color="black", label=name, **_FRONTIERS[kind]) for kind, name in _KINDS if kind in exact]
    words = f"small: runs; large: mean over seeds; bars: its 95 % bootstrap intervals{_doubt(results)}"
    drawing.legend(figure, results.agents, results.agents, extra, words)
    return figure


_FRONTIERS: dict[bool, dict[str, Any]] = {
    True: {"linewidth": 1.2},
    False: {"linewidth": 0.8, "linestyle": ":", "marker": "+", "markersize": 6},
}
_KINDS = ((True, "best policies (exact)"), (False, "best of n (reference)"))


def _frontier_line(axis: Axes, settings: Sequence[Setting], reach: float) -> None:
    """The frontier up to ``reach`` nats; best-of-n's points are marked, for between them is nothing."""
    for exact, look in _FRONTIERS.items():
        points = sorted({point for s in settings if s.problem.exact is exact for point in s.problem.frontier})
        if not points:
            continue
        kl, reward = np.array(points).T
        near = kl <= reach
        if exact and not near.all():
            kl, reward = np.append(kl[near], reach), np.append(reward[near], np.interp(reach, kl, reward))
        elif not exact:
            near[: near.sum() + 1] = True  # the first one beyond, so that there is a line where the runs end
            kl, reward = kl[near], reward[near]
        axis.plot(kl, reward, color="black", zorder=1, **look)


def _doubt(results: Results) -> str:
    return f"\n(fewer than {FEW} seeds: intervals mean little)" if results.few_seeds else ""


def _points(group: Sequence[Run]) -> FloatArray:
    """(n, 2) KL and reward of the runs."""
    return np.array([(run.row.kl, run.row.reward) for run in group])


def _common(curves: Sequence[tuple[tuple[int, float], ...]]) -> tuple[FloatArray, FloatArray]:
    """(G,) all tokens up to the end of the shortest curve, and (n, G) the curves' J there, linear between points."""
    end = min(curve[-1][0] for curve in curves)
    grid = np.array(sorted({tokens for curve in curves for tokens, _ in curve if tokens <= end}), dtype=np.float64)
    return grid, np.array([np.interp(grid, *np.array(curve).T) for curve in curves])
