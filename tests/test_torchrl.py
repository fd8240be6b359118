"""TorchRL steps the environments: its own checker passes, and both ways to the exact reward pay the same."""

import gymnasium as gym
import pytest
import torch

import lm_gym

pytest.importorskip("torchrl", reason="TorchRL is a development dependency")

from tensordict.nn import TensorDictModule
from torchrl.collectors import Collector
from torchrl.envs import GymEnv, GymWrapper, check_env_specs
from torchrl.modules import ProbabilisticActor


class Reporting(GymWrapper):
    """docs/interop.md: the policy's log-prob goes to the environment before the step."""

    def _step(self, tensordict):
        self._env.unwrapped.report_logprob(tensordict["action_log_prob"])
        return super()._step(tensordict)


def batches(wrapper, **options):
    """Two batches of a collector over 4 rows: (4, 12) steps each."""
    options = {"observation_mode": "hidden", "autoreset_mode": "Disabled", "max_new_tokens": 5, **options}
    envs = gym.make_vec("LMAlign-v0", 4, **options)
    env = wrapper(envs, categorical_action_encoding=True)
    env.set_seed(0)
    torch.manual_seed(0)
    actor = ProbabilisticActor(
        TensorDictModule(envs.unwrapped.mdp.reference.head, in_keys=["observation"], out_keys=["logits"]),
        in_keys=["logits"],
        distribution_class=torch.distributions.Categorical,
        return_log_prob=True,
    )
    collector = Collector(env, actor, frames_per_batch=48, total_frames=96, auto_register_policy_transforms=True)
    found = [batch.clone() for batch in collector]
    collector.shutdown()
    return found, envs.unwrapped.kl_coef


@pytest.mark.parametrize("options", [{}, {"observation_mode": "hidden"}])
def test_torchrls_own_checker_passes(options):
    check_env_specs(GymEnv("LMAlign-v0", max_new_tokens=4, **options))
    check_env_specs(GymEnv("LMAlignExact-v0", **options))
    check_env_specs(GymWrapper(gym.make_vec("LMAlignTopK-v0", 2, autoreset_mode="Disabled", **options)))


def test_shaped_behind_the_collector_and_reported_before_the_step_are_the_same_reward():
    half, kl_coef = batches(GymWrapper)
    whole, _ = batches(Reporting, kl_mode="reported")
    ended = 0
    for a, b in zip(half, whole, strict=True):
        assert torch.equal(a["action"], b["action"])
        shaped = lm_gym.kl.shape(a["next", "reward"], a["action_log_prob"].unsqueeze(-1), kl_coef)
        torch.testing.assert_close(shaped, b["next", "reward"], atol=1e-5, rtol=0)
        within = ~b["next", "done"]  # the policy is the reference: no step but the last pays anything
        assert b["next", "reward"][within].abs().max() < 1e-5
        ended += int(b["next", "done"].sum())
    assert ended >= 16  # 96 steps of texts of at most 5
