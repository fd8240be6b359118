"""The figure and the tables of growth.py."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

TOOLS = ("ours", "floor")
PARTS = ("decode", "score", "update")
UPPER = 3
"""The exponents are fitted to so many of the largest points: below them a fixed cost an iteration bends the line."""
NAMES = {
    "tokens": "tokens of a text (8 texts)",
    "texts": "texts of 32 tokens",
    "vocab": "vocabulary (32 texts)",
    "params": "parameters (8 texts)",
}
STYLES = {"ours": ("#1f5fb4", "o-"), "floor": ("#b4591f", "s--")}
Curve = tuple[np.ndarray, np.ndarray]


def seconds(row: dict[str, Any], parts: Sequence[str] = PARTS) -> float:
    """Seconds of an iteration, the median of its turns."""
    return statistics.median(sum(turn) for turn in zip(*(row[part] for part in parts), strict=True))


def curve(rows: Sequence[dict[str, Any]], axis: str, tool: str, what: str) -> Curve:
    """Sizes along an axis, and seconds ("time", or a part's) or MB beyond the models ("memory")."""
    parts = PARTS if what == "time" else (what,)
    pairs = sorted(
        (r[axis], r["peak_mb"] if what == "memory" else seconds(r, parts))
        for r in rows
        if (r["axis"], r["tool"]) == (axis, tool)
    )
    xs, ys = zip(*pairs, strict=True)
    return np.array(xs, float), np.array(ys, float)


def exponent(points: Curve, most: int = UPPER) -> float:
    """b of y = a·x^b by least squares of the logarithms, over the ``most`` largest points."""
    xs, ys = (np.log(v[-most:]) for v in points)
    return float(np.polyfit(xs, ys, 1)[0])


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Exponents, and ours over the floor at the ends of every axis; Markdown."""
    lines = ["| axis | of | exponent, ours | floor | ours / floor, smallest | largest | largest: ours | floor |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for axis, name in NAMES.items():
        if not any(r["axis"] == axis for r in rows):
            continue
        for what in ("time", *PARTS, "memory"):
            mine, base = (curve(rows, axis, tool, what) for tool in TOOLS)
            ratio, unit = mine[1] / base[1], "MB" if what == "memory" else "s"
            ends = " | ".join(f"{y[-1]:.3g} {unit}" for _, y in (mine, base))
            b = " | ".join(f"{exponent(points):.2f}" for points in (mine, base))
            lines.append(
                f"| {name}, {mine[0][0]:.3g} to {mine[0][-1]:.3g} | {what} | {b} | "
                f"{ratio[0]:.2f} | {ratio[-1]:.2f} | {ends} |"
            )
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Four panels of time and four of peak memory, log-log."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "lm-gym"
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter, NullLocator

    figure, panels = plt.subplots(2, len(NAMES), figsize=(12.5, 5.8), layout="constrained", sharex="col")
    unit = "CPU s" if rows[0].get("device", "cpu") == "cpu" else "s"
    labels = {"time": f"{unit} an iteration", "memory": "peak MB beyond the models"}
    for row, (what, label) in zip(panels, labels.items(), strict=True):
        for panel, (axis, name) in zip(row, NAMES.items(), strict=True):
            for tool, (colour, style) in STYLES.items():
                points = curve(rows, axis, tool, what)
                panel.loglog(*points, style, color=colour, ms=4, lw=1.4, label=f"{tool}: {exponent(points):.2f}")
            panel.set_xticks(points[0], [EngFormatter(places=0, sep="")(x) for x in points[0]])
            panel.xaxis.set_minor_locator(NullLocator())
            panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
            panel.yaxis.set_minor_formatter(NullFormatter())
            panel.grid(which="major", alpha=0.25, lw=0.6)
            panel.legend(frameon=False, title="exponent", alignment="left")
            if what == "memory":
                panel.set_xlabel(name)
        row[0].set_ylabel(label)
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)
    plt.close(figure)
