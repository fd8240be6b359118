"""What runs on the CPU runs on another device too, and gives the same numbers.

``far`` is a pretend device (far_device.py), on which a tensor left behind is an error as on a GPU; ``cuda`` is a GPU,
for ``pytest -m gpu``. Neither says anything of speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from far_device import far_device
from ppo_runs import count_a, environment
from small_models import LETTERS, small_lm, small_mdp, tokenizer
from transformers import GPT2Config, GPT2ForSequenceClassification

from lm_gym import CachedLM, agents
from lm_gym.decoding import Engine, GenerationParams
from lm_gym.models import TransformersLM
from lm_gym.preference_data import Preference
from lm_gym.reward_models import Classifier, bradley_terry

PROMPTS = [[3, 4], [5], [6, 7, 8]] * 3
PAIRS = [{"prompt": "ab", "chosen": "aa", "rejected": "bb"}, {"prompt": "c", "chosen": "ca", "rejected": "dd"}] * 8
DEMOS = [{"prompt": "ab", "completion": "aaa"}, {"prompt": "c", "completion": "ca"}] * 8
CPU = torch.device("cpu")
Job = Callable[[torch.device], Any]


@contextmanager
def cuda() -> Iterator[torch.device]:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    yield torch.device("cuda")


@pytest.fixture(params=["far", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest) -> Any:
    return far_device if request.param == "far" else cuda


def assert_the_same(job: Job, place: Any, tolerance: float = 2e-3) -> None:
    want = job(CPU)
    with place() as device:
        found = job(device)
    np.testing.assert_allclose(found, want, atol=tolerance, rtol=tolerance)


def lm_on(device: torch.device, kind: str = "gpt2") -> TransformersLM:
    lm = small_lm(kind).to(device)
    lm.model.tie_weights()  # moving to the pretend device makes new parameters
    return lm


def problem(device: torch.device, kind: str = "gpt2", **options: Any) -> Any:
    return small_mdp(lm_on(device, kind), **{"reward_model": count_a, "kl_coef": 0.1, **options})


def test_tensors_of_two_devices_do_not_mix() -> None:
    with far_device() as device:
        x = torch.ones(3, device=device)
        assert (x + 1).sum().item() == 6.0 and (2 * x).tolist() == [2.0] * 3
        with pytest.raises(RuntimeError, match="two devices"):
            x + torch.ones(3)
        with pytest.raises(RuntimeError, match="another device"):
            x[:2] = torch.ones(2)
        with pytest.raises((RuntimeError, TypeError)):
            x.numpy()


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("llama", {}),
        ("gqa", {"top_k": 3}),
        ("gpt2", {}),
        ("gpt2", {"top_p": 0.8}),
        ("gpt2", {"stop": ("a",), "min_new_tokens": 4}),
    ],
    ids=str,
)
def test_texts_are_the_same(place: Any, kind: str, params: dict[str, Any]) -> None:
    """With refilled rows, values, hidden states and what comes out below."""

    def job(device: torch.device) -> Any:
        lm = lm_on(device, kind).freeze()
        kept = {"keep_hidden": True, "keep_below": 1, "value_head": lambda h: h.float().sum(-1)}
        engine = Engine(lm, guide=lm_on(device, kind).freeze(), **kept)  # type: ignore[arg-type]
        done = engine.generate(PROMPTS, GenerationParams(max_new_tokens=9, rows=4, **params))
        rows = [[*c.tokens, *c.logprobs.tolist(), *c.values.tolist(), *c.hidden.flatten().tolist()] for c in done]
        below = [c.below.flatten().tolist() for c in done if c.below is not None]
        assert len(below) == len(done)
        return [x for row in rows + below for x in row]

    assert_the_same(job, place)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["llama", "gqa", "gpt2"])
def test_a_recorded_step_writes_the_same_texts(kind: str) -> None:
    with cuda() as device:
        lm = lm_on(device, kind).freeze()
        params = GenerationParams(max_new_tokens=40, rows=4)
        plain, graphs = (Engine(lm, keep_hidden=True, cuda_graphs=on).generate(PROMPTS, params) for on in (False, True))
        assert [c.tokens for c in graphs] == [c.tokens for c in plain]
        for a, b in zip(plain, graphs, strict=True):
            torch.testing.assert_close(a.logprobs, b.logprobs, atol=1e-4, rtol=0)
            torch.testing.assert_close(a.hidden, b.hidden, atol=1e-4, rtol=0)


def test_steps_of_fixed_shapes(place: Any) -> None:
    def job(device: torch.device) -> Any:
        rows = lm_on(device).freeze().rows(3, 12)
        rows.fix_shapes(record=False)
        out = [rows.insert([0, 1, 2], PROMPTS[:3])]
        for step in range(6):
            if step == 3:
                out.append(rows.insert([1], [[3, 3]]))
            out.append(rows.step(torch.tensor([3 + step % 3, 4, 5], device=device)))
        return torch.cat(out).cpu()

    assert_the_same(job, place)


@pytest.mark.parametrize("view", ["tokens", "hidden"])
@pytest.mark.parametrize("top_k", [None, 3])
def test_a_vector_environment_steps_the_same(place: Any, view: str, top_k: int | None) -> None:
    def job(device: torch.device) -> Any:
        mode = {} if top_k is None else {"action_mode": "top_k", "top_k": top_k}
        mdp = problem(device, **({} if top_k is None else {"top_k": top_k}))
        envs = gym.make_vec("LMAlign-v0", num_envs=3, mdp=mdp, observation_mode=view, **mode)
        actor, rng, rewards = CachedLM(mdp.reference), np.random.default_rng(0), []
        obs, info = envs.reset(seed=0)
        for _ in range(20):
            if view == "tokens":
                more = {"action_tokens": info["action_tokens"]} if top_k else {}
                actions, _, _ = actor.act(obs, action_mask=info["action_mask"], **more)
            else:
                actions = np.array([rng.choice(np.flatnonzero(mask)) for mask in info["action_mask"]])
                rewards.append(obs.sum(-1))
            obs, reward, _, _, info = envs.step(actions)
            rewards.append(reward)
        return np.concatenate(rewards)

    assert_the_same(job, place)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("PPO", {}),
        ("PPO", {"kind": "llama"}),
        ("PPO", {"frozen_layers": 1}),
        ("PPO", {"frozen_layers": 1, "frozen_head": True}),
        ("PPO", {"lora_rank": 2}),
        ("PPO", {"critic": "separate"}),
        ("PPO", {"kl_in": "loss", "kl_estimator": "exact", "whiten_advantages": False, "micro_batch_size": 4}),
        ("PPO", {"kl_reference": "ema", "normalize_scores": 16}),
        ("PPO", {"ptx_coef": 0.1, "ptx_data": DEMOS[:2]}),
        ("PPO", {"wrap": True, "batch_size": 4, "minibatch_size": 4}),
        ("GRPO", {"group_size": 8}),
        ("RLOO", {}),
        ("A2C", {}),
        ("REINFORCE", {}),
        ("NLPO", {}),
        ("SFT", {"data": DEMOS, "batch_size": 8, "minibatch_size": None}),
        ("DPO", {"pairs": PAIRS, "batch_size": 8, "minibatch_size": None}),
        ("DPO", {"pairs": PAIRS, "batch_size": 8, "minibatch_size": None, "frozen_layers": 1}),
        ("KTO", {"n_texts": 16, "batch_size": 8, "minibatch_size": None}),
        ("OnlineDPO", {"minibatch_size": None}),
    ],
    ids=lambda x: x if isinstance(x, str) else "-".join(x),
)
@pytest.mark.filterwarnings("ignore:the environment is wrapped")
def test_agents_log_the_same(place: Any, name: str, config: dict[str, Any]) -> None:
    """The first update: what follows it is told from rounding by nothing."""
    given = {"batch_size": 16, "minibatch_size": 8, "learning_rate": 1e-3, **config}
    kind, wrap = given.pop("kind", "gpt2"), given.pop("wrap", False)
    given = {k: v for k, v in given.items() if (k, v) != ("minibatch_size", None)}
    unsure = ("perf/", "val/", "policy/clipfrac")  # at zero but for rounding, or on the edge of a clip

    def job(device: torch.device) -> Any:
        env = environment(problem(device, kind))
        env = gym.wrappers.TransformReward(env, lambda r: 2 * r) if wrap else env
        torch.manual_seed(0)  # of adapters
        agent, logs = getattr(agents, name)(env, **given), []
        agent.learn(1, callback=lambda _, metrics: logs.append(metrics))
        return [v for k, v in sorted(logs[0].items()) if not k.startswith(unsure)]

    assert_the_same(job, place)


def test_a_run_is_taken_up_again(place: Any, tmp_path: Path) -> None:
    def job(device: torch.device) -> Any:
        folder, small = tmp_path / str(device), {"batch_size": 16, "minibatch_size": 8, "learning_rate": 1e-3}
        agents.PPO(environment(problem(device)), **small).learn(1, out=folder)
        again = agents.PPO.load(folder, environment(problem(device)))
        assert again.updates == 1 and all(p.device.type == device.type for p in again.policy.parameters())
        again.learn(again.tokens + 1, resume=True)
        return [float(p.detach().abs().mean()) for p in again.policy.parameters()]

    assert_the_same(job, place)


def classifier(device: torch.device) -> Any:
    torch.manual_seed(0)
    tok = tokenizer(LETTERS)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = GPT2Config(vocab_size=len(tok), num_labels=1, n_embd=32, n_layer=2, n_head=4, n_positions=64, **ids)
    return GPT2ForSequenceClassification(config).eval().to(device), tok


def test_a_classifier_judges_the_same(place: Any) -> None:
    def job(device: torch.device) -> Any:
        model, tok = classifier(device)
        return Classifier(model, tokenizer=tok)(prompts=["ab", "c", "dd"], completions=["abc", "hh", "e"])

    assert_the_same(job, place)


def test_a_reward_model_is_trained_the_same(place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [Preference(**pair) for pair in PAIRS]

    def job(device: torch.device) -> Any:
        monkeypatch.setattr(bradley_terry, "scalar_model", lambda *_, **__: (*classifier(device), 1e-3))
        fit = bradley_terry.train_reward_model(pairs, bradley_terry.RewardModelConfig(model="tiny", epochs=1))
        return fit.judge(prompts=["ab", "c"], completions=["aa", "bb"])

    assert_the_same(job, place)
