"""The files of a comparison: CSV, a Markdown table and vector figures beside the name that `--out` gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lm_gym.compare import tables
from lm_gym.compare.results import gather
from lm_gym.compare.rows import Problem, Row
from lm_gym.runinfo import write_atomically


def check(out: Path) -> None:
    """Refuses what :func:`write` would fail on, before hours of runs, and makes the folder.

    Raises:
        ValueError: another suffix than .pdf, .svg or .png. ImportError: no matplotlib. OSError: no folder can be made.
    """
    from lm_gym.compare.figures import SUFFIXES

    if out.suffix not in SUFFIXES:
        raise ValueError(f"--out: expected a name that ends in .pdf, .svg (vector figures) or .png, got {out.name!r}")
    out.parent.mkdir(parents=True, exist_ok=True)


def write(rows: Sequence[Row], problems: Sequence[Problem], out: Path) -> str:
    """Writes the comparison of the rows and returns its tables as text.

    For ``fig.pdf``: ``fig.csv`` (a line a run), ``fig-summary.csv`` (a line an agent and problem, with intervals),
    ``fig-curves.csv``, ``fig-improvement.csv``, ``fig.md`` (the text returned), and the figures ``fig-score.pdf``,
    ``fig-curves.pdf``, ``fig-profiles.pdf``, ``fig-improvement.pdf``, ``fig-frontier.pdf``; ``.svg`` and
    ``.png`` likewise. The same rows give the same bytes. docs/compare.md says what is in each.

    Args:
        rows: of all agents, each run once. problems: what they are measured against. out: names the files; there is no
            file of that very name.

    Raises:
        ValueError, ImportError, OSError: as :func:`check` and :func:`lm_gym.compare.results.gather`.
    """
    out = Path(out)
    check(out)
    from lm_gym.compare import figures

    results = gather(rows, problems)
    found = tables.improvements(results)
    stem = out.with_suffix("")
    text = tables.text(results)
    for name, content in {
        ".csv": tables.runs_csv(results),
        "-summary.csv": tables.summary_csv(results),
        "-curves.csv": tables.curves_csv(results),
        "-improvement.csv": tables.improvement_csv(found),
        ".md": text,
    }.items():
        write_atomically(stem.with_name(f"{stem.name}{name}"), content)
    figures.draw(results, found, stem, out.suffix)
    return text
