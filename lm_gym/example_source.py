"""Where the examples of an agent come from: given ones, a fixed number of drawn ones, or fresh ones each update."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lm_gym.chat import template_options
from lm_gym.continuations import Continuation, continuation
from lm_gym.cycle import Cycle
from lm_gym.data_rows import Rows, end_of, shorten
from lm_gym.judged import Batch, Examples
from lm_gym.mdp import AlignmentMDP
from lm_gym.positions import because
from lm_gym.preferences import Feedback, Preference, feedback_of, preference_of, tokenized_pair

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
        given: a source of examples, or None: they are drawn. rows: what is done with those that cannot be used or are
            too long. read: makes :class:`Examples` of both.
        draw: n fresh examples. fixed: above 0: so many are drawn, once.
    """

    def __init__(
        self,
        agent: LMAgent,
        given: Any,
        rows: Rows,
        *,
        read: Callable[[Any, AlignmentMDP, Rows], Examples],
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
            examples = read(given, agent.mdp, rows)
            agent.data_rows[rows.what] = rows.counts()
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


def read_pairs(source: Any, mdp: AlignmentMDP, rows: Rows | None = None) -> Examples:
    """Pairs from any source that :func:`lm_gym.preferences.load_preferences` takes, tokenized for a problem.

    Args:
        rows: what is done with those that cannot be used or are too long; None: an error.

    Raises:
        ValueError: rows that are no pairs, or that the problem has no room for (names them).
    """
    rows = rows or Rows("preference data")
    fitted = _Fitted(mdp, "pairs", rows)
    for where, pair in rows.read(source, preference_of, Preference):
        with rows.row(where):
            fitted.add(where, tokenized_pair(pair, fitted.tokenizer, mdp.reference.eos_ids), pair.label)
    return fitted.examples()


def read_feedback(source: Any, mdp: AlignmentMDP, rows: Rows | None = None) -> Examples:
    """Judged texts from any source that :func:`lm_gym.preferences.load_feedback` takes; errors as in `read_pairs`."""
    rows = rows or Rows("feedback data")
    fitted = _Fitted(mdp, "feedback", rows)
    for where, row in rows.read(source, feedback_of, Feedback):
        with rows.row(where):
            options = template_options(row.columns)
            text = continuation(row.prompt, row.completion, fitted.tokenizer, options, mdp.reference.eos_ids)
            fitted.add(where, [text], float(row.good))
    return fitted.examples()


class _Fitted:
    """Rows that the problem's policies could write; what they could not is an error, left out or cut, as asked for.

    A text ends at the environment's stop strings. One of more than ``max_new_tokens`` tokens is cut there and has no
    EOS, as one that reaches the limit; a prompt of more than is left of the model's positions loses its beginning.
    """

    def __init__(self, mdp: AlignmentMDP, what: str, rows: Rows) -> None:
        if mdp.reference.tokenizer is None:
            raise ValueError(f"{what} expected a model with a tokenizer, and {mdp.reference.name} has none")
        if mdp.top_k is not None:
            raise ValueError(f"{what} expected an environment without top_k, whose policies can write any given text")
        self.mdp, self.what, self.rows, self.tokenizer = mdp, what, rows, mdp.reference.tokenizer
        self.prompts: list[list[int]] = []
        self.texts: list[list[int]] = []
        self.labels: list[float] = []

    def add(self, where: str, answers: Sequence[Continuation], label: float) -> None:
        """A row's prompt with its answers.

        Raises:
            ValueError: they end too early, or are no two texts any more once they are cut.
        """
        mdp, limit = self.mdp, self.mdp.max_new_tokens
        prompt, texts = answers[0].prompt_ids, [a.token_ids for a in answers]
        # a text that reaches the limit ends there, without EOS
        texts = [text[:limit] if len(text) == limit + 1 else text for text in map(self._stopped, texts)]
        for text in texts:
            if len(text) <= mdp.min_new_tokens and text[-1] in mdp.reference.eos_ids:
                raise ValueError(f"ends after {len(text)} tokens (min_new_tokens={mdp.min_new_tokens})")
        room, longest = mdp.reference.max_positions - limit, max(map(len, texts))
        whole = room + limit if self.rows.max_length is None else min(room + limit, self.rows.max_length)
        how = []
        if longest > limit:
            how.append(f"has a response of {longest} tokens (at most {limit}, by max_new_tokens)")
        if len(prompt) > room:
            most = f"at most {room} beside max_new_tokens={limit}{because(room)}"
            how.append(f"has a prompt of {len(prompt)} tokens ({most})")
        if not how and len(prompt) + longest > whole:
            how.append(f"has {len(prompt) + longest} tokens (at most {whole}, by max_length)")
        if how:
            if not self.rows.keep_long(where, " and ".join(how)):
                return
            bos = getattr(self.tokenizer, "bos_token_id", None)
            prompt, texts = shorten(end_of(prompt, room, bos), [text[:limit] for text in texts], whole, bos)
            if len(texts) == 2 and texts[0] == texts[1]:
                raise ValueError("has chosen and rejected answers that are the same once they are cut")
        self.rows.note(note for answer in answers for note in answer.notes)
        self.prompts.append(prompt)
        self.texts += texts
        self.labels.append(label)

    def _stopped(self, text: list[int]) -> list[int]:
        """A text up to the token that completes a stop string of the environment, behind which no policy writes."""
        mdp = self.mdp
        ends = (n for n in range(max(1, mdp.min_new_tokens), len(text)) if mdp.finish_reason(text[:n]) == "stop")
        whole = mdp.reference.decode(text) if mdp.stop else ""
        return text[: next(ends, len(text))] if any(s in whole for s in mdp.stop) else text

    def examples(self) -> Examples:
        self.rows.finish(len(self.prompts), "make the environment with other limits, or ")
        k = len(self.texts) // len(self.prompts)
        whole = ([*p, *(i for t in self.texts[n * k : (n + 1) * k] for i in t)] for n, p in enumerate(self.prompts))
        self.mdp.reference.check_ids(whole, f"{self.what}: row")
        return Examples.of(self.prompts, self.texts, self.labels)
