"""`lm-gym train reward-model`: a Bradley-Terry reward model from preference data.

It learns from comparisons and not from an environment, so it is no agent and has a parser of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import tyro

from lm_gym.cli.errors import Failed, refusing
from lm_gym.folders import locked
from lm_gym.reward_models.bradley_terry import RewardModelConfig, RewardModelFit, train_reward_model

LOOK = "{epoch:5.2f}   {train_loss:10.4f}"
HELD_OUT = "   {loss:13.4f}   {accuracy:8.1%}"


@dataclass
class TrainRewardModel(RewardModelConfig):
    """Train a Bradley-Terry reward model on preference data."""

    data: str = tyro.MISSING
    """Pairs in TRL's formats or a published layout: a .jsonl, .json, .csv, .tsv (also .gz) or .parquet file, or a hub
    id org/name[:split]."""
    out: str = tyro.MISSING
    """The folder to write: weights, tokenizer, bradley_terry.json. One that holds a model is refused."""
    rankings: bool = False
    """The data are rankings: columns prompt and completions, from best to worst."""
    held_out_data: str | None = None
    """Comparisons for early stopping, in place of a share of --data."""
    threads: int | None = None
    """Threads of torch; None: as many as torch takes by itself."""
    debug: bool = False
    """Show the traceback of an error."""


def run_training(args: Sequence[str]) -> int:
    """Parse, train, save, print. Returns the exit code.

    Raises:
        Refused: an option or a file that the user can put right. Failed: a loss that is no number.
    """
    import torch
    from transformers.utils import logging

    from lm_gym.preferences import load_preferences, load_rankings

    logging.disable_progress_bar()  # a bar for the two files of a small model
    with refusing():
        options = tyro.cli(
            TrainRewardModel,
            prog="lm-gym train reward-model",
            description="Train a Bradley-Terry reward model on preference data; --reward hf:<out> uses it.",
            args=list(args),
        )
    out = Path(options.out)
    with refusing(), locked(out, beside=True):
        if (out / "config.json").exists():
            raise ValueError(f"{out} holds a model already: choose another --out")
        load = load_rankings if options.rankings else load_preferences
        data = load(options.data, unusable=options.unusable)
        given = options.held_out_data
        held_out = None if given is None else load(given, unusable=options.unusable)
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        config = RewardModelConfig(**{f.name: getattr(options, f.name) for f in fields(RewardModelConfig)})
        checked = bool(config.held_out or held_out)
        print("epoch   train loss" + ("   held-out loss   accuracy" if checked else ""), flush=True)
        shown = LOOK + (HELD_OUT if checked else "")
        try:
            fit = train_reward_model(
                data, config, held_out_data=held_out, log=lambda row: print(shown.format(**row), flush=True)
            )
        except FloatingPointError as error:
            raise Failed(str(error)) from error
        fit.save(out)
    print_fit(fit, out)
    return 0


def print_fit(fit: RewardModelFit, out: Path) -> None:
    """What was kept, what else was learned, where it is and how to use it."""
    best = fit.history[fit.best]
    if "loss" in best:
        print(
            f"kept        epoch {best['epoch']:.2f}: accuracy {best['accuracy']:.1%} on held-out pairs ({fit.held_out})"
        )
    for e in fit.estimates:
        print(f"{e.name:<11} {e.value:.3f}   95% interval {e.low:.3f} to {e.high:.3f}")
    print(f"saved       {out}")
    print(f"judge with  --reward hf:{out}")
    print(f"measure     lm-gym reward eval --reward hf:{out} --data <held-out pairs>")
