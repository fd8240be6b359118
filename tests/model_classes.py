"""The table of model classes: a tiny random model of each, and whether LM Gym takes it or the words it refuses it in.

A row: the model type as ``transformers`` names it, fields of its config beyond :data:`SIZES` (None: leave that one
out), and words of the refusal, or nothing where it works. docs/models.md is written from it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import transformers
from small_models import LETTERS, tokenizer
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

TOKENIZER = tokenizer(LETTERS)

SIZES: dict[str, Any] = {
    "vocab_size": len(TOKENIZER),
    **dict.fromkeys(["hidden_size", "n_embd", "d_model", "word_embed_proj_dim"], 32),
    **dict.fromkeys(["intermediate_size", "decoder_ffn_dim", "ffn_dim"], 48),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "num_layers", "decoder_layers", "n_layers"], 2),
    **dict.fromkeys(["num_attention_heads", "n_head", "num_heads", "decoder_attention_heads", "n_heads"], 4),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "max_target_positions"], 64),
    **dict.fromkeys(["initializer_range", "init_std"], 0.3),
    **dict.fromkeys(["num_local_experts", "num_experts", "n_routed_experts"], 4),
    **dict.fromkeys(["q_lora_rank", "kv_lora_rank"], 16),
    **dict.fromkeys(["qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"], 8),
    **dict.fromkeys(["n_group", "topk_group", "n_shared_experts", "first_k_dense_replace"], 1),
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "is_decoder": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Fields by any of the names that classes have for them; a class takes those that it has."""

PADDED = "whole texts in a padded batch give log-probs that are"
ROWS = "rows that decode with one cache of keys and values"
MORE = f"{ROWS} fail with IndexError"  # they keep more between tokens than keys and values
LAYERS = "expected attention layers only"
NARROW = {"head_dim": None}  # the width of a head follows from others
LATENT = {**NARROW, "num_key_value_heads": 4}  # multi-head latent attention


class Row(NamedTuple):
    name: str
    fields: dict[str, Any] = {}
    refused: str = ""
    model_type: str = ""  # where it is not the name
    quick: bool = False  # whether it is in the default suite

    def model(self) -> Any:
        """A random model of the class."""
        kind = self.model_type or self.name
        config_class = CONFIG_MAPPING[kind]
        there = config_class()
        fields = {**{k: v for k, v in SIZES.items() if hasattr(there, k)}, **self.fields}
        torch.manual_seed(0)
        config = config_class(**{k: v for k, v in fields.items() if v is not None})
        return getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind])(config).eval()


TABLE = (
    Row("llama"),
    Row("gpt2"),
    Row("bloom", quick=True),
    Row("falcon", NARROW),
    Row("falcon (ALiBi)", {**NARROW, "alibi": True}, model_type="falcon", quick=True),
    Row("mpt"),
    Row("llama4_text", quick=True),
    Row("gemma"),
    Row("gemma2", {"final_logit_softcapping": 5.0}, quick=True),
    Row("gemma3_text"),
    Row(
        "gemma3n_text",
        {
            "num_kv_shared_layers": 0,
            "vocab_size_per_layer_input": len(TOKENIZER),
            "hidden_size_per_layer_input": 8,
            "pad_token_id": 2,  # its gradient at an embedding of zeros is NaN, and that of padding is zeros
        },
    ),
    Row("vaultgemma"),
    Row("cohere", {"logit_scale": 0.3}, quick=True),
    Row("cohere2", {"logit_scale": 0.3}),
    Row("cohere2_moe", {"logit_scale": 0.3}),
    Row("granite", {"logits_scaling": 4.0}, quick=True),
    Row("granite_swa", {"logits_scaling": 4.0}),
    Row("granitemoe", {"logits_scaling": 4.0}),
    Row("granitemoeshared", {"logits_scaling": 4.0}),
    Row("hyperclovax", {"logits_scaling": 0.3}),
    Row("nanochat", {"final_logit_softcapping": 5.0}),
    Row("beam", {"final_logit_softcapping": 5.0}),
    Row("minicpm3", {**LATENT, "dim_model_base": 8}, quick=True),
    Row("mistral"),
    Row("ministral"),
    Row("ministral3"),
    Row("mixtral", quick=True),
    Row("qwen2"),
    Row("qwen2_moe", {"shared_expert_intermediate_size": 24}),
    Row("qwen3"),
    Row("qwen3_moe"),
    Row("phi"),
    Row("phi3"),
    Row("phimoe"),
    Row("gptj", {"rotary_dim": 4}),
    Row("codegen", {"rotary_dim": 4}),
    Row("gpt_neo", {"attention_types": [[["global"], 2]]}),
    Row("gpt_neox"),
    Row("gpt_neox_japanese"),
    Row("gpt_bigcode"),
    Row("gpt_oss"),
    Row("opt", quick=True),
    Row("xglm"),
    Row("biogpt"),
    Row("ctrl", {"dff": 48}),
    Row("persimmon"),
    Row("stablelm"),
    Row("starcoder2"),
    Row("olmo"),
    Row("olmo2"),
    Row("olmo3"),
    Row("olmoe"),
    Row("flex_olmo"),
    Row("glm"),
    Row("glm4"),
    Row("glm4_moe"),
    Row("glm4_moe_lite", LATENT),
    Row("deepseek_v2", LATENT),
    Row("deepseek_v3", LATENT),
    Row("exaone4"),
    Row("exaone_moe"),
    Row("smollm3"),
    Row("seed_oss"),
    Row("helium"),
    Row("nemotron"),
    Row("jetmoe"),
    Row("hunyuan_v1_dense"),
    Row("hunyuan_v1_moe"),
    Row("ernie4_5"),
    Row("ernie4_5_moe"),
    Row("minimax_m2"),
    Row("mimo_v2_flash"),
    Row("arcee"),
    Row("apertus"),
    Row("bitnet"),
    Row("diffllama"),
    Row("doge"),
    Row("dots1"),
    Row("youtu", {**LATENT, "pad_token_id": None}),  # transformers 5.23 loads the padding's row as zeros, head included
    Row("whisper"),
    Row("modernbert-decoder", quick=True),
    Row("bert"),
    Row("rwkv", refused=PADDED, quick=True),
    Row("bart", refused=PADDED, quick=True),
    Row("mbart", refused=PADDED),
    Row("marian", refused=PADDED),
    Row("pegasus", refused=PADDED),
    Row("plbart", refused=PADDED),
    Row("mvp", refused=PADDED),
    Row("blenderbot", refused=PADDED),
    Row("blenderbot-small", refused=PADDED),
    Row("bigbird_pegasus", refused=PADDED),
    Row("trocr", refused=PADDED),
    Row("openai-gpt", refused=ROWS, quick=True),
    Row("xlnet", {"max_position_embeddings": None, "d_inner": 48}, refused=ROWS),
    Row("lfm2", {"layer_types": ["conv", "full_attention"]}, refused=LAYERS, quick=True),
    Row("lfm3", refused=LAYERS),
    Row("falcon_h1", refused=MORE),
    Row("deepseek_v32", LATENT, refused=MORE),
    Row("deepseek_v4", refused=MORE),
    Row("glm_moe_dsa", LATENT, refused=MORE),
    Row("hy_v4", refused=MORE),
    Row("mamba", refused=LAYERS),
    Row("jamba", refused=LAYERS),
    Row("minimax", refused=LAYERS),
    Row("qwen3_next", refused=LAYERS),
    Row("olmo_hybrid", refused=LAYERS),
    Row("recurrent_gemma", refused=LAYERS),
    Row("roberta", refused="its trunk and its output head on a text by itself"),
    Row("roformer", refused=ROWS),
    Row("bert (both ways)", {"is_decoder": False}, refused=ROWS, model_type="bert"),
)
