"""Texts without padding: the model's own forward pass is what every number is compared with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import LETTERS, small_lm, tokenizer
from transformers import MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from lm_gym import flat_trunk
from lm_gym.forward import pad_texts, response_hidden, response_states
from lm_gym.models import CausalLM, TransformersLM
from lm_gym.policy import add_lora

KINDS = ["llama", "gqa", "gpt2"]


def texts(
    lm: CausalLM, *, shared: bool, equal: bool = False, longer: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    ids = lambda n: torch.randint(3, 11, (n,), generator=draw).tolist()
    prompts = [ids(4 if equal else n) for n in (4, 2, 6)]
    which = [0, 1, 0, 2, 1, 0] if shared else [0, 1, 2]
    responses = [ids(longer + (5 if equal else 1 + (3 * i) % 7)) for i in range(len(which))]
    return pad_texts([prompts[i] for i in which], responses, lm.pad_id)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("longer", [0, 14])  # 14: room is made for a multiple of 8 tokens
def test_states_and_gradients_are_those_of_the_model(kind: str, shared: bool, equal: bool, longer: int) -> None:
    lm = small_lm(kind)
    ids, seen, mask = texts(lm, shared=shared, equal=equal, longer=longer)
    assert flat_trunk.is_known(lm._base())  # type: ignore[attr-defined]
    weight = torch.randn(int(mask.sum()), lm.hidden_size, generator=torch.Generator().manual_seed(0))
    found = []
    for states in (response_hidden(lm, ids, seen, mask.shape[1])[mask], response_states(lm, ids, seen, mask)):
        lm.zero_grad()
        (lm.head(states).logsumexp(-1).sum() + (states * weight).sum()).backward()
        found.append((states.detach(), {k: p.grad.clone() for k, p in lm.named_parameters() if p.grad is not None}))
    (plain, plain_gradient), (flat, gradient) = found
    torch.testing.assert_close(flat, plain, atol=2e-5, rtol=1e-5)
    assert gradient.keys() == plain_gradient.keys()
    for key in gradient:
        torch.testing.assert_close(gradient[key], plain_gradient[key], atol=1e-4, rtol=1e-4)


def windowed(kind: str) -> CausalLM:
    """Two layers: Mistral's both see 5 tokens, of Qwen2's only the second does."""
    more: dict[str, Any] = {"max_window_layers": 1, "use_sliding_window": True} if kind == "qwen2" else {}
    torch.manual_seed(0)
    config = {"mistral": MistralConfig, "qwen2": Qwen2Config}[kind](
        vocab_size=12,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        sliding_window=5,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **more,
    )
    model = {"mistral": MistralForCausalLM, "qwen2": Qwen2ForCausalLM}[kind](config)
    return TransformersLM(model.eval(), tokenizer(LETTERS), kind)


@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
@pytest.mark.parametrize("shared", [False, True])
def test_a_layer_sees_no_further_than_its_window(kind: str, shared: bool) -> None:
    lm = windowed(kind)
    ids, seen, mask = texts(lm, shared=shared, longer=14)
    assert flat_trunk.is_known(lm._base())  # type: ignore[attr-defined]
    with torch.no_grad():
        flat = response_states(lm, ids, seen, mask)
        # each text alone, without padding, through the model's own forward pass
        alone = []
        for row in range(len(ids)):
            text = ids[row][seen[row].bool()]
            out = lm._base()(input_ids=text[None]).last_hidden_state[0]  # type: ignore[attr-defined]
            count = int(mask[row].sum())
            alone.append(out[len(text) - count - 1 : len(text) - 1])
    torch.testing.assert_close(flat, torch.cat(alone), atol=2e-5, rtol=1e-5)
    lm._base().config.sliding_window = 64  # type: ignore[attr-defined]
    with torch.no_grad():
        wide = response_states(lm, ids, seen, mask)
    assert float((wide - flat).abs().max()) > 0.1  # the window counts here


def test_a_trunk_that_looks_both_ways_is_left_to_the_model() -> None:
    lm = small_lm("llama")
    base = lm._base()
    assert flat_trunk.is_known(base)
    base.config.is_causal = False
    assert not flat_trunk.is_known(base)


def test_a_shared_prompt_is_computed_once_and_nothing_behind_what_is_asked_for() -> None:
    lm = small_lm("gpt2")
    ids, seen, mask = texts(lm, shared=True)
    width = ids.shape[1] - mask.shape[1]
    wanted = torch.nn.functional.pad(mask, (width - 1, 0))
    flat = flat_trunk.FlatTexts(ids[:, :-1], seen[:, :-1], wanted, width)
    assert len(flat.ids) == 4 + 2 + 6 + int(mask.sum()) - len(mask)
    alone = flat_trunk.FlatTexts(ids[:, :-1], seen[:, :-1], wanted)
    assert len(alone.ids) == int(seen.sum()) - len(mask)
    assert ids[:, :-1].flatten()[alone.source].tolist() == alone.ids.tolist()


def test_texts_of_one_token_share_a_prompt() -> None:
    lm = small_lm("llama")
    ids, seen, mask = pad_texts([[5, 6, 7]] * 3, [[4], [5], [6]], lm.pad_id)
    with torch.no_grad():
        plain = response_hidden(lm, ids, seen, 1)[mask]
        torch.testing.assert_close(response_states(lm, ids, seen, mask), plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_lower_blocks_that_were_run_before_give_the_same(kind: str) -> None:
    lm = windowed(kind) if kind == "qwen2" else small_lm(kind)  # the window is above the lower block
    ids, seen, mask = texts(lm, shared=False)
    wanted = torch.nn.functional.pad(mask, (ids.shape[1] - mask.shape[1] - 1, 0))
    flat, base = flat_trunk.FlatTexts(ids[:, :-1], seen[:, :-1], wanted), lm._base()  # type: ignore[attr-defined]
    with torch.no_grad():
        below = flat_trunk.lower(base, flat, 1)
        torch.testing.assert_close(flat_trunk.run(base, flat, below=below, first=1), flat_trunk.run(base, flat))


def test_adapters_count() -> None:
    pytest.importorskip("peft")
    lm = small_lm("llama")
    for p in lm.parameters():
        p.requires_grad_(False)
    add_lora(lm, 2, 4.0)
    for name, p in lm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    ids, seen, mask = texts(lm, shared=True)
    plain = response_hidden(lm, ids, seen, mask.shape[1])[mask]
    flat = response_states(lm, ids, seen, mask)
    torch.testing.assert_close(flat, plain, atol=2e-5, rtol=1e-4)
    flat.sum().backward()
    assert all(p.grad is not None for name, p in lm.named_parameters() if "lora_B" in name)


def test_what_is_not_known_takes_the_models_own_pass() -> None:
    lm: Any = small_lm("gpt2")
    ids, seen, mask = texts(lm, shared=True)
    hook = lm._base().h[0].register_forward_hook(lambda module, args, out: out)
    assert not flat_trunk.is_known(lm._base())
    with torch.no_grad():
        plain = response_hidden(lm, ids, seen, mask.shape[1])[mask]
        assert torch.equal(response_states(lm, ids, seen, mask), plain)
    hook.remove()
    lm._base().config.scale_attn_by_inverse_layer_idx = True
    assert not flat_trunk.is_known(lm._base())
