"""Where the examples of an agent come from: given ones, a fixed number of drawn ones, or fresh ones each update."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lm_gym.cycle import Cycle
from lm_gym.judged import Batch, Examples
from lm_gym.mdp import AlignmentMDP
from lm_gym.positions import because
from lm_gym.preferences import Feedback, Preference, load_feedback, load_preferences, tokenize
from lm_gym.prompts import SHOWN

if TYPE_CHECKING:
    from lm_gym.agent import LMAgent

LIVE = "live data "
"""How a config names examples that were given as Python objects; their hash follows."""


class ExampleSource:
    """The examples of an agent, and what of them a checkpoint keeps.

    Given examples are read when the agent is made; a checkpoint keeps their hash, the order and the reference's
    log-probs. ``load`` reads a file again by its name; Python objects, which the config names by their hash only, it
    must be given again before training can go on (evaluating needs none). Drawn examples are kept whole.

    Args:
        given: a source of examples, or None: they are drawn. read: makes :class:`Examples` of it.
        draw: n fresh examples. fixed: above 0: so many are drawn, once.
    """

    def __init__(
        self,
        agent: LMAgent,
        given: Any,
        *,
        read: Callable[[Any, AlignmentMDP], Examples],
        draw: Callable[[int], Batch],
        fixed: int,
    ) -> None:
        if fixed and agent.mdp.top_k is not None:
            raise ValueError("a fixed number of drawn examples expected an environment without top_k: draw fresh ones")
        self.agent, self._draw, self._fixed = agent, draw, fixed
        self.examples: Examples | None = None
        self.name: str | None = None
        """What the config says of them."""
        self.saved_state: Mapping[str, Any] = {}
        """:meth:`state` of a checkpoint that :meth:`load` takes back."""
        if isinstance(given, str) and given.startswith(LIVE):
            self.name = given
        elif given is not None:
            examples = read(given, agent.mdp)
            named = isinstance(given, (str, os.PathLike))
            self.name = os.fspath(given) if named else LIVE + examples.fingerprint()
            self._take(examples)

    def next(self, n: int) -> Batch:
        """The examples of an update."""
        if self.examples is None and self.name is not None:
            raise ValueError(
                f"the agent was trained on Python objects ({self.name}), which its checkpoint does not hold: give them "
                "to load(...) again to go on training"
            )
        if self.examples is None and self._fixed:
            self._take(Examples.from_batch(self._draw(self._fixed)))
        if self.examples is None:
            return self._draw(n)
        return self.examples.batch(self.order.take(n), self.agent.mdp)

    def _take(self, examples: Examples) -> None:
        self.examples = examples
        self.order = Cycle(len(examples), self.agent.generator)

    def state(self) -> dict[str, Any]:
        if self.examples is None:
            return {}
        return {"examples": self.examples.fingerprint(), "order": self.order.left}

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        if self.examples is None:
            return {}
        return {"examples": self.examples.tensors(whole=self.name is None)}

    def load(self, groups: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Take back what :meth:`tensors` gave, with ``saved_state``."""
        saved, state = groups.get("examples"), self.saved_state
        if saved is None or (self.examples is None and self.name is not None):
            return
        if self.examples is None:
            if self._fixed == len(saved.get("labels", ())):
                self._take(Examples.from_tensors(saved))
                self.order.restore(state["order"])
        elif self.examples.fingerprint() == state["examples"]:
            self.order.restore(state["order"])
            self.examples.ref_logprobs = saved["ref_logprobs"].clone()
        else:
            warnings.warn(
                "the given examples are not those that the checkpoint was trained on: a new pass over them begins",
                stacklevel=5,
            )


def read_pairs(source: Any, mdp: AlignmentMDP) -> Examples:
    """Pairs from any source that :func:`lm_gym.preferences.load_preferences` takes, tokenized for a problem.

    Raises:
        ValueError: rows that are no pairs, or that the problem has no room for (names them).
    """
    pairs, tokenizer = load_preferences(source), _tokenizer(mdp, "pairs")
    rows = [tokenize(pair, tokenizer) for pair in pairs]
    return _fitted([(prompt, [a, b]) for prompt, a, b in rows], [pair.label for pair in pairs], mdp, "pairs")


def read_feedback(source: Any, mdp: AlignmentMDP) -> Examples:
    """Judged texts from any source that :func:`lm_gym.preferences.load_feedback` takes; errors as in `read_pairs`."""
    rows, tokenizer = load_feedback(source), _tokenizer(mdp, "feedback")
    ids = [tokenize(_as_pair(row), tokenizer) for row in rows]
    return _fitted([(prompt, [text]) for prompt, text, _ in ids], [float(row.good) for row in rows], mdp, "feedback")


def _as_pair(row: Feedback) -> Preference:
    return Preference(row.prompt, row.completion, row.completion, columns=row.columns)


def _tokenizer(mdp: AlignmentMDP, what: str) -> Any:
    if mdp.reference.tokenizer is None:
        raise ValueError(f"{what} expected a model with a tokenizer, and {mdp.reference.name} has none")
    return mdp.reference.tokenizer


def _fitted(
    rows: Sequence[tuple[list[int], list[list[int]]]], labels: list[float], mdp: AlignmentMDP, what: str
) -> Examples:
    """Rows that the problem's policies could write, or an error that names those that they could not."""
    if mdp.top_k is not None:
        raise ValueError(f"{what} expected an environment without top_k, whose policies can write any given text")
    limit, room = mdp.max_new_tokens, mdp.reference.max_positions - mdp.max_new_tokens
    whole = ([*prompt, *(i for text in texts for i in text)] for prompt, texts in rows)
    mdp.reference.check_ids(whole, f"row of the {what}")
    wrong = []
    for i, (prompt, texts) in enumerate(rows):
        for text in texts:
            if len(text) == limit + 1:
                text.pop()  # a text that reaches the limit ends there, without EOS
            if len(text) > limit:
                wrong.append(f"row {i} has a response of {len(text)} tokens (at most {limit}, by max_new_tokens)")
            elif len(text) <= mdp.min_new_tokens and text[-1] in mdp.reference.eos_ids:
                wrong.append(f"row {i} ends after {len(text)} tokens (min_new_tokens={mdp.min_new_tokens})")
        if len(prompt) > room:
            most = f"at most {room} beside max_new_tokens={limit}{because(room)}"
            wrong.append(f"row {i} has a prompt of {len(prompt)} tokens ({most})")
    if wrong:
        more = f", and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise ValueError(
            f"the {what} do not fit the environment: {'; '.join(wrong[:SHOWN])}{more}. To do: make the environment "
            "with other limits, or shorten or drop these rows"
        )
    return Examples.of([prompt for prompt, _ in rows], [text for _, texts in rows for text in texts], labels)
