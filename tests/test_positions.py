"""How long a text a model takes, and that every message about the limit says why."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from small_models import LETTERS, gpt2, small_mdp, tokenizer
from transformers import (
    CLIPVisionConfig,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Phi3Config,
    Phi3ForCausalLM,
    PhimoeConfig,
)

from lm_gym.demonstrations import load_demonstrations
from lm_gym.models import TransformersLM
from lm_gym.policy import critic_from_reward_model
from lm_gym.positions import TextLimit, because, text_limit

SIZES = {
    "vocab_size": 12,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FACTORS = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
LONGROPE = {"rope_type": "longrope", **FACTORS}
WHY = "its longrope position encoding changes beyond 12 tokens"


def phi3() -> TransformersLM:
    torch.manual_seed(0)
    config = Phi3Config(**SIZES, original_max_position_embeddings=12, rope_scaling={**LONGROPE})
    return TransformersLM(Phi3ForCausalLM(config).eval(), tokenizer(LETTERS), "phi3")


def test_the_switch_of_longrope_is_the_limit_because_beyond_it_every_token_is_encoded_anew() -> None:
    lm = phi3()
    assert lm.max_positions == 12 and WHY in lm.max_positions.why  # type: ignore[attr-defined]
    ids = torch.arange(3, 11).repeat(2)[None]
    with torch.no_grad():
        states = [lm._base()(input_ids=ids[:, :n]).last_hidden_state[0, 5] for n in (6, 12, 13)]
    torch.testing.assert_close(states[0], states[1])
    assert float((states[1] - states[2]).abs().max()) > 0.1  # the 6th token's state, with 13 tokens in the text


@pytest.mark.parametrize(
    ("config", "limit", "why"),
    [
        (LlamaConfig(**SIZES, rope_scaling={**LONGROPE, "original_max_position_embeddings": 16}), 16, "longrope"),
        (LlamaConfig(**SIZES, rope_scaling={"rope_type": "dynamic", "factor": 2.0}), 64, "dynamic"),
        (LlamaConfig(**SIZES, rope_scaling={"rope_type": "linear", "factor": 2.0}), 64, ""),
        (LlamaConfig(**SIZES), 64, ""),
        (Phi3Config(**SIZES, original_max_position_embeddings=64, rope_scaling={**LONGROPE}), 64, ""),
        (
            Gemma3TextConfig(
                **SIZES,
                rope_parameters={
                    "full_attention": {**LONGROPE, "rope_theta": 1e4, "original_max_position_embeddings": 16},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                },
            ),
            16,
            "longrope",
        ),
        (
            PhimoeConfig(
                **SIZES,
                rope_scaling={
                    **LONGROPE,
                    "short_mscale": 1.0,
                    "long_mscale": 1.2,
                    "original_max_position_embeddings": 16,
                },
            ),
            16,
            "longrope",
        ),
    ],
)
def test_limits_by_kind_of_encoding(config: Any, limit: int, why: str) -> None:
    found = text_limit(config)
    assert found == limit and why in found.why and bool(found.why) == bool(why)


def test_a_limit_keeps_its_reason_in_arithmetic_and_copies() -> None:
    limit = TextLimit(12, "why")
    for same in (limit - 0, copy.deepcopy(limit), pickle.loads(pickle.dumps(limit)), min(limit, 20), max(1, limit)):
        assert same == 12 and because(same) == " (why)"
    assert because(12) == "" and because(TextLimit(3)) == ""


def test_every_message_that_speaks_of_the_limit_says_why(tmp_path: Any) -> None:
    lm = phi3()
    for options, start in [
        ({"max_new_tokens": 12}, "max_new_tokens expected fewer than the model's limit of 12 tokens"),
        ({"prompts": ["abc abc abc"]}, "1 of 1 prompts cannot be used: row 0 has 11 tokens"),
        ({"max_prompt_tokens": 9}, "max_prompt_tokens expected a whole number from 1 to 4"),
    ]:
        with pytest.raises(ValueError, match=start) as raised:
            small_mdp(lm, **options)
        assert WHY in str(raised.value)
    with pytest.raises(ValueError, match=WHY):
        lm.rows(2, 13)
    with pytest.raises(ValueError, match=WHY):
        load_demonstrations(
            [{"prompt": "abc", "completion": " abc abc abc"}], lm.tokenizer, max_tokens=lm.max_positions
        )
    judge = LlamaForCausalLM(LlamaConfig(**SIZES)).config
    judge.num_labels, judge.rope_parameters = 1, phi3().model.config.rope_parameters
    from transformers import LlamaForSequenceClassification

    LlamaForSequenceClassification(judge).save_pretrained(tmp_path)
    critic_from_reward_model(str(tmp_path), lm, 12)
    with pytest.raises(ValueError, match=f"expected texts of at most 12 tokens .{WHY}.*, the problem's have 13"):
        critic_from_reward_model(str(tmp_path), lm, 13)


def test_a_table_of_positions_that_is_smaller_than_the_config_says_is_the_limit() -> None:
    """GPT-2 with 16 rows that claims 64: texts of 17 tokens were a traceback. Another part's table says nothing."""
    tok = tokenizer(LETTERS)
    model = gpt2(len(tok), positions=16)
    model.config.n_positions = 64
    lm = TransformersLM(model, tok, "short")
    assert lm.max_positions == 16
    with pytest.raises(ValueError, match="more than 12 tokens .its table of positions has no more rows"):
        small_mdp(lm, prompts=["abc abc abc abc abc"], max_new_tokens=4)
    eyes = {"image_size": 8, "patch_size": 4, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = LlavaConfig(vision_config=CLIPVisionConfig(num_hidden_layers=1, **eyes), text_config=LlamaConfig(**SIZES))
    assert TransformersLM(LlavaForConditionalGeneration(config).eval(), tok, "llava").max_positions == 64
