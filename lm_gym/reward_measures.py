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


def bootstrap(columns: np.ndarray, groups: Sequence[str], combine: Callable[[np.ndarray], np.ndarray]) -> Interval:
    """A statistic of sums over rows, and its interval over draws of groups with replacement.

    Args:
        columns: (N, k) what is summed. groups: (N,) the group of each row.
        combine: from sums (..., k) to values (...).
    """
    names, place = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.zeros((len(names), columns.shape[1]))
    np.add.at(sums, place, columns)
    counts = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=DRAWS)
    low, high = np.quantile(combine(counts @ sums), (0.025, 0.975))
    return Interval(float(combine(sums.sum(0))), float(low), float(high))


def mean_of(values: np.ndarray, groups: Sequence[str]) -> Interval:
    """The mean of (N,) values with its interval."""
    columns = np.stack([values, np.ones(len(values))], axis=1)
    return bootstrap(columns, groups, lambda sums: sums[..., 0] / sums[..., 1])


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
    return mean_of(hits[counted], [group for group, keep in zip(groups, counted, strict=True) if keep])


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
    pairs: int


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
    """ECE: mean |confidence − share right| over bins, by their pairs (Naeini et al. 2015)."""
    rows = list(found)
    return float(sum(b.pairs * abs(b.confidence - b.accuracy) for b in rows) / sum(b.pairs for b in rows))


def brier(differences: np.ndarray, labels: np.ndarray) -> float:
    """Mean (σ(d) − l)²; .25 for a judge without an opinion."""
    return float(np.mean((probabilities(differences) - labels) ** 2))


def through_origin(x: np.ndarray, y: np.ndarray, groups: Sequence[str]) -> Interval:
    """Correlation of differences, Σxy/√(Σx²·Σy²): which half of a pair stands first does not matter; 0 if one is 0."""
    return bootstrap(np.stack([x * y, x * x, y * y], axis=1), groups, _correlation)


def partial(x: np.ndarray, y: np.ndarray, given: np.ndarray, groups: Sequence[str]) -> Interval:
    """Correlation of differences x and y beyond what both share with a third, `given`; 0 where nothing is left."""
    columns = np.stack([x * y, x * given, y * given, x * x, y * y, given * given], axis=1)

    def combine(sums: np.ndarray) -> np.ndarray:
        xy, xz, yz = (_correlation(sums[..., list(at)]) for at in ((0, 3, 4), (1, 3, 5), (2, 4, 5)))
        rest = (1 - xz * xz) * (1 - yz * yz)
        return np.asarray(np.where(rest > 1e-12, (xy - xz * yz) / np.sqrt(np.maximum(rest, 1e-12)), 0.0))

    return bootstrap(columns, groups, combine)


def _correlation(sums: np.ndarray) -> np.ndarray:
    """From sums (..., 3) of xy, xx, yy."""
    size = np.sqrt(sums[..., 1] * sums[..., 2])
    return np.asarray(np.where(size > 0, sums[..., 0] / np.where(size > 0, size, 1.0), 0.0))


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
    return np.array([np.mean([float(pair not in seen) for pair in bigrams(text)] or [0.0]) for text in texts])


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
