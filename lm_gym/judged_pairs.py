"""Pairs of completions with what judges say of them, and the truth where it is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_gym.continuations import inner_ids
from lm_gym.preferences import Preference
from lm_gym.reward_specs import parameters_of
from lm_gym.rewards import Text, plain_text, reward_model_name, score_texts


@dataclass(frozen=True)
class Judged:
    """N pairs and what M judges say of them."""

    preferences: Sequence[Preference]
    members: np.ndarray
    """(M, N, 2) scores of the chosen and the rejected completion."""
    gold: np.ndarray | None
    """(N, 2) likewise, the truth; None: not known."""
    judges: tuple[Any, ...]
    gold_judge: Any = None
    """The truth as a reward model, which can also score other texts; None: not known."""

    @property
    def scores(self) -> np.ndarray:
        """(N, 2) means over the judges."""
        return np.asarray(self.members.mean(0))

    @property
    def differences(self) -> np.ndarray:
        """(N,) chosen minus rejected."""
        return self.scores[:, 0] - self.scores[:, 1]

    @property
    def gold_differences(self) -> np.ndarray | None:
        """(N,) of the truth."""
        return None if self.gold is None else self.gold[:, 0] - self.gold[:, 1]

    @property
    def labels(self) -> np.ndarray:
        """(N,)."""
        return np.array([p.label for p in self.preferences])

    @property
    def prompts(self) -> list[str]:
        """(N,) a name for each prompt."""
        return [repr(p.prompt) for p in self.preferences]

    def completions(self) -> list[tuple[str, str]]:
        """(N,) texts of the chosen and the rejected completion."""
        return [(plain_text(p.chosen), plain_text(p.rejected)) for p in self.preferences]


def judge_pairs(
    preferences: Sequence[Preference], judges: Sequence[Any], *, gold: Any = None, tokenizer: Any = None
) -> Judged:
    """Score both completions of every pair.

    Args:
        judges: reward models; several are an ensemble, whose mean is measured.
        gold: the truth, a reward model; None: the columns `gold_chosen` and `gold_rejected` if every pair has them.
        tokenizer: for judges that read token ids.

    Raises:
        ValueError: no pairs or no judges, or a judge that reads token ids and no tokenizer.
        RewardModelError: what a judge raised, or a score that is no number.
    """
    if not preferences or not judges:
        raise ValueError(f"expected pairs and judges, got {len(preferences)} pairs and {len(judges)} judges")
    rows = [(p.prompt, text, p.columns) for p in preferences for text in (p.chosen, p.rejected)]
    members = np.stack([scores_of(judge, rows, tokenizer).reshape(-1, 2) for judge in judges])
    found = None
    if gold is not None:
        found = scores_of(gold, rows, tokenizer).reshape(-1, 2)
    elif all({"gold_chosen", "gold_rejected"} <= set(p.columns) for p in preferences):
        found = np.array([[p.columns["gold_chosen"], p.columns["gold_rejected"]] for p in preferences], dtype=float)
    return Judged(list(preferences), members, found, tuple(judges), gold)


def scores_of(judge: Any, rows: Sequence[tuple[Text, Text, Any]], tokenizer: Any = None) -> np.ndarray:
    """(N,) scores of rows (prompt, completion, columns)."""
    reads_ids = "completion_ids" in (parameters_of(judge) or {})
    if reads_ids and tokenizer is None:
        raise ValueError(f"{reward_model_name(judge)} reads token ids: give a tokenizer (--tokenizer tiny)")
    # as the middle of a text, without the space that SentencePiece puts before its beginning
    ids = [inner_ids(plain_text(text), tokenizer) if reads_ids else [] for _, text, _ in rows]
    names = dict.fromkeys(name for _, _, columns in rows for name in columns)
    return score_texts(
        judge,
        prompts=[prompt for prompt, _, _ in rows],
        completions=[text for _, text, _ in rows],
        completion_ids=ids,
        columns={name: [columns.get(name) for _, _, columns in rows] for name in names},
    ).scores
