"""A reward model behind HTTP, in the dialects of OpenRLHF's `/get_reward` and of vLLM's `/classify`.

Wire formats, as their own servers and clients have them in 2026:

- get_reward: {"query": [prompt + completion], "prompts": [...], "labels": [...]} -> {"rewards": [number, ...]}
- classify: {"model": name, "input": [prompt + completion], "use_activation": bool}
  -> {"data": [{"index": 0, "label": ..., "probs": [number a class], "num_classes": 2}, ...]}, in any order

An answer that is late, malformed or incomplete is asked for again; in the end it is an error, never a missing reward.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from lm_gym.reward_models.http_json import BadAnswer, NoAnswer, ask
from lm_gym.rewards import RewardModelError, Text

DIALECTS = ("get_reward", "classify")
OUTPUTS = ("prob", "logit", "logprob")


class Remote:
    """Scores by asking a server, `batch_size` texts a request, with retries.

    Range: whatever the server returns; [0, 1] for dialect classify with `output="prob"`.

    Args:
        url: http(s)://host:port/path, complete.
        dialect: "get_reward" or "classify"; None takes it from the end of the path.
        model: the name that the server knows its model by (classify; servers with one model need none).
        label: number of the class that is the reward (classify; not needed for one class).
        output: "prob", "logprob", or "logit" (classify; asks the server for values before its activation).
        timeout: seconds for one try, from connecting to the last byte.
        retries: further tries after the first.
        backoff: seconds before the second try; doubled before each further one. A Retry-After header is obeyed.
        batch_size: texts a request.
        labels_column: the prompt column that is sent as `labels` (get_reward); "" is sent for each where there is none.
        tokenizer: hub id or folder whose chat template writes conversational prompts.
        token_env: name of the environment variable that holds a bearer token. The token itself stays out of configs.
    """

    def __init__(
        self,
        url: str,
        *,
        dialect: str | None = None,
        model: str | None = None,
        label: int | None = None,
        output: str = "prob",
        timeout: float = 60.0,
        retries: int = 4,
        backoff: float = 0.5,
        batch_size: int = 64,
        labels_column: str = "label",
        tokenizer: str | None = None,
        token_env: str | None = None,
    ) -> None:
        parts = urlsplit(url)
        dialect = dialect or parts.path.rstrip("/").rpartition("/")[2]
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"remote: {url!r} is no URL; expected http://host:port/path")
        if dialect not in DIALECTS:
            raise ValueError(
                f"remote: dialect is {dialect!r}; expected {' or '.join(DIALECTS)}: {url}?dialect=classify"
            )
        if output not in OUTPUTS:
            raise ValueError(f"remote: output is {output!r}; expected one of {', '.join(OUTPUTS)}")
        if timeout <= 0 or retries < 0 or backoff < 0 or batch_size < 1:
            raise ValueError("remote: expected timeout > 0, retries >= 0, backoff >= 0 and batch_size >= 1")
        if label is not None and label < 0:
            raise ValueError(f"remote: label is {label}; expected the number of a class, from 0")
        if token_env is not None and token_env not in os.environ:
            raise ValueError(f"remote: token_env is {token_env!r}, and there is no such environment variable")
        port = f":{parts.port}" if parts.port else ""
        self.name = f"{parts.scheme}://{parts.hostname}{port}{parts.path}"  # without user, password and query
        self.url, self.dialect, self.model, self.label, self.output = url, dialect, model, label, output
        self.timeout, self.retries, self.backoff, self.batch_size = timeout, retries, backoff, batch_size
        self.labels_column, self.tokenizer, self.token_env = labels_column, tokenizer, token_env
        self._template: Any = None

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float]:
        before = [self._written(prompt) for prompt in prompts]
        texts = [self._written(prompt, text) for prompt, text in zip(prompts, completions, strict=True)]
        labels = list(columns.get(self.labels_column) or [""] * len(texts))
        scores: list[float] = []
        for start in range(0, len(texts), self.batch_size):
            rows = slice(start, start + self.batch_size)
            question: dict[str, Any]
            if self.dialect == "get_reward":
                question = {"query": texts[rows], "prompts": before[rows], "labels": labels[rows]}
            else:
                # Sent in every case: its default differs between versions of vLLM.
                question = {"input": texts[rows], "use_activation": self.output != "logit"}
                question |= {} if self.model is None else {"model": self.model}
            scores += self._asked(question, start, len(texts[rows]))
        return scores

    def fingerprint(self) -> str:
        """The address and what is asked of it: the weights behind it cannot be seen."""
        return json.dumps([self.name, self.dialect, self.model, self.label, self.output])

    def _asked(self, question: dict[str, Any], start: int, count: int) -> list[float]:
        token = os.environ[self.token_env] if self.token_env else None
        try:
            return ask(
                self.url,
                question,
                (lambda answer: _rewards(answer, count))
                if self.dialect == "get_reward"
                else (lambda answer: self._classes(answer, count)),
                timeout=self.timeout,
                retries=self.retries,
                backoff=self.backoff,
                headers={"Authorization": f"Bearer {token}"} if token else None,
            )
        except NoAnswer as error:
            raise RewardModelError(str(error), row=start + (error.row or 0)) from error

    def _classes(self, answer: Any, count: int) -> list[float]:
        """The score of each text from `data`, by its `index`."""
        items = answer.get("data") if isinstance(answer, Mapping) else None
        if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
            raise BadAnswer(f'expected {{"data": [...]}}, got {answer!r:.120}')
        found = {item.get("index", place): item for place, item in enumerate(items)}
        missing = [row for row in range(count) if row not in found]
        if missing or len(items) != count:
            at = f"; index {missing[0]} is missing" if missing else ""
            raise BadAnswer(f"{len(items)} results for {count} texts{at}", missing[0] if missing else None)
        return [self._chosen(found[row], row) for row in range(count)]

    def _chosen(self, item: Mapping[str, Any], row: int) -> float:
        values = item.get("probs")
        if not isinstance(values, list) or not values:
            raise BadAnswer(f'expected "probs" with a number a class, got {dict(item)!r:.120}', row)
        numbers = [_number(value, row) for value in values]
        if self.label is None and len(numbers) > 1:
            raise NoAnswer(f"the server has {len(numbers)} classes; choose one with label=0 … {len(numbers) - 1}", row)
        label = self.label or 0
        if label >= len(numbers):
            raise NoAnswer(f"label is {label}, and the server has {len(numbers)} classes", row)
        normal = all(0 <= number <= 1 for number in numbers)
        if self.output == "logit":
            if normal and len(numbers) > 1 and abs(sum(numbers) - 1) < 1e-4:
                raise NoAnswer("asked for logits, got probabilities: the server does not know use_activation", row)
            return numbers[label]
        if not normal:
            raise NoAnswer(f"asked for probabilities, got {numbers[:4]}; take output=logit", row)
        if self.output == "logprob" and numbers[label] == 0:
            raise BadAnswer("a probability of 0 has no logarithm; take output=prob", row)
        return math.log(numbers[label]) if self.output == "logprob" else numbers[label]

    def _written(self, prompt: Text, completion: Text | None = None) -> str:
        """A prompt, or a prompt with its completion, as one text."""
        if isinstance(prompt, str) and (completion is None or isinstance(completion, str)):
            return prompt + (completion or "")
        if self.tokenizer is None:
            raise ValueError(
                f"{self.name} takes texts, and the prompts are conversations: give tokenizer=<hub id or folder>"
            )
        if self._template is None:
            from transformers import AutoTokenizer

            self._template = AutoTokenizer.from_pretrained(self.tokenizer)
        messages = [*prompt, *(completion or ())]
        return str(
            self._template.apply_chat_template(messages, tokenize=False, add_generation_prompt=completion is None)
        )


def _rewards(answer: Any, count: int) -> list[float]:
    values = answer.get("rewards") if isinstance(answer, Mapping) else None
    if not isinstance(values, list):
        raise BadAnswer(f'expected {{"rewards": [...]}}, got {answer!r:.120}')
    if len(values) != count:
        raise BadAnswer(f"{len(values)} rewards for {count} texts", min(len(values), count - 1))
    return [_number(value, row) for row, value in enumerate(values)]


def _number(value: Any, row: int) -> float:
    if isinstance(value, list) and len(value) == 1:  # a column of a tensor
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise BadAnswer(f"expected a finite number, got {value!r:.60}", row)
    return float(value)
