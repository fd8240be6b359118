"""Texts before and after training on prompts that were not trained on: drawn, judged, printed and written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_gym.prompts import Prompt
from lm_gym.runinfo import write_atomically

if TYPE_CHECKING:
    from lm_gym.evaluation import Drawn

EVAL_SEED = 12345
"""Of the draws of an evaluation: the same for every run, so that runs differ by their policy alone."""
TEXTS_SHOWN = 6
DECODED_AT_ONCE = 256

NUMBERS = (
    ("reward", "objective/scores", ".3f"),
    ("KL to the reference, nats a text", "objective/kl", ".2f"),
    ("reward − β·KL", "objective/j", ".3f"),
    ("length, tokens", "length/mean", ".1f"),
    ("share that ends", "length/ended_share", ".0%"),
    ("distinct-1", "text/distinct_1", ".3f"),
    ("distinct-2", "text/distinct_2", ".3f"),
)
"""Rows of the printed table: what, metric, format."""


def before_training(agent: Any, prompts: Sequence[Prompt]) -> Drawn:
    """One text for each prompt of the model that the agent's policy started from, with the draws of its evaluation."""
    from lm_gym.decoding import Engine
    from lm_gym.evaluation import measure

    mdp = agent.mdp
    lm = mdp.initial_policy()
    engine = Engine(lm, guide=mdp.reference, seed=EVAL_SEED, keep_hidden=True)
    params = replace(mdp.generation_params, rows=DECODED_AT_ONCE)
    completions = engine.generate([p.token_ids for p in prompts], params)
    for completion, prompt in zip(completions, prompts, strict=True):
        completion.prompt = prompt
    return measure(mdp, lm, completions, kl_coef=agent.kl_coef, trainer_state=agent.state)


def pair_rows(before: Drawn, after: Drawn) -> list[dict[str, Any]]:
    """Rows of samples_before_after.jsonl, as :func:`lm_gym.report.write_report` takes them.

    Their means are the numbers that :func:`print_evaluation` prints.
    """
    return [
        {
            "prompt": prompt.text,
            "before": before.texts[i],
            "after": after.texts[i],
            "score_before": before.scores[i],
            "score_after": after.scores[i],
            "kl": after.kls[i],
            "length_before": before.lengths[i],
            "length_after": after.lengths[i],
        }
        for i, prompt in enumerate(before.prompts)
    ]


def write_pairs(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def print_evaluation(before: Drawn, after: Drawn, rows: Sequence[Mapping[str, Any]], *, what: str) -> None:
    """A few texts at equal distances side by side, as they came, then the numbers of all of them."""
    from rich.console import Console
    from rich.table import Table

    from lm_gym.terminal import print_before_after

    console = Console()
    shown = min(TEXTS_SHOWN, len(rows))
    console.print(f"\n{len(rows)} texts before and after, on {what}; {shown} of them at equal distances, as they came:")
    print_before_after([rows[i * len(rows) // shown] for i in range(shown)], console)
    table = Table(title=f"means of {len(rows)} texts", title_justify="left")
    for heading in ("", "before", "after"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    for label, key, form in NUMBERS:
        cells = [format(round(drawn.metrics[key], 4) + 0.0, form) for drawn in (before, after)]  # never -0.00
        if key == "objective/scores":
            cells = [
                f"{c} ± {d.metrics['objective/scores_sem']:.3f}" for c, d in zip(cells, (before, after), strict=True)
            ]
        table.add_row(label, *cells)
    console.print(table)
