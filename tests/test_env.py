"""LMAlign-v0, one text at a time: the contract with Gymnasium, the checkers, and what each argument does."""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import ClipReward, NormalizeReward, RecordEpisodeStatistics, TimeAwareObservation
from small_models import PROMPTS, SHARED, letter_reward, play, small_lm, small_mdp
from small_models import small_env as make

from lm_gym.env import LMAlignEnv
from lm_gym.stepping import UnicodeText

LM = SHARED
END = 2
VIEWS = [(o, a) for o in ("tokens", "hidden", "text") for a in ("full", "top_k")]


def view(observation_mode: str, action_mode: str) -> dict[str, Any]:
    return {
        "observation_mode": observation_mode,
        "action_mode": action_mode,
        "top_k": 4 if action_mode == "top_k" else None,
    }


def unchecked(info: dict[str, Any]) -> None:
    """No NaN and no tensor, at any depth."""
    for key, value in info.items():
        assert isinstance(key, str) and not isinstance(value, torch.Tensor), key
        if isinstance(value, (float, np.ndarray)):
            assert not np.isnan(np.asarray(value, dtype=float)).any(), key


@pytest.mark.parametrize(("observation_mode", "action_mode"), VIEWS)
@pytest.mark.parametrize("kl_mode", ["reference", "none"])
def test_gymnasiums_checker(observation_mode: str, action_mode: str, kl_mode: str) -> None:
    env = make(**view(observation_mode, action_mode), kl_mode=kl_mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped, skip_render_check=False)


@pytest.mark.parametrize(("observation_mode", "action_mode"), [v for v in VIEWS if v[0] != "text"])
def test_stable_baselines3s_checker(observation_mode: str, action_mode: str) -> None:
    from stable_baselines3.common.env_checker import check_env as check_sb3

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_sb3(make(**view(observation_mode, action_mode)))


def test_the_loop_of_the_first_page() -> None:
    env = make()
    obs, info = env.reset(seed=0)
    assert set(info) == {"prompt", "prompt_id", "action_mask"}
    assert PROMPTS[info["prompt_id"]] == info["prompt"]
    assert env.observation_space.contains(obs)
    for step in range(1, 9):
        action = 4 if step < 8 else 5
        obs, reward, terminated, truncated, info = env.step(action)
        unchecked(info)
        assert env.observation_space.contains(obs) and not truncated and isinstance(reward, float)
        assert terminated == (step == 8)
        common = {"ref_logprob", "reward/task", "reward/kl_penalty"}
        ending = {"text", "finish_reason", "score", "episode_tokens"}
        assert set(info) == (common | ending if terminated else common | {"action_mask"})
    assert info["finish_reason"] == "length" and info["text"] == "bbbbbbbc" and info["episode_tokens"] == 8
    assert info["score"] == info["reward/task"] == pytest.approx(letter_reward(["bbbbbbbc"])[0])


def test_an_end_and_a_stop_string() -> None:
    env = make(stop="cd", missing_eos_penalty=2.0)
    env.reset(seed=0)
    *_, info = (env.step(a) for a in (3, END))
    assert info[2] and info[4]["finish_reason"] == "eos" and info[4]["text"] == "a"
    env.reset()
    *_, info = (env.step(a) for a in (3, 5, 6))
    assert info[2] and info[4]["finish_reason"] == "stop" and info[4]["text"] == "acd"
    assert info[4]["score"] == pytest.approx(letter_reward(["acd"])[0])  # a stop string counts as an ending
    env.reset()
    *_, info = (env.step(3) for _ in range(8))
    assert info[4]["finish_reason"] == "length"
    assert info[4]["score"] == pytest.approx(letter_reward(["a" * 8])[0] - 2.0)


def test_token_observations_are_left_padded_and_grow() -> None:
    env = make()
    obs, _ = env.reset(seed=3, options={"prompt_id": 0})
    longest = max(len(p) for p in PROMPTS)
    assert obs["input_ids"].shape == obs["attention_mask"].shape == (longest + 8,)
    assert obs["input_ids"].dtype == np.int64 and obs["attention_mask"].dtype == np.int8
    assert obs["input_ids"].tolist() == [0] * (longest + 5) + [3, 4, 5]
    assert obs["attention_mask"].tolist() == [0] * (longest + 5) + [1] * 3
    kept = obs["input_ids"].copy()
    after, *_ = env.step(7)
    assert after["input_ids"][-4:].tolist() == [3, 4, 5, 7] and after["attention_mask"].sum() == 4
    np.testing.assert_array_equal(obs["input_ids"], kept)  # what was handed out does not change


def test_hidden_observations_are_the_references_hidden_states() -> None:
    env = make(observation_mode="hidden")
    obs, _ = env.reset(seed=0, options={"prompt_id": 2})
    ids = LM.tokenizer(PROMPTS[2])["input_ids"]
    for action in (5, 6, 7, END):
        with torch.no_grad():
            whole = LM.model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        np.testing.assert_allclose(obs, whole, atol=1e-4)
        assert obs.dtype == np.float32 and env.observation_space.contains(obs)
        obs, *_ = env.step(action)
        ids = [*ids, action]
    with torch.no_grad():  # the state behind the end as well
        whole = LM.model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
    np.testing.assert_allclose(obs, whole, atol=1e-4)
    space = env.observation_space
    assert isinstance(space, gym.spaces.Box) and np.isfinite(space.low).all() and np.isfinite(space.high).all()


def test_text_observations_take_any_unicode() -> None:
    lm = small_lm(alphabet=None)
    env = make(model=lm, prompts=["naïve 🙂"], observation_mode="text", max_new_tokens=12)
    obs, _ = env.reset(seed=0)
    assert obs == "naïve 🙂"
    for token in lm.tokenizer(" 日本é")["input_ids"]:
        obs, _, ended, *_ = env.step(token)
        assert env.observation_space.contains(obs) and not ended
    assert obs == "naïve 🙂 日本é"


def test_the_text_space() -> None:
    space = UnicodeText(5)
    assert space.contains("日本é🙂") and space.contains("") and not space.contains("123456") and not space.contains(5)
    assert space == UnicodeText(5) != UnicodeText(6) and space.contains(space.sample())
    assert repr(space) == "UnicodeText(5)"
    with pytest.raises(ValueError, match="'日' for one: give AsyncVectorEnv shared_memory=False"):
        gym.spaces.flatten(space, "日本")


def test_top_k_actions_are_ordered_contain_an_end_and_stand_for_the_references_likeliest() -> None:
    env = make(action_mode="top_k", top_k=4, temperature=0.7)
    assert env.action_space == gym.spaces.Discrete(4)
    rng = np.random.default_rng(0)
    for seed in range(6):
        _, info = env.reset(seed=seed)
        ids, ended = LM.tokenizer(info["prompt"])["input_ids"], False
        while not ended:
            choices = info["action_tokens"]
            assert choices.tolist() == sorted(choices.tolist()) and END in choices and len(set(choices)) == 4
            with torch.no_grad():
                logits = LM.model(input_ids=torch.tensor([ids])).logits[0, -1]
            best = logits.topk(4).indices.tolist()
            assert set(choices) == set(best if END in best else [*best[:3], END])
            action = int(rng.integers(4))
            _, _, ended, _, info = env.step(action)
            # the reference's log-prob over the whole vocabulary, not among the four
            want = torch.log_softmax(logits / 0.7, -1)[choices[action]].item()
            assert info["ref_logprob"] == pytest.approx(want, abs=1e-4)
            ids.append(int(choices[action]))
        assert info["text"] == LM.decode(
            ids[len(LM.tokenizer(PROMPTS[env.unwrapped.stepper.prompts[0].id])["input_ids"]) :]
        )


def test_the_top_k_id() -> None:
    env = gym.make("LMAlignTopK-v0", model=LM, prompts=PROMPTS, reward_model=letter_reward, max_new_tokens=4, top_k=3)
    assert env.action_space == gym.spaces.Discrete(3)
    assert gym.spec("LMAlignTopK-v0").kwargs == {"action_mode": "top_k", "top_k": 32}


def test_masks_are_in_the_three_places_that_agents_look() -> None:
    env = make(min_new_tokens=2)
    _, info = env.reset(seed=0)
    for step in range(3):
        mask = info["action_mask"]
        assert mask.shape == (12,) and mask.dtype == np.int8
        assert mask.tolist() == [1] * 12 if step == 2 else mask.tolist() == [1, 1, 0] + [1] * 9
        for masks in (env.unwrapped.action_masks(), env.get_wrapper_attr("action_masks")()):
            assert masks.dtype == bool and masks.tolist() == (mask == 1).tolist()
        drawn = {int(env.action_space.sample(mask=mask)) for _ in range(300)}
        assert (END in drawn) == (step == 2)
        if step < 2:
            with pytest.raises(
                ValueError, match=rf"ends the text after {step} tokens, expected at least min_new_tokens=2"
            ):
                env.step(END)
            *_, info = env.step(3)
    assert env.step(END)[2]


def test_masks_of_top_k() -> None:
    env = make(min_new_tokens=1, action_mode="top_k", top_k=4)
    _, info = env.reset(seed=0)
    assert (info["action_mask"] == (info["action_tokens"] != END)).all()
    with pytest.raises(ValueError, match="there would be nothing to choose"):
        make(min_new_tokens=1, action_mode="top_k", top_k=1)


def test_maskable_agents_find_the_mask() -> None:
    from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported

    env = make(min_new_tokens=2)
    env.reset(seed=0)
    assert is_masking_supported(env) and get_action_masks(env).tolist() == [True, True, False] + [True] * 9


def test_two_runs_of_a_seed_are_identical_and_another_seed_is_not() -> None:
    def run(seed: int) -> list[Any]:
        episodes = play(make(kl_mode="reported"), 5, seed=seed)
        return [(e.prompt, e.tokens, e.rewards, e.infos[-1]["text"]) for e in episodes]

    first = run(11)
    assert first == run(11) != run(12)
    assert len({p for p, *_ in first}) > 1


def test_a_reset_without_a_seed_goes_on_with_the_stream() -> None:
    a, b = make(), make()
    a.reset(seed=5), b.reset(seed=5)
    prompts = [a.reset()[1]["prompt"] for _ in range(8)]
    assert prompts == [b.reset()[1]["prompt"] for _ in range(8)] and len(set(prompts)) > 1


def test_choosing_the_prompt() -> None:
    env = make(max_prompt_tokens=10)
    assert env.reset(options={"prompt_id": 3})[1]["prompt"] == PROMPTS[3]
    _, info = env.reset(options={"prompt": "bad egg"})
    assert info["prompt"] == "bad egg" and "prompt_id" not in info
    for options, message in [
        ({"prompt_id": 7}, "whole number from 0 to 6, got 7"),
        ({"prompt_id": "3"}, "whole number from 0 to 6, got '3'"),
        ({"promt": "a"}, r"expected 'prompt_id' .* got \['promt'\]"),
        ({"columns": {}}, "expected 'prompt_id'"),
        ({"prompt": "a", "prompt_id": 1}, "expected 'prompt_id'"),
        ({"prompt": ""}, "is empty"),
    ]:
        with pytest.raises(ValueError, match=message):
            env.reset(options=options)


def test_a_step_at_the_wrong_time() -> None:
    env = make().unwrapped
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(3)
    env.reset(seed=0)
    assert env.step(END)[2]
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(3)


@pytest.mark.parametrize("action", [-1, 12, 2.5, "a", None, [3, 4]])
def test_actions_that_are_none(action: Any) -> None:
    env = make().unwrapped
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action expected"):
        env.step(action)
    env.step(np.array([3]))  # what Stable-Baselines3's predict gives


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"kl_mode": "exact"}, r"kl_mode expected one of \('reference', 'reported', 'none'\), got 'exact'"),
    ({"observation_mode": "pixels"}, "observation_mode expected one of .* got 'pixels'"),
    ({"action_mode": "beam"}, "action_mode expected one of .* got 'beam'"),
    ({"action_mode": "top_k"}, r"action_mode='top_k' expects top_k=<int>"),
    ({"top_k": 3}, "action_mode='full' takes none"),
    ({"kl_coeff": 0.1}, "LMAlign has no argument 'kl_coeff'; did you mean 'kl_coef'?"),
    ({"reward": "vader"}, "did you mean 'reward_model'?"),
    ({"observation": "text"}, "did you mean 'observation_mode'?"),
    ({"zzz": 1}, "LMAlign has no argument 'zzz'; known: model, reference"),
    ({"autoreset_mode": "SameStep"}, "autoreset_mode is for the vector environment"),
    ({"mdp": "tiny"}, "mdp expected an AlignmentMDP, got a str"),
    ({"temperature": -1}, "temperature expected a finite number above 0, got -1"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_a_render_mode_that_is_none() -> None:
    with pytest.raises(TypeError, match="render_mode expected None or one of .* got 'rgb_array'"):
        LMAlignEnv(render_mode="rgb_array")


@pytest.mark.filterwarnings("ignore:.*render_mode='rgb_array'")  # Gymnasium's, about what Stable-Baselines3 tries first
@pytest.mark.parametrize("observation_mode", ["tokens", "hidden"])
def test_stable_baselines3_trains_on_it(observation_mode: str) -> None:
    from sb3_contrib import MaskablePPO
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    policy = "MultiInputPolicy" if observation_mode == "tokens" else "MlpPolicy"
    options = {"model": LM, "prompts": PROMPTS, "reward_model": letter_reward, "max_new_tokens": 4}
    for algorithm, least in ((PPO, 0), (MaskablePPO, 2)):
        arguments = {**options, "observation_mode": observation_mode, "min_new_tokens": least}
        env = make_vec_env("LMAlign-v0", n_envs=2, env_kwargs=arguments)
        algorithm(policy, env, n_steps=16, batch_size=16, gamma=1.0, n_epochs=1, device="cpu").learn(32)


def test_a_ready_problem_takes_no_argument_beside_it() -> None:
    mdp = small_mdp(LM, top_k=4)
    assert LMAlignEnv(mdp=mdp, action_mode="top_k").action_space == gym.spaces.Discrete(4)
    with pytest.raises(ValueError, match=r"no argument of the problem beside it, got \['kl_coef'\]"):
        LMAlignEnv(mdp=mdp, action_mode="top_k", kl_coef=0.5)
    with pytest.raises(ValueError, match=r"beside it, got \['top_k=5'\]"):
        LMAlignEnv(mdp=mdp, action_mode="top_k", top_k=5)


@pytest.mark.parametrize("observation_mode", ["tokens", "hidden"])
def test_wrappers_work_around_it(observation_mode: str) -> None:
    env = make(observation_mode=observation_mode)
    plain = play(env, 4, seed=2)
    stats = play(RecordEpisodeStatistics(env), 4, seed=2)
    for a, b in zip(plain, stats, strict=True):
        assert b.infos[-1]["episode"]["l"] == len(a.tokens)
        assert b.infos[-1]["episode"]["r"] == pytest.approx(sum(a.rewards), abs=1e-6)
    clipped = play(ClipReward(env, -0.5, 0.1), 4, seed=2)
    assert [np.clip(e.rewards, -0.5, 0.1).tolist() for e in plain] == [e.rewards for e in clipped]
    assert all(np.isfinite(e.rewards).all() for e in play(NormalizeReward(env), 4, seed=2))
    timed = TimeAwareObservation(env, flatten=False, normalize_time=False)
    obs, _ = timed.reset(seed=0)
    assert timed.observation_space.contains(obs) and obs["time"] == 0
    obs, *_ = timed.step(3)
    assert obs["time"] == 1


def test_no_time_limit_ever_truncates() -> None:
    from lm_gym.mdp import STEP_LIMIT

    exact = ("LMAlignExact-v0", "LMAlignExactLong-v0", "LMAlignExactScales-v0", "LMAlignExactRare-v0")
    for env_id in ("LMAlign-v0", "LMAlignTopK-v0", *exact):
        assert gym.spec(env_id).max_episode_steps == STEP_LIMIT
    with pytest.raises(ValueError, match="max_new_tokens expected a whole number from 1 to 99999"):
        make(max_new_tokens=STEP_LIMIT)


def test_the_reference_is_the_same_bytes_after_stepping() -> None:
    lm = small_lm(seed=8)
    before = lm.fingerprint()
    play(make(model=lm), 3)
    assert lm.fingerprint() == before
