"""Values that follow the mean of the returns."""

import pytest
import torch
from ppo_runs import environment, ppo, problem

from lm_gym.advantages import masked_mean
from lm_gym.values import centred


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_centred_values_have_no_mean_error_and_the_critic_says_the_same(critic: str) -> None:
    agent = ppo(environment(problem()), critic=critic)
    rollout, _ = agent.collect()
    assert rollout.values is not None
    mask, returns = rollout.response_mask, rollout.rewards.flip(-1).cumsum(-1).flip(-1) + 2.0
    values, _ = centred(agent.policy, rollout, returns)
    assert float(masked_mean(returns - values, mask)) == pytest.approx(0.0, abs=1e-5)
    with torch.no_grad():
        _, now = agent.policy.at_tokens(rollout.input_ids, rollout.attention_mask, mask)
    torch.testing.assert_close(now, values[mask], atol=1e-4, rtol=0)
