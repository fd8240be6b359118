"""What a comparison of completions says about their scores: the likelihoods of Bradley and Terry and its relatives.

Pure functions of tensors. B is a number of comparisons, K the completions in each. A difference is that of two scores,
s_A − s_B, in nats: σ(1) = .73 is the probability that A is called better where it scores 1 more.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

TIES = ("rao-kupper", "davidson")


class Outcomes(NamedTuple):
    """log-probabilities (B,) of what an annotator may say: A is better, a tie, B is better. No ties: `tie` is None."""

    win: Tensor
    tie: Tensor | None
    lose: Tensor


def outcomes(difference: Tensor, *, ties: str | None = None, tie: Tensor | None = None) -> Outcomes:
    """Probabilities of the outcomes of comparisons whose scores differ by d (B,).

    - None: P(A) = σ(d) (Bradley & Terry 1952).
    - "rao-kupper": P(A) = σ(d − η), P(B) = σ(−d − η), P(tie) = (e^(2η) − 1)·P(A)·P(B) (Rao & Kupper 1967, with
      θ = e^η). A tie is a difference that the annotator does not feel, its threshold η > 0 is in nats.
    - "davidson": P(A) ∝ e^(d/2), P(B) ∝ e^(−d/2), P(tie) ∝ ν (Davidson 1970), ν > 0: at d = 0 a tie is ν
      times as likely as A.

    Args:
        tie: η or ν, a scalar or (B,).

    Raises:
        ValueError: `ties` is none of these, or has no parameter.
    """
    if ties is None:
        return Outcomes(logsigmoid(difference), None, logsigmoid(-difference))
    if ties not in TIES or tie is None:
        raise ValueError(f"ties expected None, {' or '.join(map(repr, TIES))} with their parameter, got {ties!r}")
    if ties == "rao-kupper":
        win, lose = logsigmoid(difference - tie), logsigmoid(-difference - tie)
        return Outcomes(win, torch.expm1(2 * tie).log() + win + lose, lose)
    parts = torch.stack(torch.broadcast_tensors(difference / 2, tie.log(), -difference / 2))
    win, even, lose = parts.log_softmax(0)
    return Outcomes(win, even, lose)


def with_mistakes(found: Outcomes, accuracy: Tensor) -> Outcomes:
    """The same, of annotators who mean A and say B with probability 1 − accuracy (CrowdBT, Chen et al. 2013).

    Args:
        accuracy: (B,) or a scalar, in (0, 1). Ties are not mistaken for anything else.
    """
    right, wrong = accuracy.log(), torch.log1p(-accuracy)
    return Outcomes(
        torch.logaddexp(right + found.win, wrong + found.lose),
        found.tie,
        torch.logaddexp(right + found.lose, wrong + found.win),
    )


def comparison_loss(found: Outcomes, label: Tensor) -> Tensor:
    """−log-likelihood (B,) of labels (B,) in [0, 1]: 1 says A, 0 says B, and what lies between is a share of both.

    Without ties it is the cross-entropy −l·log P(A) − (1−l)·log P(B): for l = 1 the −log σ(s_A − s_B) of every reward
    model since Christiano et al. 2017, and with l = 1 − ε label smoothing. With ties .5 says "tie", and a label between
    .5 and 1 is a mixture of that and A.
    """
    if found.tie is None:
        return -(label * found.win + (1 - label) * found.lose)
    win, lose = (2 * label - 1).clamp(min=0), (1 - 2 * label).clamp(min=0)
    return -(win * found.win + lose * found.lose + (1 - win - lose) * found.tie)


def plackett_luce_loss(scores: Tensor, mask: Tensor) -> Tensor:
    """−log-likelihood (B,) of rankings: Σ_k −(s_k − log Σ_(j >= k) e^(s_j)) (Luce 1959, Plackett 1975).

    Args:
        scores: (B, K) from best to worst. mask: (B, K) bool, False behind the last completion of a shorter ranking.
            With K = 2 it is −log σ(s_1 − s_2).
    """
    # finite behind the end, where the gradient of -inf would be NaN
    left = scores.masked_fill(~mask, -1e9).flip(1).logcumsumexp(1).flip(1)
    return torch.where(mask, left - scores, 0.0).sum(1)


def centring_penalty(scores: Tensor, mask: Tensor) -> Tensor:
    """(Σ_k s_k)² (B,) of each comparison (Eisenstein et al. 2023, eq. 2; TRL's `center_rewards_coefficient`).

    Comparisons say nothing about the level of the scores; this keeps it at 0. Shapes as in `plackett_luce_loss`.
    """
    return torch.where(mask, scores, 0.0).sum(1).square()
