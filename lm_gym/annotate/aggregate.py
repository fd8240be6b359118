"""From several answers to one: majority, mean strength, or a model of how good each annotator is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from lm_gym.annotate.agreement import SCALE

Method = Literal["majority", "mean", "dawid-skene"]
METHODS: tuple[str, ...] = get_args(Method)

DIRECTIONS = (-1, 0, 1)
"""a is better, tie, b is better."""
TIE_BELOW = 0.5
"""A mean strength nearer to 0 than this is a tie: it rounds to 0 on the scale."""


@dataclass(frozen=True)
class Vote:
    """One answer that says something about an item."""

    item: int
    annotator: int
    strength: int
    """-3 (a is significantly better) to 3 (b is)."""


@dataclass(frozen=True)
class Verdict:
    """What the annotators say about an item together."""

    direction: int
    """-1: a is better, 0: a tie, 1: b is better."""
    p_b: float
    """The probability that b is better: the share of votes, a tie as half (majority), the place of the mean strength
    between -3 and 3 (mean), or the model's posterior (Dawid-Skene)."""
    strength: float
    """Mean strength, above 0: b."""
    agreement: float
    """Share of the votes that say `direction`; for `dawid-skene` the model's probability of it."""
    votes: int


@dataclass(frozen=True)
class AnnotatorModel:
    """What `dawid_skene` found."""

    posterior: np.ndarray
    """(items, classes)."""
    confusion: np.ndarray
    """(annotators, classes, classes): probability of an answer (last axis) given the truth."""
    prior: np.ndarray
    """(classes,)."""
    iterations: int

    @property
    def accuracy(self) -> np.ndarray:
        """(annotators,): the probability of the right answer over the prior of the truth."""
        return np.einsum("c,acc->a", self.prior, self.confusion)


def dawid_skene(
    item: np.ndarray,
    annotator: np.ndarray,
    answer: np.ndarray,
    *,
    classes: int,
    known: Mapping[int, int] | None = None,
    mirrored: bool = False,
    smoothing: float = 0.5,
    tolerance: float = 1e-6,
    most: int = 500,
) -> AnnotatorModel:
    """Truth and annotators' confusion matrices together, by expectation maximisation.

    Dawid and Skene, Maximum likelihood estimation of observer error-rates using the EM algorithm (1979), equations 2.3
    to 2.5, begun at the majority, with `smoothing` pseudo-counts in every cell of a confusion matrix (twice as many on
    the diagonal), without which an annotator with few answers gets probabilities of 0.

    Args:
        item, annotator, answer: (N,) whole numbers from 0, one entry an answer.
        known: items whose truth is known (gold): it is not estimated.
        mirrored: the classes have no names of their own: the model is the same after reversing their order, so that the
            arbitrary order of two completions is not learned from.

    Raises:
        ValueError: no answers, or arrays of different lengths.
    """
    if not len(item) == len(annotator) == len(answer) or len(item) == 0:
        raise ValueError(
            f"expected answers as three equally long arrays, got {len(item)}, {len(annotator)}, {len(answer)}"
        )
    items, annotators = int(item.max()) + 1, int(annotator.max()) + 1
    truth = {} if known is None else dict(known)
    posterior = np.full((items, classes), 1e-9)
    np.add.at(posterior, (item, answer), 1.0)
    posterior /= posterior.sum(1, keepdims=True)
    fixed = np.array(sorted(truth), dtype=np.int64)
    sure = np.eye(classes)[[truth[i] for i in fixed]] if len(fixed) else np.zeros((0, classes))
    posterior[fixed] = sure
    pseudo = smoothing * (1 + np.eye(classes))
    iterations = 0
    while iterations < most:
        iterations += 1
        counts = np.zeros((annotators, classes, classes))
        for truth_class in range(classes):
            cells = np.bincount(
                annotator * classes + answer, weights=posterior[item, truth_class], minlength=annotators * classes
            )
            counts[:, truth_class] = cells.reshape(annotators, classes)
        prior = posterior.sum(0) + smoothing
        if mirrored:
            counts = counts + counts[:, ::-1, ::-1]
            prior = prior + prior[::-1]
        confusion = counts + pseudo
        confusion /= confusion.sum(2, keepdims=True)
        prior = prior / prior.sum()
        logits = np.tile(np.log(prior), (items, 1))
        np.add.at(logits, item, np.log(confusion[annotator, :, answer]))
        logits -= logits.max(1, keepdims=True)
        new = np.exp(logits)
        new /= new.sum(1, keepdims=True)
        new[fixed] = sure
        moved = np.abs(new - posterior).max()
        posterior = new
        if moved < tolerance:
            break
    return AnnotatorModel(posterior, confusion, prior, iterations)


def aggregate(votes: Sequence[Vote], method: Method, *, gold: Mapping[int, int] | None = None) -> dict[int, Verdict]:
    """Item -> what its votes say together.

    Args:
        method: `majority` (of a, tie and b; if the first place is shared, a tie), `mean` (of the strengths; below
            TIE_BELOW a tie), or `dawid-skene`.
        gold: item -> known strength; only `dawid-skene` uses it, to judge the annotators.

    Raises:
        ValueError: an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"aggregation expected one of {', '.join(METHODS)}, got {method!r}")
    by_item: dict[int, list[Vote]] = {}
    for vote in votes:
        by_item.setdefault(vote.item, []).append(vote)
    if not by_item:
        return {}
    modelled = _modelled(votes, gold or {}) if method == "dawid-skene" else {}
    verdicts = {}
    for item, mine in by_item.items():
        signs = np.sign([vote.strength for vote in mine])
        mean = float(np.mean([vote.strength for vote in mine]))
        if method == "dawid-skene":
            shares = modelled[item]
            direction = _first(shares)
        else:
            shares = np.array([np.mean(signs == d) for d in DIRECTIONS])
            direction = _first(shares) if method == "majority" else int(np.sign(mean)) if abs(mean) >= TIE_BELOW else 0
        # By the mean, from its strength: three who are a little for a may be outweighed by two who are all for b.
        p_b = (1 + mean / max(SCALE)) / 2 if method == "mean" else float(shares[2] + shares[1] / 2)
        verdicts[item] = Verdict(direction, p_b, mean, float(shares[direction + 1]), len(mine))
    return verdicts


def _first(shares: np.ndarray) -> int:
    """The direction with the largest share; a tie where it is shared."""
    best = np.flatnonzero(shares >= shares.max() - 1e-12)
    return DIRECTIONS[best[0]] if len(best) == 1 else 0


def _modelled(votes: Sequence[Vote], gold: Mapping[int, int]) -> dict[int, Any]:
    """Item -> the model's probabilities of a, tie and b."""
    items = {item: at for at, item in enumerate(dict.fromkeys(vote.item for vote in votes))}
    people = {who: at for at, who in enumerate(dict.fromkeys(vote.annotator for vote in votes))}
    model = dawid_skene(
        np.array([items[vote.item] for vote in votes]),
        np.array([people[vote.annotator] for vote in votes]),
        np.array([int(np.sign(vote.strength)) + 1 for vote in votes]),
        classes=3,
        known={items[item]: int(np.sign(strength)) + 1 for item, strength in gold.items() if item in items},
        mirrored=True,
    )
    return {item: model.posterior[at] for item, at in items.items()}
