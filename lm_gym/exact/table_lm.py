"""A table over states behind the interface of a language model, so that every agent trains on exact languages too."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lm_gym.exact.language import ExactLanguage
from lm_gym.models import CausalLM
from lm_gym.rows import Rows

NEVER = -1e9
"""The logit of a token of probability 0: finite, so that the one-hot product 0·(−∞) cannot make a NaN."""


class TableLM(CausalLM):
    """Softmax logits of their own for every state of an exact language; it can represent the optimum.

    The "last hidden state" is the one-hot vector of the state (d = S), so the head's weight (V, S) is the table of
    logits, and a linear value head is a table of values. Prompt p is the single input id V + p. Starts as the
    reference. Frozen, it is the reference.
    """

    def __init__(self, language: ExactLanguage) -> None:
        super().__init__()
        table = language.table()
        self.vocab_size, self.hidden_size = table.n_tokens, table.n_states
        self.input_size = table.n_tokens + table.n_prompts
        self.hidden_bound, self.eos_ids, self.pad_id = 1.0, (0,), 0
        self.max_positions = language.horizon + 1
        self.learning_rate = 0.02
        self.name = repr(language)
        # an ended text has no state; what follows it is masked, and state 0 is as good as any
        self.register_buffer("next_state", torch.tensor(table.next_state).clamp(min=0))
        self.register_buffer("start_states", torch.tensor(table.start_states))
        logits = torch.tensor(table.ref_logprobs).clamp(min=NEVER).T.float()
        self.logits = nn.Parameter(logits.contiguous())

    next_state: torch.Tensor
    start_states: torch.Tensor

    def advance(self, state: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """States (n,) after tokens (n,): a prompt's id starts anew."""
        start = tokens >= self.vocab_size
        return torch.where(
            start,
            self.start_states[(tokens - self.vocab_size).clamp(min=0)],
            self.next_state[state, tokens.clamp(max=self.vocab_size - 1)],
        )

    def one_hot(self, state: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(state, self.hidden_size).float()

    def trunk(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        state = torch.zeros_like(input_ids[:, 0])
        states = []
        for column in range(input_ids.shape[1]):
            moved = self.advance(state, input_ids[:, column])
            state = torch.where(attention_mask[:, column].bool(), moved, state)
            states.append(state)
        return self.one_hot(torch.stack(states, 1))

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.logits.T

    def rows(self, n: int, capacity: int) -> Rows:
        return TableRows(self, n)


class TableRows(Rows):
    """The states of n rows."""

    def __init__(self, lm: TableLM, n: int) -> None:
        self.lm, self.n = lm, n
        self.state = torch.zeros(n, dtype=torch.long)

    def insert(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        where = torch.tensor(list(rows))
        unique: dict[tuple[int, ...], int] = {}
        for prompt in prompts:
            if tuple(prompt) not in unique:
                state = torch.zeros(1, dtype=torch.long)
                for token in prompt:
                    state = self.lm.advance(state, torch.tensor([token]))
                unique[tuple(prompt)] = int(state)
        self.state[where] = torch.tensor([unique[tuple(prompt)] for prompt in prompts])
        return self.lm.one_hot(self.state[where])

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        self.state = self.lm.advance(self.state, tokens)
        return self.lm.one_hot(self.state)

    def park(self, rows: Sequence[int]) -> None:
        """Nothing to free."""

    def keep(self, rows: Sequence[int]) -> None:
        self.n, self.state = len(rows), self.state[list(rows)]
