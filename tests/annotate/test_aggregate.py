"""Several answers to one: by hand, and against annotators whose accuracy was planted."""

import itertools

import numpy as np
import pytest

from lm_gym.annotate.aggregate import Vote, aggregate, dawid_skene


def votes(*strengths: int, item: int = 0) -> list[Vote]:
    return [Vote(item, annotator, strength) for annotator, strength in enumerate(strengths)]


@pytest.mark.parametrize(
    ("strengths", "majority", "mean", "p_b", "agreement"),
    [
        ((3, 1, -1), 1, 1, 2 / 3, 2 / 3),
        ((-1, -1, 3), -1, 0, 1 / 3, 2 / 3),  # mean 1/3 rounds to a tie
        ((1, 1, -3), 1, 0, 2 / 3, 2 / 3),
        ((2, -2), 0, 0, 1 / 2, 0.0),  # the first place is shared
        ((0, 0, 3), 0, 1, 2 / 3, 2 / 3),
        ((1,), 1, 1, 1.0, 1.0),
        ((0,), 0, 0, 0.5, 1.0),
    ],
)
def test_majority_and_mean_by_hand(
    strengths: tuple[int, ...], majority: int, mean: int, p_b: float, agreement: float
) -> None:
    by_majority = aggregate(votes(*strengths), "majority")[0]
    assert by_majority.direction == majority
    assert by_majority.p_b == pytest.approx(p_b) and by_majority.agreement == pytest.approx(agreement)
    by_mean = aggregate(votes(*strengths), "mean")[0]
    assert by_mean.direction == mean and by_mean.strength == pytest.approx(np.mean(strengths))
    assert by_mean.votes == len(strengths) and by_mean.p_b == pytest.approx((1 + np.mean(strengths) / 3) / 2)


@pytest.mark.parametrize("method", ["majority", "mean", "dawid-skene"])
def test_no_label_says_the_opposite_of_the_direction(method: str) -> None:
    rng = np.random.default_rng(0)
    said = [Vote(item, a, int(rng.integers(-3, 4))) for item in range(300) for a in range(rng.integers(1, 7))]
    for verdict in aggregate(said, method).values():  # type: ignore[arg-type]
        assert np.sign(verdict.p_b - 0.5) == verdict.direction or verdict.direction == 0


def planted(
    accuracy: list[float], items: int, seed: int, classes: int = 2
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """item, annotator, answer (N,), and the truth (items,)."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(classes, size=items)
    item, annotator = (
        np.ravel(grid) for grid in np.meshgrid(np.arange(items), np.arange(len(accuracy)), indexing="ij")
    )
    right = rng.random(len(item)) < np.array(accuracy)[annotator]
    wrong = (truth[item] + rng.integers(1, classes, size=len(item))) % classes if classes > 1 else truth[item]
    return item, annotator, np.where(right, truth[item], wrong), truth


ACCURACY = [0.95, 0.85, 0.75, 0.65, 0.55]


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_planted_accuracies_are_recovered(seed: int, mirrored: bool) -> None:
    item, annotator, answer, truth = planted(ACCURACY, 2000, seed)
    found = dawid_skene(item, annotator, answer, classes=2, mirrored=mirrored)
    # The standard error of a share of 2000 is .011 at .5.
    assert found.accuracy == pytest.approx(ACCURACY, abs=0.04)
    modelled = (found.posterior.argmax(1) == truth).mean()
    majority = np.array([np.bincount(answer[item == i], minlength=2).argmax() for i in range(2000)])
    assert modelled > (majority == truth).mean() + 0.02


def test_a_confusion_matrix_is_recovered_with_three_classes() -> None:
    item, annotator, answer, _ = planted([0.9, 0.8, 0.7, 0.6], 3000, 0, classes=3)
    found = dawid_skene(item, annotator, answer, classes=3)
    for who, accuracy in enumerate([0.9, 0.8, 0.7, 0.6]):
        expected = np.full((3, 3), (1 - accuracy) / 2)
        np.fill_diagonal(expected, accuracy)
        assert found.confusion[who] == pytest.approx(expected, abs=0.05)


def test_the_likelihood_never_falls_and_the_first_step_is_that_of_the_paper() -> None:
    item, annotator, answer, _ = planted([0.9, 0.7, 0.6], 50, 1)

    def likelihood(steps: int) -> float:
        model = dawid_skene(item, annotator, answer, classes=2, smoothing=1e-9, most=steps, tolerance=0)
        total = 0.0
        for i in range(50):
            per_class = [
                model.prior[c]
                * np.prod([model.confusion[a, c, x] for a, x in zip(annotator[item == i], answer[item == i])])
                for c in range(2)
            ]
            total += float(np.log(sum(per_class)))
        return total

    values = [likelihood(steps) for steps in (1, 2, 3, 5, 10, 40)]
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(values))
    one = dawid_skene(item, annotator, answer, classes=2, smoothing=1e-9, most=1)
    share = np.stack([[np.mean(answer[item == i] == c) for c in range(2)] for i in range(50)])
    expected = np.stack([share[item[annotator == 0]][answer[annotator == 0] == x].sum(0) for x in range(2)], axis=1)
    assert one.confusion[0] == pytest.approx(expected / expected.sum(1, keepdims=True), abs=1e-6)


def test_the_mirrored_model_does_not_learn_which_completion_came_first() -> None:
    rng = np.random.default_rng(0)
    strengths = [[Vote(i, a, int(rng.choice([-2, -1, -1, 1]))) for a in range(3)] for i in range(200)]
    turned = [[Vote(v.item, v.annotator, -v.strength) for v in row] for row in strengths]
    one = aggregate([vote for row in strengths for vote in row], "dawid-skene")
    other = aggregate([vote for row in turned for vote in row], "dawid-skene")
    for item in one:
        assert one[item].direction == -other[item].direction
        assert one[item].p_b == pytest.approx(1 - other[item].p_b, abs=1e-9)


def test_known_answers_tell_a_liar_from_an_honest_annotator() -> None:
    # Two annotators who always contradict each other: without gold nothing can be said, with it everything.
    said = [vote for item in range(40) for vote in votes(*((2, -2) if item % 2 else (-2, 2)), item=item)]
    unsure = aggregate(said, "dawid-skene").values()
    assert all(verdict.p_b == pytest.approx(0.5) for verdict in unsure)
    gold = {item: 2 if item % 2 else -2 for item in range(10)}
    found = aggregate(said, "dawid-skene", gold=gold)
    assert all(found[item].direction == (1 if item % 2 else -1) for item in range(40))


def test_what_cannot_be_aggregated_is_refused() -> None:
    assert aggregate([], "mean") == {}
    with pytest.raises(ValueError, match="majority, mean, dawid-skene, got 'median'"):
        aggregate(votes(1), "median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="three equally long arrays"):
        dawid_skene(np.zeros(0, int), np.zeros(0, int), np.zeros(0, int), classes=2)
