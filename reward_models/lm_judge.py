"""A language model as judge: a score for a reply by a rubric, or which of two replies is better.

Zheng et al. 2023, "Judging LLM-as-a-judge with MT-Bench and Chatbot Arena" (arXiv:2306.05685): single-answer grading,
and pairs in both orders, where a preference that turns with the order is a tie.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lm_gym.reward_models.judge_backends import ChatServer, LocalModel
from lm_gym.reward_models.judge_questions import RUBRIC, Verdict, pair_question, score_question
from lm_gym.rewards import RewardModelError, Text

OF_SERVERS = ("temperature", "max_tokens", "json_mode", "concurrency", "timeout", "retries", "backoff", "token_env")
OF_LOCAL = ("min_mass", "batch_tokens", "device", "dtype")


@dataclass(frozen=True)
class Comparison:
    """Which of two replies is better, asked in both orders.

    Attributes:
        preferred: "a", "b", or "tie": also where the two orders disagree.
        label: P(a is better), 0 to 1, the mean of both orders, .5 where they disagree: the label of a
            :class:`lm_gym.preferences.Preference` with `chosen=a, rejected=b`. Of a chat server 0, .5 or 1.
        orders: what the judge said with a shown first, and with b shown first, in terms of a and b.
        reasons: its reasons in both orders, "" where it gave none.
    """

    preferred: Literal["a", "b", "tie"]
    label: float
    orders: tuple[str, str]
    reasons: tuple[str, str]


class LMJudge:
    """Scores a reply as a language model does that is asked to judge it by a rubric.

    Range: [`low`, `high`]. Two ways of asking the same question:

    - with `base_url`, an OpenAI-compatible server, which answers in JSON with a reason and a whole number. The reasons
      come back as the column `reason`.
    - without, a model in this process (what `lm_gym.loading.load_model` takes), whose log-probs of the verdicts are
      read: the score is the expected number, and the column `verdict_mass` says how probable any verdict was.

    What cannot be read after `retries` is a RewardModelError with the prompt, never a number.

    Args:
        model: the name that the server knows; or tiny, a hub id, a folder, a GGUF file, a live model.
        base_url: up to and with /v1, such as http://127.0.0.1:8000/v1; None: a local model. No address is a default.
        rubric: what a good reply is, or the path of a .txt or .md file that says it.
        low, high: whole numbers, the ends of the scale.
        temperature, max_tokens: of the server's answer; None does not send them.
        json_mode: ask the server for `response_format` json_object.
        concurrency: questions under way at once (server).
        timeout, retries, backoff: seconds for one try; further tries, of a server that fails and of an answer that
            cannot be read; seconds before the second try, doubled before each further one (server).
        token_env: name of the environment variable with the bearer token (server). The token stays out of configs.
        min_mass: the least probability of answering with a verdict at all; less is an error (local).
        batch_tokens: padded tokens a forward (local). device, dtype: of a model that is loaded here (local).
    """

    def __init__(
        self,
        model: Any,
        *,
        base_url: str | None = None,
        rubric: str = RUBRIC,
        low: int = 1,
        high: int = 10,
        temperature: float | None = 0.0,
        max_tokens: int | None = 512,
        json_mode: bool = False,
        concurrency: int = 8,
        timeout: float = 60.0,
        retries: int = 4,
        backoff: float = 0.5,
        token_env: str | None = None,
        min_mass: float = 0.01,
        batch_tokens: int = 8192,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        given = locals()
        idle, where = (OF_SERVERS, "without base_url") if base_url is None else (OF_LOCAL, "with base_url")
        defaults = {name: p.default for name, p in inspect.signature(LMJudge.__init__).parameters.items()}
        for option in idle:
            if given[option] != defaults[option]:
                raise ValueError(f"lm-judge: {option}={given[option]!r} has no effect {where}")
        if not (isinstance(low, int) and isinstance(high, int) and 0 <= low < high <= low + 100):
            raise ValueError(
                f"lm-judge: low and high are {low!r} and {high!r}; expected whole numbers, 0 <= low < high <= low + 100"
            )
        self.rubric, self.low, self.high = _rubric(rubric), low, high
        self.backend: Callable[..., list[Verdict]]
        if base_url is None:
            self.backend = LocalModel(model, min_mass=min_mass, batch_tokens=batch_tokens, device=device, dtype=dtype)
            self.name = f"lm-judge:{self.backend.lm.name}"
        else:
            self.backend = ChatServer(
                str(model),
                base_url,
                temperature=temperature,
                max_tokens=max_tokens,
                json_mode=json_mode,
                concurrency=concurrency,
                timeout=timeout,
                retries=retries,
                backoff=backoff,
                token_env=token_env,
            )
            self.name = f"lm-judge:{model} at {self.backend.address}"

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        log_extra: Callable[[str, Sequence[Any]], None] | None = None,
        **_: Any,
    ) -> list[float]:
        questions = [
            score_question(self.rubric, self.low, self.high, prompt, completion)
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        verdicts = self.backend(questions)
        if log_extra is not None and isinstance(self.backend, LocalModel):
            log_extra("verdict_mass", [verdict.mass for verdict in verdicts])
        elif log_extra is not None:
            log_extra("reason", [verdict.reason for verdict in verdicts])
        return [verdict.value for verdict in verdicts]

    def compare(self, prompts: Sequence[Text], a: Sequence[Text], b: Sequence[Text]) -> list[Comparison]:
        """Which of two replies to each prompt is better, each asked twice: with a first, and with b first.

        Raises:
            ValueError: lists of different lengths.
            RewardModelError: a verdict that did not come; `row` is the prompt's.
        """
        if not len(prompts) == len(a) == len(b):
            raise ValueError(f"compare expected as many a and b as prompts, got {len(prompts)}, {len(a)} and {len(b)}")
        questions = [
            pair_question(self.rubric, prompt, first, second)
            for prompt, one, other in zip(prompts, a, b, strict=True)
            for first, second in ((one, other), (other, one))
        ]
        try:
            verdicts = self.backend(questions)
        except RewardModelError as error:
            row = None if error.row is None else error.row // 2
            raise RewardModelError(f"{self.name}: {error}\n  on pair {row} of {len(prompts)}", row=row) from error
        return [_compared(*verdicts[i : i + 2]) for i in range(0, len(verdicts), 2)]

    def fingerprint(self) -> str:
        """Changes with the model (or the address), the rubric and the scale."""
        backend: Any = self.backend
        parts = [backend.fingerprint(), self.rubric, self.low, self.high]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _compared(a_first: Verdict, b_first: Verdict) -> Comparison:
    names: dict[str, Literal["a", "b", "tie"]] = {"A": "a", "B": "b", "tie": "tie"}
    turned: dict[str, Literal["a", "b", "tie"]] = {"A": "b", "B": "a", "tie": "tie"}
    orders = (names[a_first.choice], turned[b_first.choice])
    reasons = (a_first.reason, b_first.reason)
    if orders[0] != orders[1]:
        return Comparison("tie", 0.5, orders, reasons)
    return Comparison(orders[0], (a_first.value + 1 - b_first.value) / 2, orders, reasons)


def _rubric(rubric: str) -> str:
    if rubric.endswith((".txt", ".md")):
        try:
            rubric = Path(rubric).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ValueError(f"lm-judge: the rubric's file cannot be read: {error}") from error
    if not rubric.strip():
        raise ValueError("lm-judge: the rubric is empty; leave it out for the default")
    return rubric.strip()
