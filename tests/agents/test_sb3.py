"""The adapter to Stable-Baselines3 and the exact KL reward of an unmodified agent."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from small_models import PROMPTS, SHARED, letter_reward
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from lm_gym.agents import ExactKL, SB3VecEnv
from lm_gym.exact import evaluate

SMALL = {"model": SHARED, "prompts": PROMPTS, "reward_model": letter_reward, "max_new_tokens": 6, "kl_coef": 0.3}
SHORT: dict[str, Any] = {"n_steps": 16, "gamma": 1.0, "device": "cpu", "seed": 0}


def adapter(n: int = 4, **options: Any) -> SB3VecEnv:
    return SB3VecEnv(gym.make_vec("LMAlign-v0", num_envs=n, **{**SMALL, **options}))


def top_k(n: int = 4, **options: Any) -> SB3VecEnv:
    return adapter(n, observation_mode="hidden", action_mode="top_k", top_k=4, **options)


class Seen(BaseCallback):
    """What a rollout buffer held before the update, and the infos of its steps."""

    def _on_training_start(self) -> None:
        self.infos: list[Any] = []

    def _on_rollout_start(self) -> None:
        self.infos = []

    def _on_step(self) -> bool:
        self.infos.append([dict(info) for info in self.locals["infos"]])
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer
        self.rewards, self.logprobs = buffer.rewards.copy(), buffer.log_probs.copy()


# ---- the adapter -----------------------------------------------------------------------------------------------------

VIEWS: list[dict[str, Any]] = [
    {},
    {"observation_mode": "hidden", "action_mode": "top_k", "top_k": 4},
    {"min_new_tokens": 3},
]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return set(a) == set(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (str, bool, type(None))):
        return bool(a == b)
    return bool(np.allclose(a, b, atol=1e-5))


@pytest.mark.parametrize("view", VIEWS, ids=["tokens", "top_k", "masked"])
def test_it_does_what_sb3s_own_vector_of_single_environments_does(view: dict[str, Any]) -> None:
    """Observations, rewards, ends, infos and resets of 40 steps; the rows' own reference is Gymnasium's environment."""
    n, rng = 3, np.random.default_rng(0)
    ours = adapter(n, kl_mode="none", **view)
    theirs = DummyVecEnv([lambda: Monitor(gym.make("LMAlign-v0", kl_mode="none", **{**SMALL, **view}))] * n)
    ours.seed(7), theirs.seed(7)
    assert same(ours.reset(), theirs.reset()) and same(ours.reset_infos[1], theirs.reset_infos[1])
    ends = 0
    for _ in range(40):
        masks = np.stack(ours.env_method("action_masks"))
        assert (masks == np.stack(theirs.env_method("action_masks"))).all()
        actions = np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])
        (obs, rewards, done, infos), expected = ours.step(actions), theirs.step(actions)
        assert same(obs, expected[0]) and np.allclose(rewards, expected[1], atol=1e-5) and (done == expected[2]).all()
        for i, (info, other) in enumerate(zip(infos, expected[3], strict=True)):
            if not done[i]:
                other.pop("TimeLimit.truncated")
            else:
                ends += 1
                assert info["TimeLimit.truncated"] is False
                assert info["episode"].pop("t") >= 0 and other["episode"].pop("t") >= 0
                assert same(ours.reset_infos[i], theirs.reset_infos[i])
            assert same(info, other), set(info) ^ set(other)
    assert ends > 10


def test_a_seed_and_options_reach_the_rows() -> None:
    env = adapter(3, kl_mode="none")
    env.seed(3)
    env.reset()
    first = [info["prompt"] for info in env.reset_infos]
    env.seed(3)
    env.reset()
    assert [info["prompt"] for info in env.reset_infos] == first
    env.set_options({"prompt_id": 1})
    env.reset()
    assert [info["prompt"] for info in env.reset_infos] == [PROMPTS[1]] * 3
    env.set_options([{"prompt_id": i} for i in range(3)])
    env.reset()
    assert [info["prompt"] for info in env.reset_infos] == PROMPTS[:3]
    env.set_options([{}, {"prompt": "a"}, {}])
    with pytest.raises(ValueError, match="the same options for every row"):
        env.reset()


def test_what_cannot_be_adapted_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected gym.make_vec\('LMAlign-v0', num_envs=N\).* got a SyncVectorEnv"):
        SB3VecEnv(gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync"))
    with pytest.raises(ValueError, match="SB3 takes no strings"):
        adapter(observation_mode="text")
    with pytest.raises(ValueError, match="expected autoreset_mode='SameStep', got 'NextStep'"):
        adapter(autoreset_mode="NextStep")
    env = adapter()
    with pytest.raises(ValueError, match="expected all rows"):
        env.set_attr("render_mode", None, indices=0)
    with pytest.raises(AttributeError, match="'action_masks' or 'render', got 'reset'"):
        env.env_method("reset")
    assert env.has_attr("action_masks") and not env.has_attr("nothing")


def test_a_wrapper_that_cuts_texts_off_is_refused() -> None:
    class Cut(gym.vector.VectorWrapper):  # type: ignore[type-arg]
        def step(self, actions: Any) -> Any:
            obs, rewards, terminated, truncated, info = super().step(actions)
            return obs, rewards, terminated, np.ones_like(truncated), info

    env = SB3VecEnv(Cut(gym.make_vec("LMAlign-v0", num_envs=2, kl_mode="none", **SMALL)))
    env.reset()
    with pytest.raises(ValueError, match=r"truncated rows \[0, 1\].*max_new_tokens"):
        env.step(np.array([3, 3]))


def test_a_step_without_a_report_says_what_to_pass_to_learn() -> None:
    with pytest.raises(ValueError, match=r"callback=\s*ExactKL\(\).*kl_mode='none'"):
        PPO("MlpPolicy", top_k(), batch_size=32, **SHORT).learn(32)


def test_masked_actions_are_never_taken() -> None:
    env = adapter(observation_mode="hidden", min_new_tokens=3)
    assert is_masking_supported(env) and get_action_masks(env).shape == (4, SHARED.vocab_size)
    MaskablePPO("MlpPolicy", env, batch_size=32, **SHORT).learn(128, callback=ExactKL())  # the environment would raise
    with pytest.raises(ValueError, match="expected at least min_new_tokens=3"):
        PPO("MlpPolicy", env, batch_size=32, **SHORT).learn(128, callback=ExactKL())


def test_evaluate_policy_gives_the_mean_score() -> None:
    model = PPO("MlpPolicy", top_k(), batch_size=32, **SHORT)
    model.learn(64, callback=ExactKL())
    returns, lengths = evaluate_policy(
        model, top_k(kl_mode="none"), n_eval_episodes=12, deterministic=False, return_episode_rewards=True
    )
    assert len(returns) == 12 and np.isfinite(returns).all() and max(lengths) <= 6
    assert model.ep_info_buffer is not None and len(model.ep_info_buffer) > 0  # where ep_rew_mean comes from


# ---- the exact KL reward ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["adapter", "sb3's own vector"])
def test_an_unmodified_agent_is_paid_the_exact_reward(kind: str) -> None:
    """Rewards in the buffer are R − β·(log π − log π_ref), log π from the buffer and log π_ref from the infos."""
    view = {"observation_mode": "hidden", "action_mode": "top_k", "top_k": 4}
    env = top_k() if kind == "adapter" else make_vec_env(lambda: gym.make("LMAlign-v0", **SMALL, **view), n_envs=4)
    seen = Seen()
    model = PPO("MlpPolicy", env, batch_size=32, learning_rate=1e-2, **SHORT)
    model.learn(192, callback=[ExactKL(), seen])
    ref = np.array([[info["ref_logprob"] for info in row] for row in seen.infos])
    score = np.array([[info.get("score", 0.0) for info in row] for row in seen.infos])
    assert np.allclose(seen.rewards, score - 0.3 * (seen.logprobs - ref), atol=1e-5)
    assert np.abs(seen.logprobs - ref).mean() > 0.1 and (score != 0).any()
    assert not model.policy._forward_hooks  # learning over, the policy is as it was


def test_the_reward_of_an_episode_in_sb3s_log_is_the_exact_one() -> None:
    env, seen = top_k(), Seen()
    model = A2C("MlpPolicy", env, **{**SHORT, "n_steps": 32})
    model.learn(128, callback=[ExactKL(), seen])
    rewards = np.array([[info["reward/task"] + info["reward/kl_penalty"] for info in row] for row in seen.infos])
    row = [info["episode"] for info in (step[0] for step in seen.infos) if "episode" in info]
    length = sum(episode["l"] for episode in row)
    assert sum(episode["r"] for episode in row) == pytest.approx(rewards[:length, 0].sum(), abs=1e-5)


def test_wrappers_of_sb3_get_the_whole_reward() -> None:
    """VecNormalize scales R and the KL price alike, as it scales what step() pays."""
    env = VecNormalize(top_k(), norm_obs=False, norm_reward=True, gamma=1.0)
    PPO("MlpPolicy", env, batch_size=32, **SHORT).learn(64, callback=ExactKL())
    assert np.isfinite(env.ret_rms.var) and env.unwrapped.base.kl_mode == "reported"


@pytest.mark.parametrize(
    ("config", "says"), [({"gamma": 0.99}, r"gamma=0.99.* 0.95 .*2.34"), ({"ent_coef": 0.01}, "ent_coef=0.01")]
)
def test_a_discount_and_an_entropy_bonus_warn_once(config: dict[str, Any], says: str) -> None:
    model = PPO("MlpPolicy", top_k(), **{"batch_size": 32, **SHORT, **config})
    with pytest.warns(UserWarning, match=says) as caught:
        model.learn(128, callback=ExactKL())
    assert len(caught) == 1


def test_what_the_warning_says_of_an_entropy_bonus() -> None:
    """The bonus is no part of the return, so that Q − β·log π + c·entropy is stationary at
    π(a|s) ∝ exp((β·log π_ref + r + V(sa))/(β + c)) with V(s) = Σ π·(r + V(sa) − β·log π/π_ref): one backward pass.
    """
    language = gym.make("LMAlignExact-v0").unwrapped.language  # type: ignore[attr-defined]
    ref = language.table().ref_probs

    def regret(c: float) -> float:
        policy = np.zeros_like(ref)

        def value(prefix: tuple[int, ...]) -> float:
            q = np.array(
                [
                    language.reward([*prefix, a], 0) if a == 0 or len(prefix) == 2 else value((*prefix, a))
                    for a in range(4)
                ]
            )
            state = states[prefix]
            weights = np.exp((0.5 * np.log(ref[state]) + q) / (0.5 + c))
            policy[state] = pi = weights / weights.sum()
            return float((pi * (q - 0.5 * np.log(pi / ref[state]))).sum())

        states = {language.prefix(s): s for s in range(len(ref))}
        value(())
        return evaluate(language, policy).regret

    assert [round(regret(c), 4) for c in (0.0, 0.01, 0.05, 0.1)] == [0.0, 0.0002, 0.0040, 0.0145]


def test_what_has_no_exact_reward_is_refused() -> None:
    with pytest.raises(ValueError, match="expected PPO, A2C, TRPO or MaskablePPO, got DQN"):
        DQN("MlpPolicy", top_k(), device="cpu", buffer_size=100).learn(16, callback=ExactKL())
    with pytest.raises(ValueError, match="got kl_mode='none'"):
        PPO("MlpPolicy", top_k(kl_mode="none"), batch_size=32, **SHORT).learn(16, callback=ExactKL())


def test_learning_goes_on_after_an_interruption() -> None:
    class Interrupt(BaseCallback):
        def _on_step(self) -> bool:
            raise KeyboardInterrupt

    model = PPO("MlpPolicy", top_k(), batch_size=32, **SHORT)
    with pytest.raises(KeyboardInterrupt):
        model.learn(64, callback=[ExactKL(), Interrupt()])
    model.learn(64, callback=ExactKL())  # one report a step: two would raise
    assert not model.policy._forward_hooks


def test_same_seed_same_numbers() -> None:
    def weights(seed: int) -> torch.Tensor:
        model = PPO("MlpPolicy", top_k(), **{"batch_size": 32, **SHORT, "seed": seed})
        return model.learn(128, callback=ExactKL()).policy.parameters_to_vector()

    first = weights(1)
    assert (first == weights(1)).all() and (first != weights(2)).any()


def test_a_small_agent_comes_near_the_optimum_of_an_exact_language() -> None:
    """SB3's MlpPolicy on one-hot states: regret .784 untrained, below .1 after 4,000 steps."""
    env = SB3VecEnv(gym.make_vec("LMAlignExact-v0", num_envs=16, observation_mode="hidden"))
    model = PPO("MlpPolicy", env, n_steps=64, batch_size=256, gamma=1.0, learning_rate=1e-2, device="cpu", seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(4_000, callback=ExactKL())
    states = torch.eye(env.base.language.table().n_states)
    policy = model.policy.get_distribution(states).distribution.probs.detach().numpy()
    assert evaluate(env.base.language, policy).regret < 0.1
