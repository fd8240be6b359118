"""What agents call on any reward model: update, state, and its way back; and how long a call took."""

import functools
import time

import pytest
import torch
from judges import Learns, ask
from ppo_runs import environment, ppo, problem

from lm_gym.reward_errors import UnusableRewardModel
from lm_gym.rewards import RewardModelError, load_reward_state, reward_state, update_reward_model


def plain(completions):
    return [0.0] * len(completions)


class Frozen:
    """State without learning, as a fitted scale has."""

    def __init__(self, state):
        self.state = state

    def __call__(self, completions):
        return [0.0] * len(completions)

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


class Judge(torch.nn.Linear):
    def forward(self, completions):
        return [0.0] * len(completions)


@pytest.mark.parametrize("reward_model", [plain, functools.partial(plain), Judge(2, 2), Frozen({})])
def test_without_state_nothing_happens(reward_model):
    update_reward_model(reward_model, {"objective/kl": 1.0})
    assert reward_state(reward_model) is None
    load_reward_state(reward_model, None)
    load_reward_state(Frozen({}), {})


def test_state_comes_back():
    learns = Learns()
    update_reward_model(learns, {"reward/own": 2.0})
    state = reward_state(learns)
    assert state == {"offset": 2.0}
    fresh = Learns()
    load_reward_state(fresh, state)
    assert ask(fresh, ["a"]).scores.tolist() == [2]


def test_state_and_no_state_do_not_mix():
    with pytest.raises(ValueError, match=r"holds state of a reward model \(offset\), and .*:plain has none"):
        load_reward_state(plain, {"offset": 2.0})
    with pytest.raises(ValueError, match="learns has state, and the checkpoint holds none"):
        load_reward_state(Learns(), None)


@pytest.mark.parametrize("state", [{"weights": torch.zeros(2)}, {"scale": float("nan")}])
def test_state_that_a_checkpoint_cannot_hold(state):
    with pytest.raises(RewardModelError, match=r"state_dict\(\) of .*:Frozen expected plain data"):
        reward_state(Frozen(state))
    with pytest.raises(RewardModelError, match="expected a mapping, got list"):
        reward_state(Frozen([1]))


def test_half_of_the_methods_is_an_error():
    class Forgets:
        def __call__(self, completions):
            return [0.0] * len(completions)

        def update(self, metrics):
            pass

    with pytest.raises(UnusableRewardModel, match="Forgets has update but no state_dict and load_state_dict"):
        reward_state(Forgets())


def test_a_call_says_how_long_it_took():
    def slow(completions):
        time.sleep(0.03)
        return [0.0] * len(completions)

    assert 0.03 <= ask(slow, ["a"]).seconds < 10


def test_state_that_no_checkpoint_can_hold_is_refused_before_the_training(tmp_path):
    calls = []

    class Odd(Learns):
        def __call__(self, completions, log_metric):
            calls.append(len(completions))
            return super().__call__(completions, log_metric)

        def state_dict(self):
            return {"scale": float("nan")}

    agent = ppo(environment(problem(reward_model=Odd())))
    with pytest.raises(RewardModelError, match="expected plain data"):
        agent.learn(10, out=tmp_path)
    assert not calls and not list(tmp_path.iterdir())
