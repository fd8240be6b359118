"""How a name becomes a model, and what cannot be loaded."""

from pathlib import Path

import pytest
import torch
from small_models import llama, tokenizer

from lm_gym.loading import load_model
from lm_gym.models import TransformersLM


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
        ({"model": "/no/folder", "what": "reference"}, "reference expected .* '/no/folder'"),
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
