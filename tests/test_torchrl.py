"""TorchRL steps the environments: its own checker passes, and both ways to the exact reward pay the same.

TorchRL is imported where it is used: two seconds that collecting the tests should not cost.
"""

import gymnasium as gym
import pytest
import torch

import lm_gym


@pytest.fixture(scope="module")
def envs():
    """torchrl.envs"""
    return pytest.importorskip("torchrl.envs", reason="TorchRL is a development dependency")


def reporting(envs):
    """docs/interop.md: the policy's log-prob goes to the environment before the step."""

    class Reporting(envs.GymWrapper):
        def _step(self, tensordict):
            self._env.unwrapped.report_logprob(tensordict["action_log_prob"])
            return super()._step(tensordict)

    return Reporting


def batches(wrapper, **options):
    """Two batches of a collector over 4 rows: (4, 12) steps each."""
    from tensordict.nn import TensorDictModule
    from torchrl.collectors import Collector
    from torchrl.modules import ProbabilisticActor

    options = {"observation_mode": "hidden", "autoreset_mode": "Disabled", "max_new_tokens": 5, **options}
    rows = gym.make_vec("LMAlign-v0", 4, **options)
    env = wrapper(rows, categorical_action_encoding=True)
    env.set_seed(0)
    torch.manual_seed(0)
    actor = ProbabilisticActor(
        TensorDictModule(rows.unwrapped.mdp.reference.head, in_keys=["observation"], out_keys=["logits"]),
        in_keys=["logits"],
        distribution_class=torch.distributions.Categorical,
        return_log_prob=True,
    )
    collector = Collector(env, actor, frames_per_batch=48, total_frames=96, auto_register_policy_transforms=True)
    found = [batch.clone() for batch in collector]
    collector.shutdown()
    return found, rows.unwrapped.kl_coef


@pytest.mark.parametrize("options", [{}, {"observation_mode": "hidden"}])
def test_torchrls_own_checker_passes(envs, options):
    envs.check_env_specs(envs.GymEnv("LMAlign-v0", max_new_tokens=4, **options))
    envs.check_env_specs(envs.GymEnv("LMAlignExact-v0", **options))
    envs.check_env_specs(envs.GymWrapper(gym.make_vec("LMAlignTopK-v0", 2, autoreset_mode="Disabled", **options)))


def test_shaped_behind_the_collector_and_reported_before_the_step_are_the_same_reward(envs):
    half, kl_coef = batches(envs.GymWrapper)
    whole, _ = batches(reporting(envs), kl_mode="reported")
    ended = 0
    for a, b in zip(half, whole, strict=True):
        assert torch.equal(a["action"], b["action"])
        shaped = lm_gym.kl.shape(a["next", "reward"], a["action_log_prob"].unsqueeze(-1), kl_coef)
        torch.testing.assert_close(shaped, b["next", "reward"], atol=1e-5, rtol=0)
        within = ~b["next", "done"]  # the policy is the reference: no step but the last pays anything
        assert b["next", "reward"][within].abs().max() < 1e-5
        ended += int(b["next", "done"].sum())
    assert ended >= 16  # 96 steps of texts of at most 5
