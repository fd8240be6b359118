"""report.html: a run in one file, without network or scripts: curves, texts before and after, where it came from."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_gym.report_style import page, safe
from lm_gym.run_files import read_jsonl
from lm_gym.run_findings import of_a_log
from lm_gym.run_folder import config_of
from lm_gym.runinfo import read_config, write_atomically
from lm_gym.svg_chart import MOST_POINTS, SMOOTH_FROM, line_chart, number_text
from lm_gym.terminal import as_text
from lm_gym.tracking import METRICS, OPEN_FAMILIES

MAIN_CURVES: tuple[tuple[str, str], ...] = (
    ("objective/scores", "Reward"),
    ("reward/watch", "Watching judge"),
    ("objective/kl", "KL to the reference, nats"),
    ("length/mean", "Length, tokens"),
    ("policy/entropy_avg", "Entropy, nats a token"),
    ("policy/clipfrac_avg", "Clip fraction"),
    ("val/explained_variance", "Explained variance"),
    ("length/ended_share", "Share that ends"),
    ("text/distinct_2", "Distinct-2"),
    ("perf/tokens_per_second", "Tokens per second"),
)
FROM_ZERO = frozenset({"objective/kl", "policy/clipfrac_avg", "perf/tokens_per_second", "length/mean"})
COUNTERS = frozenset({"step", "tokens", "episode", "perf/elapsed_seconds"})

ROWS_FOR_HEADLINE = 16
"""With fewer texts before and after, the headline takes its numbers from the metrics instead."""
FINDINGS = "findings.json"
"""What stood out in the evaluation, a list of sentences."""
SAMPLES_OPEN = 12
"""So many texts are shown; the rest folds away."""


@dataclass
class Run:
    """What a run folder holds, as far as it is there; `missing` says what is not."""

    name: str
    metrics: list[dict[str, Any]]
    before_after: list[Mapping[str, Any]]
    samples: list[dict[str, Any]]
    config: dict[str, Any]
    missing: list[str]
    findings: list[str]
    """What stands out: what the evaluation found, else what the log shows."""


def write_findings(run_dir: str | Path, findings: Sequence[str]) -> None:
    """Keep what stands out in a run's evaluation, for its report."""
    write_atomically(Path(run_dir) / FINDINGS, json.dumps(list(findings), indent=1, ensure_ascii=False) + "\n")


def write_report(
    run_dir: str | Path,
    *,
    out: str | Path | None = None,
    before_after: Sequence[Mapping[str, Any]] | None = None,
    title: str | None = None,
) -> Path:
    """Write the report of a run, finished or not.

    Args:
        run_dir: Folder that a `Tracker` wrote.
        out: The file to write; default: report.html in `run_dir`.
        before_after: Rows with prompt, before, after, and as far as known score_before, score_after, length_before,
            length_after, kl (of ``after``, exact in each of its states, as ``objective/kl``); default: those in
            ``samples_before_after.jsonl``, if it is there.
        title: Heading; default: the run's name.

    Returns:
        The path of the file. Parts that the folder lacks are named in it.

    Raises:
        FileNotFoundError: `run_dir` is no folder, or nothing of a run is in it.
        ValueError: A row of `before_after` without prompt, before or after; a broken file.
    """
    run = read_run(Path(run_dir), before_after)
    path = Path(out) if out is not None else Path(run_dir) / "report.html"
    write_atomically(path, render(run, title or run.name))
    return path


def read_run(folder: Path, before_after: Sequence[Mapping[str, Any]] | None = None) -> Run:
    """Read what there is of a run; see `write_report` for arguments and errors."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no run to report on: {folder} is not a folder")
    missing: list[str] = []

    def rows_of(name: str, what: str) -> list[dict[str, Any]]:
        rows = read_jsonl(folder / name) if (folder / name).exists() else []
        if not rows:
            missing.append(f"{what} ({name} is {'empty' if (folder / name).exists() else 'not there'})")
        return rows

    metrics = rows_of("metrics.jsonl", "curves and headline numbers")
    samples = rows_of("samples.jsonl", "samples drawn while training")
    pairs = list(before_after) if before_after is not None else []
    if before_after is None:
        pairs = list(rows_of("samples_before_after.jsonl", "samples before and after"))
    for index, row in enumerate(pairs):
        if lacking := [key for key in ("prompt", "before", "after") if key not in row]:
            raise ValueError(f"before_after row {index} has no {' and no '.join(lacking)}; its keys are {sorted(row)}")
    config: dict[str, Any] = {}
    if (path := config_of(folder)) is not None:
        config = read_config(path)
    else:
        missing.append("configuration and provenance (config.yaml is not there)")
    if not (metrics or pairs or samples or config):
        raise FileNotFoundError(f"no run to report on: {folder} has none of the files that a run leaves")
    kept = folder / FINDINGS
    found = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else of_a_log(metrics)
    return Run(folder.resolve().name, metrics, pairs, samples, config, missing, found)


def render(run: Run, title: str) -> str:
    """The whole page as one string of HTML."""
    provenance = run.config.get("run")
    provenance = provenance if isinstance(provenance, dict) else {}
    sections = [
        _header(run, title),
        _headline(run),
        _standing_out(run),
        _curves(run),
        _before_after(run) if run.before_after else _samples(run),
        _table("Configuration", {key: value for key, value in run.config.items() if key != "run"}),
        _provenance(provenance),
        _command(provenance),
    ]
    return page(title, sections)


def _header(run: Run, title: str) -> str:
    facts = []
    for key, name in (
        ("model", "model"),
        ("reward_model", "reward"),
        ("prompts", "prompts"),
        ("kl_coef", "β"),
        ("seed", "seed"),
    ):
        value = _find(run.config, key)
        if value is not None and not isinstance(value, (dict, list)):
            facts.append(f"{name} <b>{safe(_value(value))}</b>")
    if run.metrics:
        last = run.metrics[-1]
        total = _find(run.config, "total_tokens")
        of_total = ""
        if isinstance(total, int) and last["tokens"] < 0.99 * total:  # a last rollout that does not fit may be left out
            of_total = f" of {total:,} ({last['tokens'] / total:.0%} so far)"
        facts.append(f"<b>{last['tokens']:,}</b> tokens{of_total}")
        facts.append(f"<b>{last['step']:,}</b> updates")
        if seconds := last.get("perf/elapsed_seconds"):
            facts.append(f"<b>{_duration(seconds)}</b>")
    lines = [f'<header><h1>{safe(title)}</h1><p class="facts">{" ".join(f"<span>{fact}</span>" for fact in facts)}</p>']
    if run.missing:
        lines.append(f'<p class="missing">Not in this report: {safe("; ".join(run.missing))}.</p>')
    return "".join(lines) + "</header>"


def _headline(run: Run) -> str:
    """Reward, KL and length, before and after, with the standard error and how it was taken."""
    pairs = run.before_after
    cells = []
    last = run.metrics[-max(1, len(run.metrics) // 10) :]
    noun = f"last {len(last)} updates" if len(last) > 1 else "last update"
    specs = (
        ("Reward", ("score_before", "score_after"), "objective/scores"),
        ("KL to the reference, nats", (None, "kl"), "objective/kl"),
        ("Length, tokens", ("length_before", "length_after"), "length/mean"),
    )
    for name, (before_key, after_key), metric in specs:
        texts_before = _column(pairs, before_key)
        texts_after = _column(pairs, after_key)
        from_texts = len(texts_after) >= ROWS_FOR_HEADLINE
        before = texts_before if from_texts else _column(run.metrics[:1], metric)
        after = texts_after if from_texts else _column(last, metric)
        if not after:
            continue
        decimals = _decimals(after)
        start = ""
        if before and before_key:
            start = f'<span class="before">{_plus_minus(before, decimals)}</span><span class="to">→</span>'
        of_updates = f"texts of updates: {'first update → ' if start else ''}{noun}"
        where = f"{len(after)} evaluation texts" if from_texts else of_updates
        big = f'<p class="big">{start}{_plus_minus(after, decimals)}</p>'
        cells.append(f'<div class="number"><h3>{name}</h3>{big}<p class="of">{where}</p></div>')
    if not cells:
        return ""
    note = '<p class="note">± is the standard error of the mean over the texts or updates named under each number.</p>'
    numbers = f'<div class="numbers">{"".join(cells)}</div>'
    return f'<section class="headline">{numbers}{note if any("±" in cell for cell in cells) else ""}</section>'


def _standing_out(run: Run) -> str:
    """Signs that the judge is exploited; nothing where there are none."""
    if not run.findings:
        return ""
    lines = "".join(f"<li>{safe(line)}</li>" for line in run.findings)
    return f"<section><h2>What stands out</h2><ul>{lines}</ul></section>"


def _curves(run: Run) -> str:
    """Small multiples of the metrics over tokens: `MAIN_CURVES` and users' own families; the rest folds away."""
    if not run.metrics:
        return ""
    logged = list(dict.fromkeys(name for row in run.metrics for name in row if name not in COUNTERS))
    main = [(name, heading) for name, heading in MAIN_CURVES if name in logged]
    shown = {name for name, _ in main}
    own = [(name, name) for name in logged if name.startswith(OPEN_FAMILIES) and not name.startswith("time/")]
    rest = [(name, name) for name in logged if name not in shown and (name, name) not in own]
    figures = [_figure(run, name, heading) for name, heading in main]
    both = [row for row in run.metrics if "objective/scores" in row and "objective/kl" in row]
    if len(both) > 1:
        kls, scores = _column(both, "objective/kl"), _column(both, "objective/scores")
        svg = line_chart(kls, scores, label="reward", x_name="nats of KL", ordered=False)
        figures.append(
            _framed(
                "Reward against KL, nats", "", "mean score over mean KL: one dot an update, later ones stronger", svg
            )
        )
    figures += [_figure(run, name, heading) for name, heading in own]
    lines = ['<section><h2>Curves</h2><div class="charts">', *figures, "</div>"]
    if rest:
        lines.append('<details><summary>All other metrics</summary><div class="charts">')
        lines += [*(_figure(run, name, heading) for name, heading in rest), "</div></details>"]
    note = (
        "Of the texts that each update drew, not of those of the evaluation. Horizontal axis: completion tokens "
        "generated. At the right of each heading: the last update."
    )
    if len(run.metrics) >= SMOOTH_FROM:
        note += " Faint: each update; strong: moving average."
    if len(run.metrics) > MOST_POINTS:
        note += f" {len(run.metrics):,} updates are drawn as the means of {MOST_POINTS} equal parts."
    return "".join(lines) + f'<p class="note">{note}</p></section>'


def _figure(run: Run, metric: str, heading: str) -> str:
    rows = [row for row in run.metrics if metric in row]
    ys = _column(rows, metric)
    # of the first update's texts, which the untrained policy wrote; the evaluation's have other prompts
    baseline = ("first update", ys[0]) if metric == "objective/scores" and len(ys) > 1 else None
    svg = line_chart(
        _column(rows, "tokens"), ys, label=heading, from_zero=metric in FROM_ZERO and min(ys) >= 0, baseline=baseline
    )
    return _framed(heading, number_text(ys[-1]), METRICS.get(metric, metric), svg)


def _framed(heading: str, last: str, about: str, svg: str) -> str:
    caption = (
        f'<figcaption title="{safe(about)}"><span>{safe(heading)}</span><span class="last">{last}</span></figcaption>'
    )
    return f"<figure>{caption}{svg}</figure>"


def _before_after(run: Run) -> str:
    blocks = []
    for row in run.before_after:
        before = _side("before", "Before", row["before"], row.get("score_before"), None)
        after = _side("after", "After", row["after"], row.get("score_after"), row.get("kl"))
        blocks.append(f'<article>{_prompt(row["prompt"])}<div class="sides">{before}{after}</div></article>')
    note = "The same prompts, continued by the reference and by the trained policy."
    return _folded("Samples before and after", blocks, note)


def _samples(run: Run) -> str:
    """Without texts before and after: those drawn at the last step that has any."""
    if not run.samples:
        return ""
    step = run.samples[-1].get("step", 0)
    blocks = []
    for row in run.samples:
        if row.get("step", 0) == step:
            side = _side("after", "", row["completion"], row.get("score"), row.get("kl"))
            blocks.append(f"<article>{_prompt(row['prompt'])}{side}</article>")
    return _folded("Samples", blocks, f"Drawn at update {step:,}.")


def _side(css: str, name: str, text: Any, score: Any, kl: Any) -> str:
    numbers = [f"<span>score {_signed(score)}</span>"] if _is_number(score) else []
    numbers += [f"<span>KL {number_text(kl)}</span>"] if _is_number(kl) else []
    scores = f'<p class="scores"><b>{name}</b>{"".join(numbers)}</p>'
    return f'<div class="side {css}">{scores}<p class="text" dir="auto">{_text(text)}</p></div>'


def _prompt(prompt: Any) -> str:
    return f'<p class="prompt" dir="auto">{_text(prompt)}</p>'


def _folded(heading: str, blocks: Sequence[str], note: str) -> str:
    more = "".join(blocks[SAMPLES_OPEN:])
    if more:
        more = f"<details><summary>{len(blocks) - SAMPLES_OPEN} more</summary>{more}</details>"
    return f'<section><h2>{heading}</h2><p class="note">{note}</p>{"".join(blocks[:SAMPLES_OPEN])}{more}</section>'


def _provenance(run_info: Mapping[str, Any]) -> str:
    """What config.yaml has under ``run``, with all versions in one row; the command has a section of its own."""
    values = {key: value for key, value in run_info.items() if key != "command"}
    versions = values.get("versions")
    if isinstance(versions, dict):
        values["versions"] = [f"{name} {version}" for name, version in versions.items()]
    return _table("Where the numbers came from", values)


def _table(heading: str, values: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{_breakable(key)}</th><td>{safe(_value(value))}</td></tr>' for key, value in _flat(values)
    )
    return f'<section><h2>{heading}</h2><div class="table"><table>{rows}</table></div></section>' if rows else ""


def _breakable(key: str) -> str:
    """A name that a narrow column may break behind its dots and underscores."""
    return safe(key).replace(".", ".<wbr>").replace("_", "_<wbr>")


def _command(provenance: Mapping[str, Any]) -> str:
    command = provenance.get("command")
    return f"<section><h2>Command</h2><pre>{safe(str(command))}</pre></section>" if command else ""


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _find(config: Mapping[str, Any], key: str) -> Any:
    """The value of `key` at the top of the configuration, or in the first of its parts that has it."""
    if config.get(key) is not None:
        return config[key]
    found = (_find(part, key) for name, part in config.items() if isinstance(part, dict) and name != "run")
    return next((value for value in found if value is not None), None)


def _column(rows: Sequence[Mapping[str, Any]], key: str | None) -> list[float]:
    return [float(row[key]) for row in rows if key is not None and _is_number(row.get(key))]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _standard_error(values: Sequence[float]) -> float:
    """s/√n with s² the sum of squared deviations over n − 1; 0 for a single value."""
    n, mean = len(values), sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n) if n > 1 else 0.0


def _decimals(values: Sequence[float]) -> int:
    """Decimals that show two digits of the standard error, or three of the mean where there is none."""
    size = _standard_error(values)
    size, digits = (size, 1) if size > 0 else (abs(sum(values) / len(values)), 2)
    return min(6, max(0, digits - math.floor(math.log10(size)))) if size > 0 else 2


def _plus_minus(values: Sequence[float], decimals: int) -> str:
    """Mean ± standard error; the mean alone where there is no error to tell."""
    mean, error = sum(values) / len(values), _standard_error(values)
    spread = f'<span class="error"> ± {error:,.{decimals}f}</span>' if error > 0 else ""
    return f"{mean:,.{decimals}f}".replace("-", "−") + spread


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours} h {minute:02} min" if hours else f"{minute} min {second:02} s" if minute else f"{seconds:.3g} s"


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple, dict)):
        return ", ".join(_value(item) for item in value) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return str(value)


def _text(text: Any) -> str:
    shown = safe(as_text(text).lstrip(" "))  # most completions begin with the space after the prompt
    return shown if shown.strip() else '<span class="empty">(nothing)</span>'
