"""Texts before and after training on prompts that were not trained on: drawn, judged, printed and written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_gym.cli.errors import say
from lm_gym.prompts import Prompt
from lm_gym.runinfo import write_atomically
from lm_gym.terminal import printable, shorten

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
    ("watching judge", "reward/watch", ".3f"),
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


def stands_out(agent: Any, before: Drawn, after: Drawn) -> list[str]:
    """The findings of :mod:`lm_gym.run_findings`, with what changes of the texts before training earn of the judge."""
    from lm_gym.reward_models.watched import Watched
    from lm_gym.reward_probes import probe
    from lm_gym.rewards import RewardModelError
    from lm_gym.run_findings import run_findings, seen_in

    mdp = agent.mdp
    judge: Any = mdp.reward_model
    gold = None
    if isinstance(judge, Watched):
        judge, gold = judge.judge, judge.watch
    seen = []
    for drawn in (before, after):
        watch = [] if gold is None else drawn.extra["watch"]
        more = {"reward_std": float(np.std(drawn.scores)), "error": drawn.metrics["objective/scores_sem"]}
        seen.append(seen_in([drawn.metrics], **more, **({"watch_std": float(np.std(watch))} if watch else {})))
    texts = [
        (p.for_reward, text, p.columns) for p, text in zip(before.prompts, before.texts, strict=True) if not p.messages
    ]
    probes: list[dict[str, Any]] = []
    if texts:
        spreads = {"gold_spread": seen[0].watch_std or 1.0}
        try:
            probes = probe(
                texts, [judge], seen[0].reward_std or 1.0, gold=gold, **spreads, tokenizer=mdp.reference.tokenizer
            )
        except RewardModelError as error:  # one that cannot score an empty text has trained well all the same
            say(f"note: what padding and repetition earn was not tried: {shorten(str(error), 200)}")
    return run_findings(seen[0], seen[1], probes)


def print_findings(found: Sequence[str]) -> None:
    """What stands out, a paragraph each; nothing where nothing does."""
    if found:
        print("what stands out:")
    for line in found:
        print(f"- {printable(line)}")


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
        if key not in before.metrics:  # of a judge that is not there
            continue
        cells = [format(round(drawn.metrics[key], 4) + 0.0, form) for drawn in (before, after)]  # never -0.00
        if key == "objective/scores":
            cells = [
                f"{c} ± {d.metrics['objective/scores_sem']:.3f}" for c, d in zip(cells, (before, after), strict=True)
            ]
        table.add_row(label, *cells)
    console.print(table)
