"""`lm-gym reward eval`: how good a judge is, in numbers, in sentences and on a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import tyro


@dataclass
class Reward:
    """Measure a reward model on held-out preference data, and write a page about it."""

    action: tyro.conf.Positional[Literal["eval"]]
    """eval: score, measure, write."""
    reward: tuple[str, ...]
    """The reward model, as in `lm-gym train`; several are an ensemble, whose mean is measured."""
    data: str
    """Held-out pairs in any of TRL's formats."""
    gold: str | None = None
    """The truth, a reward model; None: the columns gold_chosen and gold_rejected, if they are there."""
    train_data: str | None = None
    """The pairs that it was trained on: for distances, coverage and leaks."""
    policy_data: str | None = None
    """Pairs of the trained policy's own samples (lm-gym preferences make --model <run>)."""
    unusable: Literal["error", "drop"] = "error"
    """Rows that are no pairs refuse the whole, or are left out and counted in a warning."""
    by: str | None = None
    """Column with kinds of prompt; None: the first of kind, topic and annotator that differs."""
    tokenizer: str | None = None
    """For a judge that reads token ids: tiny, a hub id or a folder."""
    out: str = "reward-eval"
    """The folder for reward_eval.html and reward_eval.json."""
    title: str | None = None
    """Of the page."""
    threads: int | None = None
    """Threads of torch; None: as many as torch takes by itself."""
    debug: bool = False
    """Show the traceback of an error."""


def evaluate_reward(options: Reward) -> int:
    """Score, measure, print, write. Returns the exit code.

    Raises:
        ValueError: a judge, file or column that cannot be used.
        Failed: a judge raised, or returned what is no score.
    """
    from transformers.utils import logging

    from lm_gym.cli.errors import Failed
    from lm_gym.judged_pairs import judge_pairs
    from lm_gym.preferences import load_preferences
    from lm_gym.reward_eval import evaluate
    from lm_gym.reward_findings import findings
    from lm_gym.reward_page import write_page
    from lm_gym.rewards import RewardModelError, load_reward_model
    from lm_gym.terminal import printable

    logging.disable_progress_bar()  # a bar for the two files of a small model
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)
    read = lambda source: load_preferences(source, unusable=options.unusable)
    data = read(options.data)
    train = None if options.train_data is None else read(options.train_data)
    policy = None if options.policy_data is None else read(options.policy_data)
    judges = [load_reward_model(name) for name in options.reward]
    gold = None if options.gold is None else load_reward_model(options.gold)
    tokenizer = None if options.tokenizer is None else _tokenizer(options.tokenizer)
    try:
        judged = judge_pairs(data, judges, gold=gold, tokenizer=tokenizer)
        theirs = None if policy is None else judge_pairs(policy, judges, gold=gold, tokenizer=tokenizer)
        results = evaluate(judged, train=train, policy=theirs, kind=options.by, tokenizer=tokenizer)
    except RewardModelError as error:
        raise Failed(str(error)) from error
    _print(results)
    for line in findings(results):
        print(f"! {printable(line)}")
    print(f"page        {write_page(options.out, results, judged, title=options.title)}")
    return 0


def _print(results: dict[str, Any]) -> None:
    found, calibration = results["accuracy"], results["calibration"]
    for name, key in (("accuracy", "judge"), ("ceiling", "gold"), ("gap", "gap"), ("gold order", "gold_order")):
        if found[key] is not None:
            value, low, high = found[key]
            print(f"{name:<11} {value:.1%}   95% interval {low:.1%} to {high:.1%}")
    print(f"ECE         {calibration['ece']:.3f}   Brier {calibration['brier']:.3f}   gain {calibration['gain']:.3g}")


def _tokenizer(name: str) -> Any:
    from lm_gym.loading import load_tokenizer
    from lm_gym.tiny import tiny_path

    return load_tokenizer(str(tiny_path()) if name == "tiny" else name, "tokenizer")
