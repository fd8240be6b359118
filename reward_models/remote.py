"""A reward model behind HTTP, in the dialects of OpenRLHF, vLLM and text-embeddings-inference (TEI).

The wire formats, and the versions that they were read from, are in lm_gym.reward_models.dialects. An answer that is
late, malformed or incomplete is asked for again; in the end it is an error, never a missing reward. `lm-gym
serve-reward` is such a server for the reward models of LM Gym.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from lm_gym.chat import Ending, in_one_form, written
from lm_gym.reward_models.dialects import DIALECTS, Texts, Wanted
from lm_gym.reward_models.http_json import NoAnswer, address, ask, bearer, check_waits
from lm_gym.rewards import RewardModelError, Text, plain_text

OUTPUTS = ("prob", "logit", "logprob")
TEXTS = ("prompt+completion", "completion")
TOKENS = ("last", "mean", "min")


class Remote:
    """Scores by asking a server, `batch_size` texts a request, with retries.

    Range: whatever the server returns; [0, 1] for `output="prob"`.

    An option that means nothing in the dialect is refused. So is whatever the server sends that is not one finite
    number a text, after `retries`: as a RewardModelError with the prompt that it was for. Redirects are refused, and
    the address that they lead to is named.

    Args:
        url: http(s)://host:port/path, complete.
        dialect: "get_reward", "classify", "pooling", "score" or "predict"; None takes it from the end of the path.
        model: the name that the server knows its model by (vLLM; servers with one model need none).
        label: the class that is the reward, not needed for one class: its number (classify, pooling), its name
            (predict).
        output: "prob", "logprob", or "logit", the value before the activation (all but get_reward).
        text: "prompt+completion", or "completion" for a judge that reads nothing else (classify, pooling, predict).
        task: "classify", "token_classify", …: which of its tasks a server does (pooling).
        tokens: of a server that gives a value a token, which is the score: that of the "last" token, "mean", or "min"
            (pooling).
        timeout: seconds for one try, from connecting to the last byte.
        retries: further tries after the first.
        backoff: seconds before the second try; doubled before each further one. A Retry-After header is obeyed.
        batch_size: texts a request; None is 64, and 32 for predict, which is the most that TEI takes by default.
        labels_column: the prompt column that is sent as `labels` (get_reward); "" is sent for each where there is none.
        columns: names of further columns to send, joined by commas; `completion_ids` is one (get_reward, and only
            `lm-gym serve-reward` reads them).
        tokenizer: hub id or folder whose chat template writes conversational prompts (score sends their contents).
        token_env: name of the environment variable that holds a bearer token. The token itself stays out of configs.
    """

    def __init__(
        self,
        url: str,
        *,
        dialect: str | None = None,
        model: str | None = None,
        label: str | int | None = None,
        output: str = "prob",
        text: str = "prompt+completion",
        task: str | None = None,
        tokens: str | None = None,
        timeout: float = 60.0,
        retries: int = 4,
        backoff: float = 0.5,
        batch_size: int | None = None,
        labels_column: str = "label",
        columns: str = "",
        tokenizer: str | None = None,
        token_env: str | None = None,
    ) -> None:
        given = locals()
        self.name = address(url, "remote: the address")
        dialect = dialect or urlsplit(url).path.rstrip("/").rpartition("/")[2]
        if dialect not in DIALECTS:
            raise ValueError(
                f"remote: dialect is {dialect!r}; expected one of {', '.join(DIALECTS)}: {url}?dialect=classify"
            )
        for name, value, known in (("output", output, OUTPUTS), ("text", text, TEXTS), ("tokens", tokens, TOKENS)):
            if value is not None and value not in known:
                raise ValueError(f"remote: {name} is {value!r}; expected one of {', '.join(known)}")
        batch_size = DIALECTS[dialect].batch_size if batch_size is None else batch_size
        check_waits("remote", timeout, retries, backoff)
        if batch_size < 1:
            raise ValueError(f"remote: expected batch_size >= 1, got {batch_size!r}")
        _check_options(dialect, given)
        if dialect != "predict" and isinstance(label, str):
            raise ValueError(f"remote: label is {label!r}; {dialect} gives classes without names, so give a number")
        if isinstance(label, int) and label < 0:
            raise ValueError(f"remote: label is {label}; expected the number of a class, from 0")
        bearer(token_env)
        self.__name__ = self.name  # TRL logs rewards/<__name__>
        self.url, self.dialect, self.text, self.tokenizer = url, dialect, text, tokenizer
        self.wanted = Wanted(model=model, label=label, output=output, task=task, tokens=tokens)
        self.timeout, self.retries, self.backoff, self.batch_size = timeout, retries, backoff, batch_size
        self.labels_column, self.token_env = labels_column, token_env
        self.columns = [column.strip() for column in columns.split(",") if column.strip()]
        self._template: Any = None

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **columns: Any) -> list[float]:
        missing = [name for name in self.columns if name not in columns]
        if missing:
            raise ValueError(f"{self.name}: columns names {', '.join(missing)}, and the prompts have no such column")
        everything = self._texts(prompts, completions, columns)
        scores: list[float] = []
        for start in range(0, len(completions), self.batch_size):
            rows = slice(start, start + self.batch_size)
            batch = Texts(
                everything.whole[rows],
                everything.prompts[rows],
                everything.completions[rows],
                everything.labels[rows],
                {name: values[rows] for name, values in everything.columns.items()},
            )
            scores += self._asked(batch, start)
        return scores

    def fingerprint(self) -> str:
        """The address and what is asked of it: the weights behind it cannot be seen."""
        return json.dumps([self.name, self.dialect, self.text, vars(self.wanted)])

    def _texts(self, prompts: Sequence[Text], completions: Sequence[Text], columns: dict[str, Any]) -> Texts:
        pairs = list(zip(prompts, completions, strict=True))
        plain = [plain_text(text) for text in completions]
        if self.dialect == "score":
            before = whole = [plain_text(prompt) for prompt in prompts]
        elif self.text == "completion":
            before = whole = plain
        else:
            before = [self._written(prompt) for prompt in prompts]
            whole = [self._written(prompt, text) for prompt, text in pairs]
        labels = list(columns.get(self.labels_column) or [""] * len(pairs))
        return Texts(whole, before, plain, labels, {name: list(columns[name]) for name in self.columns})

    def _asked(self, batch: Texts, start: int) -> list[float]:
        speaks, count = DIALECTS[self.dialect], len(batch.completions)
        try:
            return ask(
                self.url,
                speaks.ask(batch, self.wanted),
                lambda answer: speaks.read(answer, count, self.wanted),
                timeout=self.timeout,
                retries=self.retries,
                backoff=self.backoff,
                token_env=self.token_env,
                texts=count,
            )
        except NoAnswer as error:
            raise RewardModelError(str(error), row=start + (error.row or 0)) from error

    def _written(self, prompt: Text, completion: Text | None = None) -> str:
        """A prompt, or a prompt with its completion, as one text."""
        if isinstance(prompt, str) and (completion is None or isinstance(completion, str)):
            return prompt + (completion or "")
        if self.tokenizer is None:
            raise ValueError(
                f"{self.name} takes texts, and the prompts are conversations: give tokenizer=<hub id or folder>"
            )
        if self._template is None:
            from lm_gym.loading import load_tokenizer

            self._template = load_tokenizer(self.tokenizer, f"{self.name}'s tokenizer")
        start = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        ending: Ending = "prompt" if completion is None else "whole"
        return written(in_one_form([*start, *(completion or ())]), self._template, ending=ending)


def _check_options(dialect: str, given: dict[str, Any]) -> None:
    """Refuse an option that is set and means nothing in the dialect."""
    of_some = {option for known in DIALECTS.values() for option in known.options}
    defaults = {name: p.default for name, p in inspect.signature(Remote.__init__).parameters.items()}
    for option in sorted(of_some - set(DIALECTS[dialect].options)):
        if given[option] != defaults[option]:
            where = ", ".join(name for name, known in DIALECTS.items() if option in known.options)
            raise ValueError(f"remote: {option}={given[option]!r} has no effect in {dialect}; it is for {where}")
