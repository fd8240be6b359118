"""The states of an exact language, as arrays.

Array shapes: S states, V tokens, P prompts, N texts, T = horizon.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

EOS = 0
ENDED = -1  # in `next_state`: this action ends the text
MAX_SCORE_STATES = 5_000_000


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


def prefix_states(
    transitions: FloatArray, start_rows: FloatArray, horizon: int, reward: Callable[[list[int], int], float]
) -> StateTable:
    """States are unfinished texts; R(tokens, prompt) is paid by the ending action."""
    prompts, n = start_rows.shape
    prefixes: list[tuple[int, tuple[int, ...]]] = [(p, ()) for p in range(prompts)]
    rows: list[list[int]] = []
    offsets = [0, prompts]
    for _ in range(horizon - 1):
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
    step_reward = np.zeros((len(prefixes), n))
    for s, a in zip(*np.nonzero(next_state == ENDED), strict=True):
        p, prefix = prefixes[s]
        step_reward[s, a] = reward([*prefix, int(a)], p)
    ref = _reference(transitions, start_rows, prompt, last)
    return _make(next_state, ref, depth, prompt, last, step_reward, True, offsets)


def step_states(transitions: FloatArray, start_rows: FloatArray, horizon: int, token_table: FloatArray) -> StateTable:
    """States are (prompt, step, last token); each token adds its entry of `token_table` (P, V)."""
    prompts, n = start_rows.shape
    per_level = prompts * (n - 1)
    offsets = [0, *(prompts + per_level * d for d in range(horizon))]
    prompt = np.concatenate([np.arange(prompts), np.tile(np.repeat(np.arange(prompts), n - 1), horizon - 1)])
    last = np.concatenate([np.full(prompts, -1), np.tile(np.arange(1, n), prompts * (horizon - 1))])
    depth = np.concatenate([np.zeros(prompts, dtype=np.int64), np.repeat(np.arange(1, horizon), per_level)])
    next_state = np.full((len(depth), n), ENDED, dtype=np.int64)
    goes_on = depth < horizon - 1
    first_of_next = np.array(offsets)[depth + 1] + prompt * (n - 1)
    next_state[goes_on, 1:] = first_of_next[goes_on, None] + np.arange(n - 1)
    ref = _reference(transitions, start_rows, prompt, last)
    return _make(next_state, ref, depth, prompt, last, token_table[prompt], False, offsets)


def score_states(table: StateTable) -> tuple[StateTable, IntArray]:
    """Splits states by the score so far, with R paid at the end; and the (S',) state of `table` each comes from.

    Scores are rounded to 1e-9. Raises ValueError where they take too many values.
    """
    if table.pays_at_end:
        return table, np.arange(table.n_states)
    bases, scores = [table.start_states], [np.zeros(table.n_prompts)]
    next_rows: list[IntArray] = []
    offsets = [0, table.n_prompts]
    for _ in table.levels():
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
            if offsets[-1] > MAX_SCORE_STATES:
                raise ValueError(
                    f"the score so far takes too many values (over {MAX_SCORE_STATES} states); use a token_table "
                    "whose entries are multiples of one number, or a shorter horizon"
                )
        next_rows.append(nexts)
    base, next_state = np.concatenate(bases), np.concatenate(next_rows)
    total = np.concatenate(scores)[:, None] + table.step_reward[base]
    reward = np.where(next_state == ENDED, np.round(total, 9), 0.0)
    rest = table.ref_probs[base], table.depth[base], table.prompt[base], table.last_token[base]
    return _make(next_state, *rest, reward, True, offsets), base


def count_texts(n_tokens: int, horizon: int) -> int:
    """Texts of one prompt: an EOS after t < T other tokens, or T tokens without one."""
    others = n_tokens - 1
    return int(sum(others**t for t in range(horizon + 1)))


def _reference(transitions: FloatArray, start_rows: FloatArray, prompt: IntArray, last: IntArray) -> FloatArray:
    return np.where((last == -1)[:, None], start_rows[prompt], transitions[last])


def _make(
    next_state: IntArray,
    ref_probs: FloatArray,
    depth: IntArray,
    prompt: IntArray,
    last_token: IntArray,
    step_reward: FloatArray,
    pays_at_end: bool,
    offsets: list[int],
) -> StateTable:
    table = StateTable(
        n_states=len(depth),
        next_state=next_state,
        start_states=np.arange(offsets[1]),
        ref_probs=ref_probs,
        depth=depth,
        prompt=prompt,
        last_token=last_token,
        step_reward=step_reward,
        pays_at_end=pays_at_end,
        level_offsets=np.array(offsets, dtype=np.int64),
    )
    for value in vars(table).values():
        if isinstance(value, np.ndarray):
            value.setflags(write=False)
    return table
