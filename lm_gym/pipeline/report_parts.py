"""Parts of the pipeline's report: numbers in HTML, the reward model, costs, samples, configuration."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lm_gym.held_out import spread
from lm_gym.report_style import safe
from lm_gym.runinfo import read_config

if TYPE_CHECKING:
    from lm_gym.pipeline.context import Context

NAMES = {"base": "Base", "sft": "SFT", "best-of-n": "Best-of-n", "rl": "RLHF"}


def signed(value: float, digits: int = 3, plus: str = "+") -> str:
    """A number with a true minus sign, and never −0."""
    return f"{round(value, digits) + 0.0:{plus}.{digits}f}".replace("-", "−")


def interval(found: Sequence[float], digits: int = 3) -> str:
    """Value and 95% interval."""
    value, low, high = (signed(x, digits) for x in found)
    return f"{value} <span class='error'>({low} to {high})</span>"


def share(found: Sequence[float] | None) -> str:
    """A share with its 95% interval; a dash where it is not known."""
    if found is None:
        return "–"
    return f"{found[0]:.1%} <span class='error'>({found[1]:.1%} to {found[2]:.1%})</span>".replace("-", "−")


def policy_name(ctx: Context, policy: str) -> str:
    n = ctx.config.evaluation.best_of_n
    return {"best-of-n": f"Best of {n}", "rl": f"RLHF ({ctx.config.rl.agent_class.name})"}.get(policy, NAMES[policy])


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, css: str = "wide") -> str:
    """Cells are HTML; all columns but the first are to the right."""
    head = "".join(f'<th class="n">{h}</th>' if i else f"<th>{h}</th>" for i, h in enumerate(headings))
    body = "".join(
        "<tr>" + "".join(f'<td class="n">{c}</td>' if i else f"<td>{c}</td>" for i, c in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f'<div class="table"><table class="{css}"><tr>{head}</tr>{body}</table></div>'


def judge_section(ctx: Context) -> str:
    """How good the reward model is on held-out labels, and what stands out; the whole page is linked."""
    found = ctx.records["reward-model"].numbers
    accuracy = found["accuracy"]
    rows = [
        ["right on held-out labels", share(accuracy["judge"])],
        ["the ceiling: right if it were the gold itself", share(accuracy["gold"])],
        ["below the ceiling, on the same pairs", share(accuracy["gap"])],
        ["orders pairs as the gold does", share(accuracy["gold_order"])],
        ["calibration error (ECE)", f"{found['ece']:.3f}"],
    ]
    page = json.loads((ctx.out / "reward-model" / "reward_eval.json").read_text(encoding="utf-8"))
    lines = "".join(f"<li>{safe(line)}</li>" for line in page["findings"])
    body = f"<ul>{lines}</ul>" if lines else ""
    link = '<p class="note"><a href="../reward-model/reward_eval.html">All that was measured about it.</a></p>'
    return f"<section><h2>The reward model</h2>{table(['', ''], rows)}{body}{link}</section>"


def costs_section(ctx: Context, results: Mapping[str, Any], cpu_seconds: float) -> str:
    """Labels, tokens and CPU seconds of each stage."""
    made = {name: record.numbers for name, record in ctx.records.items()}
    seconds = {name: record.cpu_seconds for name, record in ctx.records.items()} | {"evaluation": cpu_seconds}
    sft, pairs, rl = made["sft"], made["preferences"], made["rl"]
    n = results["best_of_n"]
    held_out = f"held-out loss {sft['loss_before']:.3f} → {sft['loss_after']:.3f}" if "loss_after" in sft else ""
    agreement = "" if pairs["agreement"] is None else f"{pairs['agreement']:.1%} of the answers agree with the score"
    rows = [
        ["SFT", f"{sft['demonstrations']:,} demonstrations", f"{sft['tokens']:,} imitated", held_out],
        [
            "Preferences",
            f"{pairs['labels']:,} comparisons (and {pairs['test_labels']:,} held out)",
            f"{pairs['tokens']:,} drawn",
            agreement,
        ],
        ["Reward model", "", "", f"{made['reward-model']['epoch']:g} passes over the comparisons"],
        ["RL", "", f"{rl['tokens']:,} drawn", f"{rl['updates']:,} updates, {rl['texts']:,} texts"],
        ["Evaluation", "", f"{n['tokens']:,} drawn for best of {n['n']}", "and this page"],
    ]
    for row, name in zip(rows, ("sft", "preferences", "reward-model", "rl", "evaluation"), strict=True):
        row.insert(3, f"{seconds[name]:.0f}")
    rows.append(["All", "", "", f"<b>{sum(seconds.values()):.0f}</b>", ""])
    headings = ["", "human labels", "tokens", "CPU seconds", ""]
    return f"<section><h2>What each stage cost</h2>{table(headings, rows, css='wide')}</section>"


def samples_section(ctx: Context, rows: Sequence[Mapping[str, Any]]) -> str:
    """Prompts at equal distances with the texts of all policies, as they came."""
    count = min(ctx.config.evaluation.samples, len(rows))
    if not count:
        return ""
    blocks = []
    for row in spread(rows, count):
        sides = []
        for policy in NAMES:
            found = row[policy]
            text = safe(found["text"].lstrip(" "))
            shown = text if text.strip() else '<span class="empty">(nothing)</span>'
            numbers = f"<span>gold {signed(found['gold'])}</span><span>learned {signed(found['reward'], 2)}</span>"
            css = "side after" if policy == "rl" else "side"
            head = f'<p class="scores"><b>{safe(policy_name(ctx, policy))}</b>{numbers}</p>'
            sides.append(f'<div class="{css}">{head}<p class="text" dir="auto">{shown}</p></div>')
        prompt = f'<p class="prompt" dir="auto">{safe(row["prompt"])}</p>'
        blocks.append(f'<article>{prompt}<div class="sides">{"".join(sides)}</div></article>')
    note = (
        "The first draw of each policy, on prompts at equal distances; the file texts.jsonl beside this page has all."
    )
    return f'<section><h2>Side by side</h2><p class="note">{note}</p>{"".join(blocks)}</section>'


def configuration_section(ctx: Context) -> str:
    """The resolved configuration, and where it came from."""
    config = read_config(ctx.out / "pipeline.yaml")
    rows = [[safe(name), safe(value)] for name, value in _flat(config)]
    body = "".join(f'<tr><th scope="row">{name}</th><td>{value}</td></tr>' for name, value in rows)
    summary = "<summary>Configuration and provenance</summary>"
    return f'<section><details>{summary}<div class="table"><table>{body}</table></div></details></section>'


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", "none" if value is None else str(value)
