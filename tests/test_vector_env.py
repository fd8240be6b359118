"""The native vector environment: row for row the single one, in all three autoreset modes, with one cache."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import ClipReward, DictInfoToList, NormalizeReward, RecordEpisodeStatistics
from small_models import PROMPTS, letter_reward, random_action, small_lm

from lm_gym.env import LMAlignEnv
from lm_gym.rows import AttentionRows

LM = small_lm("gqa")
N, END = 5, 2
ARGUMENTS: dict[str, Any] = {
    "model": LM,
    "prompts": PROMPTS,
    "reward_model": letter_reward,
    "max_new_tokens": 6,
    "kl_coef": 0.3,
}
STEP_KEYS = ("ref_logprob", "reward/task", "reward/kl_penalty")
END_KEYS = ("text", "finish_reason", "score", "episode_tokens")


def make_vec(n: int = N, **options: Any) -> Any:
    return gym.make_vec("LMAlign-v0", num_envs=n, **{**ARGUMENTS, **options})


def same(a: Any, b: Any) -> None:
    """Two observations or info values are equal, numbers within 1e-4."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, str):
        assert a == b
    else:
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=0)


def row(batch: Any, i: int) -> Any:
    return {k: v[i] for k, v in batch.items()} if isinstance(batch, dict) else batch[i]


def row_info(info: dict[str, Any], i: int, keys: Any) -> dict[str, Any]:
    """What the vector's info says of row i, for the keys that are there."""
    return {k: info[k][i] for k in keys if k in info and info[f"_{k}"][i]}


VIEWS = [
    {"observation_mode": "tokens", "kl_mode": "reference"},
    {"observation_mode": "hidden", "kl_mode": "reported", "min_new_tokens": 2, "temperature": 0.7},
    {"observation_mode": "text", "kl_mode": "none", "stop": ["a"], "missing_eos_penalty": 1.0},
    {"observation_mode": "tokens", "action_mode": "top_k", "top_k": 4, "kl_mode": "reported"},
    {"observation_mode": "hidden", "action_mode": "top_k", "top_k": 3, "kl_mode": "reference"},
]


@pytest.mark.parametrize("options", VIEWS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("mode", [m.value for m in AutoresetMode])
def test_every_row_equals_the_single_environment(mode: str, options: dict[str, Any]) -> None:
    vec = make_vec(autoreset_mode=mode, **options)
    singles = [gym.make("LMAlign-v0", **ARGUMENTS, **options) for _ in range(N)]
    rng, is_eos = np.random.default_rng(0), vec.stepper.is_eos.numpy()
    obs, info = vec.reset(seed=7)
    expected = [env.reset(seed=7 + i) for i, env in enumerate(singles)]
    waiting, endings = np.zeros(N, dtype=bool), 0
    choices = ("action_mask", "action_tokens")
    for i in range(N):
        same(row(obs, i), expected[i][0])
        same(row_info(info, i, ("prompt", "prompt_id", *choices)), expected[i][1])
    for _ in range(40):
        ids = info.get("action_tokens", np.tile(np.arange(vec.stepper.n_actions), (N, 1)))
        actions = np.array([random_action(info["action_mask"][i] == 1, is_eos[ids[i]], rng) for i in range(N)])
        reports = -rng.exponential(size=N)
        if vec.kl_mode == "reported":
            vec.report_logprob(np.where(waiting, np.nan, reports))  # rows that only reset ignore theirs
        obs, rewards, terminated, truncated, info = vec.step(actions)
        assert not truncated.any() and rewards.dtype == np.float64
        assert vec.observation_space.contains(obs)
        np.testing.assert_array_equal(info["valid"], ~waiting)
        ended = np.zeros(N, dtype=bool)
        for i, env in enumerate(singles):
            if waiting[i]:  # next-step mode: the action is ignored, the row starts anew
                assert rewards[i] == 0.0 and not terminated[i]
                assert not row_info(info, i, (*STEP_KEYS, *END_KEYS))
                first_obs, first_info = env.reset()
                same(row(obs, i), first_obs)
                same(row_info(info, i, ("prompt", "prompt_id", *choices)), first_info)
                continue
            if vec.kl_mode == "reported":
                env.unwrapped.report_logprob(reports[i])
            one_obs, one_reward, ended[i], _, one_info = env.step(actions[i])
            assert terminated[i] == ended[i]
            assert rewards[i] == pytest.approx(one_reward, abs=1e-4)
            same(row_info(info, i, STEP_KEYS), {k: one_info[k] for k in STEP_KEYS})
            if not ended[i]:
                same(row(obs, i), one_obs)
                same(row_info(info, i, choices), {k: one_info[k] for k in choices if k in one_info})
                assert not row_info(info, i, (*END_KEYS, "prompt", "final_obs", "final_info"))
                continue
            endings += 1
            if mode == "SameStep":
                same(info["final_obs"][i], one_obs)
                same(row_info(info["final_info"], i, (*STEP_KEYS, *END_KEYS)), one_info)
                first_obs, first_info = env.reset()
                same(row(obs, i), first_obs)
                same(row_info(info, i, ("prompt", "prompt_id", *choices)), first_info)
            else:
                same(row(obs, i), one_obs)
                same(row_info(info, i, END_KEYS), {k: one_info[k] for k in END_KEYS})
                assert not row_info(info, i, choices)
        waiting[:] = False
        if mode == "NextStep":
            waiting = ended
        elif mode == "Disabled" and ended.any():
            obs, info = vec.reset(options={"reset_mask": ended})
            for i in np.flatnonzero(ended):
                first_obs, first_info = singles[i].reset()
                same(row(obs, i), first_obs)
                same(row_info(info, i, ("prompt", "prompt_id", *choices)), first_info)
            assert (info["_prompt"] == ended).all()
    assert endings > 10


def test_the_modes_and_their_metadata() -> None:
    assert make_vec().metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    for mode in AutoresetMode:
        for given in (mode, mode.value):
            env = make_vec(autoreset_mode=given)
            assert env.metadata["autoreset_mode"] is mode is env.autoreset_mode
            assert EnvSpec.from_json(env.spec.to_json()).kwargs["autoreset_mode"] == mode.value
    assert "autoreset_mode" not in type(env).metadata  # belongs to the object
    with pytest.raises(ValueError, match=r"autoreset_mode expected one of .*'SameStep'.* got 'never'"):
        make_vec(autoreset_mode="never")


@pytest.mark.parametrize("mode", ["SameStep", "NextStep", "Disabled"])
def test_one_row_alone(mode: str) -> None:
    env = make_vec(1, autoreset_mode=mode)
    env.reset(seed=0)
    for _ in range(3):
        assert env.step(np.array([END]))[2].all()
        if mode == "NextStep":
            _, rewards, terminated, _, info = env.step(np.array([END]))
            assert not terminated.any() and not info["valid"].any() and rewards[0] == 0.0 and info["_prompt"].all()
        elif mode == "Disabled":
            with pytest.raises(ResetNeeded, match="every row has ended and autoreset_mode is 'Disabled'"):
                env.step(np.array([3]))
            env.reset(options={"reset_mask": np.array([True])})


def test_disabled_rows_wait_while_the_others_go_on() -> None:
    env = make_vec(3, autoreset_mode="Disabled", observation_mode="hidden")
    env.reset(seed=0)
    obs, *_ = env.step(np.array([END, 3, 4]))
    kept = obs[0].copy()
    for _ in range(3):
        obs, rewards, terminated, _, info = env.step(np.array([5, 3, 4]))
        assert info["valid"].tolist() == [False, True, True] and rewards[0] == 0.0 and not terminated.any()
        np.testing.assert_array_equal(obs[0], kept)
        assert not info["_action_mask"][0] and not info["_ref_logprob"][0]
    before = obs[1:].copy()
    obs, info = env.reset(options={"reset_mask": np.array([True, False, False])})
    assert info["_prompt"].tolist() == [True, False, False]
    np.testing.assert_array_equal(obs[1:], before)
    assert env.step(np.array([5, 3, 4]))[4]["valid"].all()


def test_seeds() -> None:
    env = make_vec()
    _, a = env.reset(seed=3)
    _, b = env.reset(seed=[3, 4, 5, 6, 7])
    assert a["prompt"].tolist() == b["prompt"].tolist()
    _, c = env.reset(seed=[3, None, 5, 6, 7])
    assert c["prompt"][[0, 2, 3, 4]].tolist() == a["prompt"][[0, 2, 3, 4]].tolist()
    with pytest.raises(ValueError, match="seed expected a whole number or 5 of them, got 2"):
        env.reset(seed=[1, 2])


def test_two_runs_are_identical() -> None:
    def run() -> list[Any]:
        env, rng, out = make_vec(), np.random.default_rng(1), []
        env.reset(seed=9)
        for _ in range(20):
            obs, rewards, _, _, info = env.step(rng.integers(0, 12, N))
            out.append((obs["input_ids"].tolist(), rewards.tolist(), info["ref_logprob"].tolist()))
        return out

    assert run() == run()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros(N, dtype=bool), "with at least one True"),
        (np.ones(N), r"expected \(5,\) bool"),
        (np.ones(2, dtype=bool), r"expected \(5,\) bool"),
    ],
)
def test_masks_that_are_none(mask: np.ndarray, message: str) -> None:
    env = make_vec()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.reset(options={"reset_mask": mask})


def test_calls_at_the_wrong_time_and_of_the_wrong_shape() -> None:
    env = make_vec()
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(np.zeros(N, dtype=int))
    with pytest.raises(ResetNeeded, match="the first reset"):
        env.reset(options={"reset_mask": np.array([True] + [False] * 4)})
    env.reset(seed=0)
    for actions, message in [
        (np.zeros(3, dtype=int), r"expected whole numbers \(5,\), got int64 \(3,\)"),
        (np.zeros(N), r"got float64 \(5,\)"),
        (np.array([0, 0, 12, 0, 0]), "action expected 0 to 11, got 12 in row 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            env.step(actions)


def test_reports() -> None:
    env = make_vec(kl_mode="reported")
    env.reset(seed=0)
    actions = np.full(N, 3)
    with pytest.raises(ValueError, match="a step without"):
        env.step(actions)
    for bad, message in [
        (-1.0, "expected 5 log-probs, got 1"),
        ([-1.0, -1.0, 0.5, -1.0, -1.0], "at most 0, got 0.5 in row 2"),
        ([-1.0, np.nan, -1.0, -1.0, -1.0], "at most 0, got nan in row 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            env.report_logprob(bad)
    env.report_logprob(-np.arange(N, dtype=float))
    with pytest.raises(ValueError, match="got a second one"):
        env.report_logprob(-np.arange(N, dtype=float))
    *_, info = env.step(actions)
    np.testing.assert_allclose(info["reward/kl_penalty"], 0.3 * (np.arange(N) + info["ref_logprob"]), atol=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "num_envs expected a whole number from 1, got 0"),
        ({"render_mode": "human"}, "render_mode expected None or 'ansi' for the vector environment, got 'human'"),
        ({"max_episode_steps": 6}, "max_episode_steps expected more than max_new_tokens=6, got 6"),
        ({"kl_coeff": 1}, "did you mean 'kl_coef'"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_vec(**options)


def test_the_finished_texts_of_a_step_are_judged_in_one_call() -> None:
    calls: list[list[str]] = []

    def judge(completions: list[str], **_: Any) -> list[float]:
        calls.append(completions)
        return [float(len(c)) for c in completions]

    env = make_vec(reward_model=judge)
    env.reset(seed=0)
    env.step(np.array([3, 4, 3, 4, 5]))
    *_, info = env.step(np.array([END, 4, END, END, 5]))
    assert calls == [["a", "a", "b"]]
    assert info["final_info"]["score"].tolist() == [1.0, 0.0, 1.0, 1.0, 0.0]
    assert info["final_info"]["_score"].tolist() == [True, False, True, True, False]


@pytest.mark.parametrize("observation_mode", ["tokens", "hidden"])
def test_the_reference_reads_every_token_once(observation_mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts at their reset, then one token a row and step: no prefix runs through the reference twice."""
    read: list[Any] = []
    insert, step = AttentionRows.insert, AttentionRows.step
    monkeypatch.setattr(
        AttentionRows, "insert", lambda self, rows, ids: read.append(list(rows)) or insert(self, rows, ids)
    )
    monkeypatch.setattr(AttentionRows, "step", lambda self, tokens: read.append("step") or step(self, tokens))
    env = make_vec(observation_mode=observation_mode)
    env.reset(seed=0)
    env.step(np.full(N, 3))
    env.step(np.array([3, END, 3, END, 3]))
    assert read == [[0, 1, 2, 3, 4], "step", "step", [1, 3]]


def test_masks_of_a_batch() -> None:
    env = make_vec(min_new_tokens=1)
    _, info = env.reset(seed=0)
    assert env.action_masks().dtype == bool and env.action_masks().shape == (N, 12)
    assert (info["action_mask"] == [1, 1, 0] + [1] * 9).all()
    for _ in range(30):
        assert END not in env.action_space.sample(mask=tuple(info["action_mask"]))
    *_, info = env.step(np.full(N, 3))
    assert (info["action_mask"] == 1).all()


def test_the_spec_makes_the_same_environment() -> None:
    env = make_vec(autoreset_mode=AutoresetMode.NEXT_STEP, max_new_tokens=7)
    again = gym.make_vec(env.spec)
    assert again.num_envs == N and again.mdp.reference is LM and again.mdp.max_new_tokens == 7
    assert again.autoreset_mode is AutoresetMode.NEXT_STEP
    assert RecordEpisodeStatistics(again).spec.kwargs["num_envs"] == N


def test_vector_wrappers_work_around_it() -> None:
    def rewards(env: Any) -> tuple[np.ndarray, dict[str, Any]]:
        rng = np.random.default_rng(2)
        env.reset(seed=1)
        out = [env.step(rng.integers(0, 12, N)) for _ in range(12)]
        return np.stack([r for _, r, *_ in out]), out[-1][4]

    plain, _ = rewards(make_vec())
    np.testing.assert_allclose(rewards(ClipReward(make_vec(), -0.5, 0.1))[0], plain.clip(-0.5, 0.1))
    assert np.isfinite(rewards(NormalizeReward(make_vec()))[0]).all()
    env = RecordEpisodeStatistics(make_vec())
    env.reset(seed=1)
    total = np.zeros(N)
    rng, seen = np.random.default_rng(2), 0
    for _ in range(12):
        _, r, terminated, _, info = env.step(rng.integers(0, 12, N))
        total += r
        if terminated.any():
            np.testing.assert_allclose(info["episode"]["r"][terminated], total[terminated], atol=1e-5)
            np.testing.assert_array_equal(
                info["episode"]["l"][terminated], info["final_info"]["episode_tokens"][terminated]
            )
            total[terminated], seen = 0.0, seen + int(terminated.sum())
    assert seen > 3
    _, _, _, _, infos = DictInfoToList(_reset(make_vec())).step(np.array([END, 3, 3, 3, 3]))
    assert infos[0]["final_info"]["finish_reason"] == "eos" and "final_info" not in infos[1]


def _reset(env: Any) -> Any:
    env.reset(seed=0)
    return env


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_gymnasiums_own_vectorization(mode: str, tmp_path: Any) -> None:
    """Environments of their own in one process or several, from arguments that are strings."""
    LM.model.save_pretrained(tmp_path)
    LM.tokenizer.save_pretrained(tmp_path)
    arguments = {"model": str(tmp_path), "prompts": PROMPTS, "reward_model": "length?target=3", "max_new_tokens": 6}
    env = gym.make_vec("LMAlign-v0", num_envs=2, vectorization_mode=mode, **arguments)
    native = gym.make_vec("LMAlign-v0", num_envs=2, autoreset_mode="NextStep", **arguments)
    try:
        a, b = env.reset(seed=4), native.reset(seed=4)
        for _ in range(8):
            np.testing.assert_array_equal(a[0]["input_ids"], b[0]["input_ids"])
            actions = np.array([3, END])
            a, b = env.step(actions), native.step(actions)
            np.testing.assert_allclose(a[1], b[1], atol=1e-4)
            np.testing.assert_array_equal(a[2], b[2])
    finally:
        env.close()


def test_render_and_close() -> None:
    env = make_vec(2, render_mode="ansi")
    env.reset(options={"prompt_id": 4})
    env.step(np.array([3, 4]))
    assert env.render() == ("bad | a", "bad | b")
    assert make_vec(2).render() is None
    env.close()


def test_a_prompt_of_ones_own_in_one_row() -> None:
    env = make_vec(autoreset_mode="Disabled", max_prompt_tokens=9)
    env.reset(seed=0)
    options = {"reset_mask": np.array([False, True, False, False, False]), "prompt": "fed head"}
    _, info = env.reset(options=options)
    assert info["prompt"][1] == "fed head" and "prompt_id" not in info
    assert options["reset_mask"].any()  # the caller's dict is left alone


def test_a_prompt_for_every_row() -> None:
    env = make_vec()
    _, info = env.reset(options={"prompt_id": np.arange(N)})
    assert info["prompt"].tolist() == PROMPTS[:N] and info["prompt_id"].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="expected one number or 5, got 2"):
        env.reset(options={"prompt_id": [0, 1]})


def test_uses_the_same_class_of_problem_as_the_single_environment() -> None:
    vec = make_vec()
    single = LMAlignEnv(mdp=vec.mdp)
    assert single.observation_space == vec.single_observation_space
    assert single.action_space == vec.single_action_space
