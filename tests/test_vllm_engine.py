"""The engine around vLLM beyond the contract: what it is given, what it refuses, and agents that decode with it."""

from __future__ import annotations

import gc
import sys
import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from ppo_runs import count_a, environment, ppo, train
from small_models import small_lm, small_mdp, wide_lm

from lm_gym import vllm_process
from lm_gym.agents import NLPO, PPO
from lm_gym.decoding import Engine, GenerationParams
from lm_gym.forward import pad_texts, response_hidden, token_logprobs
from lm_gym.loading import load_model
from lm_gym.mdp import AlignmentMDP
from lm_gym.models import TransformersLM
from lm_gym.policy import Policy
from lm_gym.vllm_engine import VLLMEngine
from lm_gym.vllm_weights import named_weights, save

PROMPTS = [[3, 4, 5], [6], [7, 8, 3, 4]]
PARAMS = GenerationParams(max_new_tokens=8)


def problem(kind: str = "llama", **options: Any) -> AlignmentMDP:
    return small_mdp(wide_lm(kind), **{"reward_model": count_a, "kl_coef": 0.1, **options})


# ---- without vLLM: what it would be given, and what is refused before it is asked ------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gqa-tied", "gpt2"])
def test_a_folder_that_loads_as_the_policy(kind: str, tmp_path: Path) -> None:
    lm = wide_lm(kind)
    shapes = save(lm, tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    again = load_model(str(tmp_path))
    ids = torch.tensor([[3, 4, 5, 6]])
    assert torch.equal(again.trunk(ids, torch.ones_like(ids)), lm.trunk(ids, torch.ones_like(ids)))
    assert "lm_head.weight" in shapes  # also where it is tied, and the file has the embeddings alone
    assert {key: tuple(w.shape) for key, w in named_weights(lm).items()} == shapes


def test_lora_is_merged_and_the_policy_keeps_its_adapters() -> None:
    pytest.importorskip("peft", reason="LoRA needs PEFT")
    mdp = problem()
    lm = Policy(mdp, lora_rank=2).lm
    assert isinstance(lm, TransformersLM)
    plain = named_weights(wide_lm())
    with torch.no_grad():
        for name, p in lm.named_parameters():
            if "lora_B" in name:
                p.normal_()
    merged = named_weights(lm)
    assert {k: v.shape for k, v in merged.items()} == {k: v.shape for k, v in plain.items()}
    moved = {k for k in merged if not torch.equal(merged[k], plain[k])}
    assert moved == {k for k in plain if "_proj" in k}
    assert any("lora_B" in name for name, _ in lm.named_parameters())


def test_weights_that_files_name_otherwise_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lm = wide_lm()
    monkeypatch.setattr(lm.model, "named_parameters", lambda **_: [("odd.weight", torch.ones(2))])
    with pytest.raises(ValueError, match="parameters are named as in its files"):
        save(lm, tmp_path)


def test_without_vllm_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[vllm\]' .*, or use engine='builtin'"):
        PPO(environment(problem()), engine="vllm")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    with pytest.raises(ValueError, match="VLLM_ENABLE_V1_MULTIPROCESSING=0"):
        VLLMEngine(wide_lm())
    monkeypatch.undo()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="a process of its own"):
        VLLMEngine(wide_lm())


def test_agents_that_vllm_cannot_serve() -> None:
    env = environment(problem())
    with pytest.raises(ValueError, match="engine expected one of"):
        PPO(env, engine="vlm")
    with pytest.raises(ValueError, match=r"top_p=0\.95"):
        NLPO(env, engine="vllm")
    with pytest.raises(ValueError, match="top_k=4"):
        PPO(environment(problem(top_k=4)), engine="vllm")
    with pytest.raises(ValueError, match="expected a transformers model, got TableLM"):
        PPO(gym.make("LMAlignExact-v0"), engine="vllm")
    wrapped = gym.wrappers.TransformReward(environment(problem()), lambda r: r)
    with (
        pytest.warns(UserWarning, match="wrapped"),
        pytest.raises(ValueError, match="without wrappers, got TransformReward"),
    ):
        PPO(wrapped, engine="vllm")


# ---- with it ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def vllm() -> Any:
    return pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")


def engine(lm: Any, **options: Any) -> VLLMEngine:
    return VLLMEngine(lm, kv_cache_gib=0.125, **options)


needs_vllm = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("vllm")]


class TestWithVLLM:
    pytestmark = needs_vllm

    def test_tiny_and_nothing_left_on_the_disk(self) -> None:
        before = set(Path(tempfile.gettempdir()).iterdir())
        lm = load_model("tiny").freeze()
        prompts = [lm.tokenizer("The film was")["input_ids"], lm.tokenizer("A")["input_ids"]] * 4
        with_it = engine("tiny", seed=3)
        for c in with_it.generate(prompts, GenerationParams(max_new_tokens=24, temperature=0.7)):
            ids, seen, _ = pad_texts([c.prompt_ids], [c.tokens], lm.pad_id)
            with torch.no_grad():
                logits = lm.head(response_hidden(lm, ids, seen, len(c.tokens))[0]) / 0.7
            want = token_logprobs(torch.log_softmax(logits, -1), torch.tensor(c.tokens))
            torch.testing.assert_close(c.logprobs, want, atol=1e-4, rtol=0)
        with_it.close()
        new = {p.name for p in set(Path(tempfile.gettempdir()).iterdir()) - before}
        assert not [name for name in new if name.startswith("lm-gym")]

    def test_heads_that_its_cpu_build_does_not_have(self) -> None:
        with pytest.raises(ValueError, match="does not load 'llama'") as e:
            engine(small_lm())  # 8 dimensions a head
        assert "engine='builtin'" in str(e.value)

    def test_closing_one_leaves_the_others_open(self) -> None:
        lm = wide_lm()
        first, second, third = engine(lm, seed=1), engine(lm, seed=1), engine(lm, seed=1)
        want = [c.tokens for c in first.generate(PROMPTS, PARAMS)]
        first.close(), first.close()
        assert [c.tokens for c in second.generate(PROMPTS, PARAMS)] == want
        del second
        gc.collect()
        third.update_weights(lm, 1)
        assert [c.tokens for c in third.generate(PROMPTS, PARAMS)] == want
        with pytest.raises(ValueError, match="open engine"):
            first.generate(PROMPTS, PARAMS)
        third.close()
        assert not vllm_process._open and not vllm_process._parked

    def test_refused(self) -> None:
        lm = wide_lm()
        it = engine(lm, max_model_len=20, value_head=lambda h: h.sum(-1))
        with pytest.raises(ValueError, match="max_model_len=20 tokens a text, got a prompt of 4 and max_new_tokens=17"):
            it.generate(PROMPTS, GenerationParams(max_new_tokens=17))
        with pytest.raises(ValueError, match="temperature of at least"):
            it.generate(PROMPTS, GenerationParams(max_new_tokens=3, temperature=0.001))
        with pytest.raises(ValueError, match="expected the weights of 'llama', got others"):
            it.update_weights(wide_lm("gpt2"), 1)
        assert len(it.generate(PROMPTS, PARAMS)) == 3
        lm.model.lm_head.weight.requires_grad_(True).grad = torch.ones_like(lm.model.lm_head.weight)
        torch.optim.Adam([lm.model.lm_head.weight], fused=True).step()
        with pytest.raises(ValueError, match="policy was changed after the last update_weights"):
            it.generate(PROMPTS, PARAMS)
        it.update_weights(lm, 1)
        assert {v for c in it.generate(PROMPTS, PARAMS) for v in c.weight_versions} == {1}
        it.close()

    def test_an_interrupt_leaves_no_text_behind(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lm, params = wide_lm(), GenerationParams(max_new_tokens=8, stop=("zz",))
        it, same = engine(lm, seed=1), engine(lm, seed=1)
        calls = iter(range(2))
        monkeypatch.setattr(type(lm), "decode", lambda self, ids: str(next(calls)))
        with pytest.raises(StopIteration):
            it.generate(PROMPTS, params)
        monkeypatch.undo()
        assert not it.llm.llm_engine.has_unfinished_requests()
        it.update_weights(lm, 1)
        same.generate(PROMPTS, params)
        assert [c.tokens for c in it.generate(PROMPTS, PARAMS)] == [c.tokens for c in same.generate(PROMPTS, PARAMS)]
        it.close(), same.close()

    def test_in_bfloat16_the_log_probs_are_of_what_was_drawn_from(self) -> None:
        """Not the policy's: the ratio says how far they are apart."""
        lm = load_model("tiny").freeze()
        it = engine(lm, dtype="bfloat16", seed=1)
        [c] = it.generate([[1, 5, 7]], GenerationParams(max_new_tokens=30))
        it.close()
        ids, seen, _ = pad_texts([c.prompt_ids], [c.tokens], lm.pad_id)
        with torch.no_grad():
            logp = torch.log_softmax(lm.head(response_hidden(lm, ids, seen, len(c.tokens))[0]), -1)
        off = (token_logprobs(logp, torch.tensor(c.tokens)) - c.logprobs).abs()
        assert 1e-4 < float(off.max()) < 0.5

    @pytest.mark.parametrize("options", [{}, {"critic": "separate"}, {"frozen_layers": 1}], ids=str)
    def test_ppo_learns_with_it(self, options: dict[str, Any]) -> None:
        run = train(problem(), 6000, engine="vllm", **options)
        assert isinstance(run.agent.engine, VLLMEngine)
        assert len(run.logs) > 8 and run.after > run.before + 1.0
        assert max(log["val/first_ratio_error"] for log in run.logs) < 1e-3
        assert run.agent.engine.version == run.agent.updates == len(run.logs)
        run.agent.engine.close()

    def test_ppo_learns_with_lora(self) -> None:
        pytest.importorskip("peft", reason="LoRA needs PEFT")
        run = train(problem(), 6000, engine="vllm", lora_rank=4, learning_rate=1e-2)
        assert run.after > run.before + 0.5
        assert max(log["val/first_ratio_error"] for log in run.logs) < 1e-3
        run.agent.engine.close()

    def test_a_loaded_agent_goes_on_with_the_same_texts(self, tmp_path: Path) -> None:
        env = environment(problem())
        agent = ppo(env, engine="vllm").learn(600)
        agent.save(tmp_path / "it")
        again = PPO.load(tmp_path / "it", env)
        a, b = agent.collect()[0], again.collect()[0]
        assert isinstance(again.engine, VLLMEngine) and again.engine.version == agent.updates
        assert a.token_lists() == b.token_lists()
        plain = PPO.load(tmp_path / "it", env, engine="builtin")
        assert isinstance(plain.engine, Engine) and len(plain.collect()[0]) == 64
        agent.engine.close(), again.engine.close()
