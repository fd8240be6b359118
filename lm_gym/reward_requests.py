"""What a client of :mod:`lm_gym.reward_server` may ask, and the errors that it gets for anything else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lm_gym.rewards import RESERVED_COLUMNS

IDS = "completion_ids"


@dataclass(frozen=True)
class Limits:
    """What one request may cost, and how texts are judged.

    Attributes:
        batch_size: texts in one call of the reward model; calls of different requests take turns.
        max_texts: texts a request. max_bytes: bytes a request.
        timeout: seconds that a client has for a request, from connecting to its last byte.
        max_connections: at once, and never more than half of the files that the process may open. One more takes the
            place of the one that has waited longest for its head (the request line and the headers) to come; where all
            have come, it is answered 503.
        whole_text: judge whole queries, also where a request says what their prompts are.
    """

    batch_size: int = 64
    max_texts: int = 1024
    max_bytes: int = 16 * 2**20
    timeout: float = 30.0
    max_connections: int = 256
    whole_text: bool = False

    def __post_init__(self) -> None:
        if min(self.batch_size, self.max_texts, self.max_bytes, self.max_connections) < 1 or not self.timeout > 0:
            names = "batch_size, max_texts, max_bytes and max_connections"
            raise ValueError(f"expected {names} of at least 1, and timeout above 0")


@dataclass
class Texts:
    """B texts as a reward model takes them; ``completion_ids`` is None where the request has no token ids."""

    prompts: list[str]
    completions: list[str]
    columns: dict[str, list[Any]] = field(default_factory=dict)
    completion_ids: list[list[int]] | None = None


class Problem(Exception):
    """A request that is answered with an error."""

    def __init__(self, code: int, message: str, *, kind: str = "BadRequest", row: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        body: dict[str, Any] = {"message": message, "type": kind, "code": code}
        self.body = {"error": body if row is None else body | {"row": row}}


def read_get_reward(question: dict[str, Any], limits: Limits) -> Texts:
    _check_keys(question, ("query", "prompts", "labels", "columns"))
    queries = _strings(question.get("query"), "query")
    columns = question.get("columns") or {}
    if not isinstance(columns, dict):
        raise Problem(400, f"columns expected an object of lists, got {type(columns).__name__}")
    columns = dict(columns)
    labels = _sized(question.get("labels") or [""] * len(queries), "labels", queries)
    if any(label not in ("", None) for label in labels):  # OpenRLHF sends them in every case
        if "label" in columns:
            raise Problem(400, "labels and columns.label are the same column; send one of them")
        columns["label"] = labels
    for name, values in columns.items():
        _sized(values, f"columns.{name}", queries)
        if (name in RESERVED_COLUMNS and name != IDS) or name == "self":  # a judge's method has it already
            raise Problem(400, f"columns.{name}: a column cannot have this name")
    ids = columns.pop(IDS, None)
    if ids is not None and not all(isinstance(row, list) and all(map(_is_id, row)) for row in ids):
        raise Problem(400, f"columns.{IDS} expected a list of whole numbers a text")
    prompts = question.get("prompts")
    if prompts is None or limits.whole_text:
        return Texts([""] * len(queries), queries, columns, ids)
    prompts = _sized(_strings(prompts, "prompts"), "prompts", queries)
    for row, (query, prompt) in enumerate(zip(queries, prompts, strict=True)):
        if not query.startswith(prompt):
            hint = "leave prompts out, or start the server with --whole-text, to have whole queries judged"
            raise Problem(400, f"query {row} does not begin with its prompt {prompt!r:.100}; {hint}", row=row)
    completions = [query[len(prompt) :] for query, prompt in zip(queries, prompts, strict=True)]
    return Texts(prompts, completions, columns, ids)


def read_classify(question: dict[str, Any], name: str) -> Texts:
    _check_keys(question, ("input", "use_activation", "model"))
    if not isinstance(question.get("use_activation"), (bool, type(None))):
        raise Problem(400, f"use_activation expected true or false, got {question['use_activation']!r:.60}")
    if question.get("model") not in (None, name):
        raise Problem(404, f"there is no model {question['model']!r:.100} here, only {name!r}", kind="NotFound")
    given = question.get("input")
    texts = [given] if isinstance(given, str) else _strings(given, "input")
    return Texts([""] * len(texts), texts)


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _check_keys(question: dict[str, Any], known: tuple[str, ...]) -> None:
    unknown = sorted(set(question) - set(known))
    if unknown:
        raise Problem(400, f"unknown key {unknown[0]!r:.60}; there are {', '.join(known)}")


def _strings(values: Any, name: str) -> list[str]:
    if not isinstance(values, list):
        raise Problem(400, f"{name} expected a list of texts, got {type(values).__name__ if values else 'none'}")
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise Problem(400, f"{name}[{row}] expected a text, got {type(value).__name__}", row=row)
    return values


def _sized(values: Any, name: str, queries: list[str]) -> list[Any]:
    if not isinstance(values, list) or len(values) != len(queries):
        got = len(values) if isinstance(values, list) else type(values).__name__
        raise Problem(400, f"{name} expected a list of {len(queries)} values, one a query, got {got}")
    return values
