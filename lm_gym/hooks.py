"""Whether somebody listens to what goes through a module: then nothing may pass it by."""

from __future__ import annotations

from torch import nn

IDLE = "transformers.utils.output_capturing"
"""Where the hooks are from that ``model(…, output_hidden_states=True)`` leaves behind: idle outside of such a call."""


def has_hooks(module: nn.Module) -> bool:
    """Whether the module itself, not those inside it, has forward hooks that would miss what passes it by."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(getattr(hook, "__module__", None) != IDLE for hook in hooks)
