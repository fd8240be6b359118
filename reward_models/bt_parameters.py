"""What a Bradley-Terry model learns beside the scores: how wide a tie is, and how good each annotator is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from lm_gym.choices import check_choice
from lm_gym.reward_models.bt_losses import TIES, Outcomes, comparison_loss, outcomes, with_mistakes

ANNOTATORS = ("scale", "accuracy")
PRIOR_STD = 3.0
"""Of the normal prior around the start, in the space of the logarithms: without one, an annotator who agrees every time
would have an interval without end."""
NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Estimate:
    """A parameter with its 95% interval."""

    name: str
    value: float
    low: float
    high: float


class CommonParameters(nn.Module):
    """Parameters that all comparisons share, unconstrained as they are trained.

    Args:
        ties: None, "rao-kupper" (η = softplus, starts at .5) or "davidson" (ν = exp, starts at .5).
        annotators: None; "scale", a factor of the differences an annotator (geometric mean 1); or "accuracy", the
            probability that an annotator says what it means (starts at .9).
        names: A names of annotators.
    """

    def __init__(self, ties: str | None, annotators: str | None, names: tuple[str, ...]) -> None:
        check_choice("ties", ties, (None, *TIES))
        check_choice("annotators", annotators, (None, *ANNOTATORS))
        super().__init__()
        self.ties, self.annotators, self.names = ties, annotators, names
        if ties is not None:
            self.tie = nn.Parameter(torch.tensor(math.log(math.expm1(0.5) if ties == "rao-kupper" else 0.5)))
        if annotators is not None:
            self.annotator = nn.Parameter(torch.full((len(names),), 0.0 if annotators == "scale" else math.log(9)))

    def forward(self, difference: Tensor, annotator: Tensor) -> Outcomes:
        """Outcomes of comparisons with differences (B,), each by the annotator with that index (B,)."""
        if self.annotators == "scale":
            difference = difference * self.scales()[annotator]
        found = outcomes(difference, ties=self.ties, tie=self.tie_value() if self.ties else None)
        return with_mistakes(found, self.annotator[annotator].sigmoid()) if self.annotators == "accuracy" else found

    def tie_value(self) -> Tensor:
        """η or ν."""
        return softplus(self.tie) if self.ties == "rao-kupper" else self.tie.exp()

    def scales(self) -> Tensor:
        """(A,) with geometric mean 1."""
        return (self.annotator - self.annotator.mean()).exp()


def estimate(common: CommonParameters, differences: Tensor, labels: Tensor, annotators: Tensor) -> list[Estimate]:
    """Maximum likelihood, with Hessian intervals, of the parameters where the scores are given up to a common factor.

    To be called on comparisons that the scores were not trained on: on its own training data a model is too sure of
    itself. The factor, `gain`, is what the scores must be multiplied with to be calibrated: below 1 where they are too
    sure. A tie's width is then in calibrated nats.

    Args:
        differences, labels: (N,). annotators: (N,) indices.
    """
    fitted = CommonParameters(common.ties, common.annotators, common.names).double()
    named = dict(fitted.named_parameters())
    sizes = [value.numel() for value in named.values()]
    start = torch.cat([torch.zeros(1, dtype=torch.float64), *(value.detach().flatten() for value in named.values())])
    differences, labels = differences.double(), labels.double()

    def objective(flat: Tensor) -> Tensor:
        parts = zip(named.items(), flat[1:].split(sizes), strict=True)
        state = {name: part.reshape(value.shape) for (name, value), part in parts}
        found = torch.func.functional_call(fitted, state, (differences * flat[0].exp(), annotators))
        return comparison_loss(found, labels).sum() + ((flat - start) / PRIOR_STD).square().sum() / 2

    best = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([best], max_iter=500, tolerance_grad=1e-8, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective(best)
        value.backward()
        return value

    optimizer.step(closure)
    flat = best.detach()
    covariance = torch.linalg.inv(torch.autograd.functional.hessian(objective, flat))
    found = []
    for name, direction, natural in _readings(fitted):
        centre, deviation = direction @ flat, NORMAL_95 * (direction @ covariance @ direction).sqrt()
        value, low, high = (float(natural(x)) for x in (centre, centre - deviation, centre + deviation))
        found.append(Estimate(name, value, low, high))
    return found


def _readings(common: CommonParameters) -> list[tuple[str, Tensor, Callable[[Tensor], Tensor]]]:
    """Name, direction in the flat vector (gain, tie, annotators), and the monotone map to natural units, of each."""
    count = sum(value.numel() for value in common.parameters())
    unit = torch.eye(1 + count, dtype=torch.float64)
    found: list[tuple[str, Tensor, Callable[[Tensor], Tensor]]] = [("gain", unit[0], torch.exp)]
    at = 1
    if common.ties is not None:
        rao_kupper = common.ties == "rao-kupper"
        found.append(("tie/eta" if rao_kupper else "tie/nu", unit[at], softplus if rao_kupper else torch.exp))
        at += 1
    if common.annotators == "scale":
        mean = unit[at:].mean(0)
        found += [(f"scale/{name}", row - mean, torch.exp) for name, row in zip(common.names, unit[at:], strict=True)]
    if common.annotators == "accuracy":
        found += [(f"accuracy/{name}", row, torch.sigmoid) for name, row in zip(common.names, unit[at:], strict=True)]
    return found
