"""The check at load: what it catches, what it lets through, and that it leaves no trace."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from model_classes import TABLE, TOKENIZER
from small_models import PROMPTS, gpt2, letter_reward, llama, small_env
from transformers import T5Config, T5ForConditionalGeneration

from lm_gym import fast_step, flat_trunk, model_check, models, rows
from lm_gym.agents import PPO
from lm_gym.cli import main
from lm_gym.loading import load_model
from lm_gym.models import TransformersLM
from lm_gym.preferences import Preference
from lm_gym.reward_models import train_reward_model


def model_of(name: str) -> Any:
    return next(row for row in TABLE if row.name == name).model()


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models that were looked at, none of which is known yet."""
    found: list[str] = []
    problem = model_check._problem
    monkeypatch.setattr(model_check, "_found", {})
    monkeypatch.setattr(model_check, "_problem", lambda lm, seed: (found.append(lm.name), problem(lm, seed))[1])
    return found


def test_a_model_is_looked_at_once(looked_at: list[str]) -> None:
    model = llama(len(TOKENIZER), seed=5)
    lm = TransformersLM(model, TOKENIZER, "a")
    lm.clone()
    copy.deepcopy(lm)
    for _ in range(2):
        gym.make("LMAlign-v0", model=model, tokenizer=TOKENIZER, prompts=PROMPTS, reward_model=letter_reward)
    assert looked_at == ["a"]
    with torch.no_grad():
        model.lm_head.weight[:8] += 1  # other weights are another model
    TransformersLM(model, TOKENIZER, "b")
    TransformersLM(llama(len(TOKENIZER), seed=5).to(torch.bfloat16), TOKENIZER, "c")
    assert looked_at == ["a", "b", "c"]
    handle = model.model.layers[0].register_forward_hook(lambda module, given, out: out)
    for name in "de":  # whatever a hook does cannot be known
        TransformersLM(model, TOKENIZER, name)
    handle.remove()
    assert looked_at == ["a", "b", "c", "d", "e"]


def test_random_states_stay_as_they_are(looked_at: list[str]) -> None:
    model = llama(len(TOKENIZER), seed=6)
    model.model.layers[0].register_forward_pre_hook(lambda *_: torch.manual_seed(9) and None)
    before = torch.get_rng_state()
    TransformersLM(model, TOKENIZER, "draws")
    assert looked_at == ["draws"] and torch.equal(torch.get_rng_state(), before)


def wrong_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding counts as text."""
    monkeypatch.setattr(
        models,
        "base_trunk",
        lambda base, ids, mask: base(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state,
    )


def wrong_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flat_trunk, "gelu_new", torch.nn.functional.relu)


def forgotten_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is reset goes on seeing what it held before."""
    changed = rows.AttentionRows._changed

    def keep_first(self: Any) -> None:
        births, self.births = self.births, [b and 0 for b in self.births]
        changed(self)
        self.births = births

    monkeypatch.setattr(rows.AttentionRows, "_changed", keep_first)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (wrong_positions, "whole texts in a padded batch give log-probs that are"),
        (wrong_activation, "whole texts in the trunk that is written out here give log-probs that are"),
        (forgotten_reset, "rows that decode with one cache of keys and values give log-probs that are"),
    ],
)
def test_a_fault_is_named(fault: Any, words: str, monkeypatch: pytest.MonkeyPatch, looked_at: list[str]) -> None:
    model = gpt2(len(TOKENIZER))
    TransformersLM(model, TOKENIZER, "right")
    model_check._found.clear()
    fault(monkeypatch)
    with pytest.raises(ValueError, match=words):
        TransformersLM(model, TOKENIZER, "wrong")
    with pytest.raises(ValueError, match=words):  # remembered too
        TransformersLM(model, TOKENIZER, "wrong")
    assert looked_at == ["right", "wrong", "wrong"]  # with other texts, to be sure


def test_a_critic_is_looked_at_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, critic = str(tmp_path / "base"), str(tmp_path / "critic")
    gpt2(len(TOKENIZER)).save_pretrained(base)
    TOKENIZER.save_pretrained(base)
    train_reward_model([Preference("ab", "c", "d")], model=base, held_out=0, epochs=1).save(critic)
    env = small_env(model=base)
    PPO(env, batch_size=8, minibatch_size=4, critic=critic)
    wrong_activation(monkeypatch)
    with pytest.raises(
        ValueError, match=r"\(GPT2ForSequenceClassification\) cannot be used here.* standard deviations"
    ):
        PPO(env, batch_size=8, minibatch_size=4, critic=critic)


@pytest.mark.parametrize(
    ("module", "words"), [(flat_trunk, "the trunk that is written out here"), (fast_step, "rows that decode with one")]
)
def test_a_window_that_is_forgotten_is_named(module: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("mistral (window of 6)")
    monkeypatch.setattr(model_check, "_found", {})
    monkeypatch.setattr(module, "windows_of", lambda base: [None] * len(base.layers))
    with pytest.raises(ValueError, match=f"{words}.* give log-probs that are"):
        TransformersLM(model, TOKENIZER, "wide")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_damage_behind_the_first_numbers_of_a_model_that_was_looked_at(number: float) -> None:
    model = llama(len(TOKENIZER))
    TransformersLM(model, TOKENIZER, "whole")
    with torch.no_grad():
        model.lm_head.weight[3] = number
    with pytest.raises(ValueError, match=r"log-probs that are no numbers \(NaN\)"):
        TransformersLM(model, TOKENIZER, "damaged")


@pytest.mark.parametrize("positions", [1, 2, 3, 5])
def test_a_model_with_few_positions(positions: int) -> None:
    assert TransformersLM(llama(len(TOKENIZER), positions=positions), TOKENIZER, "short").max_positions == positions


@pytest.mark.parametrize("width", [0.0, 1e-6])
def test_a_router_with_nothing_but_ties(width: float) -> None:
    model = model_of("mixtral")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".gate." in name:
                p.mul_(width)
    TransformersLM(model, TOKENIZER, "ties")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype: torch.dtype) -> None:
    load_model("tiny", dtype=dtype)
    with pytest.raises(ValueError, match="nats off its own forward pass on average"):
        TransformersLM(model_of("bart").to(dtype), TOKENIZER, "bart")


def test_a_fault_that_logits_close_together_would_hide() -> None:
    """Bidirectional attention in a model whose log-probs differ by hundredths: within 1e-3, and still refused."""
    model = model_of("bert (both ways)")
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(0.05)
    with pytest.raises(ValueError, match="rows that decode with one cache of keys and values give") as caught:
        TransformersLM(model, TOKENIZER, "quiet")
    assert float(str(caught.value).split("that are ")[1].split(" nats")[0]) < 1e-3


def test_an_encoder_decoder_is_called_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
    model = T5ForConditionalGeneration(T5Config(vocab_size=len(TOKENIZER), **sizes))
    with pytest.raises(ValueError, match="got an encoder-decoder"):
        small_env(model=model, tokenizer=TOKENIZER)
    model.save_pretrained(tmp_path / "t5")
    TOKENIZER.save_pretrained(tmp_path / "t5")
    capsys.readouterr()
    assert main(["sample", "--model", str(tmp_path / "t5"), "--prompt", "abc"]) == 2
    said = capsys.readouterr().err.strip()
    assert "got an encoder-decoder (t5)" in said and "\n" not in said


def test_a_refused_model_is_a_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model_of("rwkv").save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    capsys.readouterr()
    assert main(["sample", "--model", str(tmp_path), "--prompt", "abc"]) == 2
    said = capsys.readouterr().err.strip()
    assert "(RwkvForCausalLM) cannot be used here: whole texts in a padded batch" in said and "\n" not in said


def test_threads_load_at_once() -> None:
    failed: list[BaseException] = []

    def load() -> None:
        try:
            small_env(model="tiny", prompts=["a"]).reset(seed=0)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    load()
    assert not failed
