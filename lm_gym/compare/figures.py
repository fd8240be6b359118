"""The vector figures of a comparison; needs matplotlib (the extra `report`).

Agents are told apart by shape, filling and line style, so that colour is not needed. Fonts are embedded as TrueType
(type 42), and files carry no date: the same rows give the same bytes with the same matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm_gym.compare.results import Results, Setting
from lm_gym.compare.statistics import FloatArray, iqm, profile, profile_band
from lm_gym.compare.tables import Improvements

try:
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
except ImportError as error:
    raise ImportError("the figures of a comparison need matplotlib: pip install 'lm-gym[report]'") from error

SUFFIXES = (".pdf", ".svg")
FEW_AGENTS = 6
"""Up to so many agents, bands are drawn around their lines; more bands hide each other."""
NEAREST = 1e-5
"""Scores are drawn up to 1 minus this: beyond it they are rounding."""

_SHAPES = "os^DvPX<*>"
_LINES = ("-", (0, (6, 2)), (0, (6, 1.5, 1.5, 1.5)), (0, (1.5, 1.5)))
_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#7a5195",
    "#a6761d",
    "#56b4e9",
    "#444444",
    "#b2182b",
    "#e6a100",
)
_STYLE = {
    "pdf.fonttype": 42,
    "svg.hashsalt": "lm-gym",
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
SCORE_LABEL = "score (J − J_ref) / (J* − J_ref)"
GAIN_LABEL = "J − J_ref, reward units"


def draw(results: Results, found: Improvements, stem: Path, suffix: str) -> list[Path]:
    """Writes ``<stem>-score``, ``-curves``, ``-profiles``, ``-improvement`` and ``-frontier`` with the suffix.

    A figure that there are no numbers for (no curves, a single agent) is not written, and an older file of its name
    is removed, so that it cannot be taken for one of these rows.

    Returns:
        The files written.
    """
    written = []
    with matplotlib.rc_context(_STYLE):
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
            figure.savefig(path, metadata={"Date": None} if suffix == ".svg" else {"CreationDate": None})
            written.append(path)
    return written


def score_position(score: float | FloatArray) -> FloatArray:
    """Where a score stands on its axis: −log10(1 − score), so that .9, .99, .999 are equally far apart; 0 is at 0."""
    return -np.log10(np.maximum(1 - np.asarray(score, dtype=np.float64), NEAREST))


def style(index: int) -> dict[str, Any]:
    """Marker, filling, line and colour of the agent with this rank; 40 agents look different without the colour."""
    colour = _COLOURS[index % len(_COLOURS)]
    return {
        "color": colour,
        "marker": _SHAPES[index % len(_SHAPES)],
        "markerfacecolor": colour if (index // len(_SHAPES)) % 2 == 0 else "white",
        "markeredgecolor": colour,
        "markersize": 4.5,
        "linestyle": _LINES[(index + index // 20) % len(_LINES)],
        "linewidth": 1,
    }


def _score(results: Results) -> Figure:
    """Every run and the IQM with its interval, a panel a problem, agents from best to worst."""
    together = len(results.scored) > 1
    panels = len(results.settings) + together
    figure, axes = _panels(panels, height=0.19 * len(results.agents) + 0.75, sharey=True)
    for axis, setting in zip(axes, results.settings):
        place = score_position if setting.scored else np.asarray
        drawn = []
        for y, agent in enumerate(results.agents):
            heights = results.heights(agent, setting)
            if not heights:
                axis.text(
                    0.5, y, "no runs", ha="center", va="center", color="#777777", transform=axis.get_yaxis_transform()
                )
                continue
            axis.plot(place(np.array(heights)), [y] * len(heights), "|", color="#888888", markersize=5, zorder=2)
            estimate = results.estimate(agent, setting, setting.height)
            assert estimate is not None
            drawn += [*place(np.array(heights)), *_interval(axis, y, estimate.value, estimate.interval, place)]
        _value_axis(axis, setting.scored, drawn)
        axis.set_title(setting.title)
    if together:
        axis, drawn = axes[len(results.settings)], []
        for y, agent in enumerate(results.agents):
            if agent in results.complete():
                estimate = results.aggregate(agent)
                drawn += _interval(axis, y, estimate.value, estimate.interval, score_position)
            else:
                axis.text(
                    0.5,
                    y,
                    "not on all",
                    ha="center",
                    va="center",
                    color="#777777",
                    transform=axis.get_yaxis_transform(),
                )
        _value_axis(axis, True, drawn or [0.0])
        axis.set_title(f"{len(results.scored)} problems together")
    axes[0].set_ylim(len(results.agents) - 0.4, -0.6)
    for axis in axes:
        axis.set_yticks(range(len(results.agents)), results.agents)
    figure.supxlabel("dot: IQM over seeds, bar: 95 % stratified bootstrap interval, strokes: runs", fontsize=7)
    return figure


def _interval(axis: Axes, y: float, value: float, interval: tuple[float, float] | None, place: Any) -> list[float]:
    x = float(place(value))
    ends = [x, x] if interval is None else [float(place(end)) for end in interval]
    axis.plot(ends, [y, y], "-", color="black", linewidth=1.6, solid_capstyle="butt", zorder=3)
    axis.plot([x], [y], "o", color="black", markersize=3.5, zorder=4)
    return [x, *ends]


def _curves(results: Results) -> Figure | None:
    """J against tokens: the IQM over seeds, a panel a problem."""
    shown = [
        s
        for s in results.settings
        if any(r.row.curve for a in results.agents for r in results.runs.get((a, s.key), ()))
    ]
    if not shown:
        return None
    figure, axes = _panels(len(shown), height=2.6)
    for axis, setting in zip(axes, shown):
        heights: list[float] = []
        for index, agent in enumerate(results.agents):
            curves = [run.row.curve for run in results.runs.get((agent, setting.key), ()) if run.row.curve]
            if not curves:
                continue
            grid, j = _common(curves)
            place = (
                (lambda v, s=setting: score_position((v - s.problem.j_ref) / s.gap)) if setting.scored else np.asarray
            )
            middle = place(iqm(j.T))
            heights += [*middle]
            look = style(index)
            axis.plot(grid, middle, **look, markevery=_sparse(len(grid), index))
            if len(results.agents) <= FEW_AGENTS and len(curves) > 1:
                axis.fill_between(
                    grid, place(j.min(axis=0)), place(j.max(axis=0)), color=look["color"], alpha=0.15, lw=0
                )
        _value_axis(axis, setting.scored, [*heights, 0.0], vertical=True)
        if not setting.scored:
            axis.set_ylabel("J, reward units")
            axis.axhline(setting.problem.j_ref, color="black", linewidth=0.8, linestyle=":")
        axis.set_xlim(left=0)
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
        axis.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
        axis.set_xlabel("training tokens")
        axis.set_title(setting.title)
    _legend(figure, results.agents)
    return figure


def _profiles(results: Results) -> Figure:
    """P(score > τ): one panel for all problems with a known optimum, one for every other problem."""
    groups: list[tuple[str, bool, list[Setting], Sequence[str]]] = []
    if results.scored:
        count = len(results.scored)
        title = results.scored[0].title if count == 1 else f"{count} problems with a known optimum"
        groups.append((title, True, list(results.scored), results.complete()))
    for setting in results.settings:
        if not setting.scored:
            there = [agent for agent in results.agents if (agent, setting.key) in results.runs]
            groups.append((setting.title, False, [setting], there))
    figure, axes = _panels(len(groups), height=2.6, width=3.6)
    for axis, (title, scored, settings, agents) in zip(axes, groups):
        everything = np.concatenate([results.heights(agent, s) for agent in agents for s in settings] or [[0.0]])
        low, high = _range(score_position(everything) if scored else everything)
        places = np.linspace(low, high, 241)
        tau = 1 - 10.0**-places if scored else places
        for agent in agents:
            index = results.agents.index(agent)
            look = style(index)
            strata = [results.heights(agent, s) for s in settings]
            axis.plot(places, profile(strata, tau), **look, markevery=_sparse(len(places), index))
            band = profile_band(strata, tau) if len(agents) <= FEW_AGENTS else None
            if band:
                axis.fill_between(places, *band, color=look["color"], alpha=0.15, lw=0)
        _value_axis(axis, scored, [low, high], label="τ: " + (SCORE_LABEL if scored else GAIN_LABEL), padded=False)
        axis.set_ylim(-0.03, 1.03)
        axis.set_ylabel("share of runs above τ")
        axis.set_title(title)
    _legend(figure, results.agents)
    return figure


def _improvement(results: Results, found: Improvements) -> Figure | None:
    """P(row above column) in every cell; bold where the interval leaves out one half."""
    agents = results.agents
    if not found:
        return None
    size = 0.36 * len(agents)
    figure = Figure(figsize=(max(size + 1.5, 3.2), max(size + 1.3, 2.6)))
    axis = figure.add_subplot()
    p = np.array([[found.get((x, y), (math.nan,))[0] for y in agents] for x in agents])
    axis.imshow(np.where(np.isnan(p), 0.5, p), cmap="Greys", vmin=-0.2, vmax=1.8)
    fewer = max(count for _, _, count in found.values())
    for (x, y), (value, interval, count) in found.items():
        sure = interval is not None and not interval[0] <= 0.5 <= interval[1]
        text = f"{value:.2f}".removeprefix("0") + ("*" if count < fewer else "")
        place = agents.index(y), agents.index(x)
        axis.text(*place, text, ha="center", va="center", fontsize=7, fontweight="bold" if sure else "normal")
    axis.set_xticks(range(len(agents)), agents, rotation=90)
    axis.set_yticks(range(len(agents)), agents)
    axis.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    note = "bold: the 95 % interval leaves out one half" + (
        "\n*: on fewer problems than others" if "*" in _texts(axis) else ""
    )
    axis.set_xlabel(f"P(row above column), mean over problems\n{note}", fontsize=7)
    return figure


def _frontier(results: Results) -> Figure:
    """Reward against KL: a faint point a run, a big one the mean of an agent at a β, the frontier as a line."""
    environments = list(dict.fromkeys(setting.problem.env for setting in results.settings))
    figure, axes = _panels(len(environments), height=2.9)
    for axis, env in zip(axes, environments):
        settings = [setting for setting in results.settings if setting.problem.env == env]
        reach = [0.0]
        for index, agent in enumerate(results.agents):
            groups = [results.runs[agent, s.key] for s in settings if (agent, s.key) in results.runs]
            look = style(index)
            for group in groups:
                kl, reward = np.array([(run.row.kl, run.row.reward) for run in group]).T
                axis.plot(
                    kl, reward, look["marker"], color=look["color"], markersize=2, alpha=0.4, linewidth=0, zorder=2
                )
                reach += [*kl]
            if groups:
                means = np.array([np.mean([(run.row.kl, run.row.reward) for run in group], axis=0) for group in groups])
                means = means[np.argsort(means[:, 0])]
                axis.plot(*means.T, **look, zorder=3)
        _frontier_line(axis, settings, max(reach))
        axis.set_xlabel("KL(π‖π_ref), nats a text")
        axis.set_ylabel("E[R], reward units")
        betas = ", ".join(f"{setting.problem.kl_coef:g}" for setting in settings)
        axis.set_title(f"{env}, β = {betas}")
    exact = {setting.problem.exact for setting in results.settings if setting.problem.frontier}
    extra = []
    if True in exact:
        extra.append(Line2D([], [], color="black", linewidth=1.2, label="best policies (exact)"))
    if False in exact:
        extra.append(Line2D([], [], color="black", linewidth=0.8, linestyle=":", marker="+", label="best of n"))
    _legend(figure, results.agents, extra)
    return figure


def _frontier_line(axis: Axes, settings: Sequence[Setting], reach: float) -> None:
    """The frontier up to a tenth beyond the runs; best-of-n's points are marked, for between them is nothing."""
    for exact in (True, False):
        points = sorted({point for s in settings if s.problem.exact is exact for point in s.problem.frontier})
        if not points:
            continue
        kl, reward = np.array(points).T
        near = kl <= max(reach * 1.1, kl.min() + 1e-9)
        look = {"linewidth": 1.2} if exact else {"linewidth": 0.8, "linestyle": ":", "marker": "+", "markersize": 6}
        axis.plot(kl[near], reward[near], color="black", zorder=1, **look)


def _panels(count: int, height: float, width: float = 2.7, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    columns = min(count, 4)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(max(width * columns, 4.5) + 0.6, height * rows + 0.9))
    axes = figure.subplots(rows, columns, squeeze=False, sharey=sharey).ravel()
    for axis in axes[count:]:
        axis.remove()
    return figure, list(axes[:count])


def _value_axis(
    axis: Axes, scored: bool, drawn: Sequence[float], vertical: bool = False, label: str = "", padded: bool = True
) -> None:
    """Limits, ticks and label of the axis of scores or gains, from what is drawn on it."""
    low, high = _range(np.array(drawn)) if padded else (drawn[0], drawn[-1])
    (axis.set_ylim if vertical else axis.set_xlim)(low, high)
    ticked = axis.yaxis if vertical else axis.xaxis
    if scored:
        ticks = _score_ticks(low, high)
        ticked.set_ticks(score_position(np.array(ticks)), [f"{tick:g}" for tick in ticks])
    else:
        ticked.set_major_locator(matplotlib.ticker.MaxNLocator(4))
    (axis.set_ylabel if vertical else axis.set_xlabel)(label or (SCORE_LABEL if scored else GAIN_LABEL))


def _score_ticks(low: float, high: float) -> list[float]:
    """Round scores within the limits (positions): powers of ten of what is left of the gap, or finer ones."""
    if high - low < 0.9:
        ends = [1 - 10.0**-low, 1 - 10.0**-high]
        inside = matplotlib.ticker.MaxNLocator(4).tick_values(*ends)
    else:
        half = [0.5] if high - low < 3 else []
        inside = [-99, -9, 0, *half, 0.9, 0.99, 0.999, 0.9999, 0.99999]
    return [tick for tick in inside if tick < 1 and low - 1e-9 <= score_position(tick) <= high + 1e-9]


def _range(values: FloatArray) -> tuple[float, float]:
    low, high = float(np.min(values)), float(np.max(values))
    pad = 0.05 * (high - low) or 0.05 * max(abs(high), 1.0)
    return low - pad, high + pad


def _common(curves: Sequence[tuple[tuple[int, float], ...]]) -> tuple[FloatArray, FloatArray]:
    """(G,) all tokens up to the end of the shortest curve, and (n, G) the curves' J there, linear between points."""
    end = min(curve[-1][0] for curve in curves)
    grid = np.array(sorted({tokens for curve in curves for tokens, _ in curve if tokens <= end}), dtype=np.float64)
    return grid, np.array([np.interp(grid, *np.array(curve).T) for curve in curves])


def _sparse(points: int, index: int) -> tuple[int, int]:
    """Which points carry a marker: about six, at other places for other agents."""
    every = max(points // 6, 1)
    return (index * 7) % every, every


def _legend(figure: Figure, agents: Sequence[str], extra: Sequence[Line2D] = ()) -> None:
    handles = [Line2D([], [], label=agent, **style(index)) for index, agent in enumerate(agents)] + [*extra]
    columns = max(int(figure.get_figwidth() // 1.5), 2)
    figure.legend(handles=handles, loc="outside lower center", ncols=min(columns, len(handles)), handlelength=3.5)


def _texts(axis: Axes) -> str:
    return " ".join(text.get_text() for text in axis.texts)
