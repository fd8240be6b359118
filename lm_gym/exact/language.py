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
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
TokenReward = Callable[[list[int]], float]

EOS = 0
ENDED = -1  # in `next_state`: this action ends the text

# The worked example of DESIGN.md: R = #3 − ½·#2 + 1 if the text ends in EOS.
WORKED_TRANSITIONS = ((0.1, 0.4, 0.3, 0.2), (0.2, 0.2, 0.4, 0.2), (0.3, 0.3, 0.1, 0.3), (0.4, 0.2, 0.2, 0.2))
WORKED_TABLE = (1.0, 0.0, -0.5, 1.0)


def worked_reward(tokens: list[int]) -> float:
    """The reward of the worked example: #3 − ½·#2, plus 1 for a text that ends in EOS."""
    return tokens.count(3) - 0.5 * tokens.count(2) + (1.0 if tokens and tokens[-1] == EOS else 0.0)


@dataclass(frozen=True, eq=False)
class StateTable:
    """The states of a language, as arrays: what a table policy and every dynamic program here is made of.

    States are sorted by depth, so that `next_state[s, a] > s` wherever the text goes on. The states of depth d are
    `level_offsets[d] : level_offsets[d + 1]`. The start state of prompt p is `start_states[p]` (= p).
    """

    n_states: int
    next_state: IntArray  # (S, V); −1 (`ENDED`) where the action ends the text
    start_states: IntArray  # (P,)
    ref_probs: FloatArray  # (S, V); rows sum to 1
    depth: IntArray  # (S,) tokens written before this state
    prompt: IntArray  # (S,)
    last_token: IntArray  # (S,); −1 at the start
    step_reward: FloatArray  # (S, V); summed along a text it is R(x, y). See `pays_at_end`
    pays_at_end: bool  # True: step_reward is R(x, y) on the ending action, 0 before. False: what each token adds
    level_offsets: IntArray  # (T + 1,)

    @property
    def n_tokens(self) -> int:
        return int(self.next_state.shape[1])

    @property
    def n_prompts(self) -> int:
        return int(self.start_states.shape[0])

    @cached_property
    def ref_logprobs(self) -> FloatArray:
        """(S, V) log π_ref; −inf where the reference never goes."""
        with np.errstate(divide="ignore"):
            return np.log(self.ref_probs)

    @cached_property
    def ends(self) -> NDArray[np.bool_]:
        """(S, V) True where the action ends the text."""
        return np.asarray(self.next_state == ENDED)

    def levels(self) -> list[slice]:
        """One slice of states per depth, first to last."""
        return [slice(int(a), int(b)) for a, b in zip(self.level_offsets[:-1], self.level_offsets[1:], strict=True)]


@dataclass(frozen=True, eq=False)
class Texts:
    """All texts of a language, one row each, over all prompts. Text i ends with action `action[i]` in `state[i]`."""

    prompt: IntArray  # (N,)
    tokens: IntArray  # (N, T), padded with −1; an EOS counts as a token
    length: IntArray  # (N,)
    reward: FloatArray  # (N,)
    ref_logprob: FloatArray  # (N,) nats, of the whole text given the prompt
    state: IntArray  # (N,)
    action: IntArray  # (N,)

    def __len__(self) -> int:
        return int(self.prompt.shape[0])

    def ids(self, i: int) -> list[int]:
        """The token ids of text i, with the final EOS if there is one."""
        return [int(t) for t in self.tokens[i, : self.length[i]]]


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
        self.n_sequences = self.n_prompts * _count_texts(n, self.horizon)
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
        """States are unfinished texts; R is paid by the ending action."""
        self._check_enumerable()
        n, last_depth = self.n_tokens, self.horizon - 1
        prefixes: list[tuple[int, tuple[int, ...]]] = [(p, ()) for p in range(self.n_prompts)]
        rows: list[list[int]] = []
        offsets = [0, self.n_prompts]
        for _ in range(last_depth):
            for p, prefix in prefixes[offsets[-2] : offsets[-1]]:
                first = len(prefixes)
                prefixes += [(p, (*prefix, a)) for a in range(1, n)]
                rows.append([ENDED, *range(first, first + n - 1)])
            offsets.append(len(prefixes))
        rows += [[ENDED] * n] * (offsets[-1] - offsets[-2])
        next_state = np.array(rows, dtype=np.int64)
        prompt = np.array([p for p, _ in prefixes], dtype=np.int64)
        depth = np.array([len(y) for _, y in prefixes], dtype=np.int64)
        last = np.array([y[-1] if y else -1 for _, y in prefixes], dtype=np.int64)
        reward = np.zeros((len(prefixes), n))
        for s, a in zip(*np.nonzero(next_state == ENDED), strict=True):
            p, prefix = prefixes[s]
            reward[s, a] = self.reward([*prefix, int(a)], p)
        return self._make_table(next_state, prompt, depth, last, reward, True, offsets)

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
        """States are (prompt, step, last token); each token adds its entry of `token_table`."""
        assert self.token_table is not None
        n, prompts, horizon = self.n_tokens, self.n_prompts, self.horizon
        per_level = prompts * (n - 1)
        offsets = [0, *(prompts + per_level * d for d in range(horizon))]
        prompt = np.concatenate([np.arange(prompts), np.tile(np.repeat(np.arange(prompts), n - 1), horizon - 1)])
        last = np.concatenate([np.full(prompts, -1), np.tile(np.arange(1, n), prompts * (horizon - 1))])
        depth = np.concatenate([np.zeros(prompts, dtype=np.int64), np.repeat(np.arange(1, horizon), per_level)])
        next_state = np.full((len(depth), n), ENDED, dtype=np.int64)
        goes_on = depth < horizon - 1
        first_of_next = np.array(offsets)[depth + 1] + prompt * (n - 1)
        next_state[goes_on, 1:] = first_of_next[goes_on, None] + np.arange(n - 1)
        return self._make_table(next_state, prompt, depth, last, self.token_table[prompt], False, offsets)

    def score_table(self) -> tuple[StateTable, IntArray]:
        """States that also know the score so far, with R paid at the end, and the (S',) `table()` state of each.

        Where states are prefixes it is `table()` itself. Where they are steps it is (prompt, step, last token, score
        so far): what the distribution of R, best-of-n and discounting need.
        """
        return self._score_table

    @cached_property
    def _score_table(self) -> tuple[StateTable, IntArray]:
        table = self.table()
        if table.pays_at_end:
            return table, np.arange(table.n_states)
        bases, scores = [table.start_states], [np.zeros(self.n_prompts)]
        next_rows: list[IntArray] = []
        offsets = [0, self.n_prompts]
        for _ in range(self.horizon):
            following = table.next_state[bases[-1]]
            score = np.round(scores[-1][:, None] + table.step_reward[bases[-1]], 9)
            row, action = np.nonzero(following != ENDED)
            nexts = np.full(following.shape, ENDED, dtype=np.int64)
            if len(row):
                keys = np.stack([following[row, action].astype(np.float64), score[row, action]], axis=1)
                unique, inverse = np.unique(keys, axis=0, return_inverse=True)
                nexts[row, action] = offsets[-1] + inverse.reshape(-1)
                bases.append(unique[:, 0].astype(np.int64))
                scores.append(unique[:, 1])
                offsets.append(offsets[-1] + len(unique))
                if offsets[-1] > 5_000_000:
                    raise ValueError(
                        "the score so far takes too many values (over 5,000,000 states); use a token_table whose "
                        "entries are multiples of one number, or a shorter horizon"
                    )
            next_rows.append(nexts)
        base, next_state = np.concatenate(bases), np.concatenate(next_rows)
        total = np.concatenate(scores)[:, None] + table.step_reward[base]
        reward = np.where(next_state == ENDED, np.round(total, 9), 0.0)
        rest = table.prompt[base], table.depth[base], table.last_token[base]
        return self._make_table(next_state, *rest, reward, True, offsets), base

    def _make_table(
        self,
        next_state: IntArray,
        prompt: IntArray,
        depth: IntArray,
        last: IntArray,
        reward: FloatArray,
        pays_at_end: bool,
        offsets: list[int],
    ) -> StateTable:
        ref = np.where((last == -1)[:, None], self.start_rows[prompt], self.transitions[last])
        starts = np.arange(self.n_prompts)
        arrays: dict[str, Any] = {
            "next_state": next_state, "start_states": starts, "ref_probs": ref, "depth": depth, "prompt": prompt,
            "last_token": last, "step_reward": reward, "level_offsets": np.array(offsets, dtype=np.int64),
        }  # fmt: skip
        for array in arrays.values():
            array.setflags(write=False)
        return StateTable(n_states=len(depth), pays_at_end=pays_at_end, **arrays)


def _count_texts(n_tokens: int, horizon: int) -> int:
    """Texts of one prompt: an EOS after t < T other tokens, or T tokens without one."""
    others = n_tokens - 1
    return int(sum(others**t for t in range(horizon + 1)))


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
