"""The evaluation of a judge as one page of HTML, without network or scripts, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm_gym.judged_pairs import Judged
from lm_gym.report_style import page, safe
from lm_gym.reward_findings import findings
from lm_gym.runinfo import write_atomically
from lm_gym.svg_chart import line_chart

MOST_DOTS = 400
SAID = {
    "better": "The annotator took the better one.",
    "worse": "The annotator took the worse one.",
    "tie": "The annotator called it a tie.",
}
Results = Mapping[str, Any]


def write_page(folder: str | Path, results: Results, judged: Judged, *, title: str | None = None) -> Path:
    """Write reward_eval.json and reward_eval.html into a folder; the page's path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record = {**results, "findings": findings(results)}
    write_atomically(folder / "reward_eval.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    path = folder / "reward_eval.html"
    write_atomically(path, render(results, judged, title or f"How good is {' + '.join(results['judge'])}?"))
    return path


def render(results: Results, judged: Judged, title: str) -> str:
    """The whole page as one string of HTML."""
    return page(
        title,
        [
            _header(results, title),
            _headline(results),
            _standing_out(results),
            _charts(results, judged),
            _biases(results),
            _kinds(results),
            _policy(results),
            _ensemble(results),
            _data(results),
            _mistakes(results),
        ],
    )


def percent(found: Sequence[float] | None) -> str:
    """Value and interval of a share; a dash where it is not known."""
    if found is None:
        return "–"
    value, low, high = found
    return f"{value:.1%} <span class='error'>({low:.1%} to {high:.1%})</span>"


def number(value: float | None, form: str = "+.2f") -> str:
    """A number with a true minus sign; a dash where it is not known."""
    return "–" if value is None else format(round(value, 4) + 0.0, form).replace("-", "−")  # never -0.0


def interval(found: Sequence[float] | None) -> str:
    """Value and interval of a correlation."""
    if found is None:
        return "–"
    return f"{number(found[0])} <span class='error'>({number(found[1])} to {number(found[2])})</span>"


def _header(results: Results, title: str) -> str:
    facts = [f"<b>{results['pairs']:,}</b> pairs", f"<b>{results['prompts']:,}</b> prompts"]
    lines = [f'<header><h1>{safe(title)}</h1><p class="facts">{" ".join(f"<span>{fact}</span>" for fact in facts)}</p>']
    if results["missing"]:
        lines.append(f'<p class="missing">Not in this report: {safe("; ".join(results["missing"]))}.</p>')
    return "".join(lines) + "</header>"


def _headline(results: Results) -> str:
    found, calibration = results["accuracy"], results["calibration"]
    cells = [("Accuracy on held-out labels", percent(found["judge"]), "ties left out")]
    if found["gold"] is not None:
        cells.append(("Ceiling: the gold's accuracy", percent(found["gold"]), "what annotator noise allows"))
        gap = found["gap"]
        cells.append(("Below the ceiling", percent(gap), "on the same pairs"))
    if found["gold_order"] is not None:
        cells.append(("Pairs ordered as the gold does", percent(found["gold_order"]), "without annotator noise"))
    cells.append(("Calibration error (ECE)", f"{calibration['ece']:.3f}", f"Brier {calibration['brier']:.3f}"))
    blocks = [
        f'<div class="number"><h3>{name}</h3><p class="big">{big}</p><p class="of">{note}</p></div>'
        for name, big, note in cells
    ]
    note = '<p class="note">In brackets: 95% intervals, from draws of prompts.</p>'
    return f'<section class="headline"><div class="numbers">{"".join(blocks)}</div>{note}</section>'


def _standing_out(results: Results) -> str:
    found = findings(results)
    if not found:
        body = '<p class="note">Nothing: no measure of this page passes its threshold.</p>'
    else:
        body = f"<ul>{''.join(f'<li>{safe(line)}</li>' for line in found)}</ul>"
    return f"<section><h2>What stands out</h2>{body}</section>"


def _charts(results: Results, judged: Judged) -> str:
    bins = results["calibration"]["bins"]
    figures = [
        _figure(
            "Reliability",
            "share right over confidence σ(|difference|); dashed: perfect",
            line_chart(
                [b["confidence"] for b in bins],
                [b["accuracy"] for b in bins],
                label="share right",
                x_name="confidence",
                ordered=False,
                diagonal=True,
            ),
        )
    ]
    gold = judged.gold_differences
    if gold is not None:
        rows = np.linspace(0, len(gold) - 1, min(MOST_DOTS, len(gold))).astype(int)
        cloud = line_chart(
            gold[rows].tolist(),
            judged.differences[rows].tolist(),
            label="judge's difference",
            x_name="the gold's difference",
            ordered=False,
        )
        figures.append(
            _figure("Judge against gold", "difference of the scores of each pair, chosen minus rejected", cloud)
        )
    for key, x, heading, about in (
        ("by_difference", "size", "Accuracy by gold difference", "where the gold differs little, labels are noise"),
        ("by_novelty", "novelty", "Accuracy by distance", "over the share of word pairs that no training text has"),
    ):
        groups = results[key]
        if groups and len(groups) > 1:
            ys = [group["judge"][0] for group in groups]
            chart = line_chart([g[x] for g in groups], ys, label=heading, x_name=x, baseline=("chance", 0.5))
            figures.append(_figure(heading, about, chart))
    return f'<section><h2>Curves</h2><div class="charts">{"".join(figures)}</div></section>{_groups(results)}'


def _groups(results: Results) -> str:
    parts = []
    for key, column, heading in (
        ("by_difference", "size", "By the size of the gold difference"),
        ("by_novelty", "novelty", "By distance from the training data"),
    ):
        if results[key]:
            rows = [
                [f"{g[column]:.3f}", f"{g['count']}", percent(g["judge"]), percent(g["gold"])] for g in results[key]
            ]
            parts.append(f"<h3>{heading}</h3>{_table(['mean ' + column, 'pairs', 'judge', 'gold'], rows)}")
    return f"<details><summary>The numbers behind the curves</summary>{''.join(parts)}</details>" if parts else ""


def _figure(heading: str, about: str, svg: str) -> str:
    caption = f'<figcaption><span>{safe(heading)}</span></figcaption><p class="note">{safe(about)}</p>'
    return f"<figure>{caption}{svg}</figure>"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML."""
    head = f"<tr>{''.join(f'<th>{heading}</th>' for heading in headings)}</tr>" if any(headings) else ""
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="table"><table>{head}{body}</table></div>'


def _biases(results: Results) -> str:
    rows = [
        [
            safe(row["name"]),
            interval(row["judge"]),
            interval(row["gold"]),
            interval(row["labels"]),
            interval(row["judge_beyond_gold"]),
            interval(row["labels_beyond_gold"]),
        ]
        for row in results["biases"]
    ]
    headings = ["", "judge", "gold", "labels", "judge beyond the gold", "labels beyond the gold"]
    note = (
        "Correlations of differences within pairs. Beyond the gold: partial correlations, 0 for who follows the gold "
        "and nothing else."
    )
    body = f'<section><h2>Biases</h2><p class="note">{note}</p>{_table(headings, rows)}'
    if results["probes"]:
        probes = [
            [safe(r["name"]), number(r["judge"]), f"{r['gains']:.0%}", number(r["gold"])] for r in results["probes"]
        ]
        note = "What happens to the score when a chosen text is changed, in standard deviations of the score."
        headings = ["the text with", "judge", "texts that gain", "gold"]
        body += f'<p class="note">{note}</p>{_table(headings, probes)}'
    return body + "</section>"


def _kinds(results: Results) -> str:
    if results["by_kind"] is None:
        return ""
    column, groups = results["by_kind"]["column"], results["by_kind"]["rows"]
    rows = [[safe(g["name"]), f"{g['count']}", percent(g["judge"]), percent(g["gold"])] for g in groups]
    return f"<section><h2>By {safe(column)}</h2>{_table([safe(column), 'pairs', 'judge', 'gold'], rows)}</section>"


def _policy(results: Results) -> str:
    found = results["policy"]
    if found is None:
        return ""
    rows = [
        ["pairs", f"{found['pairs']}"],
        ["accuracy of the judge", percent(found["accuracy"]["judge"])],
        ["ceiling", percent(found["accuracy"]["gold"])],
        ["judge's score above the held-out texts, deviations", number(found["judge_shift"])],
        ["gold score above them, deviations", number(found["gold_shift"])],
    ]
    return f"<section><h2>On the policy's own samples</h2>{_table(['', ''], rows)}</section>"


def _ensemble(results: Results) -> str:
    found = results["ensemble"]
    if found is None:
        return ""
    rows = [
        [f"{g['spread']:.3f}", f"{g['count']}", percent(g["judge"]), percent(g["gold"])] for g in found["by_spread"]
    ]
    note = (
        f"{found['members']} members; any two order {found['same_order']:.1%} of the pairs alike, their differences "
        f"correlate at {found['correlation']:.2f}. Below: accuracy of their mean where they disagree least to most."
    )
    headings = ["mean spread", "pairs", "judge", "gold"]
    return f'<section><h2>Ensemble</h2><p class="note">{note}</p>{_table(headings, rows)}</section>'


def _data(results: Results) -> str:
    data = results["data"]
    rows = [
        ["pairs, prompts, annotators", f"{data['pairs']:,}, {data['prompts']:,}, {data['annotators']:,}"],
        ["ties", f"{data['ties']:.1%}"],
        ["same answer where a pair was asked again", "–" if data["agree"] is None else f"{data['agree']:.1%}"],
        ["different texts", f"{data['different_texts']:.1%}"],
        ["distinct-1, distinct-2", f"{data['distinct_1']:.3f}, {data['distinct_2']:.3f}"],
        ["words a completion", f"{data['words']:.1f}"],
    ]
    if data["known_share"] is not None:
        rows.append(["word pairs of the held-out texts that it has", f"{data['known_share']:.1%}"])
        rows.append(["held-out prompts that it has", f"{data['leaked_prompts']:.1%}"])
    return f"<section><h2>The {data['which']} data</h2>{_table(['', ''], rows)}</section>"


def _mistakes(results: Results) -> str:
    blocks = []
    for row in results["mistakes"]:
        sides = []
        for css, name, key in (("after", "Better", "better"), ("before", "Worse", "worse")):
            numbers = [f"<span>judge {number(row[f'score_{key}'], '+.3f')}</span>"]
            if row[f"gold_{key}"] is not None:
                numbers.append(f"<span>gold {number(row[f'gold_{key}'], '+.3f')}</span>")
            text = safe(row[key].lstrip(" ")) or '<span class="empty">(nothing)</span>'
            head = f'<p class="scores"><b>{name}</b>{"".join(numbers)}</p>'
            sides.append(f'<div class="side {css}">{head}<p class="text" dir="auto">{text}</p></div>')
        prompt = f'<p class="prompt" dir="auto">{safe(row["prompt"])}</p>'
        said = f'<p class="note">{SAID[row["label"]]}</p>'
        blocks.append(f'<article>{prompt}<div class="sides">{"".join(sides)}</div>{said}</article>')
    note = "The pairs that it orders most confidently the wrong way round, as the gold (or else the label) has it."
    body = "".join(blocks) or '<p class="note">None.</p>'
    return f'<section><h2>The ten worst mistakes</h2><p class="note">{note}</p>{body}</section>'
