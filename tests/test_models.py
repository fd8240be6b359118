"""What a model is: ends, bounds, bytes, copies, texts."""

import copy
import re
from pathlib import Path

import pytest
import torch
from small_models import gpt2, llama, small_lm, tokenizer

from lm_gym.loading import load_model
from lm_gym.model_check import _texts
from lm_gym.models import CausalLM, TransformersLM, fingerprint

STORIES = Path(__file__).parents[2] / "shared" / "data" / "stories260k" / "hf"


def test_a_model_without_an_end() -> None:
    tok = tokenizer("abc")
    model = llama(len(tok))
    for source in (model.config, model.generation_config, tok):
        source.eos_token_id = None
    with pytest.raises(ValueError, match="expected an EOS token, got none in generation_config, config or tokenizer"):
        TransformersLM(model, tok, "endless")


def test_ends_outside_the_vocabulary() -> None:
    tok = tokenizer("abc")
    model = llama(len(tok))
    model.generation_config.eos_token_id = [2, 5000]
    assert TransformersLM(model, tok, "m").eos_ids == (2,)
    for source in (model.config, model.generation_config):
        source.eos_token_id = 5000
    tok.eos_token = None
    with pytest.raises(ValueError, match=r"expected an EOS id below 6, the size of its output, got \(5000,\)"):
        TransformersLM(model, tok, "m")


def test_logits_that_are_changed_behind_the_head_are_refused() -> None:
    """By how much is what plain passes of the model as it was, and as it is, differ in on the same texts."""
    tok = tokenizer("abc")
    model = llama(len(tok)).eval()
    forward = model.forward
    lm = TransformersLM(model, tok, "as it was")

    def off(text: list[int]) -> float:
        with torch.no_grad():
            logits = forward(input_ids=torch.tensor([text]), use_cache=False).logits
        return float((logits.log_softmax(-1) - (0.5 * logits).log_softmax(-1)).abs().max())

    told = max(off(text) for text, _ in _texts(lm, 1))  # a difference must show in two sets, and the second is told
    model.forward = lambda *args, **kwargs: _scaled(forward(*args, **kwargs))
    said = re.escape(f"head on a text by itself give log-probs that are {told:.2g} nats off its own")
    with pytest.raises(ValueError, match=said):
        TransformersLM(model, tok, "scaled")


def _scaled(out: object) -> object:
    out.logits = out.logits * 0.5  # type: ignore[attr-defined]
    return out


def test_fingerprints_tell_bytes_apart() -> None:
    a, b = small_lm(), small_lm()
    assert a.fingerprint() == b.fingerprint() == fingerprint(copy.deepcopy(a)) != small_lm(seed=1).fingerprint()
    with torch.no_grad():
        next(b.parameters()).view(-1)[0] += 1e-7
    assert a.fingerprint() != b.fingerprint()


def test_a_clone_shares_what_it_is_told_to_share() -> None:
    lm = small_lm()
    shared = list(lm.model.model.layers[0].parameters())
    twin = lm.clone(share=shared)
    assert twin.model.model.layers[0].mlp.up_proj.weight is lm.model.model.layers[0].mlp.up_proj.weight
    assert twin.model.model.layers[1].mlp.up_proj.weight is not lm.model.model.layers[1].mlp.up_proj.weight
    assert twin.tokenizer is lm.tokenizer
    before = lm.fingerprint()
    with torch.no_grad():
        twin.model.lm_head.weight.zero_()
    assert lm.fingerprint() == before


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_no_hidden_state_leaves_its_bound(kind: str) -> None:
    lm = small_lm(kind)
    norm = lm._base().norm if kind == "llama" else lm._base().ln_f
    with torch.no_grad():
        norm.weight.uniform_(-3, 3)
        if kind == "gpt2":
            norm.bias.uniform_(-2, 2)
    lm = TransformersLM(lm.model, lm.tokenizer, kind)
    ids = torch.randint(3, lm.vocab_size, (16, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = lm.trunk(ids, torch.ones_like(ids))
    assert hidden.abs().max() <= lm.hidden_bound < 60


def test_a_completion_decodes_to_what_follows_its_prompt() -> None:
    lm = small_lm(alphabet=None)
    ids = lm.tokenizer("naïve 🙂 text")["input_ids"]
    for cut in range(len(ids)):
        assert lm.decode(ids[cut:]).startswith("\ufffd") or "naïve 🙂 text".endswith(lm.decode(ids[cut:]))
    assert lm.decode([1, *ids, 2]) == "naïve 🙂 text"  # special tokens are left out
    assert lm.decode([]) == ""


@pytest.mark.skipif(not STORIES.is_dir(), reason="../shared/data/stories260k is not there")
def test_stories260k() -> None:
    """A real model: ends that its tokenizer does not know, and a tokenizer that drops the space before a word."""
    lm = load_model(STORIES)
    assert lm.eos_ids == (1, 2) and lm.pad_id == 0 and lm.vocab_size == 512
    ids = lm.tokenizer("Once upon a time there was a girl")["input_ids"]
    assert lm.decode(ids[4:]) == " time there was a girl"
    assert lm.tokenizer.decode(ids[4:]) == "time there was a girl", "the case is not what it was"


def test_the_interface_names_what_is_missing() -> None:
    bare = CausalLM()
    for call in (
        lambda: bare.trunk(torch.zeros(1, 1), torch.ones(1, 1)),
        lambda: bare.head(torch.zeros(1)),
        lambda: bare.rows(1, 1),
    ):
        with pytest.raises(NotImplementedError):
            call()


def test_gpt2_too() -> None:
    tok = tokenizer("abc", pad=None)
    lm = TransformersLM(gpt2(len(tok)), tok, "gpt2")
    assert lm.pad_id == lm.eos_ids[0] == 2
