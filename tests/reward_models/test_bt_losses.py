"""Likelihoods of comparisons against numbers worked out by hand, and intervals against draws from known parameters."""

import itertools
import math

import pytest
import torch

from lm_gym.reward_models.bradley_terry import RewardModelConfig
from lm_gym.reward_models.bt_losses import (
    centring_penalty,
    comparison_loss,
    outcomes,
    plackett_luce_loss,
    with_mistakes,
)
from lm_gym.reward_models.bt_parameters import CommonParameters, estimate

D = torch.tensor([-3.0, -0.5, 0.0, 0.7, 20.0])


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_a_hard_label_is_minus_log_sigmoid_and_a_soft_one_the_cross_entropy():
    loss = comparison_loss(outcomes(torch.tensor([1.5, 1.5, 1.5])), torch.tensor([1.0, 0.0, 0.9]))
    p = sigmoid(1.5)
    expected = [-math.log(p), -math.log(1 - p), -0.9 * math.log(p) - 0.1 * math.log(1 - p)]
    torch.testing.assert_close(loss, torch.tensor(expected))


@pytest.mark.parametrize(("ties", "tie"), [("rao-kupper", 0.6), ("davidson", 0.8)])
def test_probabilities_of_the_three_outcomes_add_up(ties, tie):
    found = torch.stack(outcomes(D, ties=ties, tie=torch.tensor(tie))).exp()
    torch.testing.assert_close(found.sum(0), torch.ones(5))
    mirrored = torch.stack(outcomes(-D, ties=ties, tie=torch.tensor(tie))).exp()
    torch.testing.assert_close(found, mirrored.flip(0))


def test_rao_kupper_by_its_worths():
    # worths 3 and 2, threshold θ: P(A) = 3/(3 + 2θ), P(B) = 2/(2 + 3θ)
    theta, d = 1.7, torch.tensor(math.log(3 / 2))
    win, tie, lose = (x.exp() for x in outcomes(d, ties="rao-kupper", tie=torch.tensor(math.log(theta))))
    assert win == pytest.approx(3 / (3 + 2 * theta))
    assert lose == pytest.approx(2 / (2 + 3 * theta))
    assert tie == pytest.approx(1 - 3 / (3 + 2 * theta) - 2 / (2 + 3 * theta))


def test_davidson_by_its_worths():
    # worths 3 and 2: P(tie) = ν√6/(3 + 2 + ν√6)
    nu, d = 0.5, torch.tensor(math.log(3 / 2))
    win, tie, lose = (x.exp() for x in outcomes(d, ties="davidson", tie=torch.tensor(nu)))
    total = 5 + nu * math.sqrt(6)
    assert (win, tie, lose) == pytest.approx((3 / total, nu * math.sqrt(6) / total, 2 / total))


def test_labels_with_ties():
    found = outcomes(torch.full((4,), 0.4), ties="davidson", tie=torch.tensor(0.5))
    loss = comparison_loss(found, torch.tensor([1.0, 0.5, 0.0, 0.75]))
    win, tie, lose = (-float(x[0]) for x in found)
    torch.testing.assert_close(loss, torch.tensor([win, tie, lose, (win + tie) / 2]))


def test_an_annotator_who_is_right_three_times_in_four():
    found = with_mistakes(outcomes(torch.tensor([2.0])), torch.tensor(0.75))
    assert found.win.exp() == pytest.approx(0.75 * sigmoid(2) + 0.25 * sigmoid(-2))
    assert found.lose.exp() == pytest.approx(1 - float(found.win.exp()))


def test_an_unknown_tie_model_is_refused():
    with pytest.raises(ValueError, match="'rao-kupper' or 'davidson' with their parameter, got 'thurstone'"):
        outcomes(D, ties="thurstone", tie=torch.tensor(1.0))


def test_plackett_luce_by_enumeration():
    scores = torch.tensor([[0.3, -1.0, 0.8], [0.3, -1.0, 99.0]], requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    loss = plackett_luce_loss(scores, mask)
    a, b, c = (math.exp(x) for x in (0.3, -1.0, 0.8))
    expected = [-math.log(a / (a + b + c) * b / (b + c)), -math.log(a / (a + b))]
    torch.testing.assert_close(loss, torch.tensor(expected))
    loss.sum().backward()
    assert torch.isfinite(scores.grad).all() and scores.grad[1, 2] == 0
    orders = torch.tensor(list(itertools.permutations([0.3, -1.0, 0.8])))
    assert torch.exp(-plackett_luce_loss(orders, torch.ones(6, 3, dtype=torch.bool))).sum() == pytest.approx(1)


def test_centring_is_the_squared_sum_of_a_comparison():
    scores, mask = torch.tensor([[1.0, 2.0, 5.0], [1.0, -1.0, 9.0]]), torch.tensor([[True] * 3, [True, True, False]])
    assert centring_penalty(scores, mask).tolist() == [64.0, 0.0]


@pytest.mark.parametrize("ties", ["rao-kupper", "davidson"])
@pytest.mark.parametrize("kind", ["scale", "accuracy"])
def test_intervals_hold_the_parameters_that_labels_were_drawn_from(ties, kind):
    truth = {"scale": [0.5, 1.0, 2.0], "accuracy": [0.95, 0.8, 0.65]}[kind]
    generator, held, count = torch.Generator().manual_seed(1), 0, 0
    for _ in range(10):
        d = 2 * torch.randn(1500, generator=generator)
        who = torch.randint(3, (1500,), generator=generator)
        own = torch.tensor(truth)[who]
        found = outcomes(d * own if kind == "scale" else d, ties=ties, tie=torch.tensor(0.7))
        found = with_mistakes(found, own) if kind == "accuracy" else found
        drawn = torch.multinomial(torch.stack(found).exp().T, 1, generator=generator).squeeze(1)
        # scores that are too sure by half: the gain puts it right
        estimates = estimate(CommonParameters(ties, kind, ("a", "b", "c")), 1.5 * d, 1 - drawn / 2, who)
        expected = [1 / 1.5, 0.7, *truth]
        assert [e.name.split("/")[0] for e in estimates] == ["gain", "tie", kind, kind, kind]
        held += sum(e.low <= value <= e.high for e, value in zip(estimates, expected, strict=True))
        count += len(expected)
    assert held / count >= 0.86  # 95% of 50, less three standard errors


def test_an_annotator_who_never_errs_has_an_interval_that_ends():
    d = torch.tensor([3.0, -3.0, 2.0, -2.0] * 50)
    found = estimate(CommonParameters(None, "accuracy", ("a", "b")), d, (d > 0).float(), torch.arange(200) % 2)
    assert all(math.isfinite(e.high) and e.low < e.value < e.high for e in found)


@pytest.mark.parametrize(
    ("option", "wrong", "near"), [("annotators", "scal", "scale"), ("ties", "rao_kupper", "rao-kupper")]
)
def test_a_word_that_is_nearly_known_is_refused_and_not_left_out(option, wrong, near):
    with pytest.raises(ValueError, match=f"{option} expected one of .*got '{wrong}'; did you mean '{near}'"):
        RewardModelConfig(**{option: wrong})
    with pytest.raises(ValueError, match=f"did you mean '{near}'"):
        CommonParameters(**{"ties": None, "annotators": None, option: wrong}, names=("a",))
