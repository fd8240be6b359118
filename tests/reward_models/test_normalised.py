"""Normalisation against the moments that enumeration gives."""

import numpy as np
import pytest
from judges import Learns, Says, ask, logged
from small_models import small_mdp

from lm_gym.exact import ExactLanguage, score_distribution
from lm_gym.exact.envs import exact_mdp
from lm_gym.reward_models import JudgeByColumn, Normalised, WeightedSum
from lm_gym.rewards import (
    load_reward_state,
    prepare_reward_model,
    reward_model_hash,
    reward_state,
    update_reward_model,
)

JUDGE = Says({"a": 5.0, "b": -1.0, "c": None})


def test_given_numbers():
    result = ask(Normalised(JUDGE, mean=3.0, std=2.0), list("abc"))
    assert result.scores.tolist() == pytest.approx([1, -2, float("nan")], nan_ok=True)
    assert result.extra == {"says": [5, -1, None]}
    assert result.metrics == {"says": 2}


def test_fitted_on_the_reference_it_has_the_moments_that_enumeration_gives():
    mdp = exact_mdp(ExactLanguage())
    [(scores, probs)] = score_distribution(ExactLanguage())
    mean = probs @ scores  # .7685
    std = (probs @ (scores - mean) ** 2) ** 0.5
    normalised = Normalised(mdp.reward_model)
    mdp.reward_model = normalised  # as in a run: the fit must not ask it
    normalised.fit(mdp, n=4000, seed=1)
    assert mean == pytest.approx(0.7685, abs=1e-6)
    assert normalised.mean == pytest.approx(mean, abs=4 * std / 4000**0.5)
    assert normalised.std == pytest.approx(std, rel=0.05)


def test_the_same_seed_gives_the_same_numbers_and_columns_reach_the_judge():
    prompts = [{"prompt": text, "user": text[0]} for text in ("abc", "head", "bad")]
    mdp = small_mdp(prompts=prompts)

    def judge(completions, user):
        return [len(text) + ord(name) for text, name in zip(completions, user, strict=True)]

    fits = [Normalised(judge).fit(mdp, n=32, seed=seed) for seed in (0, 0, 1)]
    assert (fits[0].mean, fits[0].std) == (fits[1].mean, fits[1].std) != (fits[2].mean, fits[2].std)
    assert 97 < fits[0].mean < 112


def test_it_is_frozen_once_fitted():
    normalised = Normalised("length?target=4").fit(small_mdp(), n=16)
    before = (normalised.mean, normalised.std)
    with pytest.raises(ValueError, match="they are frozen"):
        normalised.fit(small_mdp(), n=16)
    update_reward_model(normalised, logged(ask(normalised, ["a"]).metrics))
    assert (normalised.mean, normalised.std) == before


def test_what_has_no_numbers_is_fitted_before_training_wherever_it_stands():
    mdp = exact_mdp(ExactLanguage())
    given, inner, outer = Normalised("vader", 1.0, 2.0), Normalised(mdp.reward_model), Normalised("length?target=3")
    judge = JudgeByColumn("prompt_index", {0: WeightedSum({"given": given, "inner": inner, "outer": outer})})
    whole = Normalised(judge)
    prepare_reward_model(whole, mdp)
    assert (given.mean, given.std) == (1, 2)
    fitted = Normalised(mdp.reward_model).fit(mdp)
    assert (inner.mean, inner.std) == (fitted.mean, fitted.std)
    assert whole.mean == pytest.approx(-0.5)  # −1/2 of the one that was given, and 0 of each that was fitted
    prepare_reward_model(whole, mdp)  # again: they are frozen
    prepare_reward_model(lambda completions: [0.0], mdp)


def test_state_goes_with_a_checkpoint():
    normalised = Normalised(Learns(), mean=1.0, std=2.0)
    update_reward_model(normalised, logged(ask(normalised, ["a"]).metrics))
    state = reward_state(normalised)
    assert state == {"mean": 1, "std": 2, "reward": {"offset": 1.5}}
    fresh = Normalised(Learns())
    load_reward_state(fresh, state)
    assert ask(fresh, ["a"]).scores.tolist() == [(1.5 - 1) / 2]


def test_before_the_fit_it_says_so():
    with pytest.raises(Exception, match=r"normalised\(says\) has no mean and std yet: call .fit\(mdp\)"):
        ask(Normalised(JUDGE))


def test_a_reward_that_does_not_vary_has_no_scale():
    with pytest.raises(ValueError, match="the 8 of 8 completions that it applies to all score 2.0"):
        Normalised(lambda completions: [2.0] * len(completions)).fit(small_mdp(), n=8)
    with pytest.raises(ValueError, match="the 0 of 8 completions"):
        Normalised(lambda completions: [None] * len(completions)).fit(small_mdp(), n=8)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"mean": 1.0}, "expected both"),
        ({"mean": 1.0, "std": 0.0}, "std above 0"),
        ({"mean": np.nan, "std": 1.0}, "expected finite numbers"),
    ],
)
def test_wrong_numbers(numbers, message):
    with pytest.raises(ValueError, match=message):
        Normalised(JUDGE, **numbers)


def test_the_hash_follows_the_scale():
    assert reward_model_hash(Normalised(JUDGE, 0.0, 1.0)) != reward_model_hash(Normalised(JUDGE, 0.0, 2.0))


def test_a_part_of_a_sum_keeps_its_scale_in_the_state():
    total = WeightedSum({"one": Normalised(JUDGE, 1.0, 2.0), "two": "vader"})
    assert reward_state(total) == {"one": {"mean": 1, "std": 2, "reward": None}}
