"""`lm-gym annotate serve | status | export | import | select`: preferences from people (docs/annotate.md)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from lm_gym.annotate.export import How, Layout, export
from lm_gym.annotate.importing import read_pairs
from lm_gym.annotate.selection import By, select
from lm_gym.annotate.status import status
from lm_gym.annotate.status_text import report
from lm_gym.annotate.store import Store
from lm_gym.cli.annotate_serve import Serve, add, serve, tell_unusable
from lm_gym.cli.errors import Failed, refusing
from lm_gym.rewards import RewardModelError
from lm_gym.runinfo import write_atomically


@dataclass
class ImportPairs:
    """Add pairs to a store, and say which rows cannot be used."""

    data: str
    """A .jsonl, .json, .csv, .tsv (also .gz) or .parquet file, a folder of Dataset.save_to_disk, or a hub id."""
    db: str = "prefs.sqlite"
    """The store, made if missing."""
    gold: bool = False
    """They are gold items: everybody gets them, the known answer is `chosen` with its `label`, a rank, or `gold`."""
    hold: bool = False
    """Hold them back until `lm-gym annotate select` asks about them."""
    unusable: str | None = None
    """A .jsonl file for the rows that cannot be used: where, and why."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass
class Select:
    """Ask about more of the pairs held back: at random, or where scores leave most to learn."""

    n: int
    """How many."""
    db: str = "prefs.sqlite"
    """The store."""
    by: By = "random"
    """margin: where the mean margin is nearest to 0; disagreement: where the members of an ensemble differ most."""
    columns: tuple[str, ...] = ()
    """Columns of the imported rows with scores, each a member: a margin (a minus b), or a list of both scores."""
    rewards: tuple[str, ...] = ()
    """Reward models, as in `lm-gym train`, each a member."""
    seed: int = 0
    """Of random."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass
class Export:
    """Write what people said as training data: preferences, ties, and flags, each in a file of its own."""

    out: str = "preferences.jsonl"
    """The preferences; ties and flags go beside it, to .ties.jsonl and .flags.jsonl."""
    db: str = "prefs.sqlite"
    """The store."""
    aggregate: How = "majority"
    """One row a pair by majority, mean or dawid-skene; none: one row an answer, with its annotator."""
    format: Layout = "as-is"
    """TRL's standard (texts) or conversational (messages) format; as-is: as each pair was imported."""
    with_ties: bool = False
    """Ties among the preferences too, with the label .5."""
    with_gold: bool = False
    """Answers to gold items too."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass
class Show:
    """Progress, speed, agreement, accuracy on gold items, position bias, and where people differ most."""

    db: str = "prefs.sqlite"
    """The store."""
    json: bool = False
    """As JSON."""
    debug: bool = False
    """Show the traceback of an error."""


Command = (
    Annotated[Serve, tyro.conf.subcommand("serve")]
    | Annotated[Show, tyro.conf.subcommand("status")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[ImportPairs, tyro.conf.subcommand("import")]
    | Annotated[Select, tyro.conf.subcommand("select")]
)


def annotate(args: Sequence[str]) -> int:
    """Run `lm-gym annotate <args>`; returns the exit code."""
    command: Any = tyro.cli(
        Command,  # type: ignore[arg-type]
        prog="lm-gym annotate",
        description="Preferences from people: a page to compare two completions, and a store that loses no answer.",
        args=list(args) or ["--help"],
    )
    with refusing():
        if isinstance(command, Serve):
            return serve(command)
        if isinstance(command, ImportPairs):
            return import_pairs(command)
        if isinstance(command, Select):
            return ask_about(command)
        with Store(command.db) as store:
            if isinstance(command, Show):
                found = status(store)
                print(json.dumps(found.as_json(), indent=2) if command.json else report(found))
                return 0
            done = export(
                store,
                command.out,
                how=command.aggregate,
                layout=command.format,
                with_ties=command.with_ties,
                gold=command.with_gold,
            )
        what = "answers" if command.aggregate == "none" else "pairs"
        print(f"{done.rows:>6} {what} with a preference  {done.preferences}")
        print(f"{done.tied:>6} ties{' (in both files)' * command.with_ties:<20}  {done.ties}")
        print(f"{done.flagged:>6} flags and skips       {done.flags}")
    return 0


def ask_about(options: Select) -> int:
    """Select, and say how many.

    Raises:
        Failed: a reward model raised, or returned what is no score.
    """
    with Store(options.db) as store:
        try:
            chosen = select(
                store, options.n, by=options.by, columns=options.columns, rewards=options.rewards, seed=options.seed
            )
        except RewardModelError as error:
            raise Failed(str(error)) from error
    print(f"{len(chosen)} more pairs are asked about")
    return 0


def import_pairs(options: ImportPairs) -> int:
    """Read, tell, add."""
    found = read_pairs(options.data)
    tell_unusable(found)
    if options.unusable is not None:
        lines = [json.dumps({"where": where, "why": why}, ensure_ascii=False) for where, why in found.unusable]
        write_atomically(Path(options.unusable), "".join(f"{line}\n" for line in lines))
    if not found.pairs:
        raise ValueError(f"{options.data} has no pair that can be used")
    with Store(options.db, create=True) as store:
        added = add(store, found, options.data, gold=options.gold, hold=options.hold)
    print(f"{added} pairs added to {options.db}, {len(found.pairs) - added} were there, {len(found.unusable)} unusable")
    return 0
