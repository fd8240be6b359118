"""Live objects as arguments: used as they are, never copied, kept out of the spec that Gymnasium copies."""

import gc
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import ClipReward, RecordEpisodeStatistics
from small_models import PROMPTS, letter_reward, play, small_lm, tokenizer
from small_models import small_env as make

from lm_gym import live
from lm_gym.models import TransformersLM


class Uncopyable(TransformersLM):
    """A live model that cannot be copied in silence."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        raise AssertionError("a live model was copied")


@pytest.fixture
def uncopyable() -> TransformersLM:
    lm = small_lm(seed=4)
    return Uncopyable(lm.model, lm.tokenizer, "uncopyable")


def test_live_objects_are_never_copied_and_stay_out_of_the_spec(uncopyable: TransformersLM) -> None:
    env = make(model=uncopyable)
    assert env.unwrapped.mdp.reference is uncopyable
    wrapped = RecordEpisodeStatistics(ClipReward(env, -1, 1))
    spec = wrapped.spec  # Gymnasium copies it
    assert spec is not None and spec.kwargs["model"].startswith("live:Uncopyable:")
    assert spec.kwargs["reward_model"].startswith("live:function:") and spec.kwargs["prompts"] == PROMPTS
    again = gym.make(spec)
    assert again.unwrapped.mdp.reference is uncopyable and again.unwrapped.mdp.reward_model is letter_reward
    assert [w.name for w in again.spec.additional_wrappers] == ["ClipReward", "RecordEpisodeStatistics"]
    assert EnvSpec.from_json(spec.to_json()).kwargs == spec.kwargs
    play(again, 1)


def test_a_spec_outlives_the_environment_that_it_came_from_if_another_was_made_of_it(uncopyable: Any) -> None:
    first = make(model=uncopyable)
    second = gym.make(first.spec)
    spec = second.spec
    del first
    gc.collect()
    third = gym.make(spec)
    assert third.unwrapped.mdp.reference is uncopyable
    del second, third
    gc.collect()
    with pytest.raises(ValueError, match="='live:[^']*' names a live object of an environment that is gone"):
        gym.make(spec)


def test_plain_arguments_survive_json(tmp_path: Any) -> None:
    tok = tokenizer("abc")
    small = small_lm(alphabet="abc")
    small.model.save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    arguments = {
        "model": str(tmp_path),
        "reference": str(tmp_path),
        "prompts": [{"prompt": "ab", "topic": "x"}, {"prompt": "c", "topic": "y"}],
        "reward_model": "vader",
        "max_new_tokens": 5,
        "min_new_tokens": 1,
        "stop": ["ab"],
        "kl_coef": 0.2,
        "kl_mode": "none",
        "missing_eos_penalty": 0.5,
        "temperature": 0.9,
        "observation_mode": "text",
        "action_mode": "top_k",
        "top_k": 3,
        "render_mode": "ansi",
        "device": "cpu",
        "dtype": "float32",
    }
    env = gym.make("LMAlign-v0", **arguments)
    assert env.spec is not None
    spec = EnvSpec.from_json(env.spec.to_json())
    assert spec.kwargs == arguments
    again = gym.make(spec)
    a, b = play(env, 2, seed=3), play(again, 2, seed=3)
    assert [(e.tokens, e.rewards) for e in a] == [(e.tokens, e.rewards) for e in b]


def test_values_with_a_plain_form_take_it() -> None:
    given = {
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "model": Path("x"),
        "t": np.eye(2),
        "k": np.int64(3),
    }
    plain, held = live.to_spec(given)
    assert plain == {"dtype": "bfloat16", "device": "cpu", "model": "x", "t": [[1.0, 0.0], [0.0, 1.0]], "k": 3}
    assert not held and json.dumps(plain)
