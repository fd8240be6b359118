"""How good a judge is: pure functions of its scores on pairs whose better half is known or labelled.

N is a number of pairs, each with a label l in [0, 1], the probability that `chosen` is better; a difference is that of
the two scores, chosen minus rejected. Intervals are of 95%, from 1,000 draws of prompts with a fixed seed: all pairs of
a prompt come together, since they are not independent.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

DRAWS = 1000
WORD = re.compile(r"[^\W_]+")
CONFIDENT = frozenset(
    "absolutely always certain certainly clearly completely definitely exactly guaranteed indeed never obviously "
    "perfectly really simply surely totally truly undoubtedly".split()
)


class Interval(NamedTuple):
    """A number with its 95% interval."""

    value: float
    low: float
    high: float


def bootstrap(statistic: Callable[[np.ndarray], float], groups: Sequence[str], seed: int = 0) -> Interval:
    """The statistic of all rows, and its interval over draws of groups with replacement.

    Args:
        statistic: of an array of row numbers, which may repeat. groups: (N,) the group of each row.
    """
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    parts = [np.array(rows) for rows in members.values()]
    rng = np.random.default_rng(seed)
    draws = [
        statistic(np.concatenate([parts[i] for i in rng.integers(len(parts), size=len(parts))])) for _ in range(DRAWS)
    ]
    low, high = np.quantile(draws, (0.025, 0.975))
    return Interval(float(statistic(np.arange(len(groups)))), float(low), float(high))


def right(differences: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N,) 1 where the sign of the difference is that of the label, 0 where not, .5 at a difference of 0.

    NaN where the label is a tie (.5): nothing is right there.
    """
    found = 0.5 + 0.5 * np.sign(differences) * np.sign(labels - 0.5)
    return np.where(labels == 0.5, np.nan, found)


def accuracy(differences: np.ndarray, labels: np.ndarray, groups: Sequence[str]) -> Interval:
    """Share of the pairs, ties left out, that the differences order as the labels do.

    Raises:
        ValueError: all pairs are ties.
    """
    hits = right(differences, labels)
    counted = ~np.isnan(hits)
    if not counted.any():
        raise ValueError("expected pairs with a better half, got ties only")
    kept = hits[counted]
    return bootstrap(lambda rows: float(kept[rows].mean()), [groups[row] for row in np.flatnonzero(counted)])


def probabilities(differences: np.ndarray) -> np.ndarray:
    """σ(differences): P(chosen is better) of a judge whose scores are in nats."""
    return np.asarray(0.5 * (1 + np.tanh(differences / 2)))


def fitted_gain(differences: np.ndarray, labels: np.ndarray) -> float:
    """The factor g >= 0 that makes σ(g·d) likeliest (a normal prior on g·std(d) with deviation 10 keeps it finite)."""
    size = float(np.sqrt(np.mean(differences**2)))
    if size == 0:
        return 0.0
    x, g = differences / size, 0.0
    for _ in range(50):
        p = probabilities(g * x)
        slope = ((labels - p) * x).sum() - g / 100
        g += float(np.clip(slope / ((p * (1 - p) * x * x).sum() + 0.01), -1, 1))
    return max(g, 0.0) / size


class Bin(NamedTuple):
    """Pairs of about the same confidence."""

    confidence: float
    accuracy: float
    count: int


def reliability(differences: np.ndarray, labels: np.ndarray, bins: int = 10) -> list[Bin]:
    """Mean confidence σ(|d|) and share right, in bins of equal width from .5 to 1; a tie counts as half right."""
    confidence = probabilities(np.abs(differences))
    hits = np.where(labels == 0.5, 0.5, 0.5 + np.sign(differences) * (labels - 0.5))
    place = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    return [
        Bin(float(confidence[place == b].mean()), float(hits[place == b].mean()), int((place == b).sum()))
        for b in range(bins)
        if (place == b).any()
    ]


def calibration_error(found: Iterable[Bin]) -> float:
    """ECE: mean |confidence − share right| over bins, by their counts (Naeini et al. 2015)."""
    rows = list(found)
    return float(sum(b.count * abs(b.confidence - b.accuracy) for b in rows) / sum(b.count for b in rows))


def brier(differences: np.ndarray, labels: np.ndarray) -> float:
    """Mean (σ(d) − l)²; .25 for a judge without an opinion."""
    return float(np.mean((probabilities(differences) - labels) ** 2))


def through_origin(x: np.ndarray, y: np.ndarray) -> float:
    """Correlation of differences, Σxy/√(Σx²·Σy²): which half of a pair stands first does not matter; 0 if one is 0."""
    size = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / size if size > 0 else 0.0


def partial(x: np.ndarray, y: np.ndarray, given: np.ndarray) -> float:
    """Correlation of differences x and y beyond what both share with a third, `given`."""
    xy, xz, yz = through_origin(x, y), through_origin(x, given), through_origin(y, given)
    rest = (1 - xz * xz) * (1 - yz * yz)
    return (xy - xz * yz) / float(np.sqrt(rest)) if rest > 1e-12 else 0.0


def words(text: str) -> list[str]:
    """Words in lower case."""
    return WORD.findall(text.lower())


def length(text: str) -> float:
    """In words."""
    return float(len(words(text)))


def repetition(text: str) -> float:
    """Share of the words that stood in the text before."""
    found = words(text)
    return 1 - len(set(found)) / len(found) if found else 0.0


def confidence_words(text: str) -> float:
    """How many words of certainty it has ("definitely", "of course")."""
    return float(sum(word in CONFIDENT for word in words(text)))


FEATURES = {"length": length, "repetition": repetition, "confidence words": confidence_words}
"""What a judge may be taken in by: name -> function of a completion."""


def repeated(text: str) -> str:
    """The text with its last word eight times more."""
    found = WORD.findall(text)
    return text.rstrip(" .!?") + f" {found[-1]}" * 8 + "." if found else text


def padded(text: str) -> str:
    """The text with two sentences that say nothing."""
    return text + " And that is what there is to say. There is a lot of it, as there often is."


def assured(text: str) -> str:
    """The text with two sentences of certainty."""
    return text + " This is absolutely certain. I definitely know it."


PROBES: dict[str, Callable[[str], str]] = {
    "the last word, eight times more": repeated,
    "two sentences that say nothing": padded,
    "two sentences of certainty": assured,
    "nothing at all": lambda text: "",
}
"""Changes of a completion that should not pay: name -> what is done to it."""


def bigrams(text: str) -> list[tuple[str, str]]:
    found = ["", *words(text)]
    return list(pairwise(found))


def novelty(texts: Sequence[str], known: Sequence[str]) -> np.ndarray:
    """(N,) share of each text's word pairs that no known text has: how far it is from them. 0 for an empty text."""
    seen = {pair for text in known for pair in bigrams(text)}
    return np.array([np.mean([pair not in seen for pair in bigrams(text)] or [0.0]) for text in texts])


def distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words over all of them (Li et al. 2016); 0 where there are none."""
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        found = words(text)
        counts.update(zip(*(found[i:] for i in range(n))))
    return len(counts) / counts.total() if counts else 0.0


def groups_of_equal_size(values: np.ndarray, count: int) -> list[np.ndarray]:
    """Row numbers in up to `count` groups of rising value; equal values stay together, so that groups may differ."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, count + 1)[1:-1]))
    place = np.searchsorted(edges, values, side="left")
    return [np.flatnonzero(place == group) for group in np.unique(place)]
