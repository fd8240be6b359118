"""A language model with a value head: what agents train.

The value is a linear head on the shared trunk, or a critic with a trunk of its own. The policy may be whole, or LoRA
adapters on the reference's own tensors, or whole above the lower n layers, which are the reference's own tensors too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from lm_gym.choices import check_no_misspelling
from lm_gym.extras import install_command
from lm_gym.forward import response_states
from lm_gym.loading import Unloadable, pretrained, tokenizer_of
from lm_gym.mdp import AlignmentMDP
from lm_gym.model_check import check_critic
from lm_gym.models import Below, CausalLM, TransformersLM, base_states, different_tokens
from lm_gym.positions import because, hard_limit

AT_ONCE = 64
"""Texts in one pass without gradient."""


class Critic(nn.Module):
    """A value model with a trunk of its own.

    Args:
        states: as :meth:`CausalLM.states`, of ``lm``. head: (d) to 1.
    """

    def __init__(self, lm: nn.Module, states: Callable[..., torch.Tensor], head: nn.Linear) -> None:
        super().__init__()
        self.lm, self.head = lm, head
        self.states = states

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, response_mask: torch.Tensor
    ) -> torch.Tensor:
        """(n,) values of the states before each of the n response tokens of ``response_mask`` (B, T)."""
        hidden = response_states(self, input_ids, attention_mask, response_mask)
        return self.head(hidden.to(self.head.weight.dtype)).squeeze(-1).float()


def critic_from_policy(lm: CausalLM, mdp: AlignmentMDP) -> Critic:
    """A critic that starts as a copy of the model that policies start from, with a head of zeros."""
    twin = mdp.initial_policy()
    return Critic(twin, twin.states, _zero_head(lm))


def critic_from_reward_model(path: str, lm: CausalLM, longest: int = 1) -> Critic:
    """A critic that starts from a reward model: a ``transformers`` sequence classifier with one label.

    ``longest``: tokens of the longest text that it will read.
    """
    from transformers import AutoModelForSequenceClassification

    try:
        model: Any = pretrained(AutoModelForSequenceClassification, path, what="critic", dtype=torch.float32)
    except Unloadable:
        raise
    except (OSError, ValueError) as e:
        raise ValueError(
            "critic expected 'shared', 'separate' or the folder of a sequence classifier with one label; could not "
            f"load {path!r}: {str(e).splitlines()[0]}"
        ) from e
    score = getattr(model, "score", None)
    if not isinstance(score, nn.Linear) or score.out_features != 1:
        raise ValueError(
            f"critic {path!r} expected a classifier with num_labels=1 and a linear score, got {type(model).__name__}"
        )
    if model.get_input_embeddings().weight.shape[0] < lm.input_size:
        raise ValueError(f"critic {path!r} expected the policy's vocabulary of {lm.input_size} tokens, got fewer")
    limit = hard_limit(model, together=True)
    if limit is not None and limit < longest:
        raise ValueError(
            f"critic {path!r} expected texts of at most {limit} tokens{because(limit)}, the problem's have {longest}"
        )
    found = different_tokens(tokenizer_of(path), lm.tokenizer)
    if found is not None:
        raise ValueError(
            f"critic {path!r} expected the policy's vocabulary, got another: id {found[0]} is {found[1]!r} in its "
            f"tokenizer and {found[2]!r} in the policy's. To do: train a reward model on the policy's own model"
        )
    model.eval().to(lm.device)
    base = getattr(model, model.base_model_prefix)
    if isinstance(lm, TransformersLM):
        check_critic(base, lm, f"critic {path!r} ({type(model).__name__})")
    head = nn.Linear(score.in_features, 1).to(lm.device)
    with torch.no_grad():
        head.weight.copy_(score.weight)
        head.bias.zero_() if score.bias is None else head.bias.copy_(score.bias)
    return Critic(model, partial(base_states, base), head)


def _zero_head(lm: CausalLM) -> nn.Linear:
    # zero weights: the first values are 0 everywhere, and the first advantages are plain returns
    head = nn.Linear(lm.hidden_size, 1).to(lm.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


class Policy(nn.Module):
    """The policy of an agent, its value estimate, and what of both is trained.

    Args:
        mdp: the problem; the policy starts as a copy of its ``model``.
        critic: "shared" (a linear value head on the policy's trunk), "separate" (a trunk of its own that starts as the
            policy), the folder of a reward model to start a separate critic from, or "none" (default).
        lora_rank: above 0: LoRA of this rank on every linear layer of the trunk; the weights below are the reference's
            own tensors. lora_alpha: its scale; None: twice the rank.
        frozen_layers: the embeddings and so many lower layers stay the reference's own tensors.
        frozen_head: with them the output head does too. False: it is trained, untied if the embeddings hold it.
        frozen: nothing is trained: the policy is what policies start from.
    """

    def __init__(
        self,
        mdp: AlignmentMDP,
        *,
        critic: str = "none",
        lora_rank: int = 0,
        lora_alpha: float | None = None,
        frozen_layers: int = 0,
        frozen_head: bool = False,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.mdp = mdp
        if lora_rank and frozen_layers:
            raise ValueError("lora_rank and frozen_layers expected one of the two, got both: LoRA freezes every layer")
        if frozen:
            self.lm = mdp.initial_policy(share=lambda lm: lm.parameters()).freeze()
        elif lora_rank:
            self.lm = mdp.initial_policy(share=lambda lm: lm.parameters())
            add_lora(self.lm, lora_rank, 2.0 * lora_rank if lora_alpha is None else lora_alpha)
        elif frozen_layers:
            stays = partial(lower_layers, n=frozen_layers, head=frozen_head)
            self.lm = mdp.initial_policy(share=stays)
            for p in stays(self.lm):
                p.requires_grad_(False)
            if not frozen_head:
                assert isinstance(self.lm, TransformersLM)  # others have no lower layers
                self.lm.untie_head()
        else:
            self.lm = mdp.initial_policy()
        self.kind = critic
        self.value_head = _zero_head(self.lm) if critic == "shared" else None
        self.critic: Critic | None = None
        if critic == "separate":
            self.critic = critic_from_policy(self.lm, mdp)
        elif critic not in ("shared", "none"):
            check_no_misspelling("critic", critic, ("shared", "separate", "none"))
            self.critic = critic_from_reward_model(critic, self.lm, mdp.longest_prompt + mdp.max_new_tokens)
        self.lora, self.frozen_layers = bool(lora_rank), frozen_layers
        self.eval()  # dropout off, in sampling and in training alike

    def trainable(self) -> dict[str, nn.Parameter]:
        """What the optimizer moves, by name."""
        return {k: p for k, p in self.named_parameters() if p.requires_grad}

    def at_tokens(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        response_mask: torch.Tensor,
        below: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Hidden states (n, d) and values (n,) or None before each of the n tokens of ``response_mask`` (B, T).

        ``below``: (B, P+T−1, d), :meth:`below` of these texts.
        """
        known = None if below is None else Below(self.frozen_layers, below)
        hidden = response_states(self.lm, input_ids, attention_mask, response_mask, known)
        if self.critic is not None:
            return hidden, self.critic(input_ids, attention_mask, response_mask)
        return hidden, None if self.value_head is None else self.value(hidden)

    def below(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor | None:
        """(B, P+T−1, d) what comes out of the frozen lower layers, which no update changes; None: there are none.

        Also None for models that cannot begin above them: then every pass computes them again.
        """
        if not self.frozen_layers:
            return None
        parts = []
        for at in torch.arange(len(input_ids)).split(AT_ONCE):
            found = self.lm.lower_states(input_ids[at, :-1], attention_mask[at, :-1], self.frozen_layers)
            if found is None:
                return None
            parts.append(found.states)
        return torch.cat(parts)

    def centre_values(self, by: float) -> None:
        """Add a constant to every value.

        The mean of the returns moves faster than Adam's steps move a bias, and a linear head that has to follow it by
        its weights pays with variance: explained variance -.8 instead of 0 on ``tiny``.
        """
        head = self.critic.head if self.critic is not None else self.value_head
        assert head is not None
        with torch.no_grad():
            head.bias.add_(by)

    def value(self, hidden: torch.Tensor) -> torch.Tensor:
        """Values (...) of hidden states (..., d) by the shared head."""
        assert self.value_head is not None
        with torch.autocast(hidden.device.type, enabled=False):  # it costs nothing to be exact here
            return self.value_head(hidden.to(self.value_head.weight.dtype)).squeeze(-1).float()

    @property
    def learning_rate(self) -> float:
        """A step size for Adam that trains this policy: the model's own, ten times that for LoRA."""
        return self.lm.learning_rate * (10.0 if self.lora else 1.0)


def add_lora(lm: CausalLM, rank: int, alpha: float) -> None:
    """Put LoRA adapters (Hu et al. 2021, arXiv:2106.09685) on every linear layer of the trunk; B = 0: nothing moves."""
    if not isinstance(lm, TransformersLM):
        raise ValueError(f"lora_rank expected a transformers model, got {type(lm).__name__}")
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as e:
        raise ImportError(f"LoRA needs PEFT: {install_command('peft')}") from e
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules="all-linear",
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
        # GPT-2's projections hold their weights the other way round
        fan_in_fan_out=any(type(m).__name__ == "Conv1D" for m in lm.model.modules()),
    )
    lm.model = get_peft_model(lm.model, config)
    lm.eval()


def lower_layers(lm: CausalLM, n: int, head: bool = False) -> list[nn.Parameter]:
    """The parameters of the embeddings and of the n lowest layers, and of the output head if asked for."""
    if not isinstance(lm, TransformersLM):
        raise ValueError(f"frozen_layers expected a transformers model, got {type(lm).__name__}")
    base = lm._base()
    layers = getattr(base, "layers", None)
    layers = getattr(base, "h", None) if layers is None else layers
    if layers is None or not 0 < n <= len(layers):
        count = "no list of layers" if layers is None else f"{len(layers)} layers"
        raise ValueError(f"frozen_layers expected at most the model's layers, got {n} for a model with {count}")
    blocks: list[nn.Module] = [base.get_input_embeddings(), *layers[:n]]
    if hasattr(base, "wpe"):
        blocks.append(base.wpe)
    if head:
        blocks.append(lm.causal_lm().get_output_embeddings())
    return [p for block in blocks for p in block.parameters()]
