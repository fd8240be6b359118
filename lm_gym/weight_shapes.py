"""Whether a model folder's weights have the shapes that its config claims, before memory is taken for them.

``transformers`` makes what ``config.json`` says and finds out afterwards that the files hold less: a config that claims
200,000 units for a model of a few kilobytes takes all memory of the machine first. The header of a safetensors file
names every shape, and a model without memory (on the meta device) knows what it would want.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers")
"""Fields of a config that say how many layers are made."""
SLACK = 1.1
"""The elements that a model may want over those in its files: a new head is made where the files have none."""
SMALL = 2_000_000
"""So many elements (8 MB in float32) are never worth a refusal here: what does not fit is named when it is loaded."""


def oversized(auto: Any, source: str, **options: Any) -> str | None:
    """What a config wants far more of than the folder's safetensors files have, as a clause; None: nothing.

    Args:
        auto: a class of ``transformers`` such as ``AutoModelForCausalLM``. source: a local folder; anything else, and a
            folder without safetensors, is passed over. options: of ``AutoConfig.from_pretrained``.
    """
    from transformers import AutoConfig

    shapes = header_shapes(Path(source))
    if not shapes or (Path(source) / "adapter_config.json").exists():
        return None
    try:
        claimed = _layers(json.loads((Path(source) / "config.json").read_text()))
    except (OSError, ValueError, RecursionError):
        return None
    for field, layers in claimed:  # a config of a hundred million layers takes memory as it is read
        if layers > 4 * len(shapes) + 64:
            return f"its config.json says {field}={layers}, and its files have {len(shapes)} tensors in all"
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **options)
    except Exception:  # whatever is wrong with it is for the loading itself to say
        return None
    if getattr(config, "quantization_config", None) is not None:
        return None  # packed weights have other shapes
    try:
        with torch.device("meta"):
            model = auto.from_config(config)
    except Exception:
        return None
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for name, shape in wanted.items():
        have = shapes.get(name, shape)
        if _elements(shape) > SLACK * _elements(have) + SMALL:
            return f"its config.json asks for {name} of shape {shape}, and its files have it of shape {have}"
    want, there = sum(map(_elements, wanted.values())), sum(map(_elements, shapes.values()))
    if want > SLACK * there + SMALL:
        return f"its config.json asks for {want:,} weights, and its files have {there:,}"
    return None


def _layers(config: Any) -> list[tuple[str, int]]:
    """The numbers of layers that a config names, in its parts too."""
    if not isinstance(config, dict):
        return []
    own = [(field, config[field]) for field in LAYERS if isinstance(config.get(field), int)]
    return own + [found for part in config.values() for found in _layers(part)]


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def header_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name from the headers of a folder's safetensors files, of which nothing else is read.

    Empty where there are none, or where one cannot be read: then loading says what is wrong.
    """
    from safetensors import SafetensorError, safe_open

    files = [folder / "model.safetensors"]
    if not files[0].is_file():
        try:
            index = json.loads((folder / "model.safetensors.index.json").read_text())
            files = [folder / name for name in sorted(set(index["weight_map"].values()))]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        for file in files:
            with safe_open(str(file), framework="pt") as f:
                shapes |= {name: tuple(f.get_slice(name).get_shape()) for name in f.keys()}
    except (SafetensorError, OSError):
        return {}
    return shapes
