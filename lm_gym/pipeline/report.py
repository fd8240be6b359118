"""The pipeline's report: one page of HTML, without network or scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_gym.pipeline.curves import curves
from lm_gym.pipeline.report_parts import (
    configuration_section,
    costs_section,
    interval,
    judge_section,
    policy_name,
    samples_section,
    share,
    signed,
    table,
)
from lm_gym.report_style import page, safe
from lm_gym.run_files import read_jsonl
from lm_gym.runinfo import write_atomically
from lm_gym.svg_chart import line_chart, number_text

if TYPE_CHECKING:
    from lm_gym.pipeline.context import Context

PARTED = 0.5
"""Standard deviations of the reward model's gain beyond the gold's from which the page speaks of over-optimisation."""
STYLE = """<style>
td.n, th.n { text-align: right; padding-left: 16px; }
table.wide th, table.wide td { white-space: nowrap; width: auto; }
.second { stroke: #c2571a; }
.name { fill: var(--after); font-size: 11px; stroke: var(--ground); stroke-width: 4px; paint-order: stroke; }
.name.second { fill: #c2571a; stroke: var(--ground); }
.charts.two .tick { font-size: 7.8px; } /* these are drawn 1.35 times as large as they are, the wide one is not */
.charts.two { grid-template-columns: repeat(auto-fill, minmax(min(440px, 100%), 1fr)); margin-top: 20px; }
.verdict { font-size: 16px; margin-top: 14px; max-width: 62em; }
.bar { height: 12px; min-width: 130px; display: flex; } .bar span { display: block; height: 100%; }
.bar .won { background: var(--after); } .bar .tied { background: var(--line); } .bar .lost { background: #d9925f; }
</style>"""


def write_page(
    ctx: Context, path: Path, results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], cpu_seconds: float
) -> None:
    """Write the page of a pipeline whose training stages are done.

    Args:
        results: what `results.json` holds. rows: what `texts.jsonl` holds. cpu_seconds: of this stage.
    """
    logged = read_jsonl(ctx.out / "rl" / "run" / "metrics.jsonl")
    sections = [
        STYLE + _header(ctx, results),
        _headline(ctx, results),
        _policies(ctx, results),
        _wins(ctx, results),
        _training(results, logged),
        judge_section(ctx),
        costs_section(ctx, results, cpu_seconds),
        samples_section(ctx, rows),
        configuration_section(ctx),
    ]
    write_atomically(path, page("From a base model to RLHF", sections))


def _header(ctx: Context, results: Mapping[str, Any]) -> str:
    c = ctx.config
    facts = {
        "model": c.model, "prompts": c.prompts, "gold": c.gold_name, "β": f"{c.rl.kl_coef:g}", "seed": str(c.seed),
        "evaluation prompts": str(results["prompts"]),
    }  # fmt: skip
    spans = " ".join(f"<span>{safe(name)} <b>{safe(value)}</b></span>" for name, value in facts.items())
    return f'<header><h1>From a base model to RLHF</h1><p class="facts">{spans}</p></header>'


def _headline(ctx: Context, results: Mapping[str, Any]) -> str:
    policies, win = results["policies"], results["wins"]["rl"]["sft"]
    judge = ctx.records["reward-model"].numbers["accuracy"]
    cells = [
        (
            "Gold score: SFT → RLHF",
            f'<span class="before">{signed(policies["sft"]["gold"][0])}</span><span class="to">→</span>'
            f"{signed(policies['rl']['gold'][0])}",
            f"base {signed(policies['base']['gold'][0])}",
        ),
        ("RLHF wins over SFT", share(win["rate"]), f"{win['won']} won, {win['tied']} tied, {win['lost']} lost"),
        ("Reward model right", share(judge["judge"]), "of held-out labels"),
    ]
    if judge["gap"] is not None:
        cells.append(("Below the ceiling", share(judge["gap"]), "that annotator noise allows"))
    blocks = [
        f'<div class="number"><h3>{heading}</h3><p class="big">{big}</p><p class="of">{note}</p></div>'
        for heading, big, note in cells
    ]
    note = '<p class="note">In brackets: 95% intervals, from draws of prompts. A tie counts half.</p>'
    return (
        f'<section class="headline"><div class="numbers">{"".join(blocks)}</div>{note}'
        f'<p class="verdict">{safe(_verdict(results))}</p></section>'
    )


def _verdict(results: Mapping[str, Any]) -> str:
    """What came out, in a sentence or two."""
    _, low, high = results["wins"]["rl"]["sft"]["rate"]
    policies = results["policies"]
    if low > 0.5:
        said = "RLHF writes better texts than SFT by the gold score"
    elif high < 0.5:
        said = (
            "RLHF writes worse texts than SFT by the gold score: the learned reward was followed too far, or is wrong"
        )
    else:
        said = "RLHF and SFT cannot be told apart by the gold score on these prompts"
    _, below, above = results["wins"]["rl"]["best-of-n"]["rate"]
    beside = "better than" if below > 0.5 else "worse than" if above < 0.5 else "not to be told from"
    found = f"{said}; it is {beside} best-of-n. "
    learned, true = (_gain(policies, key) for key in ("reward", "gold"))
    if learned is not None and true is not None:
        found += f"Over SFT the learned reward rose by {signed(learned, 2, '')} standard deviations, the gold by "
        found += f"{signed(true, 2, '')}: "
        found += "over-optimised." if learned - true > PARTED else "they moved together."
    return found


def _gain(policies: Mapping[str, Any], key: str) -> float | None:
    """How far RLHF is above SFT in standard deviations of SFT's texts."""
    sft = policies["sft"]
    return None if sft[f"{key}_std"] == 0 else (policies["rl"][key][0] - sft[key][0]) / sft[f"{key}_std"]


def _policies(ctx: Context, results: Mapping[str, Any]) -> str:
    rows = []
    for key, found in results["policies"].items():
        kl = signed(found["kl"], 2, "") if found["kl_sem"] is not None else f"≤ {found['kl']:.2f}"
        agreement = "–" if found["correlation"] is None else signed(found["correlation"], 2, "")
        rows.append(
            [
                f"<b>{safe(policy_name(ctx, key))}</b>",
                interval(found["gold"]),
                interval(found["reward"], 2),
                kl,
                f"{found['length']:.1f}",
                f"{found['ended']:.0%}",
                f"{found['distinct_2']:.3f}",
                f"{found['different']:.0%}",
                agreement,
            ]
        )
    headings = ["", "gold score", "learned reward", "KL", "tokens", "ended", "distinct-2", "different", "agreement"]
    note = (
        f"One text for each of {results['prompts']} prompts that no stage was trained on. KL: nats a text to the SFT "
        "model, of best-of-n the upper bound log n − (n − 1)/n. Ended: before the length limit. Different: texts "
        "that no other equals. Agreement: Pearson's correlation of learned reward and gold over a policy's own texts."
    )
    return f'<section><h2>Four policies, one truth</h2>{table(headings, rows)}<p class="note">{note}</p></section>'


def _wins(ctx: Context, results: Mapping[str, Any]) -> str:
    rows = []
    for ours, theirs in (("sft", "base"), ("best-of-n", "sft"), ("rl", "sft"), ("rl", "best-of-n"), ("rl", "base")):
        found = results["wins"][ours][theirs]
        parts = "".join(f'<span class="{k}" style="flex: {found[k]}"></span>' for k in ("won", "tied", "lost"))
        counts = (f"{found[k]}" for k in ("won", "tied", "lost"))
        title = f"{safe(policy_name(ctx, ours))} over {safe(policy_name(ctx, theirs))}"
        rows.append([title, *counts, share(found["rate"]), f'<div class="bar">{parts}</div>'])
    headings = ["", "won", "tied", "lost", "win rate", ""]
    note = "Prompt by prompt, by gold score; in the win rate a tie counts half."
    return f'<section><h2>Who wins</h2>{table(headings, rows)}<p class="note">{note}</p></section>'


def _training(results: Mapping[str, Any], logged: Sequence[Mapping[str, Any]]) -> str:
    rows = [r for r in logged if "reward/gold" in r and "objective/scores" in r]
    if not rows:
        note = "This agent logs no scores of its own texts."
        return f'<section><h2>Over-optimisation</h2><p class="note">{note}</p></section>'
    sft, xs = results["policies"]["sft"], [float(r["tokens"]) for r in rows]

    def in_deviations(metric: str, key: str) -> list[float]:
        return [(r[metric] - sft[key][0]) / (sft[f"{key}_std"] or 1.0) for r in rows]

    both = [
        ("learned reward", in_deviations("objective/scores", "reward")),
        ("gold", in_deviations("reward/gold", "gold")),
    ]
    wide = curves(xs, both, label="learned reward and gold over training", x_name="tokens", smooth=len(xs) >= 10)
    note = (
        "Scores of the texts that it trains on, in standard deviations above the mean of SFT's texts. Training sees "
        "the learned reward (solid) alone; where the gold (dashed) stays behind, the reward model is being exploited."
    )
    figures = []
    for metric, heading, about in (
        ("objective/kl", "KL to SFT, nats a text", "over tokens"),
        ("length/mean", "Length, tokens", "over tokens"),
        ("reward/gold_correlation", "Agreement", "correlation of learned reward and gold within a batch, over tokens"),
    ):
        there = [r for r in rows if metric in r]
        if there:
            svg = line_chart([r["tokens"] for r in there], [r[metric] for r in there], label=heading)
            figures.append(_figure(heading, about, svg, number_text(there[-1][metric])))
    kls = [r["objective/kl"] for r in rows]
    cloud = line_chart(kls, [r["reward/gold"] for r in rows], label="gold", x_name="nats of KL", ordered=False)
    figures.append(_figure("Gold against KL", "one dot an update, later ones stronger", cloud, ""))
    return (
        f'<section><h2>Over-optimisation</h2><p class="note">{note}</p><figure>{wide}</figure>'
        f'<div class="charts two">{"".join(figures)}</div></section>'
    )


def _figure(heading: str, about: str, svg: str, last: str) -> str:
    caption = f'<figcaption><span>{safe(heading)}</span><span class="last">{last}</span></figcaption>'
    return f'<figure>{caption}<p class="note">{safe(about)}</p>{svg}</figure>'
