"""Exact languages as environments: every text is paid what the formula says."""

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_sb3

from lm_gym import exact
from lm_gym.exact.envs import LMAlignExactEnv
from lm_gym.exact.table_lm import TableLM

J_STAR = 1.552850  # DESIGN.md, the worked example at β = .5


def write(env: Any, tokens: list[int], *, prompt: int = 0, logprobs: Any = None) -> tuple[float, dict[str, Any]]:
    """Sum of rewards of one text, and its last info."""
    env.reset(options={"prompt_id": prompt})
    total, ended, info = 0.0, False, {}
    for i, token in enumerate(tokens):
        assert not ended
        if logprobs is not None:
            env.unwrapped.report_logprob(logprobs[i])
        _, reward, ended, truncated, info = env.step(token)
        assert not truncated
        total += float(reward)
    assert ended
    return total, info


def test_without_arguments_it_is_the_worked_example() -> None:
    env = gym.make("LMAlignExact-v0")
    language = env.unwrapped.language
    assert env.action_space == gym.spaces.Discrete(4) and len(language.texts) == 40
    assert exact.optimum(language) == pytest.approx(J_STAR, abs=1e-6)
    for i, want in enumerate(language.texts.reward):
        ids = language.texts.ids(i)
        total, info = write(env, ids)
        assert info["score"] == pytest.approx(want) == pytest.approx(exact.worked_reward(ids))
        assert total == pytest.approx(want + 0.5 * language.texts.ref_logprob[i], abs=1e-5)
        assert info["finish_reason"] == ("eos" if ids[-1] == 0 else "length")


def test_the_optimal_policy_is_paid_the_same_for_every_text() -> None:
    """R − β·log(π*/π_ref) = β·log Z = J*: what "reported" pays under π*, and what shaping makes of "reference"."""
    env = gym.make("LMAlignExact-v0", kl_mode="reported")
    language = env.unwrapped.language
    best = np.log(exact.optimal_policy(language))
    for i in range(len(language.texts)):
        ids = language.texts.ids(i)
        logprobs = [best[language.state(ids[:t]), ids[t]] for t in range(len(ids))]
        assert write(env, ids, logprobs=logprobs)[0] == pytest.approx(J_STAR, abs=1e-5)


def test_the_table_is_the_reference_and_can_be_the_optimum() -> None:
    env = gym.make("LMAlignExact-v0")
    language = env.unwrapped.language
    policy = env.unwrapped.mdp.initial_policy()
    assert isinstance(policy, TableLM)
    probs = torch.softmax(policy.head(torch.eye(policy.hidden_size)), -1).detach().numpy()
    np.testing.assert_allclose(probs, language.table().ref_probs, atol=1e-6)
    with torch.no_grad():
        policy.logits.copy_(torch.tensor(np.log(exact.optimal_policy(language))).T)
    probs = torch.softmax(policy.head(torch.eye(policy.hidden_size)), -1).detach().numpy()
    assert exact.evaluate(language, probs).regret == pytest.approx(0.0, abs=1e-6)
    assert exact.evaluate(language, language.table().ref_probs).regret == pytest.approx(0.784350, abs=1e-4)
    np.testing.assert_allclose(
        torch.softmax(env.unwrapped.mdp.reference.head(torch.eye(policy.hidden_size)), -1).numpy(),
        language.table().ref_probs,
        atol=1e-6,
    )


def test_a_padded_batch_reads_as_its_texts_do() -> None:
    lm = TableLM(exact.ExactLanguage())
    ids = torch.tensor([[0, 4, 1, 3], [4, 2, 2, 0]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 0]])
    states = lm.trunk(ids, mask).argmax(-1)
    language = exact.ExactLanguage()
    assert states[0, 1:].tolist() == [language.state([]), language.state([1]), language.state([1, 3])]
    assert states[1, :3].tolist() == [language.state([]), language.state([2]), language.state([2, 2])]


def triples(tokens: list[int]) -> float:
    return float(tokens.count(1)) ** 2


TWO_PROMPTS: dict[str, Any] = {
    "transitions": [[0.2, 0.5, 0.3], [0.4, 0.3, 0.3], [0.5, 0.25, 0.25]],
    "start_rows": [[0.2, 0.5, 0.3], [0.0, 0.1, 0.9]],
    "token_reward": [triples, exact.worked_reward],
    "horizon": 2,
    "kl_coef": 1.0,
}


def test_several_prompts_with_a_start_and_a_reward_each() -> None:
    env = gym.make("LMAlignExact-v0", **TWO_PROMPTS, kl_mode="none")
    assert write(env, [1, 1], prompt=0)[0] == 4.0
    assert write(env, [2, 0], prompt=1)[0] == 0.5
    *_, info = (write(env, [2, 0], prompt=p)[1] for p in (0, 1))
    assert info["ref_logprob"] == pytest.approx(np.log(0.5), abs=1e-5)
    env.reset(options={"prompt_id": 1})
    assert env.step(2)[4]["ref_logprob"] == pytest.approx(np.log(0.9), abs=1e-5)
    assert {env.reset(seed=s)[1]["prompt"] for s in range(20)} == {"<prompt 0>", "<prompt 1>"}


@pytest.mark.parametrize(
    "env_id", ["LMAlignExact-v0", "LMAlignExactLong-v0", "LMAlignExactScales-v0", "LMAlignExactRare-v0"]
)
@pytest.mark.parametrize("observation_mode", ["tokens", "hidden"])
def test_both_checkers(env_id: str, observation_mode: str) -> None:
    check_env(gym.make(env_id, observation_mode=observation_mode).unwrapped)
    check_sb3(gym.make(env_id, observation_mode=observation_mode))
    check_env(gym.make(env_id, observation_mode=observation_mode, action_mode="top_k", top_k=2).unwrapped)


def test_two_prompts_of_different_scale() -> None:
    """The first prompt is the worked example at β = .5; ten times the reward at β is R at β/10, ten times: J* too."""
    env = gym.make("LMAlignExactScales-v0")
    language = env.unwrapped.language
    tenth = exact.optimum(exact.ExactLanguage(), 0.05)
    found = exact.evaluate(language, exact.optimal_policy(language))
    np.testing.assert_allclose(found.per_prompt["objective"], [J_STAR, 10 * tenth], atol=1e-6)
    assert write(env, [3, 3, 0], prompt=1)[1]["score"] == 10 * write(env, [3, 3, 0])[1]["score"] == 30.0


def test_the_rare_one() -> None:
    """R = 4 for 3 3 3, p_ref = .001: Z = .999 + .001·e^8, π* = .001·e^8/Z."""
    env = gym.make("LMAlignExactRare-v0")
    language = env.unwrapped.language
    z = 0.999 + 0.001 * np.exp(8.0)
    assert exact.optimum(language) == pytest.approx(0.5 * np.log(z), abs=1e-9)
    best = exact.evaluate(language, exact.optimal_policy(language)).reward / 4
    assert best == pytest.approx(0.001 * np.exp(8.0) / z, abs=1e-9) and best > 0.74
    assert exact.evaluate(language, exact.reference_policy(language)).reward == pytest.approx(0.004, abs=1e-9)


@pytest.mark.parametrize("env_id", ["LMAlignExactScales-v0", "LMAlignExactRare-v0"])
def test_their_specs_are_plain(env_id: str) -> None:
    spec = EnvSpec.from_json(gym.make(env_id).spec.to_json())
    again = gym.make(spec).unwrapped.language
    assert exact.optimum(again) == exact.optimum(gym.make(env_id).unwrapped.language)


def test_the_long_one() -> None:
    env = gym.make("LMAlignExactLong-v0")
    language = env.unwrapped.language
    assert language.horizon == 48 and exact.optimum(language) == pytest.approx(14.852171, abs=1e-6)
    ids = [3, 1] * 24
    total, info = write(env, ids)
    assert info["finish_reason"] == "length" and info["score"] == 24.0
    assert total == pytest.approx(24.0 + 0.5 * (np.log(0.2) * 48), abs=1e-4)


@pytest.mark.parametrize("mode", ["SameStep", "NextStep", "Disabled"])
def test_every_row_equals_the_single_environment(mode: str) -> None:
    vec = gym.make_vec("LMAlignExact-v0", num_envs=4, autoreset_mode=mode, **TWO_PROMPTS)
    singles = [gym.make("LMAlignExact-v0", **TWO_PROMPTS) for _ in range(4)]
    obs, _ = vec.reset(seed=5)
    for i, env in enumerate(singles):
        assert env.reset(seed=5 + i)[0]["input_ids"].tolist() == obs["input_ids"][i].tolist()
    rng = np.random.default_rng(0)
    for _ in range(12):
        valid = vec.stepper.live.copy()
        actions = rng.integers(0, 3, 4)
        obs, rewards, ended, _, info = vec.step(actions)
        assert (info["valid"] == valid).all()
        for i, env in enumerate(singles):
            if not valid[i]:
                one = env.reset()[0]
            else:
                one, reward, over, _, _ = env.step(actions[i])
                assert (rewards[i], ended[i]) == (pytest.approx(float(reward), abs=1e-6), over)
                if over and mode == "SameStep":
                    one = env.reset()[0]
            np.testing.assert_array_equal(obs["input_ids"][i], one["input_ids"])
        if mode == "Disabled" and ended.any():
            vec.reset(options={"reset_mask": ended})
            for i in np.flatnonzero(ended):
                singles[i].reset()


def test_specs() -> None:
    rows = np.array(exact.WORKED_TRANSITIONS)
    env = gym.make("LMAlignExact-v0", transitions=rows, horizon=2, token_reward="py:lm_gym.exact:worked_reward")
    assert env.spec is not None
    kwargs = EnvSpec.from_json(env.spec.to_json()).kwargs
    assert kwargs == {"transitions": rows.tolist(), "horizon": 2, "token_reward": "py:lm_gym.exact:worked_reward"}
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert write(again, [3, 0])[0] == write(env, [3, 0])[0]
    live = gym.make("LMAlignExact-v0", transitions=rows, token_reward=triples, kl_mode="none")
    assert live.spec is not None and live.spec.kwargs["token_reward"].startswith("live:function:")
    assert write(gym.make(live.spec), [1, 1, 0])[0] == 4.0


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"horizn": 4}, "LMAlignExact has no argument 'horizn'; did you mean 'horizon'?"),
    ({"model": "tiny"}, "LMAlignExact has no argument 'model'"),
    ({"mdp": 3}, "LMAlignExact has no argument 'mdp'"),
    ({"horizon": 0}, "horizon must be a whole number of tokens, at least 1; got 0"),
    ({"transitions": [[0.5, 0.6], [0.5, 0.5]]}, "transitions"),
    ({"token_reward": "no_such_module:f"}, "no_such_module"),
    ({"top_k": 9, "action_mode": "top_k"}, "top_k expected a whole number from 1 to 4, got 9"),
    ({"kl_mode": "exact"}, "kl_mode expected one of"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
@pytest.mark.parametrize("vector", [False, True])
def test_wrong_arguments(arguments: dict[str, Any], message: str, vector: bool) -> None:
    make = partial(gym.make_vec, num_envs=2) if vector else gym.make
    with pytest.raises(ValueError, match=message):
        make("LMAlignExact-v0", **arguments)


def test_there_is_no_text_to_choose() -> None:
    env = LMAlignExactEnv()
    with pytest.raises(ValueError, match="has no tokenizer to encode 'hello' with: choose by prompt_id"):
        env.reset(options={"prompt": "hello"})


def test_text_observations_are_the_ids() -> None:
    env = gym.make("LMAlignExact-v0", observation_mode="text")
    env.reset(seed=0)
    obs, *_ = env.step(3)
    assert obs == "<prompt 0>3" and env.observation_space.contains(obs)
