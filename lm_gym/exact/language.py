"""Languages small enough that the best possible policy is known exactly.

A language is a first-order Markov chain over a vocabulary of V tokens, cut at `horizon` tokens. Token 0 ends a text
(EOS), and row 0 of `transitions` is the distribution of the first token. A text ends at EOS or at the horizon; it is
then paid R(x, y). That is a real alignment problem, with a reference π_ref (the chain) and an optimum that can be
written down, so every agent's regret on it is a number.

Array shapes: S states, V tokens, P prompts, N texts, T = horizon.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lm_gym.exact.states import (
    ENDED,
    EOS,
    FloatArray,
    IntArray,
    StateTable,
    Texts,
    count_texts,
    prefix_states,
    score_states,
    step_states,
)

TokenReward = Callable[[list[int]], float]

# The worked example of DESIGN.md: R = #3 − ½·#2 + 1 if the text ends in EOS.
WORKED_TRANSITIONS = ((0.1, 0.4, 0.3, 0.2), (0.2, 0.2, 0.4, 0.2), (0.3, 0.3, 0.1, 0.3), (0.4, 0.2, 0.2, 0.2))
WORKED_TABLE = (1.0, 0.0, -0.5, 1.0)


def worked_reward(tokens: list[int]) -> float:
    """The reward of the worked example: #3 − ½·#2, plus 1 for a text that ends in EOS."""
    return tokens.count(3) - 0.5 * tokens.count(2) + (1.0 if tokens and tokens[-1] == EOS else 0.0)


class ExactLanguage:
    """A language whose best policy is computed exactly. Without arguments: the worked example of DESIGN.md.

    Args:
        transitions: (V, V) row-stochastic; row = previous token, row 0 = the first token. Token 0 is EOS.
        horizon: most tokens in a text, the EOS included.
        token_reward: R(y), called on the list of token ids of a finished text (with the final EOS, if any); or
            "py:module:attribute"; or one of these per prompt.
        token_table: instead of `token_reward`: (V,), or (P, V), what each token adds to R (entry 0: the EOS). The sum
            is paid at the end like any reward, but makes long horizons exact by dynamic programming.
        kl_coef: β of J(π) = E[R] − β·KL(π‖π_ref).
        start_rows: (P, V), the distribution of the first token for each of P prompts; None: one prompt, row 0.
            Prompts are equally likely.
        states: "prefixes" (one state per unfinished text), "steps" (one per prompt, step and last token; needs
            `token_table`), or "auto": prefixes if the language has at most `max_sequences` texts, else steps.
        max_sequences: refuse to enumerate more texts than this.

    Raises:
        ValueError: for a wrong shape, a row that is no distribution, both reward kinds, a reward that is not finite,
            or more texts than `max_sequences` (it says how many).
    """

    def __init__(
        self,
        transitions: ArrayLike | None = None,
        horizon: int = 3,
        token_reward: TokenReward | str | Sequence[TokenReward | str] | None = None,
        token_table: ArrayLike | None = None,
        kl_coef: float = 0.5,
        start_rows: ArrayLike | None = None,
        states: str = "auto",
        max_sequences: int = 10_000,
    ) -> None:
        if transitions is None and token_reward is None and token_table is None:
            token_table = WORKED_TABLE
        self.transitions = _distributions(WORKED_TRANSITIONS if transitions is None else transitions, "transitions")
        n = self.n_tokens = int(self.transitions.shape[1])
        if self.transitions.shape != (n, n) or n < 2:
            raise ValueError(
                f"transitions must be (V, V) with V >= 2 (row = previous token), got shape {self.transitions.shape}"
            )
        if isinstance(horizon, bool) or int(horizon) != horizon or horizon < 1:
            raise ValueError(f"horizon must be a whole number of tokens, at least 1; got {horizon!r}")
        self.horizon = int(horizon)
        self.kl_coef = float(kl_coef)
        if not (np.isfinite(self.kl_coef) and self.kl_coef >= 0):
            raise ValueError(f"kl_coef must be a finite number of at least 0, got {kl_coef!r}")
        self.start_rows = self.transitions[:1] if start_rows is None else _distributions(start_rows, "start_rows")
        if self.start_rows.shape[1] != n:
            raise ValueError(f"start_rows must be (P, {n}), one row per prompt; got shape {self.start_rows.shape}")
        self.n_prompts = int(self.start_rows.shape[0])

        if (token_reward is None) == (token_table is None):
            given = "neither" if token_reward is None else "both"
            raise ValueError(f"give exactly one of token_reward (a callable) and token_table (V,); got {given}")
        self.token_table: FloatArray | None = None
        self._reward_functions: list[TokenReward] = []
        if token_table is not None:
            table = np.asarray(token_table, dtype=np.float64)
            if table.shape not in ((n,), (self.n_prompts, n)) or not np.all(np.isfinite(table)):
                raise ValueError(
                    f"token_table must be finite, of shape ({n},) or ({self.n_prompts}, {n}); got {table.tolist()}"
                )
            self.token_table = np.broadcast_to(table, (self.n_prompts, n)).copy()
        else:
            self._reward_functions = _reward_functions(token_reward, self.n_prompts)

        self.max_sequences = int(max_sequences)
        self.n_sequences = self.n_prompts * count_texts(n, self.horizon)
        choices = ("auto", "prefixes", "steps")
        if states not in choices:
            near = difflib.get_close_matches(str(states), choices, 1, 0.0)[0]
            raise ValueError(f"states must be one of {choices}, got {states!r}; did you mean {near!r}?")
        if states == "auto":
            fits = self.n_sequences <= self.max_sequences
            states = "prefixes" if fits or self.token_table is None else "steps"
        if states == "steps" and self.token_table is None:
            raise ValueError("states='steps' needs a token_table: a reward of any other kind depends on the whole text")
        self.states = states
        if states == "prefixes":
            self._check_enumerable()

    def __repr__(self) -> str:
        return (
            f"ExactLanguage(V={self.n_tokens}, horizon={self.horizon}, prompts={self.n_prompts}, "
            f"kl_coef={self.kl_coef}, states={self.states!r}, texts={self.n_sequences:.6g})"
        )

    def reward(self, tokens: Sequence[int], prompt: int = 0) -> float:
        """R(x, y) of one finished text, given as token ids with the final EOS if there is one."""
        ids = [int(t) for t in tokens]
        if self.token_table is not None:
            return float(self.token_table[prompt, ids].sum()) if ids else 0.0
        try:
            value = float(self._reward_functions[prompt](list(ids)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"token_reward must return a number; on {ids} (prompt {prompt}): {error}") from error
        if not np.isfinite(value):
            raise ValueError(f"token_reward must be finite, got {value} on {ids} (prompt {prompt})")
        return value

    def table(self) -> StateTable:
        """The states an agent's table policy has: prefixes, or (prompt, step, last token). Made once."""
        return self._table

    @cached_property
    def _table(self) -> StateTable:
        return self._prefix_table if self.states == "prefixes" else self._steps_table

    def state(self, prefix: Sequence[int], prompt: int = 0) -> int:
        """The id of the state after `prefix` (token ids without an end); raises ValueError if the text has ended."""
        table = self.table()
        if not 0 <= prompt < self.n_prompts:
            raise ValueError(f"prompt must be in 0..{self.n_prompts - 1}, got {prompt}")
        state = int(table.start_states[prompt])
        for i, token in enumerate(prefix):
            if not 0 <= token < self.n_tokens:
                raise ValueError(f"token ids are 0..{self.n_tokens - 1}, got {token} at position {i} of {list(prefix)}")
            state = int(table.next_state[state, token])
            if state == ENDED:
                raise ValueError(f"the text {list(prefix)[: i + 1]} has ended, so {list(prefix)} is not a state")
        return state

    def prefix(self, state: int) -> tuple[int, ...]:
        """The token ids that lead to a state (only where states are prefixes)."""
        if self.states != "prefixes":
            raise ValueError("a state of a language with states='steps' stands for many prefixes")
        tokens: list[int] = []
        while self._table.last_token[state] != ENDED:
            tokens.append(int(self._table.last_token[state]))
            state = int(self._parents[state])
        return tuple(reversed(tokens))

    @cached_property
    def texts(self) -> Texts:
        """Every text with its reference log-prob and reward. Raises ValueError above `max_sequences`."""
        table = self._prefix_table
        state, action = np.nonzero(table.ends)
        tokens = np.full((len(state), self.horizon), -1, dtype=np.int64)
        logprob = table.ref_logprobs[state, action].copy()
        length = table.depth[state] + 1
        tokens[np.arange(len(state)), length - 1] = action
        at = state.copy()
        for d in range(self.horizon - 1, 0, -1):
            rows = np.nonzero(table.depth[at] == d)[0]
            last, parent = table.last_token[at[rows]], self._parents[at[rows]]
            tokens[rows, d - 1] = last
            logprob[rows] += table.ref_logprobs[parent, last]
            at[rows] = parent
        return Texts(table.prompt[state], tokens, length, table.step_reward[state, action], logprob, state, action)

    def _check_enumerable(self) -> None:
        if self.n_sequences > self.max_sequences:
            raise ValueError(
                f"this language has {self.n_sequences:.6g} texts, more than max_sequences={self.max_sequences}; give "
                "the reward as token_table (exact at any horizon with states='steps'), shorten the horizon, or raise "
                "max_sequences"
            )

    @cached_property
    def _prefix_table(self) -> StateTable:
        self._check_enumerable()
        return prefix_states(self.transitions, self.start_rows, self.horizon, self.reward)

    @cached_property
    def _parents(self) -> IntArray:
        """(S,) the prefix one token shorter; −1 at a start."""
        table = self._prefix_table
        parents = np.full(table.n_states, -1, dtype=np.int64)
        state, action = np.nonzero(~table.ends)
        parents[table.next_state[state, action]] = state
        return parents

    @cached_property
    def _steps_table(self) -> StateTable:
        assert self.token_table is not None
        return step_states(self.transitions, self.start_rows, self.horizon, self.token_table)

    def score_table(self) -> tuple[StateTable, IntArray]:
        """States that also know the score so far, with R paid at the end, and the (S',) `table()` state of each.

        Where states are prefixes it is `table()` itself. Where they are steps it is (prompt, step, last token, score
        so far): what the distribution of R, best-of-n and discounting need.
        """
        return self._score_table

    @cached_property
    def _score_table(self) -> tuple[StateTable, IntArray]:
        return score_states(self.table())


def _distributions(rows: ArrayLike, name: str) -> FloatArray:
    """A float64 (rows, V) copy, or a ValueError that names the row at fault. Rows are renormalised to sum to 1."""
    array = np.array(rows, dtype=np.float64)
    if array.ndim != 2:
        raise ValueError(f"{name} must have two dimensions, (rows, V); got shape {array.shape}")
    for i, row in enumerate(array):
        if not np.all(np.isfinite(row)) or np.any(row < 0):
            raise ValueError(f"{name}: row {i} must be probabilities (finite, not negative), got {row.tolist()}")
        if abs(row.sum() - 1) > 1e-6:
            raise ValueError(f"{name}: row {i} must sum to 1, it sums to {row.sum():.9g}: {row.tolist()}")
    array /= array.sum(axis=1, keepdims=True)
    return array


def _reward_functions(
    spec: TokenReward | str | Sequence[TokenReward | str] | None, n_prompts: int
) -> list[TokenReward]:
    """One callable per prompt."""
    if callable(spec) or isinstance(spec, str):
        return [_resolve(spec)] * n_prompts
    specs = list(spec) if isinstance(spec, Sequence) else []
    if len(specs) != n_prompts:
        raise ValueError(
            f"token_reward must be a callable, 'py:module:attribute', or a list of {n_prompts} of these (one per "
            f"prompt); got {spec!r}"
        )
    return [_resolve(one) for one in specs]


def _resolve(spec: TokenReward | str) -> TokenReward:
    if isinstance(spec, str):
        kind, _, rest = spec.partition(":")
        module, _, attribute = rest.rpartition(":")
        if kind != "py" or not module or not attribute:
            raise ValueError(f"token_reward as a string is 'py:module:attribute', got {spec!r}")
        try:
            found: Any = importlib.import_module(module)
            for name in attribute.split("."):
                found = getattr(found, name)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"token_reward {spec!r} cannot be loaded: {error}") from error
        spec = found
    if not callable(spec):
        raise ValueError(f"token_reward must be callable on a list of token ids, got {spec!r}")
    return spec
