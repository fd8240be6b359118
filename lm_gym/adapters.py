"""Models with PEFT's adapters: found beside a model or alone in a folder, and merged into its weights."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from lm_gym.extras import install_command

CONFIG = "adapter_config.json"


def adapter_base(source: str) -> str | None:
    """The model that the adapter at ``source``, a folder or a hub id, was made for; None: there is no adapter.

    Raises:
        ValueError: its config names none.
    """
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        found = find_adapter_config_file(source)
    except OSError:  # whatever is wrong is for the loading itself to say
        return None
    if found is None:
        return None
    config = json.loads(Path(found).read_text())
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(base, str) or not base:
        raise ValueError(f"its {CONFIG} has no base_model_name_or_path, the model that the adapter belongs on")
    if is_adapter(base):
        raise ValueError(f"its {CONFIG} names {base!r} as its base, which is an adapter or has one: merge that first")
    return base


def with_adapter(model: Any, source: str) -> Any:
    """``model`` with the adapter at ``source`` merged into its weights: what is trained and exported is whole.

    Raises:
        ValueError: PEFT is not installed, or the adapter is of a kind that has no place in the weights.
    """
    try:
        from peft import PeftModel
    except ImportError as e:
        raise ValueError(f"it is an adapter, which needs PEFT: {install_command('peft')}") from e

    wrapped = PeftModel.from_pretrained(model, source)
    kind = wrapped.peft_config[wrapped.active_adapter].peft_type
    if not hasattr(wrapped.base_model, "merge_and_unload"):
        raise ValueError(f"it is an adapter of the kind {kind}, which cannot be merged into a model's weights")
    merged = wrapped.merge_and_unload(safe_merge=True)
    merged._hf_peft_config_loaded = False
    merged.name_or_path = source  # its weights are no longer its base's
    return merged.eval()


def is_adapter(folder: str) -> bool:
    """Whether a local folder is an adapter's."""
    return (Path(folder) / CONFIG).is_file()


def plain_copy(model: Any) -> Any:
    """A copy of a model into which ``transformers`` loaded adapters (``load_adapter``), with plain weights.

    Its own ``save_pretrained`` would write the adapters alone, and lose what was trained below them.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    twin = copy.deepcopy(model)
    for name, module in list(twin.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(twin.get_submodule(parent), child, module.get_base_layer())
    for mark in ("_hf_peft_config_loaded", "peft_config", "_weight_conversions"):  # by the last, names of an adapter's
        vars(twin).pop(mark, None)
    return twin
