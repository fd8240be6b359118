"""The step-by-step view: N rows of the problem, each with a text of its own age, over one reference cache.

Both environments are thin shells around :class:`Stepper` (one row, or many), so they cannot disagree.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from lm_gym import kl_mode_notice
from lm_gym.completions import Tails, finish_reason
from lm_gym.mdp import KL_MODES, AlignmentMDP
from lm_gym.prompts import Prompt
from lm_gym.sampling import top_k_ids

OBSERVATION_MODES = ("tokens", "hidden", "text")
ACTION_MODES = ("full", "top_k")


class UnicodeText(spaces.Text):
    """Any string of up to ``max_length`` characters. Gymnasium's ``Text`` knows only a fixed set of characters."""

    def contains(self, x: Any) -> bool:
        return isinstance(x, str) and len(x) <= self.max_length

    def character_index(self, char: str) -> np.int32:
        try:
            return super().character_index(char)
        except KeyError:
            raise ValueError(
                f"text observations have no numbers to flatten, {char!r} for one: give AsyncVectorEnv "
                "shared_memory=False, or take observation_mode='tokens'"
            ) from None

    def __repr__(self) -> str:
        return f"UnicodeText({self.max_length})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnicodeText) and other.max_length == self.max_length


@dataclass
class Outcome:
    """What one step did to the rows: arrays (n,), 0 where the row was not ``live`` before the step.

    ``logprobs`` are the reported ones, None where none are. ``texts``, ``reasons`` and ``extra`` hold an entry for each
    row that ended, by row.
    """

    rewards: np.ndarray
    ended: np.ndarray
    ref_logprobs: np.ndarray
    task: np.ndarray
    kl_penalty: np.ndarray
    scores: np.ndarray
    live: np.ndarray
    logprobs: np.ndarray | None = None
    texts: dict[int, str] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    extra: dict[int, dict[str, Any]] = field(default_factory=dict)


class Stepper:
    """N rows of an :class:`AlignmentMDP`, one action at a time.

    Args:
        mdp: the problem. n: how many rows.
        kl_mode: "reference", "reported" or "none" (see :class:`lm_gym.env.LMAlignEnv`); None is "reference", which
            nobody chose.
        observation_mode: "tokens", "hidden" or "text". action_mode: "full" or "top_k".
    """

    def __init__(
        self, mdp: AlignmentMDP, n: int, *, kl_mode: str | None, observation_mode: str, action_mode: str
    ) -> None:
        for name, value, known in (
            ("kl_mode", kl_mode or KL_MODES[0], KL_MODES),
            ("observation_mode", observation_mode, OBSERVATION_MODES),
            ("action_mode", action_mode, ACTION_MODES),
        ):
            if value not in known:
                raise ValueError(f"{name} expected one of {known}, got {value!r}")
        if (action_mode == "top_k") != (mdp.top_k is not None):
            raise ValueError(
                f"action_mode={action_mode!r} with top_k={mdp.top_k}: action_mode='top_k' expects top_k=<int>, "
                "and action_mode='full' takes none"
            )
        self.mdp, self.n, self.lm = mdp, n, mdp.reference
        self.named_kl_mode, self.observation_mode, self.action_mode = kl_mode, observation_mode, action_mode
        self.trainer_state: Any = None
        """Handed to the reward model; an agent sets it while it steps."""
        self.kl_coef = mdp.kl_coef
        self.plans: dict[int, deque[Prompt]] = {}  # by row: prompts that its next episodes take, for groups of texts
        self.width = mdp.longest_prompt + mdp.max_new_tokens
        self._allocate()
        eos = torch.zeros(self.lm.vocab_size, dtype=torch.bool)
        eos[[i for i in self.lm.eos_ids if i < self.lm.vocab_size]] = True
        self.is_eos = eos
        self.n_actions = mdp.top_k or self.lm.vocab_size
        self.single_action_space = spaces.Discrete(self.n_actions)
        self.single_observation_space = self._observation_space()
        # masks without a restriction are one shared array, so that a large vocabulary costs nothing a step
        self.free_mask = np.ones(self.n_actions, dtype=np.int8)
        self.free_mask.setflags(write=False)
        self.free_masks = np.broadcast_to(self.free_mask, (n, self.n_actions))
        early = self.free_mask.copy()
        if mdp.top_k is None:  # else it depends on the row's choices
            early[eos.numpy()] = 0
        early.setflags(write=False)
        self.early_masks = np.broadcast_to(early, (n, self.n_actions))

    @property
    def kl_mode(self) -> str:
        """What steps pay: the mode that was named, by the user or by an agent of ours, else "reference"."""
        return self.named_kl_mode or "reference"

    def _allocate(self) -> None:
        n, lm = self.n, self.lm
        self.rows = lm.rows(n, self.width)
        self.prompts: list[Prompt | None] = [None] * n
        self.tokens: list[list[int]] = [[] for _ in range(n)]
        self.tails = Tails(lm, self.mdp.stop)
        self.live = np.zeros(n, dtype=bool)
        self.input_ids = np.full((n, self.width), lm.pad_id, dtype=np.int64)
        self.attention_mask = np.zeros((n, self.width), dtype=np.int8)
        self.hidden = torch.zeros(n, lm.hidden_size, device=lm.device)
        self.logp = torch.zeros(n, lm.vocab_size)
        self.choices: torch.Tensor | None = None
        self.reported: np.ndarray | None = None

    def _observation_space(self) -> spaces.Space[Any]:
        if self.observation_mode == "text":
            vocabulary = self.lm.tokenizer.get_vocab() if self.lm.tokenizer is not None else [f"{self.lm.vocab_size} "]
            piece = max(map(len, vocabulary))  # a token's name is never shorter than its text
            longest = max(self.mdp.longest_prompt * piece, *(len(p.text) for p in self.mdp.prompts))
            return UnicodeText(longest + self.mdp.max_new_tokens * piece)
        if self.observation_mode == "hidden":
            bound = np.float32(self.lm.hidden_bound)
            return spaces.Box(-bound, bound, (self.lm.hidden_size,), np.float32)
        return spaces.Dict(
            {
                "input_ids": spaces.Box(0, self.lm.input_size - 1, (self.width,), np.int64),
                "attention_mask": spaces.Box(0, 1, (self.width,), np.int8),
            }
        )

    def start(self, rows: Sequence[int], prompts: Sequence[Prompt]) -> None:
        """New episodes in ``rows``."""
        for prompt in prompts:
            if len(prompt.token_ids) > self.mdp.longest_prompt:
                raise ValueError(
                    f"prompt {prompt.text[:60]!r} has {len(prompt.token_ids)} tokens, expected at most "
                    f"{self.mdp.longest_prompt}, the longest of the environment's prompts: max_prompt_tokens makes room"
                )
        for i, prompt in zip(rows, prompts, strict=True):
            self.prompts[i], self.tokens[i], self.live[i] = prompt, [], True
            self.tails.forget(i)
            self.input_ids[i] = self.lm.pad_id
            self.attention_mask[i] = 0
            self.input_ids[i, -len(prompt.token_ids) :] = prompt.token_ids
            self.attention_mask[i, -len(prompt.token_ids) :] = 1
        self.reported = None
        where = list(rows)
        fresh = self.rows.insert(where, [p.token_ids for p in prompts])
        if len(where) == self.n:
            self.hidden = fresh[np.argsort(where)]
            self._predict()
        else:
            self.hidden[where] = fresh
            self._predict(where)

    @torch.no_grad()
    def _predict(self, rows: Sequence[int] | None = None) -> None:
        hidden = self.hidden if rows is None else self.hidden[list(rows)]
        logits = self.lm.head(hidden)
        if self.mdp.temperature != 1.0:
            logits = logits / self.mdp.temperature
        logits = logits.cpu()
        logp = torch.log_softmax(logits, -1)
        choices = top_k_ids(logits, self.mdp.top_k, self.lm.eos_ids) if self.mdp.top_k else None
        if rows is None:
            self.logp, self.choices = logp, choices
            return
        self.logp[list(rows)] = logp
        if choices is not None and self.choices is not None:
            self.choices[list(rows)] = choices

    def observe(self, row: int | None = None) -> Any:
        """The observation of all rows, batched as the vector environment's space, or of one row."""
        if self.observation_mode == "text":
            texts = tuple(self.text(i) for i in (range(self.n) if row is None else [row]))
            return texts if row is None else texts[0]
        at: Any = slice(None) if row is None else row
        if self.observation_mode == "hidden":
            return self.hidden[at].float().cpu().numpy().copy()
        return {"input_ids": self.input_ids[at].copy(), "attention_mask": self.attention_mask[at].copy()}

    def text(self, row: int) -> str:
        """Prompt and what has been written so far."""
        prompt = self.prompts[row]
        return "" if prompt is None else prompt.text + self.lm.decode(self.tokens[row])

    def action_masks(self) -> np.ndarray:
        """(n, actions) int8, 1 where an action may be taken."""
        if not self.mdp.min_new_tokens:
            return self.free_masks
        early = self._early()
        if not early.any():
            return self.free_masks
        if self.choices is not None:
            return (~(self.is_eos[self.choices].numpy() & early[:, None])).astype(np.int8)
        if early.all():
            return self.early_masks
        masks = self.free_masks.copy()
        masks[early] = self.early_masks[0]
        return masks

    def _early(self) -> np.ndarray:
        """(n,) bool, rows that may not end with their next token."""
        return self.live & (np.fromiter(map(len, self.tokens), np.int64, self.n) < self.mdp.min_new_tokens)

    def choice_ids(self) -> np.ndarray | None:
        """(n, k) token ids that the actions of "top_k" stand for, by row, in the order of the ids."""
        return None if self.choices is None else self.choices.numpy().copy()

    def report(self, logprobs: Any) -> None:
        """Take the log-probs (n,) of the actions that the next step gets."""
        if self.kl_mode != "reported":
            raise ValueError(
                f"report_logprob expected kl_mode='reported', got an environment with kl_mode={self.kl_mode!r}"
            )
        if self.reported is not None:
            raise ValueError("report_logprob expected one report before each step, got a second one")
        if isinstance(logprobs, torch.Tensor):
            logprobs = logprobs.detach().cpu().numpy()
        values = np.asarray(logprobs, dtype=np.float64).reshape(-1)
        if values.shape != (self.n,):
            raise ValueError(f"report_logprob expected {self.n} log-probs, got {values.size}")
        bad = self.live & ~((values <= 1e-6) & (values > -np.inf))  # NaN is bad too; a hair above 0 is rounding
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(f"report_logprob expected finite log-probs of at most 0, got {values[row]} in row {row}")
        self.reported = np.minimum(values, 0.0)

    def step(self, actions: np.ndarray) -> Outcome:
        """Append one action to every live row; the others ignore theirs."""
        live, n = self.live.copy(), self.n
        reported, self.reported = self.reported, None  # it was for this step, also if the step is refused
        index = np.where(live, actions, 0)
        self._check_range(index, live)
        ids = torch.as_tensor(index)
        if self.choices is not None:
            ids = self.choices[torch.arange(n), ids]
        self._check(index, ids, live, reported)
        if self.named_kl_mode is None and self.kl_coef:
            kl_mode_notice.warn_once()
        ref = np.where(live, self.logp.gather(-1, ids[:, None]).squeeze(-1).double().numpy(), 0.0)
        out = Outcome(np.zeros(n), np.zeros(n, dtype=bool), ref, np.zeros(n), np.zeros(n), np.zeros(n), live)
        if self.kl_mode == "reference":
            out.kl_penalty = self.kl_coef * ref
        elif self.kl_mode == "reported" and reported is not None:
            out.logprobs = np.where(live, reported, 0.0)
            out.kl_penalty = self.kl_coef * (ref - out.logprobs)
        self._append(ids.numpy(), live)
        self._judge(live, out)
        out.rewards = out.task + out.kl_penalty
        self.live &= ~out.ended
        if self.live.any() or (live.any() and self.observation_mode == "hidden"):
            self._advance(ids.to(self.lm.device), live)
        return out

    def _check_range(self, index: np.ndarray, live: np.ndarray) -> None:
        wrong = live & ((index < 0) | (index >= self.n_actions))
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(f"action expected 0 to {self.n_actions - 1}, got {index[row]} in row {row}")

    def _check(self, index: np.ndarray, ids: torch.Tensor, live: np.ndarray, reported: np.ndarray | None) -> None:
        if self.mdp.min_new_tokens:
            masked = self._early() & self.is_eos[ids].numpy()
            if masked.any():
                row = int(masked.argmax())
                raise ValueError(
                    f"action {index[row]} in row {row} ends the text after {len(self.tokens[row])} tokens, expected at "
                    f"least min_new_tokens={self.mdp.min_new_tokens}: choose among info['action_mask'] or "
                    "env.unwrapped.action_masks()"
                )
        if self.kl_mode == "reported" and reported is None and live.any():
            raise ValueError(
                "kl_mode='reported' expected env.unwrapped.report_logprob(x) before every step, got a step without: "
                "report the log-prob of the action in the agent's own distribution"
            )

    def _append(self, ids: np.ndarray, live: np.ndarray) -> None:
        rows = np.flatnonzero(live)
        for i in rows:
            self.tokens[i].append(int(ids[i]))
        self.input_ids[rows, :-1] = self.input_ids[rows, 1:]
        self.attention_mask[rows, :-1] = self.attention_mask[rows, 1:]
        self.input_ids[rows, -1] = ids[rows]
        self.attention_mask[rows, -1] = 1

    def _judge(self, live: np.ndarray, out: Outcome) -> None:
        mdp = self.mdp
        for i in np.flatnonzero(live).tolist():
            reason = finish_reason(
                self.tokens[i],
                eos_ids=self.lm.eos_ids,
                max_new_tokens=mdp.max_new_tokens,
                min_new_tokens=mdp.min_new_tokens,
                stop=mdp.stop,
                decode=partial(self.tails.text, i),
            )
            if reason is not None:
                out.reasons[i] = reason
        if not out.reasons:
            return
        rows = list(out.reasons)
        scores, texts, extra, _ = self.mdp.judge(
            [self._prompt(i) for i in rows],
            [self.tokens[i] for i in rows],
            list(out.reasons.values()),
            trainer_state=self.trainer_state,
        )
        out.ended[rows] = True
        out.scores[rows] = out.task[rows] = scores
        out.texts = dict(zip(rows, texts, strict=True))
        for j, row in enumerate(rows):
            out.extra[row] = {key: values[j] for key, values in extra.items()}

    def _prompt(self, row: int) -> Prompt:
        prompt = self.prompts[row]
        assert prompt is not None
        return prompt

    def _advance(self, ids: torch.Tensor, live: np.ndarray) -> None:
        waiting = np.flatnonzero(~live).tolist()
        if waiting:
            self.rows.park(waiting)
        hidden = self.rows.step(ids)
        if waiting:  # their last state stays what it was
            hidden[waiting] = self.hidden[waiting]
        self.hidden = hidden
        self._predict()
