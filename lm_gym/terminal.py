"""What a run shows while it goes: a live panel on a terminal, plain lines elsewhere, and texts before and after."""

from __future__ import annotations

import sys
import time
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

Row = Mapping[str, int | float]

SHOWN: tuple[tuple[str, str, str], ...] = (
    ("reward", "objective/scores", ".3f"),
    ("kl", "objective/kl", ".3f"),
    ("length", "length/mean", ".1f"),
    ("ended", "length/ended_share", ".0%"),
    ("entropy", "policy/entropy_avg", ".3f"),
    ("lr", "lr", ".2e"),
)
"""Short name, metric, format: the rows of the panel and the keys of a plain line."""

_DIRECTION_OVERRIDES = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

_SPARKS = "▁▂▃▄▅▆▇"  # without the full block, which would run into the line above


class Display(Protocol):
    """What a tracker calls; none of it may raise for a text that a model wrote."""

    def restore(self, rows: Sequence[Row]) -> None: ...
    def log(self, row: Row) -> None: ...
    def sample(self, row: Mapping[str, Any]) -> None: ...
    def note(self, message: str) -> None: ...
    def close(self) -> None: ...


def make_display(
    terminal: bool | Literal["auto"], *, name: str, total: int | None, quiet: bool = False, plain_every: float = 0.0
) -> Display:
    """The live panel for True, plain lines for False, by whether stdout is a terminal for "auto", or silence."""
    if terminal not in (True, False, "auto"):
        raise ValueError(f"terminal: expected True, False or 'auto', got {terminal!r}")
    if quiet:
        return Silent()
    if terminal == "auto":
        terminal = sys.stdout.isatty()
    return LivePanel(name, total) if terminal else PlainLines(total, every=plain_every)


class Silent:
    """Shows nothing."""

    def restore(self, rows: Sequence[Row]) -> None:
        pass

    def log(self, row: Row) -> None:
        pass

    def sample(self, row: Mapping[str, Any]) -> None:
        pass

    def note(self, message: str) -> None:
        pass

    def close(self) -> None:
        pass


class PlainLines:
    """One line a log with the same keys in the same order, `-` where a number is missing: for pipes, files and CI.

    Such as ``step=3 tokens=6144 total=100000 reward=0.412 kl=0.873 length=31.2 ended=88% entropy=2.310 lr=1.00e-05
    tok/s=1204 eta=78s``, in one line.
    """

    def __init__(self, total: int | None, *, every: float = 0.0) -> None:
        self._pace = Pace(total)
        self._every = every
        self._printed_at = -float("inf")
        self._waiting = ""

    def restore(self, rows: Sequence[Row]) -> None:
        self._pace.restart(int(rows[-1]["tokens"]) if rows else 0)

    def log(self, row: Row) -> None:
        pace = self._pace
        pace.add(int(row["tokens"]))
        parts = {"step": str(row["step"]), "tokens": str(row["tokens"]), "total": str(pace.total or "-")}
        parts |= {key: format(row[metric], spec) if metric in row else "-" for key, metric, spec in SHOWN}
        parts["tok/s"] = f"{pace.rate:.0f}" if pace.rate else "-"
        parts["eta"] = f"{pace.left:.0f}s" if pace.left is not None else "-"
        self._waiting = " ".join(f"{key}={value}" for key, value in parts.items())
        if time.monotonic() - self._printed_at >= self._every:
            self._flush()

    def sample(self, row: Mapping[str, Any]) -> None:
        pass  # texts are in samples.jsonl; a log file of plain lines stays a table

    def note(self, message: str) -> None:
        print(_encodable(printable(message), sys.stdout), flush=True)

    def close(self) -> None:
        self._flush()

    def _flush(self) -> None:
        line, self._waiting = self._waiting, ""
        if line:
            print(line, flush=True)
            self._printed_at = time.monotonic()


class LivePanel:
    """Progress over tokens, the course of each shown metric, and one sample, redrawn in place with rich.

    Text that a model wrote reaches rich as `Text`, never as markup, and with control characters made visible, so that
    it can neither colour the panel nor send the terminal commands.
    """

    def __init__(self, name: str, total: int | None, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = console or Console()
        self._name = name
        self._pace = Pace(total)
        self._rows: list[Row] = []
        self._sample: Mapping[str, Any] | None = None
        self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=4, transient=False)
        self._live.start()

    def restore(self, rows: Sequence[Row]) -> None:
        self._rows = list(rows)
        self._pace.restart(int(rows[-1]["tokens"]) if rows else 0)

    def log(self, row: Row) -> None:
        self._pace.add(int(row["tokens"]))
        self._rows.append(row)

    def sample(self, row: Mapping[str, Any]) -> None:
        self._sample = row

    def note(self, message: str) -> None:
        from rich.text import Text

        self._console.print(Text(_encodable(printable(message), self._console.file)))

    def close(self) -> None:
        self._live.stop()
        if not self._console.is_terminal:  # where rich ends the last picture without a newline
            self._console.line()

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        pace, rows = self._pace, list(self._rows)
        head = Table.grid(padding=(0, 2), expand=True)
        head.add_column(ratio=1)
        head.add_column(justify="right", no_wrap=True)
        of_total = f"/{pace.total:,}" if pace.total else ""
        speed = f"{pace.rate:,.0f} tok/s" if pace.rate else "- tok/s"
        left = f"  {_clock(pace.left)} left" if pace.left is not None else ""
        done = min(pace.tokens, pace.total) if pace.total else pace.tokens
        state = Text(f"{pace.tokens:,}{of_total} tokens  {speed}{left}")
        head.add_row(ProgressBar(total=pace.total, completed=done, complete_style="cyan", finished_style="cyan"), state)
        parts: list[RenderableType] = [head, Text()]

        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(no_wrap=True)
        table.add_column(justify="right", no_wrap=True, min_width=8)
        table.add_column(no_wrap=True, ratio=1)
        ascii_only = self._console.options.ascii_only
        for key, metric, spec in SHOWN:
            course = [float(row[metric]) for row in rows if metric in row]
            now = format(course[-1], spec) if course else "-"
            line = Text(sparkline(course, ascii_only=ascii_only), style="cyan")
            table.add_row(Text(key), Text(now, style="bold"), line)
        parts.append(table)

        if self._sample is not None:
            numbers = [
                f"{key} {self._sample[key]:.3f}"
                for key in ("score", "kl")
                if isinstance(self._sample.get(key), (int, float))
            ]
            parts += [Text(), Text("  ".join(["sample", *numbers]), style="dim")]
            text = Text(overflow="fold")
            prompt, completion = as_text(self._sample["prompt"]), as_text(self._sample["completion"])
            prompt = shorten(prompt, 160, keep_end=True) + ("" if completion[:1].isspace() else " ")
            text.append(_encodable(prompt, self._console.file), style="dim")
            text.append(_encodable(shorten(completion), self._console.file))
            parts.append(text)
        step = f"update {rows[-1]['step']}" if rows else "before the first update"
        title = Text(printable(self._name))
        return Panel(Group(*parts), title=title, title_align="left", subtitle=step, padding=(0, 1))


class Pace:
    """Tokens per second over the last rows, and the seconds left at that pace."""

    WINDOW = 20

    def __init__(self, total: int | None) -> None:
        self.total = total
        self.restart(0)

    def restart(self, tokens: int) -> None:
        """Measure from now, with `tokens` done by an earlier process."""
        self.tokens = tokens
        self._times = [(time.monotonic(), tokens)]

    def add(self, tokens: int) -> None:
        """Note that `tokens` are done by now."""
        self.tokens = tokens
        self._times = [*self._times[-self.WINDOW :], (time.monotonic(), tokens)]

    @property
    def rate(self) -> float | None:
        """Tokens a second, None before there is a measurement."""
        (start, before), (now, after) = self._times[0], self._times[-1]
        return (after - before) / (now - start) if now > start else None

    @property
    def left(self) -> float | None:
        """Seconds to the total, None where total or pace are unknown."""
        if not self.total or not self.rate:
            return None
        return max(0.0, (self.total - self.tokens) / self.rate)


def sparkline(values: Sequence[float], *, width: int = 40, ascii_only: bool = False) -> str:
    """The course of `values` in one line, means of equal parts if there are more than `width`."""
    if len(values) > width:
        edges = [round(i * len(values) / width) for i in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    if not values:
        return ""
    low, high = min(values), max(values)
    marks = "_.-=^" if ascii_only else _SPARKS
    if high == low:
        return marks[0] * len(values)
    return "".join(marks[min(len(marks) - 1, int((value - low) / (high - low) * len(marks)))] for value in values)


def printable(text: str) -> str:
    """`text` with everything a terminal would obey made visible: controls, escapes, direction overrides, surrogates."""

    def shown(character: str) -> str:
        if character == "\n":
            return character
        if character == "\t":
            return " "
        if ord(character) < 0x20:
            return chr(0x2400 + ord(character))  # the Unicode pictures of the control characters
        if unicodedata.category(character) in ("Cc", "Cs") or character in _DIRECTION_OVERRIDES:
            return "\ufffd"
        return character

    return "".join(map(shown, text))


def as_text(text: Any) -> str:
    """A prompt or completion as one string; of messages, their contents."""
    if isinstance(text, (list, tuple)):
        return "\n".join(
            f"{part.get('role', '')}: {part.get('content', '')}" if isinstance(part, Mapping) else str(part)
            for part in text
        )
    return str(text)


def shorten(text: str, limit: int = 400, *, keep_end: bool = False) -> str:
    """One safe line of at most `limit` characters, without the end (or the beginning) of a longer text."""
    line = printable(text).replace("\n", " ⏎ ")
    if len(line) <= limit:
        return line
    return "…" + line[1 - limit :] if keep_end else line[: limit - 1] + "…"


def print_before_after(rows: Sequence[Mapping[str, Any]], console: Console | None = None) -> None:
    """Print texts of the reference and of the trained policy side by side, with their scores.

    Args:
        rows: Each with prompt, before, after, and as far as known score_before, score_after and kl.
        console: Where to; default: stdout.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    table = Table(show_lines=True, expand=True, title_justify="left")
    for heading, ratio in (("prompt", 2), ("before", 4), ("after", 4)):
        table.add_column(heading, ratio=ratio, overflow="fold")
    for row in rows:
        cells = [Text(_encodable(shorten(as_text(row["prompt"])), console.file), style="dim")]
        for part in ("before", "after"):
            score = row.get(f"score_{part}")
            cell = Text(f"{score:+.3f}  " if score is not None else "", style="bold")
            cells.append(
                cell.append(_encodable(shorten(as_text(row[part]).lstrip(" ")), console.file), style="not bold")
            )
        table.add_row(*cells)
    console.print(table)


def _encodable(text: str, stream: Any) -> str:
    """`text` with what the stream's encoding lacks replaced, so that no sample ends a run with UnicodeEncodeError."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
