"""A causal language model's trunk with one number for a head: what a reward model starts as."""

from __future__ import annotations

import copy
from typing import Any

import torch

from lm_gym.loading import load_model, resolve_device
from lm_gym.models import TransformersLM

RATE = 3.0
"""The step size over that of a policy of the same size: labels do not move with the weights, as rollouts do."""


def scalar_model(model: Any, *, layers: int | None = None, device: str = "cpu") -> tuple[Any, Any, float]:
    """A sequence classifier with one logit, 0 for every text, on a causal LM's trunk; tokenizer; a step size.

    Args:
        model: tiny, a hub id, a folder, a GGUF file, or a live causal LM, whose weights are copied.
        layers: of the trunk, the first so many.

    Raises:
        ValueError: no such model, or it has fewer layers, or ``transformers`` has no such classifier for its class.
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoModelForSequenceClassification

    lm = load_model(model, check=False)  # its trunk alone is used, by the classifier's own class
    if not isinstance(lm, TransformersLM):
        raise ValueError(f"model expected a transformers causal LM, got a {type(lm).__name__}")
    causal = lm.causal_lm()
    config = copy.deepcopy(causal.config)
    config.num_labels = 1
    text = config.get_text_config()
    if layers is not None:
        if layers > text.num_hidden_layers:
            raise ValueError(f"layers expected at most the {text.num_hidden_layers} of {lm.name!r}, got {layers}")
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:layers]
    text.pad_token_id = lm.pad_id
    if hasattr(config, "quantization_config"):  # of a GGUF file, whose weights are float32 by now
        del config.quantization_config
    scalar: Any = None
    if type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        scalar = AutoModelForSequenceClassification.from_config(config)
        wanted, have = scalar.base_model.state_dict(), causal.base_model.state_dict()
    if not isinstance(getattr(scalar, "score", None), torch.nn.Linear) or not wanted.keys() <= have.keys():
        raise ValueError(
            f"model {lm.name!r} ({type(causal).__name__}) expected a class for which transformers has a classifier of "
            "the last token's state by a linear layer, got one without. To do: take a base model of another class, "
            "such as Llama, Qwen2, Mistral or Gemma 2"
        )
    scalar.base_model.load_state_dict({name: have[name] for name in wanted})
    torch.nn.init.zeros_(scalar.score.weight)
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = lm.pad_id
    return scalar.float().to(resolve_device(device)).eval(), tokenizer, RATE * lm.learning_rate
