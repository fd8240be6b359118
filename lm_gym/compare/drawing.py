"""What the figures of a comparison share: shapes of agents, the axis of scores, panels; needs the extra `report`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lm_gym.compare.statistics import FloatArray
from lm_gym.extras import install_command

try:
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import EngFormatter, FixedLocator, MaxNLocator
except ImportError as error:
    raise ImportError(f"the figures of a comparison need matplotlib: {install_command('report')}") from error

NEAREST = 1e-5
"""Scores are drawn up to 1 minus this: beyond it they are rounding."""

SMALL = 8
"""Points of the words below a figure; all others have 9, so that a figure at half a page's width can be read."""

_SHAPES = "os^DvPX<*>"
_LINES = ("-", (0, (6, 2)), (0, (6, 1.5, 1.5, 1.5)), (0, (1.5, 1.5)))
_COLOURS = "#0072b2 #d55e00 #009e73 #cc79a7 #7a5195 #a6761d #56b4e9 #444444 #b2182b #e6a100".split()
_STYLE: Any = {
    "pdf.fonttype": 42,
    "svg.hashsalt": "lm-gym",
    "text.parse_math": False,  # a $ in an agent's name is a $
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "savefig.dpi": 200,  # of .png alone
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.08,
}
SCORE_LABEL = "score (J − J_ref) / (J* − J_ref)"
GAIN_LABEL = "J − J_ref, reward units"


def styled() -> AbstractContextManager[None]:
    """Fonts, sizes and grid of all figures, and files that do not change from one run to the next."""
    return rc_context(_STYLE)


def score_position(score: ArrayLike) -> FloatArray:
    """Where a score stands on its axis: −log10(1 − score), so that .9, .99, .999 are equally far apart; 0 is at 0."""
    return -np.log10(np.maximum(1 - np.asarray(score, dtype=np.float64), NEAREST))


def position(values: ArrayLike, scored: bool) -> FloatArray:
    """Of scores their :func:`score_position`, of others themselves."""
    return score_position(values) if scored else np.asarray(values, dtype=np.float64)


def style(index: int) -> dict[str, Any]:
    """Marker, filling, line and colour of the agent with this rank; 80 agents look different without the colour."""
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


def panels(count: int, height: float, width: float = 2.7, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels (inches each), at most four a line and the lines about equally long."""
    rows = math.ceil(count / 4)
    columns = math.ceil(count / rows)
    figure = Figure(figsize=(max(width * columns, 4.5) + 0.6, height * rows + 1.1))
    axes = figure.subplots(rows, columns, squeeze=False, sharey=sharey).ravel()
    for axis in axes[count:]:
        axis.remove()
    return figure, list(axes[:count])


def limits(values: ArrayLike) -> tuple[float, float]:
    """The values' range and a twentieth more at either end."""
    low, high = float(np.min(values)), float(np.max(values))
    pad = 0.05 * (high - low) or 0.05 * max(abs(high), 1.0)
    return low - pad, high + pad


def score_axis(ticked: Axis, low: float, high: float, label: str = SCORE_LABEL) -> None:
    """Scores on an axis that holds their positions, from ``low`` to ``high``."""
    if high - low < 1.3:
        inside = [*MaxNLocator(4).tick_values(1 - 10.0**-low, 1 - 10.0**-high)]
    else:
        between = [-2.0, 0.7, 0.97, 0.997, 0.9997] if high - low < 2.5 else []
        near = [1 - NEAREST] if high >= score_position(1 - NEAREST) else [0.9999]  # their labels would touch
        inside = sorted([-99.0, -9.0, 0.0, 0.9, 0.99, 0.999, *between, *near])
    ticks = [(float(score_position(tick)), tick) for tick in inside if tick < 1]
    shown = [(place, tick) for place, tick in ticks if low - 1e-9 <= place <= high + 1e-9]
    ticked.set_major_locator(FixedLocator([place for place, _ in shown]))
    ticked.set_ticklabels([_short(tick) for _, tick in shown])
    ticked.set_label_text(label)


def plain_axis(ticked: Axis, label: str, tokens: bool = False) -> None:
    """Few ticks, so that their labels do not touch; tokens as 50k."""
    ticked.set_major_locator(MaxNLocator(4))
    if tokens:
        ticked.set_major_formatter(EngFormatter(sep=""))
    ticked.set_label_text(label)


def sparse(shown: NDArray[np.bool_], index: int, count: int = 5) -> list[int]:
    """Which points carry a marker: about so many of those where ``shown``, others for the agent of another rank."""
    (places,) = np.nonzero(shown)
    every = max(len(places) // count, 1)
    return [int(place) for place in places[(index * 3) % every :: every]]


def legend(
    figure: Figure, names: Sequence[str], agents: Sequence[str], extra: Sequence[Line2D] = (), words: str = ""
) -> None:
    """Below the panels: ``words``, the agents among ``names``, each as its rank makes it look, and more lines."""
    handles = [Line2D([], [], label=name, **style(i)) for i, name in enumerate(agents) if name in names] + [*extra]
    columns = min(max(int(figure.get_figwidth() // 1.6), 2), len(handles))
    lines = math.ceil(len(handles) / columns) + words.count("\n")
    figure.set_figheight(figure.get_figheight() + 0.19 * (lines - 1))  # which the panels would else lose
    found = figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=columns,
        handlelength=3.5,
        title=words,
        title_fontsize=SMALL,
    )
    found.get_title().set_multialignment("center")


def bars(axis: Axes, at: ArrayLike, low: ArrayLike, high: ArrayLike, index: int, *, upright: bool = True) -> None:
    """Intervals of the agent with this rank, as thin lines with ends: where bands lie over each other, these do not."""
    middle, low, high = (np.asarray(x, dtype=np.float64) for x in (at, low, high))
    look: dict[str, Any] = {"color": style(index)["color"], "linewidth": 1.0, "alpha": 0.75, "zorder": 2.5}
    ends: dict[str, Any] = {**look, "linestyle": "", "markersize": 5, "marker": "_" if upright else "|"}
    (axis.vlines if upright else axis.hlines)(middle, low, high, **look)
    for end in (low, high):
        axis.plot(*((middle, end) if upright else (end, middle)), **ends)


def missing(axis: Axes, y: float, why: str) -> None:
    """Words in the place of an agent's numbers."""
    axis.text(0.5, y, why, ha="center", va="center", color="#777777", transform=axis.get_yaxis_transform())


def _short(score: float) -> str:
    """.99 for 0.99; the last tick stands for all that is nearer to 1."""
    text = f"{score:g}".replace("0.", ".", 1) if abs(score) < 1 else f"{score:g}"
    return f"≥{text}" if score >= 1 - NEAREST else text
