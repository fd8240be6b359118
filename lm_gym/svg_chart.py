"""A line chart as inline SVG, by hand: axes with round ticks, hover titles, colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from lm_gym.report_style import safe

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 26

SMOOTH_FROM = 60
"""From this many points on, the curve is drawn faintly behind its moving average."""
MOST_POINTS = 400
"""A longer curve is drawn through the means of this many equal parts."""
MOST_TITLES = 100
"""A curve with more points has a hover title for the means of this many equal parts."""


def line_chart(
    xs: Sequence[float],
    ys: Sequence[float],
    *,
    label: str,
    x_name: str = "tokens",
    from_zero: bool = False,
    baseline: tuple[str, float] | None = None,
    ordered: bool = True,
    diagonal: bool = False,
) -> str:
    """Draw ys over xs.

    Args:
        xs, ys: (N,) finite numbers, N >= 1; xs rising unless `ordered` is False.
        label: What is drawn, for screen readers and hover titles.
        x_name: Name of the x axis.
        from_zero: Let the y axis reach down (or up) to 0.
        baseline: Name and height of a dashed horizontal line.
        diagonal: Draw y = x as a dashed line, as far as both axes reach.
        ordered: False for points in the plane (reward against KL): a dot each, the later the stronger, and no line.

    Returns:
        One ``<svg>`` element; classes axis, grid, tick, raw, curve, dot, baseline, hover are the page's to colour.
    """
    if len(xs) != len(ys) or not ys:
        raise ValueError(
            f"line_chart {label!r}: expected as many xs as ys and at least one, got {len(xs)} and {len(ys)}"
        )
    xs, ys = means_of_parts(xs, MOST_POINTS), means_of_parts(ys, MOST_POINTS)
    heights = [*ys, *([baseline[1]] if baseline else []), *([0.0] if from_zero else [])]
    y_ticks = round_ticks(min(heights), max(heights), most=5)
    x_low, x_high = (min(xs), max(xs)) if not ordered else (min(0.0, xs[0]), xs[-1])
    x_ticks = [tick for tick in round_ticks(x_low, x_high, most=5) if x_low <= tick <= x_high or not ordered]
    if not ordered:
        x_low, x_high = x_ticks[0], x_ticks[-1]
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def at_x(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((x - x_low) / (x_high - x_low) if x_high > x_low else 0.5)

    def at_y(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * ((y - y_low) / (y_high - y_low))

    def path(points: Sequence[float], css: str) -> str:
        places = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in zip(xs, points, strict=True))
        return f'<polyline class="{css}" points="{places}"/>'

    out = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{safe(label)}">']
    y_step, y_most = y_ticks[1] - y_ticks[0], max(map(abs, y_ticks))
    for tick in y_ticks:
        y = at_y(tick)
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        text = tick_text(tick, y_step, y_most)
        out.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{text}</text>')
    x_step, x_most = x_ticks[1] - x_ticks[0] if len(x_ticks) > 1 else 1.0, max(map(abs, x_ticks), default=0.0)
    bottom = HEIGHT - BOTTOM
    out.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    for tick in x_ticks:
        x, text = at_x(tick), tick_text(tick, x_step, x_most)
        out.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 3}"/>')
        out.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{text}</text>')
    if baseline:
        y, name = at_y(baseline[1]), safe(baseline[0])
        out.append(f'<line class="baseline" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{y - 4:.1f}" text-anchor="end">{name}</text>')
    if diagonal and max(x_low, y_low) < min(x_high, y_high):
        a, b = max(x_low, y_low), min(x_high, y_high)
        out.append(
            f'<line class="baseline" x1="{at_x(a):.1f}" y1="{at_y(a):.1f}" x2="{at_x(b):.1f}" y2="{at_y(b):.1f}"/>'
        )
    if not ordered or len(ys) == 1:
        for index, (x, y) in enumerate(zip(xs, ys, strict=True)):
            strength = 0.25 + 0.75 * (index + 1) / len(ys)
            place = f'cx="{at_x(x):.1f}" cy="{at_y(y):.1f}"'
            out.append(f'<circle class="dot" {place} r="2.5" fill-opacity="{strength:.2f}"/>')
    elif len(ys) >= SMOOTH_FROM:
        out.append(path(ys, "raw"))
        out.append(path(moving_average(ys, max(3, len(ys) // 20 | 1)), "curve"))
    else:
        out.append(path(ys, "curve"))
    out.append(_hover(xs, ys, at_x, at_y, x_name, ordered))
    out.append("</svg>")
    return "".join(out)


def _hover(
    xs: Sequence[float],
    ys: Sequence[float],
    at_x: Callable[[float], float],
    at_y: Callable[[float], float],
    x_name: str,
    ordered: bool,
) -> str:
    """Transparent shapes with titles: bands over the whole height where x rises, discs around the points otherwise."""
    xs, ys = means_of_parts(xs, MOST_TITLES), means_of_parts(ys, MOST_TITLES)
    places = [at_x(x) for x in xs]
    shapes = []
    for index, (x, y) in enumerate(zip(xs, ys, strict=True)):
        title = f"<title>{number_text(y)} at {number_text(x)} {safe(x_name)}</title>"
        if ordered:
            start = (places[index - 1] + places[index]) / 2 if index else LEFT
            end = (places[index] + places[index + 1]) / 2 if index + 1 < len(places) else WIDTH - RIGHT
            size = f'x="{start:.1f}" width="{max(end - start, 0.1):.1f}" y="{TOP}" height="{HEIGHT - TOP - BOTTOM}"'
            shapes.append(f'<rect class="hover" {size}>{title}</rect>')
        else:
            shapes.append(f'<circle class="hover" cx="{places[index]:.1f}" cy="{at_y(y):.1f}" r="6">{title}</circle>')
    return "".join(shapes)


def round_ticks(low: float, high: float, *, most: int) -> list[float]:
    """Evenly spaced round numbers (1, 2, 2.5 or 5 times a power of ten), the first <= low and the last >= high.

    At least two and at most `most` + 1; a range of nothing is widened around its value.
    """
    if high <= low:
        room = abs(low) * 0.1 or 1.0
        low, high = low - room, high + room
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) if step > 1e-9 else index * step for index in range(first, last + 1)]


def tick_text(tick: float, step: float, largest: float) -> str:
    """A tick of an axis, with the decimals its step needs and the unit (k, M, G) that its largest tick asks for."""
    if tick == 0 and step >= 1:
        return "0"
    for limit, unit, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if largest >= limit:
            return f"{tick / unit:g}{letter}".replace("-", "−")
    if step < 1e-4:
        return f"{tick:g}".replace("-", "−")
    decimals = next((d for d in range(7) if abs(step * 10**d - round(step * 10**d)) < 1e-6), 6)
    return f"{tick:,.{decimals}f}".replace("-", "−")


def number_text(value: float) -> str:
    """A number for reading: three significant digits, all digits before the point, a true minus sign."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.2e}".replace("-", "−")
    if float(value).is_integer() or abs(value) >= 1e3:
        return f"{value:,.0f}".replace("-", "−")
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}".replace("-", "−")


def means_of_parts(values: Sequence[float], parts: int) -> list[float]:
    """`values` as they are if there are at most `parts`, the means of that many equal parts otherwise."""
    if len(values) <= parts:
        return [float(value) for value in values]
    edges = [index * len(values) // parts for index in range(parts + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]


def moving_average(values: Sequence[float], window: int) -> list[float]:
    """Mean over `window` values around each, over fewer at the ends (the window stays centred)."""
    half, n = window // 2, len(values)
    out = []
    for index in range(n):
        reach = min(half, index, n - 1 - index)
        part = values[index - reach : index + reach + 1]
        out.append(sum(part) / len(part))
    return out
