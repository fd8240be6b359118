"""How a name becomes a model, and what cannot be loaded."""

import json
from pathlib import Path

import pytest
import torch
from small_models import llama, small_lm, tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    LlamaForSequenceClassification,
    Qwen2Config,
    T5Config,
)

from lm_gym.loading import load_model, load_tokenizer
from lm_gym.models import TransformersLM
from lm_gym.policy import critic_from_reward_model
from lm_gym.reward_models.classifier import Classifier
from lm_gym.tiny import tiny_path
from lm_gym.weight_shapes import oversized


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder as save_pretrained writes it, whose generation_config has two ends."""
    tok = tokenizer("abc")
    model = llama(len(tok))
    model.generation_config.eos_token_id = [1, 2]
    model.save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    return tmp_path


def test_a_folder(folder: Path) -> None:
    lm = load_model(str(folder))
    assert lm.eos_ids == (1, 2) and lm.pad_id == 0 and lm.vocab_size == lm.input_size == 6
    assert lm.max_positions == 128 and lm.hidden_size == 32 and lm.name == str(folder)
    assert lm.tokenizer.eos_token_id == 2  # the tokenizer knows only one of them
    assert load_model(folder).fingerprint() == lm.fingerprint()
    assert load_model(folder, dtype="bfloat16").fingerprint() != lm.fingerprint()


def test_a_live_model_is_used_and_not_copied() -> None:
    tok = tokenizer("abc")
    model = llama(len(tok))
    lm = load_model(model, tokenizer=tok)
    assert isinstance(lm, TransformersLM) and lm.model is model
    assert load_model(lm) is lm


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "no/such-model"}, "model expected 'tiny', a hub id, a folder .* could not load 'no/such-model'"),
        ({"model": "/no/folder", "what": "reference"}, "reference: could not load '/no/folder', there is no such"),
        ({"model": "missing.gguf"}, "expected a GGUF file, got 'missing.gguf', which does not exist"),
        ({"model": 3}, "model expected .* got a int"),
        ({"model": torch.nn.Linear(2, 2)}, "expected a transformers causal LM or a name, got a Linear"),
        ({"model": "tiny", "dtype": "float8"}, "dtype expected one of .* got 'float8'"),
        ({"model": "tiny", "device": "abacus"}, "device expected 'cpu'"),
    ],
)
def test_what_cannot_be_loaded(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_model(**arguments)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="sees no CUDA device here; use device='cpu'"):
        load_model("tiny", device="cuda")


def test_a_live_model_without_a_tokenizer() -> None:
    with pytest.raises(ValueError, match="no tokenizer found at .*pass tokenizer="):
        load_model(llama(6))


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("config.json", {"num_attention_heads": 0}, "could not load .*: ZeroDivisionError: integer"),
        ("config.json", {"hidden_size": "32"}, "'hidden_size' expected int, got str"),
        ("config.json", {"eos_token_id": "</s>"}, "'eos_token_id' with value '</s>'"),
        ("config.json", {"hidden_act": "nope"}, "its config cannot be used: KeyError: 'nope'"),
        ("config.json", {"num_hidden_layers": 0}, "cannot be used here"),
        ("generation_config.json", {"eos_token_id": "x"}, "expected eos_token_id of whole numbers, got 'x'"),
        ("generation_config.json", {"eos_token_id": [[2]]}, r"expected eos_token_id of whole numbers, got \[2\]"),
    ],
)
def test_a_config_that_cannot_be_is_a_line(file: str, fields: dict[str, object], message: str, folder: Path) -> None:
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | fields))
    with pytest.raises(ValueError, match=message) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fields", [{"hidden_size": "32"}, {"num_attention_heads": 0}, {"hidden_act": "nope"}])
def test_a_judge_or_critic_whose_config_cannot_be_is_a_line(fields: dict[str, object], tmp_path: Path) -> None:
    tok = tokenizer("abc")
    LlamaForSequenceClassification(llama(len(tok)).config).save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | fields))
    for load in (
        lambda: Classifier(str(tmp_path), label=0),
        lambda: critic_from_reward_model(str(tmp_path), small_lm(alphabet="abc")),
    ):
        with pytest.raises(ValueError, match=next(iter(fields)) + "|ZeroDivision|nope") as caught:
            load()
        assert "\n" not in str(caught.value)


def test_live_models_without_a_head_or_without_numbers() -> None:
    tok, model = tokenizer("abc"), llama(6)
    model.lm_head = torch.nn.Sequential(torch.nn.Linear(32, 6))
    with pytest.raises(
        ValueError, match="with an output head, a linear layer, got LlamaForCausalLM whose head is a Seq"
    ):
        load_model(model, tokenizer=tok)
    with pytest.raises(ValueError, match="expected weights in memory, got some on the meta device"):
        load_model(llama(6).to("meta"), tokenizer=tok)


CLAIMS = [
    ({"hidden_size": 200_000, "head_dim": 50_000}, r"weight of shape \(\d+, 200000\)"),
    (
        {"vocab_size": 10**10},
        r"embed_tokens.weight of shape \(10000000000, 32\), and its files have it of shape \(\d+, 32",
    ),
    ({"intermediate_size": 10**9}, r"mlp.gate_proj.weight of shape \(1000000000, 32\)"),
    ({"num_hidden_layers": 10**9}, r"num_hidden_layers=1000000000, and its files have \d+ tensors in all"),
    (
        {"num_hidden_layers": 40, "intermediate_size": 1600},
        r"asks for 6,\d+,\d+ weights, and its files have",
    ),
]


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(("claim", "message"), CLAIMS)
def test_a_config_that_claims_more_than_the_weights_is_refused_before_memory_is_taken(
    claim: dict[str, int], message: str, sharded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tok = tokenizer("abc")
    lm = llama(len(tok))
    head = LlamaForSequenceClassification(lm.config).eval()
    for model, name in ((lm, "lm"), (head, "judge")):
        folder = tmp_path / name
        model.save_pretrained(folder, max_shard_size=5000 if sharded else "5GB")
        assert (folder / "model.safetensors.index.json").exists() == sharded
        tok.save_pretrained(folder)
        assert oversized(type(model), str(folder)) is None
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | claim))
    load = "transformers.modeling_utils.PreTrainedModel.from_pretrained"
    monkeypatch.setattr(load, lambda *_, **__: pytest.fail("it was loaded"))
    for what in (
        lambda: load_model(str(tmp_path / "lm")),
        lambda: Classifier(str(tmp_path / "judge"), label=0),
        lambda: critic_from_reward_model(str(tmp_path / "judge"), small_lm()),
    ):
        with pytest.raises(ValueError, match=message):
            what()


def test_what_the_files_hold_beside_the_model_is_no_reason(tmp_path: Path) -> None:
    """Tied heads, a new classifier's head, and a file without weights of the kind."""
    tok = tokenizer("abc")
    llama(len(tok), tie_word_embeddings=True).save_pretrained(tmp_path)
    assert oversized(AutoModelForCausalLM, str(tmp_path)) is None
    assert oversized(AutoModelForSequenceClassification, str(tmp_path)) is None
    assert oversized(AutoModelForCausalLM, "no/such-folder") is None
    assert oversized(AutoModelForCausalLM, str(tiny_path())) is None


@pytest.mark.parametrize("config", [Qwen2Config, BertConfig, T5Config])
def test_a_folder_without_a_tokenizer_is_given_none_without_a_vocabulary(config: type, tmp_path: Path) -> None:
    config().save_pretrained(tmp_path)
    assert isinstance(AutoTokenizer.from_pretrained(tmp_path)("the")["input_ids"], list)  # made of nothing
    with pytest.raises(ValueError, match="model: the tokenizer at .* has no vocabulary, only special tokens"):
        load_tokenizer(tmp_path, "model")
