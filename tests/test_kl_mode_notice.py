"""Who steps an environment without having named its kl_mode is told once what it pays; others hear nothing."""

import re
import runpy
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.utils.env_checker import check_env
from small_models import small_env
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.env_checker import check_env as check_sb3

from lm_gym import kl_mode_notice
from lm_gym.agents import PPO
from lm_gym.agents.sb3 import ExactKL, SB3VecEnv

ROOT = Path(__file__).parents[1]
WARNING = r"made without kl_mode.*report_logprob.*lm_gym\.kl\.shape.*silences this"


@pytest.fixture(autouse=True)
def _a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kl_mode_notice, "given", False)


def steps(env: Any, n: int = 4) -> None:
    env.reset(seed=0)
    for _ in range(n):
        *_, ended, _, _ = env.step(env.action_space.sample())
        if not hasattr(env, "num_envs") and ended:
            env.reset()


@pytest.mark.parametrize(
    "make",
    [
        lambda **how: gym.make("LMAlignExact-v0", **how),
        lambda **how: gym.make_vec("LMAlignExact-v0", num_envs=2, **how),
        lambda **how: gym.make_vec("LMAlignExact-v0", num_envs=2, vectorization_mode="sync", **how),
    ],
    ids=["single", "vector", "sync"],
)
def test_one_warning_a_process_at_the_line_that_steps(make: Any) -> None:
    with pytest.warns(UserWarning, match=WARNING) as caught:
        [steps(make()) for _ in range(2)]
    assert [w.filename for w in caught] == [__file__]
    kl_mode_notice.given = False
    for mode in ("reference", "none"):
        steps(make(kl_mode=mode))


def test_a_library_from_outside_is_told_of_at_the_line_that_calls_it() -> None:
    agent = SB3PPO("MlpPolicy", gym.make("LMAlignExact-v0", observation_mode="hidden"), n_steps=8, batch_size=8)
    with pytest.warns(UserWarning, match=WARNING) as caught:
        agent.learn(8)
    assert [w.filename for w in caught] == [__file__]


def test_our_own_agents_adapters_and_checkers_hear_nothing() -> None:
    env = gym.wrappers.TransformReward(gym.make("LMAlignExact-v0"), lambda r: r)  # one that our agents step through
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*TransformReward.*")
        PPO(env, batch_size=32).learn(32)
    venv = SB3VecEnv(gym.make_vec("LMAlignExact-v0", num_envs=4, observation_mode="hidden"))
    SB3PPO("MlpPolicy", venv, n_steps=4, batch_size=16, gamma=1.0).learn(16, callback=ExactKL())
    check_env(small_env().unwrapped)
    check_sb3(small_env(observation_mode="hidden"))
    steps(gym.make("LMAlignExact-v0", kl_coef=1e-9, kl_mode="none"))
    assert not kl_mode_notice.given
    with pytest.warns(UserWarning, match=WARNING):  # the agent has put the environment back as it was
        steps(env)


def test_without_a_coefficient_there_is_no_half() -> None:
    steps(small_env(kl_coef=0.0))


@pytest.mark.parametrize("page", ["README.md", "docs/envs.md"])
def test_the_first_block_of_our_pages_names_its_mode(page: str) -> None:
    code = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)[0]
    exec(compile(code, page, "exec"), {})


def test_the_quickstart_names_its_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["00_quickstart.py"])
    runpy.run_path(str(ROOT / "examples" / "00_quickstart.py"))
