"""Several curves in one chart, as inline SVG: two scores in one unit show where they part."""

from __future__ import annotations

from collections.abc import Sequence

from lm_gym.report_style import safe
from lm_gym.svg_chart import LEFT, RIGHT, TOP, moving_average, number_text, round_ticks, tick_text

WIDE, HIGH, FOOT = 1000, 260, 34
"""Of the chart, and of the strip under it for the x axis: pixels at full width."""
DASHES = ("", "6 4")
"""The first curve is whole, the second dashed: told apart without colour."""


def curves(
    xs: Sequence[float], lines: Sequence[tuple[str, Sequence[float]]], *, label: str, x_name: str, smooth: bool
) -> str:
    """At most two curves over the same xs, each with its name at its end.

    Args:
        xs: (N,) rising, N >= 1. lines: name and (N,) values each.
        smooth: draw moving averages, the values faintly behind them.
    """
    if not 1 <= len(lines) <= len(DASHES) or any(len(ys) != len(xs) or not ys for _, ys in lines):
        raise ValueError(f"curves {label!r}: expected one or two curves as long as xs ({len(xs)}, at least 1)")
    values = [y for _, ys in lines for y in ys] + [0.0]
    y_ticks = round_ticks(min(values), max(values), most=5)
    x_high = max(xs[-1], 1e-9)
    x_ticks = [t for t in round_ticks(0.0, x_high, most=6) if t <= x_high]

    def at(x: float, y: float) -> tuple[float, float]:
        wide, high = WIDE - LEFT - RIGHT, HIGH - TOP - FOOT
        return LEFT + wide * x / x_high, HIGH - FOOT - high * (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])

    out = [f'<svg viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{safe(label)}">']
    step, most = y_ticks[1] - y_ticks[0], max(map(abs, y_ticks))
    for tick in y_ticks:
        _, y = at(0, tick)
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDE - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        text = tick_text(tick, step, most)
        out.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>')
    x_step = x_ticks[1] - x_ticks[0] if len(x_ticks) > 1 else 1.0
    for tick in x_ticks:
        x, _ = at(tick, y_ticks[0])
        text = tick_text(tick, x_step, max(x_ticks))
        out.append(
            f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{HIGH - FOOT}" y2="{HIGH - FOOT + 3}"/>'
            f'<text class="tick" x="{x:.1f}" y="{HIGH - FOOT + 14}" text-anchor="middle">{text}</text>'
        )
    window = max(3, len(xs) // 8 | 1) if smooth else 1
    ends = []
    for (name, ys), dash in zip(lines, DASHES):
        shown = moving_average(ys, window) if len(ys) > 1 else list(ys)
        if smooth and len(ys) > 1:
            out.append(_line([at(x, y) for x, y in zip(xs, ys, strict=True)], "raw", dash))
        points = [at(x, y) for x, y in zip(xs, shown, strict=True)]
        out.append(_line(points, "curve" if not dash else "curve second", dash))
        ends.append((points[-1], f"{name} {number_text(shown[-1])}", dash))
    if len(ends) == 2 and abs(ends[0][0][1] - ends[1][0][1]) < 30:  # names apart where the curves are not
        upper = 0 if ends[0][0][1] <= ends[1][0][1] else 1
        shifts = {upper: -8.0, 1 - upper: 18.0}
    else:
        shifts = {0: -8.0, 1: -8.0}
    for place, ((x, y), text, dash) in enumerate(ends):
        css = "name second" if dash else "name"
        y = min(max(y + shifts[place], TOP + 8), HIGH - FOOT - 4)
        out.append(f'<text class="{css}" x="{x - 4:.1f}" y="{y:.1f}" text-anchor="end">{safe(text)}</text>')
    out.append(f'<text class="tick" x="{WIDE - RIGHT}" y="{HIGH - 3}" text-anchor="end">{safe(x_name)}</text>')
    return "".join(out) + "</svg>"


def _line(points: Sequence[tuple[float, float]], css: str, dash: str) -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<polyline class="{css}" points="{places}"{dashed}/>'
