"""The written-out decoding step against the model itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from lm_gym import flat_trunk
from lm_gym.fast_step import fast_trunk
from lm_gym.models import TransformersLM
from lm_gym.rows import AttentionRows

IDS: dict[str, Any] = {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
SIZE: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    **IDS,
}


class Tokenizer:
    eos_token_id, pad_token_id = 2, 0


def models() -> dict[str, Any]:
    torch.manual_seed(0)
    llama3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0}
    llama3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    return {
        "llama": LlamaForCausalLM(LlamaConfig(**SIZE)),
        "grouped heads": LlamaForCausalLM(LlamaConfig(**SIZE, num_key_value_heads=2)),
        "biases": LlamaForCausalLM(LlamaConfig(**SIZE, attention_bias=True, mlp_bias=True)),
        "llama3 positions": LlamaForCausalLM(LlamaConfig(**SIZE, rope_parameters=llama3)),
        "qwen2": Qwen2ForCausalLM(Qwen2Config(**SIZE, num_key_value_heads=2)),
        "gpt2": GPT2LMHeadModel(
            GPT2Config(vocab_size=120, n_positions=64, n_embd=48, n_layer=2, n_head=4, resid_pdrop=0.1, **IDS)
        ),
    }


def randomised(model: Any) -> Any:
    """Norms and biases start at ones and zeros, which hides mistakes in them."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


def decode(lm: TransformersLM, fast: bool, lengths: tuple[int, int, int] = (5, 1, 9)) -> torch.Tensor:
    g = torch.Generator().manual_seed(3)
    rows = AttentionRows(lm, 3, 24, fast=fast)
    assert (rows.fast is not None) == fast
    prompts = [torch.randint(3, 100, (k,), generator=g).tolist() for k in lengths]
    out = [rows.insert(range(3), prompts)]
    assert rows.even == (len(set(lengths)) == 1)  # texts of one age need no mask
    out += [rows.step(torch.randint(3, 100, (3,), generator=g)) for _ in range(6)]
    rows.park([1])
    out.append(rows.step(torch.randint(3, 100, (3,), generator=g))[[0, 2]])
    rows.insert([1], [[7, 8, 9, 10]])
    out += [rows.step(torch.randint(3, 100, (3,), generator=g)) for _ in range(4)]
    return torch.cat(out)


@pytest.mark.parametrize("lengths", [(5, 1, 9), (7, 7, 7)])
@pytest.mark.parametrize("name", list(models()))
def test_equals_the_model(name: str, lengths: tuple[int, int, int]) -> None:
    lm = TransformersLM(randomised(models()[name]), Tokenizer(), name).freeze()
    torch.testing.assert_close(decode(lm, True, lengths), decode(lm, False, lengths), atol=2e-5, rtol=0)


def test_lora_adapters_are_merged() -> None:
    peft = pytest.importorskip("peft")
    lm = TransformersLM(randomised(models()["llama"]), Tokenizer(), "llama").freeze()
    plain = decode(lm, fast=True)
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    lm.model = peft.get_peft_model(lm.model, config)
    with torch.no_grad():
        for key, p in lm.model.named_parameters():
            if "lora_B" in key:
                p.normal_(std=0.1)
    lm.freeze()
    adapted = decode(lm, fast=True)
    torch.testing.assert_close(adapted, decode(lm, fast=False), atol=2e-5, rtol=0)
    assert (adapted - plain).abs().max() > 1e-3


def test_adapters_of_every_kind_are_decoded_with_or_refused_by_nothing() -> None:
    """An embedding under LoRA, whole layers trained beside it, a second adapter on fewer layers, a merged one."""
    peft = pytest.importorskip("peft")

    def adapted(names: list[str], **more: Any) -> Any:
        config = peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False, task_type="CAUSAL_LM", **more)
        found = peft.get_peft_model(randomised(models()["llama"]), config).eval()
        with torch.no_grad():
            for p in found.parameters():
                if p.requires_grad:
                    p.add_(torch.randn_like(p) * 0.1)
        return found

    two = adapted(["q_proj", "v_proj"])
    two.add_adapter("two", peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    two.set_adapter("two")
    merged = adapted(["q_proj"])
    merged.merge_adapter()
    for model in (
        adapted(["q_proj", "embed_tokens", "lm_head"]),
        adapted(["q_proj"], modules_to_save=["norm", "embed_tokens"]),
        adapted(["q_proj"], trainable_token_indices=[3, 4]),
        two,
        merged,
    ):
        TransformersLM(model, Tokenizer(), "adapted")  # beside the model's own forward pass


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_model_that_was_asked_for_its_hidden_states_once_stays_fast(kind: str) -> None:
    """transformers leaves idle hooks on every layer after such a call."""
    model: Any = models()[kind]
    model.eval()(input_ids=torch.tensor([[3, 4]]), output_hidden_states=True)
    assert any(m._forward_hooks for m in model.modules()), "transformers leaves no hooks: has_hooks need not know them"
    assert fast_trunk(model.base_model) is not None and flat_trunk.is_known(model.base_model)


def test_unknown_models_and_hooks_go_through_the_model() -> None:
    model = models()["llama"]
    assert fast_trunk(model.model) is not None
    handle = model.model.layers[0].register_forward_hook(lambda *a: None)
    assert fast_trunk(model.model) is None
    handle.remove()
    model.config.hidden_act = "gelu"
    assert fast_trunk(model.model) is None
