"""Lagrange multipliers: the reward and the update by hand, and where they end on a problem that can be solved."""

import math

import numpy as np
import pytest
from judges import Learns, Says, ask, logged

from lm_gym.reward_models import Constrained, WeightedSum
from lm_gym.rewards import RewardModelError, load_reward_state, reward_model_hash, reward_state, update_reward_model

HELPFUL = Says({"a": 2.0, "b": 1.0, "c": 3.0})
SAFE = Says({"a": 0.5, "b": 1.5, "c": None})


def constrained(**options):
    options = {"objective": HELPFUL, "constraints": {"safe": SAFE}, "at_least": {"safe": 1.0}, **options}
    return Constrained(**options)


def test_the_reward_is_the_lagrangian_on_one_scale():
    # (2 + 3·(.5 − 1))/4, (1 + 3·(1.5 − 1))/4, and 3/4 where the constraint does not apply
    result = ask(constrained(start=3.0), list("abc"))
    assert result.scores.tolist() == pytest.approx([0.125, 0.625, 0.75])
    assert result.extra == {"objective": [2, 1, 3], "safe": [0.5, 1.5, None]}
    assert result.metrics == pytest.approx({"objective": 2, "safe": 1, "violation/safe": 0, "multiplier/safe": 3})


def test_several_constraints():
    terse = Says({"a": -4.0, "b": -1.0, "c": 0.0})
    reward = constrained(constraints={"safe": SAFE, "terse": terse}, at_least={"terse": -2, "safe": 1}, start=2.0)
    # (2 + 2·(−.5) + 2·(−2))/5, (1 + 2·.5 + 2·1)/5, (3 + 2·2)/5
    assert ask(reward, list("abc")).scores.tolist() == pytest.approx([-0.6, 0.8, 1.4])


def test_a_multiplier_grows_while_its_constraint_is_violated_and_shrinks_while_there_is_room():
    reward = constrained(lr=0.2)
    update_reward_model(reward, logged(ask(reward, ["a"]).metrics))  # violated by 1 − .5
    first = math.exp(0.2 * 1 * 0.5)
    assert reward.multipliers["safe"] == pytest.approx(first)
    update_reward_model(reward, logged(ask(reward, ["b"]).metrics))  # room of .5
    assert reward.multipliers["safe"] == pytest.approx(first * math.exp(-0.2 * first * 0.5))


def test_nothing_is_learnt_where_a_constraint_does_not_apply():
    reward = constrained()
    update_reward_model(reward, logged(ask(reward, ["c"]).metrics))
    assert reward.multipliers == {"safe": 1}


def test_limits():
    far = Says({"a": -1e9, "b": 1e9})
    reward = constrained(constraints={"safe": far}, limits=(0.1, 5))
    update_reward_model(reward, logged(ask(reward, ["a"]).metrics))
    assert reward.multipliers["safe"] == pytest.approx(5)
    update_reward_model(reward, logged(ask(reward, ["b"]).metrics))
    assert reward.multipliers["safe"] == pytest.approx(0.1)


def test_it_ends_where_the_constraint_holds():
    """Four texts, the reference uniform, the policy the exact optimum of each reward: E[R_1] ends at its threshold."""
    texts, beta = list("abcd"), 0.2
    objective = Says({"a": 1.0, "b": 0.6, "c": 0.2, "d": 0.0})
    safe = Says({"a": 0.0, "b": 0.3, "c": 0.8, "d": 1.0})
    reward = constrained(objective=objective, constraints={"safe": safe}, at_least={"safe": 0.7}, lr=0.5)
    for _ in range(400):
        result = ask(reward, texts)
        policy = np.exp(result.scores / beta)
        policy /= policy.sum()
        values = np.array(result.extra["safe"])
        metrics = {"reward/violation/safe": float(0.7 - policy @ values)}
        update_reward_model(reward, metrics)
    assert policy @ values == pytest.approx(0.7, abs=1e-4)
    assert 0.01 < reward.multipliers["safe"] < 9  # inside its limits


def test_a_rollout_without_the_metric_is_an_error():
    message = "expected the rollout's metric 'reward/violation/safe'.* got objective/kl"
    with pytest.raises(RewardModelError, match=message):
        update_reward_model(constrained(), {"objective/kl": 1.0})


def test_within_a_sum_it_still_finds_its_metric():
    reward = constrained(lr=0.2)
    total = WeightedSum({"task": reward, "length": "length?target=1"})
    update_reward_model(total, logged(ask(total, ["a"]).metrics))
    assert reward.multipliers["safe"] == pytest.approx(math.exp(0.1))


def test_state_and_the_state_of_parts():
    learns = Learns()
    reward = constrained(objective=learns)
    update_reward_model(reward, logged(ask(reward, ["a"]).metrics))
    state = reward_state(reward)
    assert state == {"multipliers": reward.multipliers, "parts": {"objective": {"offset": 1.5}}}
    fresh_part = Learns()
    fresh = constrained(objective=fresh_part)
    load_reward_state(fresh, state)
    assert (fresh.multipliers, fresh_part.offset) == (reward.multipliers, 1.5)
    assert reward_model_hash(fresh) == reward_model_hash(constrained(objective=Learns()))  # what it is, not where


def test_state_of_other_constraints_is_refused():
    with pytest.raises(ValueError, match="multipliers of kind, expected those of safe"):
        load_reward_state(constrained(), {"multipliers": {"kind": 1.0}, "parts": {}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at_least": {}}, "'safe' has no threshold"),
        ({"at_least": {"safe": 1, "kind": 2}}, "at_least of 'kind', which is no part"),
        ({"at_least": {"safe": None}}, "expected a finite number"),
        ({"constraints": {}}, "expected reward models by name"),
        ({"constraints": {"objective": SAFE}}, "none of them named 'objective'"),
        ({"lr": 0}, "expected lr above 0"),
        ({"start": 0}, "0 < limits"),
        ({"start": 20}, "0 < limits"),
    ],
)
def test_wrong_constraints(options, message):
    with pytest.raises(ValueError, match=message):
        constrained(**options)
