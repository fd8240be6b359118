"""How long a text a model takes, and why: positions that it has, and encodings that change with the length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

UNLIMITED = 2**31 - 1
LENGTHS = ("max_position_embeddings", "max_target_positions", "max_seq_len")
"""Fields of a config that name the longest text in tokens."""
TABLES = ("position_embeddings", "position_embedding", "embed_positions", "wpe", "w_position_embeddings")
"""What models of ``transformers`` call a table of learned positions."""


class TextLimit(int):
    """A number of tokens that knows why it is the limit, also after something was taken from it.

    ``why``: a clause for errors; empty where it is nothing but the model's number of positions.
    """

    why: str = ""

    def __new__(cls, tokens: int, why: str = "") -> TextLimit:
        limit = super().__new__(cls, tokens)
        limit.why = why
        return limit

    def __sub__(self, other: int) -> TextLimit:
        return TextLimit(int(self) - other, self.why)


def because(limit: int | None) -> str:
    """What an error that names ``limit`` adds behind it: the reason, in brackets, where there is one to tell."""
    why = getattr(limit, "why", "")
    return f" ({why})" if why else ""


def text_limit(config: Any, trunk: nn.Module | None = None) -> TextLimit:
    """The longest text in tokens for a language model of this (text) config, whose ``trunk`` may have a smaller table.

    A rotary encoding whose frequencies depend on the length of the text would turn every key of a text anew where it
    crosses the switch: keys in the cache, and rows of a batch that are shorter, would be of the wrong side.
    """
    named = (getattr(config, field, None) for field in LENGTHS)
    own = next((n for n in named if isinstance(n, int) and n > 0), UNLIMITED)  # XLNet says −1
    table = None if trunk is None else position_table(trunk, config)
    if table is not None and table < own:
        return TextLimit(table, "its table of positions has no more rows, whatever its config says")
    switch = frequency_switch(config)
    if switch is not None and switch < own:
        return TextLimit(
            switch, f"its longrope position encoding changes beyond {switch} tokens, for the tokens before it too"
        )
    if is_dynamic(config):
        return TextLimit(own, f"its dynamic position encoding changes with every token beyond {own}")
    return TextLimit(own)


def frequency_switch(config: Any) -> int | None:
    """The longest text that a longrope model (Phi-3, MiniCPM) encodes with its short factors; None: no such switch."""
    found = []
    for rope in _ropes(config):
        if rope.get("rope_type") == "longrope" or rope.get("long_mscale") is not None:  # PhiMoE scales by another rule
            original = rope.get("original_max_position_embeddings")
            found.append(original or getattr(config, "original_max_position_embeddings", None))
    known = [int(length) for length in found if length]
    return min(known) if known else None


def is_dynamic(config: Any) -> bool:
    """Whether frequencies are computed anew for every length beyond the model's positions (dynamic NTK)."""
    return any("dynamic" in str(rope.get("rope_type")) for rope in _ropes(config))


def _ropes(config: Any) -> list[dict[str, Any]]:
    """The rotary encodings of a config: one, or one a kind of layer (Gemma 3)."""
    ropes = getattr(config, "rope_parameters", None) or {}
    return [rope for rope in ropes.values() if isinstance(rope, dict)] or [ropes]


def hard_limit(model: nn.Module, *, together: bool) -> TextLimit | None:
    """The longest text that a model can read rightly at all; None: nothing but its training limits it.

    ``together``: texts on both sides of a longrope model's switch are read in one pass, which has one encoding.
    """
    config = model.config.get_text_config()  # type: ignore[operator, union-attr]
    table = position_table(model, config)
    if table is not None:
        return TextLimit(table, "it has no more positions")
    limit = text_limit(config)
    return limit if is_dynamic(config) or (together and frequency_switch(config) == limit) else None


def position_table(model: nn.Module, config: Any) -> int | None:
    """Tokens that a model's table of learned positions has room for; None: it has none.

    ``config``: of the text. Parts with a config of another kind, such as eyes, are passed over.
    """
    modules = list(model.named_modules())
    others = tuple(f"{name}." for name, m in modules if name and type(getattr(m, "config", config)) is not type(config))
    for name, module in modules:
        if name.startswith(others):
            continue
        weight = getattr(module, "weight", None)
        if name.rsplit(".", 1)[-1] in TABLES and weight is not None:
            rows = int(weight.shape[0]) - int(getattr(module, "offset", 0))  # OPT and BART have rows more
            padding = getattr(module, "padding_idx", None) if name.endswith("position_embeddings") else None
            # RoBERTa and those like it count from padding_idx + 1, and have no row more for that
            return rows if padding is None else rows - int(padding) - 1
    return None
