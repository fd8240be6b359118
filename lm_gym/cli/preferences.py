"""`lm-gym preferences make`: pairs of a model's texts, labelled by simulated annotators."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from lm_gym.folders import filled_aside
from lm_gym.preference_data import Annotators, draw_pairs, label_pairs, write_preferences

if TYPE_CHECKING:
    from lm_gym.preferences import Preference
    from lm_gym.prompts import Prompt

GOLD = {"reviews": "tiny-sentiment", "questions": "tiny-helpfulness", "requests": "tiny-harmlessness"}
"""What is true about the texts of a prompt set of tiny."""


@dataclass
class Preferences:
    """Make preference data: pairs of a model's texts, labelled by simulated annotators."""

    action: tyro.conf.Positional[Literal["make"]]
    """make: draw, score, label, write."""
    out: str
    """The folder to write: train.jsonl and test.jsonl, in TRL's format, no prompt in both."""
    model: str = "tiny"
    """Whose texts: as in `lm-gym sample`, a run's folder too."""
    prompts: str = "tiny:reviews"
    """A prompt source, as in `lm-gym train`."""
    test_prompts: str | None = None
    """Prompts of test.jsonl; None: the test split of a tiny:... set, the last tenth of any other."""
    gold: str | None = None
    """The score that the annotators look at, a reward model as in `lm-gym train`; None: that of a tiny:... set."""
    pairs: int = 4000
    """In train.jsonl; prompts are used several times where there are fewer."""
    test_pairs: int = 1000
    """In test.jsonl."""
    max_new_tokens: int = 32
    """A text ends after so many tokens."""
    sampling_temperature: float = 1.0
    """Of the texts."""
    seed: int = 0
    """Of texts and answers: the same seed writes the same bytes."""
    annotators: Annotated[Annotators, tyro.conf.OmitArgPrefixes] = field(default_factory=Annotators)
    """Who labels."""
    device: str = "cpu"
    """cpu, cuda, or cuda:N."""
    debug: bool = False
    """Show the traceback of an error."""


def make_preferences(options: Preferences) -> int:
    """Draw, score, label, write. Returns the exit code.

    Raises:
        ValueError: a model, prompt source, score or number that cannot be used.
    """
    if options.test_pairs < 0:
        raise ValueError(f"test_pairs expected at least 0, got {options.test_pairs}")
    out = Path(options.out)
    with filled_aside(out) as aside:
        _make(options, out, aside)
    return 0


def _make(options: Preferences, out: Path, aside: Path) -> None:
    from lm_gym.cli.sample import load_policy
    from lm_gym.rewards import load_reward_model

    used = [name for name in ("train.jsonl", "test.jsonl") if (out / name).exists()]
    if used:
        raise ValueError(f"{out} already holds {' and '.join(used)}: choose another --out")
    gold = load_reward_model(_gold(options))
    lm = load_policy(options.model, device=options.device)
    train, test = _prompts(options, lm)
    parts = [("train.jsonl", train, options.pairs, 0), ("test.jsonl", test, options.test_pairs, 1)]
    for name, prompts, count, part in parts:
        if count == 0 and part:
            continue
        seed = 2 * options.seed + part
        pairs = draw_pairs(
            lm,
            prompts,
            gold,
            count,
            max_new_tokens=options.max_new_tokens,
            temperature=options.sampling_temperature,
            seed=seed,
        )
        labelled = label_pairs(pairs, options.annotators, seed=seed)
        write_preferences(aside / name, labelled)
        print(f"{out / name}  {_summary(labelled)}", flush=True)


def _gold(options: Preferences) -> str:
    if options.gold is not None:
        return options.gold
    kind = options.prompts.split(":")[1] if ":" in options.prompts else "reviews"
    if options.prompts.split(":")[0] == "tiny" and kind in GOLD:
        return GOLD[kind]
    raise ValueError(f"the prompts {options.prompts!r} have no score of their own: give --gold, such as --gold vader")


def _prompts(options: Preferences, lm: Any) -> tuple[list[Prompt], list[Prompt]]:
    from lm_gym.held_out import split_prompts
    from lm_gym.prompts import load_prompts

    room = max(1, lm.max_positions - options.max_new_tokens)
    given = options.test_prompts
    parts = options.prompts.split(":")
    if given is None and parts[0] == "tiny" and parts[2:] in ([], ["train"]):
        given = ":".join(["tiny", *(parts[1:2] or ["reviews"]), "test"])
    found = load_prompts(options.prompts, lm.tokenizer, max_tokens=room)
    other = None if given is None else load_prompts(given, lm.tokenizer, max_tokens=room)
    train, test = split_prompts(found, other)
    if {p.text for p in train} & {p.text for p in test}:
        raise ValueError(
            f"all prompts of {options.prompts!r} are held out for test.jsonl: give others, or --test-prompts"
        )
    return train, test


def _summary(preferences: list[Preference]) -> str:
    """How many rows, and what the labels are like beside the score that they were drawn from."""
    decided = [p for p in preferences if p.label != 0.5]
    differences = [p.columns["gold_chosen"] - p.columns["gold_rejected"] for p in decided]
    agreeing = sum((d > 0) + 0.5 * (d == 0) for d in differences)
    words = [f"{len(preferences)} rows", f"{len({repr(p.prompt) for p in preferences})} prompts"]
    if len(decided) < len(preferences):
        words.append(f"{1 - len(decided) / len(preferences):.1%} ties")
    if decided:
        words.append(f"{agreeing / len(decided):.1%} of the answers agree with the score")
    return ", ".join(words)
