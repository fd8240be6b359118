"""Two ways of asking a language model for a verdict: a chat server, and a model in this process."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from lm_gym.forward import by_length, pad_texts
from lm_gym.loading import load_model
from lm_gym.models import CausalLM
from lm_gym.positions import because
from lm_gym.reward_models.http_json import BadAnswer, NoAnswer, address, ask, bearer, check_waits
from lm_gym.reward_models.judge_questions import Question, Verdict, mean_value, read_verdict
from lm_gym.rewards import RewardModelError


class ChatServer:
    """Asks an OpenAI-compatible server (`POST <base_url>/chat/completions`) and reads the JSON that it writes.

    An answer without a verdict that can be read is told so, and asked for again, `retries` times; so is a server that
    fails, as in :class:`~lm_gym.reward_models.Remote`. Then it is an error. Arguments: see LMJudge.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        *,
        temperature: float | None,
        max_tokens: int | None,
        json_mode: bool,
        concurrency: int,
        timeout: float,
        retries: int,
        backoff: float,
        token_env: str | None,
    ) -> None:
        self.address = address(base_url, "lm-judge: base_url", "http://127.0.0.1:8000/v1")
        bearer(token_env)
        check_waits("lm-judge", timeout, retries, backoff)
        if concurrency < 1:
            raise ValueError(f"lm-judge: expected concurrency >= 1, got {concurrency!r}")
        self.url = f"{base_url.rstrip('/')}/chat/completions"
        self.options: dict[str, Any] = {"model": model}
        self.options |= {} if temperature is None else {"temperature": temperature}
        self.options |= {} if max_tokens is None else {"max_tokens": max_tokens}
        self.options |= {"response_format": {"type": "json_object"}} if json_mode else {}
        self.concurrency, self.timeout, self.retries, self.backoff = concurrency, timeout, retries, backoff
        self.token_env = token_env

    def fingerprint(self) -> str:
        """The address and what is asked of it: the weights behind it cannot be seen."""
        return f"{self.address} {self.options}"

    def __call__(self, questions: Sequence[Question]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        with ThreadPoolExecutor(min(self.concurrency, max(len(questions), 1))) as pool:
            futures = [pool.submit(self._asked, question) for question in questions]
            for row, future in enumerate(futures):
                try:
                    verdicts.append(future.result())
                except NoAnswer as error:
                    pool.shutdown(wait=False, cancel_futures=True)  # what waits is not asked any more
                    raise RewardModelError(str(error), row=row) from error
        return verdicts

    def _asked(self, question: Question) -> Verdict:
        first = {"role": "user", "content": question.asking(reason=True)}
        messages, problem = [first], ""
        for _ in range(self.retries + 1):
            said = ask(
                self.url,
                self.options | {"messages": messages},
                _content,
                timeout=self.timeout,
                retries=self.retries,
                backoff=self.backoff,
                token_env=self.token_env,
            )
            try:
                return read_verdict(said, question)
            except BadAnswer as error:
                problem = str(error)
            # At temperature 0 the same question would get the same answer.
            form = question.asking(reason=True).removeprefix(question.text)
            again = f"This cannot be read: {problem}.{form}"
            messages = [first, {"role": "assistant", "content": said}, {"role": "user", "content": again}]
        raise NoAnswer(f"no verdict that can be read in {self.retries + 1} answers; the last: {problem}")


def _content(answer: Any) -> str:
    """What the assistant wrote, in an answer of /chat/completions."""
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping):
        raise BadAnswer(f'expected {{"choices": [...]}} with one choice, got {answer!r:.160}')
    message = choices[0].get("message")
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, str) or not content.strip():
        raise BadAnswer(f"expected a message with text, got {choices[0]!r:.160}")
    if choices[0].get("finish_reason") == "length":
        raise NoAnswer(f"the answer was cut off at its length limit: raise max_tokens; it ends {content[-60:]!r}")
    return content


class LocalModel:
    """Reads the verdict of a language model in this process from its log-probs, with one forward pass a text.

    The question is the chat server's, without the wish for a reason. The answer is begun for the model
    (`{"score": `), and the probability of each verdict is that of its tokens: the score is their mean, Σ v·p(v)
    (G-Eval: Liu et al. 2023, arXiv:2303.16634). To generate and read JSON instead would cost a pass a token, fail
    with small models, and give whole numbers, most of them equal. A verdict that begins another ("1" of "10") counts
    where the other does not follow. `mass` is Σ p(v) before it is divided out: a model that would rather say something
    else has no opinion, and below `min_mass` that is an error.
    """

    def __init__(self, model: Any, *, min_mass: float, batch_tokens: int, device: str, dtype: str) -> None:
        if not 0 <= min_mass < 1 or batch_tokens < 1:
            raise ValueError("lm-judge: expected min_mass from 0 to below 1, and batch_tokens of at least 1")
        self.lm: CausalLM = load_model(model, device=device, dtype=dtype, what="lm-judge: model")
        if self.lm.tokenizer is None:
            raise ValueError(f"lm-judge: model {self.lm.name!r} has no tokenizer: it cannot be asked in words")
        self.min_mass, self.batch_tokens = min_mass, batch_tokens

    def fingerprint(self) -> str:
        """SHA-256 of the weights."""
        return self.lm.fingerprint()

    @torch.inference_mode()
    def __call__(self, questions: Sequence[Question]) -> list[Verdict]:
        asked = [self._tokens(question, row) for row, question in enumerate(questions)]
        texts = [(row, tail) for row, (_, tails) in enumerate(asked) for tail in _longest_beginnings(tails)]
        ids = [[*asked[row][0], *tail] for row, tail in texts]
        self.lm.check_ids(ids, "question")
        logprobs: dict[tuple[int, tuple[int, ...]], torch.Tensor] = {}
        was_training = self.lm.training
        self.lm.eval()
        try:
            for batch in by_length([len(one) for one in ids], self.batch_tokens):
                width = 1 + max(len(texts[i][1]) for i in batch)
                found = self._next([ids[i] for i in batch], width).cpu()
                for j, i in enumerate(batch):
                    row, tail = texts[i]
                    for k in range(len(tail) + 1):  # the state behind the question and k tokens of the verdict
                        logprobs[row, tail[:k]] = found[j, width - 1 - len(tail) + k]
        finally:
            self.lm.train(was_training)
        return [self._verdict(question, row, asked[row][1], logprobs) for row, question in enumerate(questions)]

    def _tokens(self, question: Question, row: int) -> tuple[list[int], list[tuple[int, ...]]]:
        """Ids of the question with the answer begun, and of each verdict behind them."""
        tokenizer, begun = self.lm.tokenizer, f'{{"{question.key}": '
        asking = question.asking(reason=False)
        quote = '"' if question.key == "winner" else ""
        if getattr(tokenizer, "chat_template", None):
            written = tokenizer.apply_chat_template(
                [{"role": "user", "content": asking}], tokenize=False, add_generation_prompt=True
            )
        else:
            written = f"{asking}\n"
        special = not getattr(tokenizer, "chat_template", None)
        # Each with the whole text before it: a token may reach from one into the other.
        whole = [
            [int(i) for i in tokenizer(f"{written}{begun}{quote}{choice}", add_special_tokens=special)["input_ids"]]
            for choice in question.choices
        ]
        if len(set(map(tuple, whole))) < len(whole):
            raise RewardModelError(
                f"the tokenizer of {self.lm.name} does not tell {', '.join(question.choices)} apart: it cannot answer",
                row=row,
            )
        alike = sum(1 for _ in itertools.takewhile(lambda ids: len(set(ids)) == 1, zip(*whole, strict=False)))
        common = min(alike, min(map(len, whole)) - 1)
        if max(map(len, whole)) > self.lm.max_positions:
            raise RewardModelError(
                f"the question has {max(map(len, whole))} tokens, and {self.lm.name} reads {self.lm.max_positions}"
                f"{because(self.lm.max_positions)}: "
                "it takes shorter texts, or a shorter rubric",
                row=row,
            )
        return whole[0][:common], [tuple(ids[common:]) for ids in whole]

    def _next(self, texts: list[list[int]], width: int) -> torch.Tensor:
        """Log-probs (B, width, V), float32, of the tokens behind each of the last `width` tokens of each text."""
        ids, mask, _ = pad_texts(texts, [[] for _ in texts], self.lm.pad_id)
        hidden = self.lm.trunk(ids.to(self.lm.device), mask.to(self.lm.device))[:, -width:]
        return self.lm.head(hidden).log_softmax(-1)

    def _verdict(
        self,
        question: Question,
        row: int,
        tails: list[tuple[int, ...]],
        logprobs: Mapping[tuple[int, tuple[int, ...]], torch.Tensor],
    ) -> Verdict:
        begins = {
            tail: math.exp(math.fsum(float(logprobs[row, tail[:k]][tail[k]]) for k in range(len(tail))))
            for tail in tails
        }
        exact: dict[tuple[int, ...], float] = {}
        for tail in sorted(begins, key=len, reverse=True):
            longer = math.fsum(p for other, p in exact.items() if other[: len(tail)] == tail)
            exact[tail] = max(begins[tail] - longer, 0.0)
        mass = math.fsum(exact.values())
        if not math.isfinite(mass):
            raise RewardModelError(f"{self.lm.name} gave log-probs that are no numbers ({mass})", row=row)
        if mass <= self.min_mass:
            raise RewardModelError(
                f"{self.lm.name} answers with one of {', '.join(question.choices)} with probability {mass:.2g}, and "
                f"min_mass is {self.min_mass:g}: it does not take the question for one. Take a model that follows "
                "instructions",
                row=row,
            )
        weights = [exact[tail] / mass for tail in tails]
        best = max(range(len(weights)), key=weights.__getitem__)
        return Verdict(mean_value(weights, question), question.choices[best], mass=mass)


def _longest_beginnings(tails: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The fewest texts that pass through every state in which some verdict has a next token: mostly the empty one."""
    states = {tail[:k] for tail in tails for k in range(len(tail))}
    return sorted(state for state in states if not any(other[:-1] == state for other in states if other))
