"""Copies of agents and environments: each goes on as the original does, and shares nothing with it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from test_resume import agents, made

from lm_gym.agents import PPO
from lm_gym.vllm_engine import VLLMEngine


def by_pickle(x: Any) -> Any:
    return pickle.loads(pickle.dumps(x))


WAYS: tuple[Callable[[Any], Any], ...] = (copy.deepcopy, by_pickle)


def state(agent: Any) -> tuple[dict[str, bytes], dict[str, float]]:
    metrics = {key: value for key, value in agent.last.metrics.items() if not key.startswith("perf/")}
    return {key: value.detach().numpy().tobytes() for key, value in agent.optimizer.values().items()}, metrics


def check_copies(agent: Any, tokens: int) -> None:
    """Two copies learn on; the agent is as before, then learns on itself, and all three are the same."""
    before, copies = state(agent), [way(agent) for way in WAYS]
    for twin in copies:
        twin.learn(tokens)
        assert state(agent) == before
    agent.learn(tokens)
    assert agent.updates > 1
    assert [state(twin) == state(agent) for twin in copies] == [True, True]


@pytest.mark.parametrize("name", ["ppo", *(pytest.param(n, marks=pytest.mark.slow) for n in agents() if n != "ppo")])
def test_copies_of_agents_learn_on_as_the_agent_does(name: str) -> None:
    kind, env, config = made(name)
    check_copies(kind(env, **config).learn(30), 30)


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({"kl_reference": "ema"}, "bfloat16"),
        pytest.param({"lora_rank": 2}, "float32", marks=pytest.mark.slow),
        pytest.param({"critic": "separate", "frozen_layers": 1}, "float32", marks=pytest.mark.slow),
    ],
)
def test_copies_of_transformers_act_with_their_own_weights(config: dict[str, Any], dtype: str) -> None:
    env = gym.make_vec("LMAlign-v0", num_envs=2, max_new_tokens=4, dtype=dtype)
    agent = PPO(env, batch_size=8, minibatch_size=8, epochs=1, learning_rate=1e-2, **config).learn(1)
    obs, _ = env.reset(seed=1)
    agent.predict(obs)  # from here on it has cached rows
    for way in WAYS:
        twin = way(agent)
        twin.predict(obs)
        logits = twin.learn(30)._actor.logits(obs)[0]
        twin._actor = None
        twin.predict(obs)
        assert np.array_equal(logits.numpy(), twin._actor.logits(obs)[0].numpy())
        assert not np.array_equal(logits.numpy(), agent._actor.logits(obs)[0].numpy())


@pytest.mark.parametrize("make", [gym.make, lambda *a, **k: gym.make_vec(*a, num_envs=2, **k)], ids=["one", "vector"])
def test_copies_of_environments_step_as_the_environment_does(make: Any) -> None:
    env = make("LMAlign-v0", max_new_tokens=4)
    env.reset(seed=1)
    action = 100 if make is gym.make else np.array([100, 101])
    env.step(action)
    copies = [way(env) for way in WAYS]
    for _ in range(2):
        obs, reward, *_ = env.step(action)
        for twin in copies:
            found, paid, *_ = twin.step(action)
            assert np.array_equal(reward, paid)
            assert all(np.array_equal(obs[key], found[key]) for key in obs)


def test_a_process_of_vllm_is_not_copied() -> None:
    for way in WAYS:
        with pytest.raises(TypeError, match=r"cannot be copied or pickled: save the agent and load it"):
            way(VLLMEngine.__new__(VLLMEngine))
