"""Language models behind one small interface.

:class:`CausalLM` is what the environment, the decoding engine and the agents ask of a language model: a trunk (token
ids to last hidden states), a head (hidden states to logits) and rows that decode with a cache. :class:`TransformersLM`
puts it around any full-attention causal LM of ``transformers``; the exact languages bring a table of their own.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lm_gym import flat_trunk
from lm_gym.logit_scaling import LogitScaling
from lm_gym.positions import text_limit

if TYPE_CHECKING:
    from lm_gym.rows import Rows


@dataclass(frozen=True)
class Below:
    """What comes out of a model's lowest ``blocks`` for some texts: (B, L, d) ``states``, zero at padding."""

    blocks: int
    states: torch.Tensor


class CausalLM(nn.Module):
    """A causal language model: what LM Gym needs to know of one.

    Attributes:
        vocab_size: V, the size of the output distribution (the head's, which may exceed the tokenizer's).
        input_size: number of ids that may occur in the input, at least V.
        hidden_size: d, the width of the last hidden state. hidden_bound: no |component| of it exceeds this.
        eos_ids: every id that ends a text. pad_id: fills batches; always masked, so it may equal an EOS id.
        max_positions: longest text in tokens. learning_rate: a step size that trains this model with Adam.
        name: what the user called it. tokenizer: None where texts are only ids.
    """

    vocab_size: int
    input_size: int
    hidden_size: int
    hidden_bound: float
    eos_ids: tuple[int, ...]
    pad_id: int
    max_positions: int
    learning_rate: float
    name: str
    tokenizer: Any = None

    def trunk(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Last hidden states (B, L, d) of ids (B, L) under a mask (B, L) of 1 for tokens and 0 for padding."""
        raise NotImplementedError

    def states(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        wanted: torch.Tensor,
        *,
        prompt_width: int = 0,
        below: Below | None = None,
    ) -> torch.Tensor:
        """Last hidden states (m, d) at the ``wanted`` places (B, L) bool of ids (B, L), row by row.

        Args:
            prompt_width: leading columns that a model may compute once for rows in which they are equal; no state
                before the last of them may be wanted.
            below: what :meth:`lower_states` gave for these texts, for a model that can begin above it.
        """
        return self.trunk(input_ids.to(self.device), attention_mask.to(self.device))[wanted.to(self.device)]

    def lower_states(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, blocks: int) -> Below | None:
        """What comes out of the lowest blocks, for :meth:`states`; None: this model cannot begin above them."""
        return None

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (..., V) in float32 of hidden states (..., d)."""
        raise NotImplementedError

    def rows(self, n: int, capacity: int) -> Rows:
        """``n`` rows of up to ``capacity`` tokens that decode together with a cache, each of its own age."""
        raise NotImplementedError

    def clone(self, *, share: Iterable[nn.Parameter] = ()) -> CausalLM:
        """A copy to train, holding the very tensors of ``share`` (frozen in both) instead of copies of them."""
        memo = {id(p): p for p in share}
        twin = copy.deepcopy(self, memo)
        return twin

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids in the middle of a text, special tokens left out: prompt + completion is the whole."""
        if self.tokenizer is None:
            return " ".join(str(i) for i in ids)
        return self._decode([*self._anchor, *ids])[len(self._anchor_text) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    @cached_property
    def _anchor(self) -> list[int]:
        """Ids to decode in front: SentencePiece tokenizers drop the space before the first word of what they decode."""
        found = [int(i) for i in self.tokenizer("a", add_special_tokens=False)["input_ids"]]
        return found if self._decode(found).strip() == "a" else []

    @cached_property
    def _anchor_text(self) -> str:
        return self._decode(self._anchor) if self._anchor else ""

    def check_ids(self, texts: Iterable[Sequence[int]], what: str) -> None:
        """Refuse texts with a token that the model has no embedding for, naming it and the first text that has it.

        Args:
            texts: ids. what: a text's name, for the error, such as "prompt".
        """
        check_ids(texts, self.input_size, what, self.name, self.tokenizer)

    def fingerprint(self) -> str:
        """sha256 of all parameters and buffers with their names, shapes and dtypes: equal for equal bytes."""
        digest = hashlib.sha256()
        for key, value in sorted(self.state_dict().items()):
            digest.update(f"{key}:{tuple(value.shape)}:{value.dtype};".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def freeze(self) -> CausalLM:
        """Evaluation mode (dropout off), no gradients."""
        self.eval()
        for p in self.parameters():
            p.requires_grad_(False)
        return self


class TransformersLM(CausalLM):
    """A ``transformers`` causal LM behind :class:`CausalLM`: right, or refused (:mod:`lm_gym.model_check`).

    Args:
        model: the model, which is used as it is and not copied. tokenizer: its tokenizer.
        name: what the user called it.
        check: compare what is computed here with the model's own forward pass. False: only its weights are wanted.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, *, check: bool = True) -> None:
        super().__init__()
        self.model, self.tokenizer, self.name = model, tokenizer, name
        refuse_encoder_decoder(model.config, name)
        if any(p.is_meta for p in model.parameters()):
            raise ValueError(f"model {name!r} expected weights in memory, got some on the meta device (or offloaded)")
        config = model.config.get_text_config(decoder=True)
        head = model.get_output_embeddings()
        if not isinstance(getattr(head, "weight", None), torch.Tensor):
            found = type(model).__name__ + ("" if head is None else f" whose head is a {type(head).__name__}")
            raise ValueError(f"model {name!r} expected a causal LM with an output head, a linear layer, got {found}")
        self.vocab_size = int(head.weight.shape[0])
        self.input_size = int(model.get_input_embeddings().weight.shape[0])
        self.hidden_size = int(head.weight.shape[1])
        self.max_positions = text_limit(config, self._base())
        kinds = sorted(set(getattr(config, "layer_types", None) or ()))
        if any(state in kind for kind in kinds for state in ("linear", "mamba", "conv", "recurrent")):
            raise ValueError(
                f"model {name!r} ({type(model).__name__}) expected attention layers only, got {kinds}: the others keep "
                "a state between tokens that cannot be reset row by row here"
            )
        self.eos_ids = tuple(i for i in eos_ids_of(model, tokenizer, name) if 0 <= i < self.vocab_size)
        if not self.eos_ids:
            raise ValueError(
                f"model {name!r} expected an EOS id below {self.vocab_size}, the size of its output, got "
                f"{eos_ids_of(model, tokenizer, name)}: set model.generation_config.eos_token_id"
            )
        pad = getattr(tokenizer, "pad_token_id", None)
        self.pad_id = int(pad) if pad is not None else self.eos_ids[0]
        n = sum(p.numel() for p in model.parameters())
        self.learning_rate = 3e-4 * math.sqrt(1.5e6 / max(n, 1.5e6))
        self.hidden_bound = _hidden_bound(self._base(), self.hidden_size)
        self.scaling = LogitScaling(self.causal_lm())
        self.eval()
        if check:
            from lm_gym.model_check import check_model

            check_model(self)

    def causal_lm(self) -> Any:
        """The causal LM itself, inside PEFT's wrapper if there is one."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    def _base(self) -> Any:
        lm = self.causal_lm()
        for name in (lm.base_model_prefix, "model"):  # Llama 4's prefix is that of the model with eyes
            if name and getattr(lm, name, None) is not None:
                return getattr(lm, name)
        raise ValueError(f"model {self.name!r} expected a causal LM, a trunk under a head, got {type(lm).__name__}")

    def trunk(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return base_trunk(self._base(), input_ids, attention_mask)

    def states(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, wanted: torch.Tensor, **how: Any
    ) -> torch.Tensor:
        return base_states(self._base(), input_ids, attention_mask, wanted, **how)

    @torch.no_grad()
    def lower_states(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, blocks: int) -> Below | None:
        base = self._base()
        if not flat_trunk.is_known(base):
            return None
        texts = flat_trunk.FlatTexts(input_ids, attention_mask, attention_mask.bool())
        source = texts.source
        out = flat_trunk.lower(base, texts.to(self.device), blocks).cpu()
        room = out.new_zeros(input_ids.numel(), out.shape[-1])
        room[source] = out
        return Below(blocks, room.view(*input_ids.shape, -1))

    def untie_head(self) -> None:
        """Give an output head that is tied to the input embeddings weights of its own, trained whatever those are."""
        lm = self.causal_lm()
        head = lm.get_output_embeddings()
        if head.weight is not lm.get_input_embeddings().weight:
            return
        head.weight = nn.Parameter(head.weight.detach().clone())
        lm.config.tie_word_embeddings = False

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        for module in self._head_modules():
            hidden = module(hidden)
        return self.scaling(hidden.float())

    def _head_modules(self) -> list[Any]:
        """The output embeddings, or what they are the last part of: BERT's decoders have a layer in front of them."""
        lm, base = self.causal_lm(), self._base()
        above = [child for child in lm.children() if child is not base]
        if len(above) == 1:
            return above
        last = lm.get_output_embeddings()
        return [m for m in above if last in m.modules() or "PredictionHead" in type(m).__name__] or [last]

    def rows(self, n: int, capacity: int) -> Rows:
        from lm_gym.rows import AttentionRows

        return AttentionRows(self, n, capacity)

    def __deepcopy__(self, memo: dict[int, Any]) -> TransformersLM:
        tokenizer = self.tokenizer  # holds no weights; some cannot be copied
        memo[id(tokenizer)] = tokenizer
        twin = TransformersLM.__new__(TransformersLM)
        memo[id(self)] = twin
        nn.Module.__init__(twin)
        for key, value in self.__dict__.items():
            twin.__dict__[key] = copy.deepcopy(value, memo)
        return twin


class EncoderDecoder(ValueError):
    """A model that is no causal LM by its very kind."""


def refuse_encoder_decoder(config: Any, name: str) -> None:
    """An encoder-decoder reads one text and writes another: there is no prompt that its own text goes on from.

    Raises:
        EncoderDecoder: ``config`` is one's.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise EncoderDecoder(
            f"model {name!r} expected a causal LM, got an encoder-decoder ({config.model_type}), whose answer does not "
            "follow its prompt in one text: take a decoder-only model"
        )


def base_trunk(base: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """:meth:`CausalLM.trunk` of a ``transformers`` model without a head."""
    position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
    out = base(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False)
    return out.last_hidden_state  # type: ignore[no-any-return]


def base_states(
    base: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    wanted: torch.Tensor,
    *,
    prompt_width: int = 0,
    below: Below | None = None,
) -> torch.Tensor:
    """:meth:`CausalLM.states` of a ``transformers`` model without a head."""
    device = next(base.parameters()).device
    if not flat_trunk.is_known(base):  # it cannot begin above ``below``: all of it again
        return base_trunk(base, input_ids.to(device), attention_mask.to(device))[wanted.to(device)]
    texts = flat_trunk.FlatTexts(input_ids, attention_mask, wanted, prompt_width)
    if below is None:
        return flat_trunk.run(base, texts.to(device))
    known = below.states.flatten(0, 1).index_select(0, texts.source).to(device)
    return flat_trunk.run(base, texts.to(device), below=known, first=below.blocks)


def check_ids(texts: Iterable[Sequence[int]], size: int, what: str, name: str, tokenizer: Any) -> None:
    """:meth:`CausalLM.check_ids` for a model with ``size`` embeddings."""
    for i, ids in enumerate(texts):
        top = max(ids, default=0)
        if top >= size:
            token = "" if tokenizer is None else f" {tokenizer.convert_ids_to_tokens(int(top))!r}"
            raise ValueError(
                f"{what} {i} has the token{token} of id {top}, and model {name!r} embeds {size}, ids 0 to {size - 1}: "
                "its tokenizer has tokens that were added since. To do: model.resize_token_embeddings(len(tokenizer)) "
                "and train it on them, or take the tokenizer that it was trained with"
            )


def different_tokens(a: Any, b: Any) -> tuple[int, str, str] | None:
    """The first id that is another token in another tokenizer, and both tokens; None: there is none.

    Ids that only one of them has are no difference, as those of a padding token that was added to one.
    """
    if a is None or b is None or a is b:
        return None
    ours, theirs = ({i: token for token, i in t.get_vocab().items()} for t in (a, b))
    return next(((i, ours[i], theirs[i]) for i in sorted(ours) if i in theirs and ours[i] != theirs[i]), None)


def eos_ids_of(model: Any, tokenizer: Any, name: str) -> tuple[int, ...]:
    """Every id that ends a text: those of ``generation_config``, of the config, and the tokenizer's own."""
    ids: set[int] = set()
    for source in (getattr(model, "generation_config", None), getattr(model, "config", None), tokenizer):
        value = getattr(source, "eos_token_id", None)
        given = list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]
        odd = [i for i in given if not isinstance(i, (int, float)) or int(i) != i]
        if odd:
            raise ValueError(f"model {name!r} expected eos_token_id of whole numbers, got {odd[0]!r}")
        ids.update(given)
    if not ids:
        raise ValueError(
            f"model {name!r} expected an EOS token, got none in generation_config, config or tokenizer: "
            "set model.generation_config.eos_token_id"
        )
    return tuple(sorted(int(i) for i in ids))


def _hidden_bound(base: Any, width: int) -> float:
    """A bound on the components of the last hidden state, from the final norm's weights.

    A normalised vector has |h_i| ≤ √d, so |w_i·h_i + b_i| ≤ √d·max|w| + max|b| (RMSNorm of Gemma uses 1 + w).
    """
    norm = next(
        (getattr(base, k) for k in ("norm", "ln_f", "final_layer_norm", "final_layernorm") if hasattr(base, k)), None
    )
    if norm is None or getattr(norm, "weight", None) is None:
        return float(torch.finfo(torch.float32).max)
    weight = float(norm.weight.detach().abs().max()) + (1.0 if "Gemma" in type(norm).__name__ else 0.0)
    bias = getattr(norm, "bias", None)
    return math.sqrt(width) * weight + (0.0 if bias is None else float(bias.detach().abs().max())) + 1e-3


def fingerprint(module: nn.Module) -> str:
    """sha256 of any module's state, as :meth:`CausalLM.fingerprint`."""
    return CausalLM.fingerprint(module)  # type: ignore[arg-type]
