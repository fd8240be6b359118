"""A reward model behind HTTP, as `lm-gym serve-reward` runs it: OpenRLHF's `/get_reward` and vLLM's `/classify`.

Python's own `ThreadingHTTPServer`, and not FastAPI: two routes with five checks each are less code than a framework's
models of them, a judge can be served wherever LM Gym is installed, and a web framework would be a dependency of the
core. It is meant for a trainer on the same machine or network, not for the open internet: no TLS, one token.

| path | takes | answers |
|---|---|---|
| POST /get_reward | {"query": [prompt + completion], "prompts": [...], "labels": [...], "columns": {}} | {"rewards"} |
| POST /classify | {"input": text or [text], "use_activation": bool, "model": name} | {"data": [{"index", "probs"}]} |
| GET /health | | {"status": "ok", "reward_model": name, "hash", ...}, without a token |

- `prompts` split each query into prompt and completion; without them the whole query is judged as a completion.
  `labels` become the column `label`, and `columns` further columns, `completion_ids` among them. Both may be left out.
- `/classify` has no prompts: the whole text is judged as a completion. A judge that must not read the prompt is asked
  with the completion alone (`Remote(..., text="completion")`), or through `/get_reward`.
- `probs` holds the score as it is. Asked for probabilities (`use_activation` true), scores outside [0, 1] are refused.
- Errors are {"error": {"message", "type", "code", "row"}}: 400 for a question that cannot be read, 401 for a missing or
  wrong token (before the body is read), 404, 405, 408 for a request that takes too long, 411, 413, 415, 500 with the
  reason where the reward model failed, and 503 where there are too many connections.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from lm_gym.reward_http import RewardHTTP
from lm_gym.reward_requests import IDS, Limits, Problem, Texts, read_classify, read_get_reward
from lm_gym.reward_specs import parameters_of
from lm_gym.rewards import RewardModelError, reward_model_hash, reward_model_name, score_texts
from lm_gym.terminal import printable


class RewardServer:
    """Serves a reward model, from :meth:`start` to :meth:`close` (or as a context manager), in threads of its own.

    Args:
        reward_model: a callable, as :func:`lm_gym.rewards.load_reward_model` returns it.
        host, port: where to listen; port 0 takes a free one (:attr:`url` says which).
        token: what a client must send as `Authorization: Bearer <token>`; None lets everybody in.
        limits: sizes and times.
        on_error: called with a line for each request that is answered with an error.

    Raises:
        ValueError: a token that no header can hold, or an address where nothing can listen.
    """

    def __init__(
        self,
        reward_model: Callable[..., Any],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        limits: Limits | None = None,
        on_error: Callable[[str], None] | None = None,
    ) -> None:
        if token is not None and not re.fullmatch(r"[!-~]+", token):
            raise ValueError(
                "the token of a reward server is empty, or has spaces or letters that a header cannot hold"
            )
        self.reward_model, self.token, self.limits = reward_model, token, limits or Limits()
        self.name, self.hash = reward_model_name(reward_model), reward_model_hash(reward_model)
        # What a client sends, a path among it, must not colour or steer the terminal that the line goes to.
        self.on_error = (lambda line: on_error(printable(line))) if on_error else (lambda line: None)
        self.requests = self.texts = 0
        self._turn = threading.Lock()
        try:
            self._http = RewardHTTP(self, host, port)
        except (OSError, OverflowError) as error:
            raise ValueError(f"cannot listen on {host}:{port} ({error}); port 0 takes a free one") from error
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._http.server_address[1]}"

    def start(self) -> RewardServer:
        """Listen, in a thread."""
        threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, name="lm_gym-reward-server", daemon=True
        ).start()
        return self

    def close(self, grace: float = 30.0) -> bool:
        """Stop listening, and let requests under way end for up to ``grace`` seconds; False if some did not."""
        self._http.shutdown()
        self._http.server_close()
        return self._http.emptied(grace)

    def __enter__(self) -> RewardServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def health(self) -> dict[str, Any]:
        """What /health answers."""
        counts = {"requests": self.requests, "texts": self.texts}
        return {"status": "ok", "reward_model": self.name, "hash": self.hash, **counts}

    def score(self, texts: Texts) -> list[float]:
        """One finite number a text.

        Raises:
            Problem: 400 where the reward model needs token ids that are missing, 500 where it failed.
        """
        reward_model: Any = self.reward_model
        if texts.completion_ids is None:
            reward_model = _WithoutIds(reward_model)
            if reward_model.needs_ids:
                raise Problem(
                    400, f"{self.name} reads token ids: send them to /get_reward as columns.{IDS}, a list a text"
                )
        scores: list[float] = []
        for start in range(0, len(texts.completions), self.limits.batch_size):
            rows = slice(start, start + self.limits.batch_size)
            completions = texts.completions[rows]
            with self._turn, _as_problem(start):
                found = score_texts(
                    reward_model,
                    prompts=texts.prompts[rows],
                    completions=completions,
                    completion_ids=(texts.completion_ids or [[]] * len(texts.completions))[rows],
                    columns={name: values[rows] for name, values in texts.columns.items()},
                )
            scores += found.scores.tolist()
        return scores

    def answer(self, path: str, question: Any) -> dict[str, Any]:
        """The answer to a question, decoded from JSON, that came to a path."""
        if not isinstance(question, dict):
            raise Problem(400, f"expected a JSON object, got {type(question).__name__}")
        rewards = path == "/get_reward"
        texts = read_get_reward(question, self.limits) if rewards else read_classify(question, self.name)
        if len(texts.completions) > self.limits.max_texts:
            raise Problem(413, f"{len(texts.completions)} texts in one request; at most {self.limits.max_texts}")
        scores = self.score(texts)
        with self._turn:
            self.requests, self.texts = self.requests + 1, self.texts + len(scores)
        if rewards:
            return {"rewards": scores, "scores": scores, "extra_logs": {}}
        outside = [row for row, value in enumerate(scores) if not 0 <= value <= 1]
        if question.get("use_activation") and outside:
            hint = "ask with use_activation false (Remote: output=logit) for the score as it is"
            raise Problem(
                400, f"{self.name} gave {scores[outside[0]]:g}, which is no probability; {hint}", row=outside[0]
            )
        data = [{"index": i, "label": None, "probs": [value], "num_classes": 1} for i, value in enumerate(scores)]
        return {"object": "list", "created": int(time.time()), "model": self.name, "data": data}


class _WithoutIds:
    """A reward model that is not given `completion_ids`: no ids must not be taken for ids of an empty text."""

    def __init__(self, reward_model: Any) -> None:
        self.reward_model, self.name = reward_model, reward_model_name(reward_model)
        self.needs_ids = False
        parameters = parameters_of(reward_model)
        if parameters is None:
            return
        self.needs_ids = IDS in parameters and parameters[IDS].default is inspect.Parameter.empty
        kept = [parameter for name, parameter in parameters.items() if name != IDS]
        self.__signature__ = inspect.Signature(kept)  # what lm_gym.rewards reads

    def __call__(self, /, **keywords: Any) -> Any:
        keywords.pop(IDS, None)
        return self.reward_model(**keywords)


@contextlib.contextmanager
def _as_problem(start: int) -> Iterator[None]:
    try:
        yield
    except RewardModelError as error:
        row = None if error.row is None else start + error.row
        raise Problem(500, str(error), kind="RewardModelError", row=row) from error
