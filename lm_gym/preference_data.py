"""Preference data from a model and simulated annotators: its texts in pairs, labelled by noise on a score.

An annotator sees the completions a and b of a prompt with the scores s_a and s_b, and feels the difference

    d = scale · (s_a − s_b)/temperature + length_bias · (words_a − words_b) ± position_bias

with + where a is shown first. It says "a" with probability σ(d − tie), "b" with σ(−d − tie), and a tie otherwise (Rao &
Kupper 1967, with θ = exp(tie); tie = 0 is the model of Bradley & Terry 1952); then some answers are turned round.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_gym.preferences import Preference
from lm_gym.prompts import Prompt
from lm_gym.rewards import plain_text, score_texts
from lm_gym.runinfo import write_atomically

if TYPE_CHECKING:
    from lm_gym.models import CausalLM

__all__ = ["Annotators", "Pair", "draw_pairs", "label_pairs", "write_preferences"]

REDRAWS = 20
"""Rounds in which a prompt whose two completions are the same text gets two new ones."""
ROWS = 256
"""Texts that decode together."""


@dataclass(frozen=True)
class Annotators:
    """Who labels the pairs, and how well."""

    temperature: float = 0.25
    """Of the Bradley-Terry noise, in units of the score; 0: always the better score, and never a bias."""
    tie: float = 0.0
    """In nats: differences of about this size are called a tie; 0: no ties."""
    flipped: float = 0.0
    """Share of the answers (of those that are no ties) that are turned round."""
    annotators: int = 1
    """How many; each pair goes to `labels_per_pair` of them, drawn at random."""
    annotator_spread: float = 0.0
    """Standard deviation of log(scale) between annotators: how differently they look at the score."""
    labels_per_pair: int = 1
    """Annotators that label the same pair; each gives a row."""
    length_bias: float = 0.0
    """In nats a word by which a completion is longer."""
    position_bias: float = 0.0
    """In nats, for the completion that is shown first."""

    def __post_init__(self) -> None:
        for name in ("temperature", "tie", "annotator_spread"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} expected a number of at least 0, got {getattr(self, name)}")
        if not 0 <= self.flipped <= 1:
            raise ValueError(f"flipped expected a share between 0 and 1, got {self.flipped}")
        if self.annotators < 1 or not 1 <= self.labels_per_pair <= self.annotators:
            raise ValueError(
                f"expected 1 <= labels_per_pair <= annotators, got labels_per_pair={self.labels_per_pair} and "
                f"annotators={self.annotators}"
            )
        if self.annotator_spread and self.annotators == 1:
            raise ValueError("annotator_spread has no effect on one annotator: raise annotators, or leave it at 0")
        used = [n for n in ("tie", "annotator_spread", "length_bias", "position_bias") if getattr(self, n)]
        if self.temperature == 0 and used:
            raise ValueError(f"temperature 0 always takes the better score, so {' and '.join(used)} would do nothing")

    def scales(self) -> list[float]:
        """How strongly each annotator looks at the score: quantiles of a log-normal, geometric mean 1."""
        places = [(k + 0.5) / self.annotators for k in range(self.annotators)]
        return [math.exp(self.annotator_spread * NormalDist().inv_cdf(place)) for place in places]


@dataclass(frozen=True)
class Pair:
    """Two completions of a prompt with their scores, not yet labelled."""

    prompt: Prompt
    texts: tuple[str, str]
    scores: tuple[float, float]


def draw_pairs(
    lm: CausalLM,
    prompts: Sequence[Prompt],
    gold: Any,
    pairs: int,
    *,
    max_new_tokens: int = 32,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[Pair]:
    """Two different completions of `lm` for each of `pairs` prompts, which are taken in order and again from the start.

    Args:
        gold: the score that the annotators look at: any reward model (a callable, see `lm_gym.rewards`).
        temperature: of sampling.

    Raises:
        ValueError: no prompts, or a prompt whose completions are always the same text (named).
    """
    from lm_gym.decoding import Engine, GenerationParams  # torch: not for those who only want the options

    if not prompts or pairs < 1:
        raise ValueError(f"expected prompts and at least one pair, got {len(prompts)} prompts and pairs={pairs}")
    records = [prompts[i % len(prompts)] for i in range(pairs)]
    engine = Engine(lm, seed=seed)
    params = GenerationParams(max_new_tokens=max_new_tokens, temperature=temperature, rows=ROWS)
    texts: list[tuple[str, str]] = [("", "")] * pairs
    ids: list[tuple[list[int], list[int]]] = [([], [])] * pairs
    open_ = list(range(pairs))
    for _ in range(REDRAWS):
        done = engine.generate([records[i].token_ids for i in open_ for _ in (0, 1)], params)
        for place, i in enumerate(open_):
            both = done[2 * place : 2 * place + 2]
            texts[i] = (lm.decode(both[0].tokens), lm.decode(both[1].tokens))
            ids[i] = (both[0].tokens, both[1].tokens)
        open_ = [i for i in open_ if texts[i][0].strip() == texts[i][1].strip()]
        if not open_:
            break
    else:
        raise ValueError(
            f"after {REDRAWS} draws the model still writes the same text twice for {len(open_)} of {pairs} prompts, "
            f"such as {records[open_[0]].text!r}: raise max_new_tokens or the temperature, or drop the prompt"
        )
    rows = [record for record in records for _ in (0, 1)]
    scores = score_texts(
        gold,
        prompts=[row.for_reward for row in rows],
        completions=[row.completion_for_reward(t) for row, t in zip(rows, (t for two in texts for t in two))],
        completion_ids=[i for two in ids for i in two],
        columns={name: [row.columns.get(name) for row in rows] for name in rows[0].columns},
    ).scores
    return [
        Pair(record, two, (float(scores[2 * i]), float(scores[2 * i + 1])))
        for i, (record, two) in enumerate(zip(records, texts, strict=True))
    ]


def label_pairs(pairs: Sequence[Pair], annotators: Annotators, *, seed: int = 0) -> list[Preference]:
    """What the annotators say: `labels_per_pair` rows a pair, in the order of the pairs.

    A tie is a row with label .5. Columns: those of the prompt, `gold_chosen` and `gold_rejected` (the scores), and
    `shown_first` ("chosen" or "rejected"). With one annotator there is no `annotator`.
    """
    rng = np.random.default_rng([seed, 2])
    scales = annotators.scales()
    found = []
    for pair in pairs:
        who = rng.permutation(annotators.annotators)[: annotators.labels_per_pair]
        for annotator in who:
            first, uniform, flip = rng.integers(2), rng.random(), rng.random()
            p_a, p_b = _answers(pair, annotators, scales[annotator], sign=1 if first == 0 else -1)
            tie = p_a <= uniform < 1 - p_b
            # of a tie either half is written first, with even chances
            a_wins = flip < 0.5 if tie else (uniform < p_a) != (flip < annotators.flipped)
            best = 0 if a_wins else 1
            prompt, texts = pair.prompt, [pair.prompt.completion_for_reward(text) for text in pair.texts]
            found.append(
                Preference(
                    prompt.for_reward,
                    texts[best],
                    texts[1 - best],
                    label=0.5 if tie else 1.0,
                    annotator=f"annotator-{annotator}" if annotators.annotators > 1 else None,
                    columns={
                        **prompt.columns,
                        "gold_chosen": pair.scores[best],
                        "gold_rejected": pair.scores[1 - best],
                        "shown_first": "chosen" if first == best else "rejected",
                    },
                )
            )
    return found


def _answers(pair: Pair, annotators: Annotators, scale: float, sign: int) -> tuple[float, float]:
    """Probabilities of "a" and of "b"; what is left is that of a tie."""
    difference = pair.scores[0] - pair.scores[1]
    if annotators.temperature == 0:
        return (1.0, 0.0) if difference > 0 else (0.0, 1.0) if difference < 0 else (0.5, 0.5)
    words = [len(plain_text(text).split()) for text in pair.texts]
    d = scale * difference / annotators.temperature
    d += annotators.length_bias * (words[0] - words[1]) + annotators.position_bias * sign
    return _sigmoid(d - annotators.tie), _sigmoid(-d - annotators.tie)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def write_preferences(path: str | Path, preferences: Sequence[Preference]) -> Path:
    """Write JSONL with TRL's columns prompt, chosen and rejected, then label, margin, annotator and all others.

    Raises:
        ValueError: a column that has one of those names.
    """
    lines = []
    for preference in preferences:
        row = {name: getattr(preference, name) for name in ("prompt", "chosen", "rejected", "label")}
        row |= {n: v for n in ("margin", "annotator") if (v := getattr(preference, n)) is not None}
        if twice := sorted(set(row) & set(preference.columns)):
            raise ValueError(f"columns {twice} have names that preference data uses itself; rename them")
        lines.append(json.dumps(row | dict(preference.columns), ensure_ascii=False, default=str) + "\n")
    write_atomically(Path(path), "".join(lines))
    return Path(path)
