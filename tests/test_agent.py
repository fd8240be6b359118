"""What every agent shares: the same numbers from the same seed, checkpoints, logs, errors, acting."""

import json
import math
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ppo_runs import count_a, environment, ppo, problem
from small_models import small_lm

from lm_gym import checkpoints, exact
from lm_gym.agents import PPO
from lm_gym.env import LMAlignEnv
from lm_gym.rewards import RewardModelError
from lm_gym.vector_env import LMAlignVectorEnv

SMALL = {"batch_size": 16, "minibatch_size": 8, "epochs": 2}


def make(config: dict[str, Any] | None = None, **options: Any) -> PPO:
    return ppo(environment(problem(**options)), **{**SMALL, **(config or {})})


def learn(agent: PPO, tokens: int, **how: Any) -> list[dict[str, float]]:
    logs: list[dict[str, float]] = []
    agent.learn(tokens, callback=lambda _, m: logs.append(m), **how)
    return [{k: v for k, v in m.items() if not k.startswith("perf/")} for m in logs]


def weights(agent: PPO) -> dict[str, torch.Tensor]:
    return {k: p.detach().clone() for k, p in agent.policy.named_parameters()}


def assert_same(one: PPO, other: PPO) -> None:
    a, b = weights(one), weights(other)
    assert set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)


CONFIGS: list[dict[str, Any]] = [
    {},
    {"lora_rank": 4, "rows": 5},
    {"critic": "separate", "kl_target": 3.0, "kl_horizon": 100},
    {"kl_reference": "ema", "frozen_layers": 1, "normalize_scores": 32},
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_same_seed_gives_the_same_numbers_bit_for_bit(config: dict[str, Any]) -> None:
    torch.manual_seed(1)
    one = make(config)
    first = learn(one, 250)
    torch.manual_seed(2)  # the global stream has no part in it
    two = make(config)
    assert learn(two, 250) == first
    assert_same(one, two)
    three = make({**config, "seed": 1})
    assert learn(three, 250) != first


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_loaded_agent_goes_on_as_if_nothing_had_happened(config: dict[str, Any], tmp_path: Path) -> None:
    config = {**config, "lr_schedule": "constant"}
    one = make(config)
    learn(one, 200)
    one.save(tmp_path / "at")
    assert not [p for p in (tmp_path / "at").iterdir() if p.suffix not in (".json", ".safetensors")]
    two = PPO.load(tmp_path / "at", environment(problem()))
    assert (two.tokens, two.episodes, two.updates) == (one.tokens, one.episodes, one.updates)
    assert two.kl_coef == one.kl_coef
    assert_same(one, two)
    assert learn(one, 150) == learn(two, 150)
    assert_same(one, two)


def test_resume_goes_on_in_the_schedule(tmp_path: Path) -> None:
    """Stopped by a callback and taken up again, a run ends where an unbroken one does, to the bit."""
    whole = make()
    logs = learn(whole, 500, out=tmp_path / "whole")
    broken = make()
    broken.learn(500, out=tmp_path / "broken", callback=lambda agent, _: agent.updates < 3)
    assert broken.updates == 3
    taken = PPO.load(tmp_path / "broken", environment(problem()))
    rest = learn(taken, 500, out=tmp_path / "broken", resume=True)
    assert rest == logs[3:]
    assert_same(whole, taken)
    lines = [json.loads(x) for x in (tmp_path / "broken" / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == list(range(1, whole.updates + 1))


def test_a_16_bit_agent_round_trips_in_full_precision(tmp_path: Path) -> None:
    mdp = {"dtype": torch.bfloat16}
    one = make({"lr_schedule": "constant"}, **mdp)
    learn(one, 150)
    one.save(tmp_path / "at")
    groups, _ = checkpoints.load(tmp_path / "at")
    assert {t.dtype for t in groups["policy"].values()} == {torch.float32}
    two = PPO.load(tmp_path / "at", environment(problem(**mdp)))
    assert learn(one, 100) == learn(two, 100)


def test_learn_counts_tokens_and_may_be_called_again() -> None:
    agent = make()
    lengths: list[float] = []
    agent.learn(100, callback=lambda _, m: lengths.append(16 * m["length/mean"]))
    assert agent.tokens == round(sum(lengths)) >= 100
    assert agent.tokens - lengths[-1] < 100, "the update that passes the total is the last"
    assert agent.episodes == 16 * agent.updates == 16 * len(lengths)
    before, logs = agent.tokens, learn(agent, 100)
    assert agent.tokens >= before + 100
    assert logs[0]["lr"] == agent.base_lr, "a schedule of its own"
    assert agent.updates == len(lengths) + len(logs)


def test_step_sizes_of_the_schedules() -> None:
    for schedule, shape in (
        ("linear", lambda x: 1 - x),
        ("cosine", lambda x: 0.5 * (1 + math.cos(math.pi * x))),
        ("constant", lambda x: 1.0),
    ):
        agent, logs = make({"lr_schedule": schedule}), []
        agent.learn(300, callback=lambda a, m, logs=logs: logs.append((m["lr"], m["length/mean"] * 16)))
        done = 0.0
        for lr, tokens in logs:
            assert lr == pytest.approx(3e-3 * shape(done / 300), rel=1e-6)
            done += tokens


def test_a_callback_that_returns_false_stops() -> None:
    agent = make()
    agent.learn(10_000, callback=lambda a, _: a.updates < 2)
    assert agent.updates == 2


@pytest.mark.parametrize("total", [0, -5, True])
def test_total_tokens_are_checked(total: Any) -> None:
    with pytest.raises(ValueError, match="total_tokens expected at least 1"):
        make().learn(total)


def fails(how: str, at: int) -> Any:
    calls = [0]

    def broken_judge(completions: list[str], **_: Any) -> list[Any]:
        calls[0] += 1
        scores: list[Any] = count_a(completions)
        if calls[0] < at:
            return scores
        if how == "raises":
            raise RuntimeError("out of memory")
        if how == "nan":
            return [*scores[:3], float("nan"), *scores[4:]]
        return scores[:-1]

    return broken_judge


@pytest.mark.parametrize("how", ["raises", "nan", "too few"])
def test_a_reward_model_that_fails_stops_with_the_last_checkpoint_intact(how: str, tmp_path: Path) -> None:
    agent = make(reward_model=fails(how, 3))
    with pytest.raises(RewardModelError, match="broken_judge") as found:
        agent.learn(10_000, out=tmp_path, save_every=1)
    prompts = [p.text for p in agent.mdp.prompts]
    assert any(repr(p) in str(found.value) for p in prompts), "the prompt is named"
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-1", "step-2"]
    again = PPO.load(tmp_path, environment(problem()))
    assert again.updates == 2 == len((tmp_path / "metrics.jsonl").read_text().splitlines())
    learn(again, 50)


@pytest.mark.filterwarnings("ignore:the environment is wrapped")
def test_a_reward_model_that_fails_while_stepping_is_named_too() -> None:
    env = gym.wrappers.TransformReward(environment(problem(reward_model=fails("nan", 1))), lambda r: r)
    with pytest.raises(RewardModelError, match="broken_judge"):
        ppo(env, **SMALL).collect()


def test_numbers_that_explode_stop_the_run() -> None:
    agent = make({"learning_rate": 1e30, "max_grad_norm": 1e30})
    with pytest.raises((FloatingPointError, ValueError, RuntimeError)):
        agent.learn(1000)


def test_load_refuses_what_does_not_fit(tmp_path: Path) -> None:
    agent = make()
    agent.learn(50)
    at = agent.save(tmp_path / "at")
    env = environment(problem())

    with pytest.raises(ValueError, match="expected a run's folder with checkpoints"):
        PPO.load(tmp_path / "nowhere", env)
    with pytest.raises(ValueError, match="are on one side only"):
        PPO.load(at, env, lora_rank=2)
    with pytest.warns(UserWarning, match="reference is not"), pytest.raises(ValueError, match="on one side only"):
        PPO.load(at, environment(problem("gpt2")))
    with pytest.warns(UserWarning, match="reference is not the one"):
        PPO.load(at, LMAlignEnv(mdp=problem_with(small_lm(seed=1))))

    class Other(PPO):
        name = "other"

    with pytest.raises(ValueError, match="expected a checkpoint of 'other', got one of 'ppo'"):
        Other.load(at, env)
    (at / "policy.safetensors").write_bytes((at / "policy.safetensors").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"policy\.safetensors is damaged"):
        PPO.load(at, env)
    (at / "policy.safetensors").unlink()
    with pytest.raises(ValueError, match=r"'policy\.safetensors'\] are missing"):
        PPO.load(at, env)
    state = json.loads((at / "state.json").read_text())
    del state["rng"]
    (at / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"state\.json is damaged: its contents are not those that were saved"):
        PPO.load(at, env)
    (at / "state.json").write_text("{")
    with pytest.raises(ValueError, match=r"state\.json is damaged"):
        PPO.load(at, env)


def problem_with(lm: Any) -> Any:
    from small_models import small_mdp

    return small_mdp(lm, reward_model=count_a, kl_coef=0.1)


def test_load_takes_overrides(tmp_path: Path) -> None:
    agent = make({"kl_coef": 0.2})
    agent.learn(50)
    at = agent.save(tmp_path / "at")
    assert PPO.load(at, environment(problem())).kl_coef == 0.2
    other = PPO.load(at, environment(problem()), kl_coef=0.7, learning_rate=1e-4)
    assert other.kl_coef == 0.7 and other.current_lr() <= 1e-4


def test_evaluate_is_what_the_policy_is_worth() -> None:
    agent = make()
    found, again = agent.evaluate(n=64), agent.evaluate(n=64)
    assert found == again, "a generator of its own"
    assert found["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    j = found["objective/scores"] - 0.1 * found["objective/kl"]
    assert found["objective/j"] == pytest.approx(j)
    assert 0 < found["objective/scores_sem"] < 0.5
    assert agent.evaluate(["abc"], n=4)["length/mean"] <= 8
    before = weights(agent)
    assert all(torch.equal(p, before[k]) for k, p in weights(agent).items())


def test_the_kl_of_a_text_is_that_of_its_states() -> None:
    """Σ_t Σ_a π(a|s_t)·log(π(a|s_t)/π_ref(a|s_t)), from the tables of an exact language, in float64."""
    agent = PPO(gym.make("LMAlignExact-v0"), batch_size=32, seed=3).learn(300)
    language = agent.base.language  # type: ignore[union-attr]
    policy, reference, table = agent.exact_policy(language), exact.reference_policy(language), language.table()
    per_state = (policy * (np.log(policy) - np.log(reference))).sum(1)
    prompts = [agent.mdp.prompts[0]] * 40
    drawn = agent.evaluate_on(prompts, 7)
    for completion, kl in zip(agent.complete(prompts, seed=7), drawn.kls, strict=True):
        state, total = int(table.start_states[0]), 0.0
        for token in completion.tokens:
            total, state = total + per_state[state], int(table.next_state[state, token])
        assert kl == pytest.approx(total, abs=1e-5) and kl > 0
    assert np.mean(drawn.kls) == pytest.approx(drawn.metrics["objective/kl"])
    assert agent.last is not None and all(row["kl"] > -1e-6 for row in agent.last.samples)


def test_generate_takes_texts_and_lists() -> None:
    agent = make()
    assert agent.generate("abc") == agent.generate(["abc"])
    assert len(agent.generate(["abc", "a", "abc"], seed=3)) == 3
    greedy = agent.generate(["abc", "a"], greedy=True)
    assert greedy == agent.generate(["abc", "a"], greedy=True, seed=9)
    assert len(agent.complete(["abc"], max_new_tokens=2)[0].tokens) <= 2


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"min_new_tokens": 4}])
def test_predict_steps_single_and_vector_environments(options: dict[str, Any]) -> None:
    mdp = problem(**options)
    view = {"action_mode": "full" if mdp.top_k is None else "top_k", "top_k": mdp.top_k}
    for env in (LMAlignEnv(mdp=mdp, **view), LMAlignVectorEnv(3, mdp=mdp, **view)):
        agent = ppo(env, **SMALL)
        many = isinstance(env, LMAlignVectorEnv)
        obs, info = env.reset(seed=0)
        for _ in range(20):
            action, state = agent.predict(obs, deterministic=True)
            assert state is None and (isinstance(action, int) if not many else action.shape == (3,))
            for i, ids in enumerate(np.atleast_2d(obs["input_ids"])):
                keep = np.atleast_2d(obs["attention_mask"])[i].astype(bool)
                with torch.no_grad():
                    logits = agent.policy.lm.model(input_ids=torch.tensor(ids[keep])[None]).logits[0, -1]
                mask = np.atleast_2d(info["action_mask"])[i].astype(bool)
                choices = np.atleast_2d(info["action_tokens"])[i] if mdp.top_k else np.arange(len(logits))
                logits = logits[torch.tensor(choices)].masked_fill(~torch.tensor(mask), -torch.inf)
                assert int(np.atleast_1d(action)[i]) == int(logits.argmax())
            drawn = agent.predict(obs)[0]
            obs, _, ended, _, info = env.step(drawn)
            if not many and ended:
                obs, info = env.reset()


def test_predict_refuses_other_observations_where_the_choice_is_restricted() -> None:
    agent = make(top_k=3)
    other = environment(problem(top_k=3))
    agent.env.reset(seed=0)
    obs, _ = other.reset(options={"prompt": "hhhh"})
    with pytest.raises(ValueError, match="current observation of the agent's own environment"):
        agent.predict(obs)
    free = make()
    obs, _ = environment(problem()).reset(seed=3)
    assert free.predict(obs, deterministic=True)[0] >= 0


@pytest.mark.parametrize(
    "config", [{}, {"lora_rank": 4}, {"frozen_layers": 1}, {"frozen_layers": 1, "frozen_head": True}], ids=str
)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_save_pretrained_is_a_plain_model_with_the_agents_greedy_tokens(
    config: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    agent = make({"learning_rate": 1e-2, **config}, kind=kind)
    agent.learn(150)
    folder = agent.save_pretrained(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=FutureWarning)
        model = AutoModelForCausalLM.from_pretrained(folder)
    tok = AutoTokenizer.from_pretrained(folder)
    for text, completion in zip(("abc", "head"), agent.complete(["abc", "head"], greedy=True), strict=True):
        ids = tok(text, return_tensors="pt").input_ids
        with torch.no_grad():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=8,
                do_sample=False,
                eos_token_id=2,
                pad_token_id=0,
            )
        assert out[0, ids.shape[1] :].tolist() == completion.tokens
    with pytest.warns(UserWarning, match="was aligned before, against 'llama|gpt2'.*starts again from zero"):
        mdp = problem_with_folder(folder)
    again = PPO(LMAlignEnv(mdp=mdp), **SMALL)
    assert again.generate(["abc"], greedy=True) == agent.generate(["abc"], greedy=True)


def problem_with_folder(folder: Path) -> Any:
    from lm_gym.mdp import AlignmentMDP

    return AlignmentMDP(model=str(folder), prompts=["abc", "head"], reward_model=count_a, max_new_tokens=8)


def test_files_of_a_run(tmp_path: Path) -> None:
    agent = make()
    agent.learn(200, out=tmp_path, save_every=2, run_config={"note": "mine"})
    names = {p.name for p in tmp_path.iterdir()}
    assert {"config.yaml", "metrics.csv", "metrics.jsonl", "samples.jsonl", "checkpoints"} <= names
    rows = [json.loads(x) for x in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert {"prompt", "completion", "score", "kl", "length"} <= set(rows[0])
    for row in rows:
        assert row["score"] == pytest.approx(row["completion"].count("a"))
    assert "note: mine" in (tmp_path / "config.yaml").read_text()
    assert checkpoints.latest(tmp_path).name == f"step-{agent.updates}"


def test_unknown_fields_and_models_are_told_apart() -> None:
    with pytest.raises(ValueError, match="PPO has no field 'batchsize'; did you mean 'batch_size'"):
        make({"batchsize": 3})
    with pytest.raises(ValueError, match="batch_size expected 1 to inf, got 0"):
        make({"batch_size": 0})


@pytest.mark.parametrize("value", [100.5, "5", math.nan, math.inf, True, 0])
def test_counts_are_whole_numbers_everywhere(value: Any) -> None:
    agent = PPO(gym.make("LMAlignExact-v0"))
    calls = (
        agent.learn,
        lambda n: agent.evaluate(n=n),
        lambda n: agent.learn(10, save_every=n),
        lambda n: agent.complete(agent.mdp.prompts, max_new_tokens=n),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"expected at least 1, a whole number, got "):
            call(value)
    with pytest.raises(ValueError, match="batch_size expected "):
        PPO(gym.make("LMAlignExact-v0"), batch_size=value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 1.5),
        ("seed", 0.5),
        ("seed", None),
        ("batch_size", None),
        ("learning_rate", "a"),
        ("vf_coef", math.nan),
    ],
)
def test_fields_of_numbers_take_numbers(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field} expected a .*number, got "):
        PPO(gym.make("LMAlignExact-v0"), **{field: value})


def test_agents_and_rollouts_print_in_a_line() -> None:
    agent = PPO(gym.make("LMAlignExact-v0"), batch_size=32, seed=3)
    assert repr(agent) == f"PPO({agent.mdp.reference.name!r}, batch_size=32, seed=3: 0 tokens in 0 updates)"
    rollout, _ = agent.collect()
    assert repr(rollout).startswith("Rollout(32 texts: input_ids=(32, 4), ") and "\n" not in repr(rollout)
