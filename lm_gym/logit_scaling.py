"""What some models do to their logits behind the output head: a factor, and a cap c·tanh(z/c). Read from the config.

Both are elementwise, so that they belong wherever the head is used.
"""

from __future__ import annotations

from typing import Any

import torch

FACTORS = (
    ("Cohere", "logit_scale", lambda config: config.logit_scale),
    ("Granite", "logits_scaling", lambda config: 1.0 / config.logits_scaling),
    ("HyperCLOVAX", "logits_scaling", lambda config: config.logits_scaling),
    ("FalconH1", "lm_head_multiplier", lambda config: config.lm_head_multiplier),
    # divides the hidden states in front of the head, which is linear
    ("MiniCPM3", "dim_model_base", lambda config: config.dim_model_base / config.hidden_size),
)
"""Classes by the beginning of their names, the field that their factor is read from, and the factor. MPT has a
``logit_scale`` too, which ``transformers`` does not use: so the name of a field alone does not say it."""

CAPS = ("final_logit_softcapping", "logits_soft_cap")
"""Fields that hold a cap."""


class LogitScaling:
    """z ↦ c·tanh(f·z/c) of a causal LM's logits; without a cap f·z.

    Args:
        model: the causal LM. Its class and its config say f (1 for most) and c (None for most).
    """

    def __init__(self, model: Any) -> None:
        config = model.config.get_text_config(decoder=True)
        self.factor = 1.0
        for name, field, factor in FACTORS:
            if type(model).__name__.startswith(name) and getattr(config, field, None) is not None:
                self.factor = float(factor(config))
        caps = [getattr(config, field, None) for field in CAPS]
        self.cap: float | None = next((float(c) for c in caps if c), None)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """(..., V) float32 to the same."""
        if self.factor != 1.0:
            logits = logits * self.factor
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap
