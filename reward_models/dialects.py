"""The wire formats of remote reward models: what is asked, and how the score of each text is read from the answer.

| dialect | asks | answers | read from |
|---|---|---|---|
| get_reward | {"query": [prompt + completion], "prompts", "labels"} | {"rewards": [number]} | OpenRLHF 0.11 |
| classify | {"input": [text], "use_activation", "model"} | {"data": [{"index", "probs"}]} | vLLM 0.10 to 0.19 |
| pooling | the same, and "task" | {"data": [{"index", "data": [number] or [[number]]}]} | vLLM 0.10 to 0.19 |
| score | {"text_1": [prompt], "text_2": [completion], ...} | {"data": [{"index", "score"}]} | vLLM 0.10 to 0.19 |
| predict | {"inputs": [[text]], "raw_scores", "truncation_direction"} | [[{"label", "score"}]] | TEI 1.9 |

Sources: openrlhf/cli/serve_rm.py and utils/agent.py; vllm/entrypoints/pooling/*/protocol.py, as of main in August 2026;
text-embeddings-inference router/src/http/types.rs. What they do not say at first sight:

- Items of vLLM are told by `index`, whatever their order. Rewards of OpenRLHF and lists of TEI are in the order asked.
- TEI sorts the classes of a text by score, so that they are told by name. It takes 32 texts a request unless started
  with more, and cuts the end of long texts unless told to cut the beginning.
- vLLM called `use_activation` `activation` up to 0.11.0. A server that does not know it answers with probabilities. For
  two classes or more that is noticed; the sigmoid of a single class cannot be told from a logit between 0 and 1.
- `/pooling` gives a vector a text, or (tasks token_classify and, up to 0.11, encode) a vector a token.
- `/score` is for cross-encoders, which have one class. An embedding model's cosine comes with `output="logit"`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_gym.reward_models.http_json import BadAnswer, NoAnswer


@dataclass(frozen=True)
class Texts:
    """B texts to be judged: `whole` is what most dialects send, the other fields are its parts."""

    whole: Sequence[str]
    prompts: Sequence[str]
    completions: Sequence[str]
    labels: Sequence[Any]
    columns: Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Wanted:
    """Which number of an answer is the score; the fields are arguments of :class:`~lm_gym.reward_models.Remote`."""

    model: str | None = None
    label: str | int | None = None
    output: str = "prob"
    task: str | None = None
    tokens: str | None = None


@dataclass(frozen=True)
class Dialect:
    """One wire format.

    Attributes:
        ask: (texts, wanted) -> what is sent as JSON.
        read: (decoded answer, number of texts, wanted) -> a score a text. Raises BadAnswer where another try may help,
            NoAnswer where none does.
        options: arguments of Remote that mean something here.
        batch_size: texts a request, unless the user says otherwise.
    """

    ask: Callable[[Texts, Wanted], dict[str, Any]]
    read: Callable[[Any, int, Wanted], list[float]]
    options: tuple[str, ...]
    batch_size: int = 64


def _ask_get_reward(texts: Texts, wanted: Wanted) -> dict[str, Any]:
    question = {"query": list(texts.whole), "prompts": list(texts.prompts), "labels": list(texts.labels)}
    return question | ({"columns": dict(texts.columns)} if texts.columns else {})


def _read_get_reward(answer: Any, count: int, wanted: Wanted) -> list[float]:
    values = answer.get("rewards") if isinstance(answer, Mapping) else None
    if not isinstance(values, list):
        raise BadAnswer(f'expected {{"rewards": [...]}}, got {answer!r:.120}')
    if len(values) != count:
        raise BadAnswer(f"{len(values)} rewards for {count} texts", min(len(values), count - 1))
    return [number(value, row) for row, value in enumerate(values)]


def _ask_classify(texts: Texts, wanted: Wanted) -> dict[str, Any]:
    return {"input": list(texts.whole)} | _common(wanted)


def _read_classify(answer: Any, count: int, wanted: Wanted) -> list[float]:
    return [_of_class(_numbers(item, "probs", row), row, wanted) for row, item in enumerate(_by_index(answer, count))]


def _ask_pooling(texts: Texts, wanted: Wanted) -> dict[str, Any]:
    task = {} if wanted.task is None else {"task": wanted.task}
    return {"input": list(texts.whole)} | _common(wanted) | task


def _read_pooling(answer: Any, count: int, wanted: Wanted) -> list[float]:
    return [_pooled(item, row, wanted) for row, item in enumerate(_by_index(answer, count))]


def _ask_score(texts: Texts, wanted: Wanted) -> dict[str, Any]:
    return {"text_1": list(texts.prompts), "text_2": list(texts.completions)} | _common(wanted)


def _read_score(answer: Any, count: int, wanted: Wanted) -> list[float]:
    items = _by_index(answer, count)
    return [_of_class([number(item.get("score"), row)], row, wanted) for row, item in enumerate(items)]


def _ask_predict(texts: Texts, wanted: Wanted) -> dict[str, Any]:
    inputs = [[text] for text in texts.whole]
    return {"inputs": inputs, "raw_scores": wanted.output == "logit", "truncation_direction": "Left"}


def _read_predict(answer: Any, count: int, wanted: Wanted) -> list[float]:
    if not isinstance(answer, list) or not all(isinstance(item, list) and item for item in answer):
        raise BadAnswer(f'expected [[{{"label", "score"}}, ...], ...], got {answer!r:.120}')
    if len(answer) != count:
        raise BadAnswer(f"{len(answer)} results for {count} texts", min(len(answer), count - 1))
    return [_named_class(item, row, wanted) for row, item in enumerate(answer)]


LARGEST = sys.float_info.max
OF_CLASSES = ("label", "output", "text", "tokenizer")
DIALECTS = {
    "get_reward": Dialect(_ask_get_reward, _read_get_reward, ("labels_column", "columns", "tokenizer")),
    "classify": Dialect(_ask_classify, _read_classify, ("model", *OF_CLASSES)),
    "pooling": Dialect(_ask_pooling, _read_pooling, ("model", "task", "tokens", *OF_CLASSES)),
    "score": Dialect(_ask_score, _read_score, ("model", "output")),
    "predict": Dialect(_ask_predict, _read_predict, OF_CLASSES, batch_size=32),
}


def number(value: Any, row: int) -> float:
    """A finite number, also as a list of one (a column of a tensor)."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST:
        raise BadAnswer(f"expected a finite number, got {value!r:.60}", row)
    return float(value)


def _common(wanted: Wanted) -> dict[str, Any]:
    # use_activation is sent in every case: its default differs between models of vLLM.
    activation = {"use_activation": wanted.output != "logit"}
    return activation if wanted.model is None else activation | {"model": wanted.model}


def _by_index(answer: Any, count: int) -> list[Mapping[str, Any]]:
    """The items of `data` in the order of the texts."""
    items = answer.get("data") if isinstance(answer, Mapping) else None
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise BadAnswer(f'expected {{"data": [...]}}, got {answer!r:.120}')
    found: dict[int, Mapping[str, Any]] = {}
    for item in items:
        index = item.get("index")  # not taken from the place: vLLM does not promise an order
        if isinstance(index, bool) or not isinstance(index, int):
            raise BadAnswer(f"expected a whole number as index in each result, got {dict(item)!r:.120}")
        found[index] = item
    missing = [row for row in range(count) if row not in found]
    if missing or len(items) != count:
        at = f"; index {missing[0]} is missing" if missing else ""
        raise BadAnswer(f"{len(items)} results for {count} texts{at}", missing[0] if missing else None)
    return [found[row] for row in range(count)]


def _numbers(item: Mapping[str, Any], key: str, row: int) -> list[float]:
    values = item.get(key)
    if not isinstance(values, list) or not values:
        raise BadAnswer(f'expected "{key}" with a number a class, got {dict(item)!r:.120}', row)
    return [number(value, row) for value in values]


def _pooled(item: Mapping[str, Any], row: int, wanted: Wanted) -> float:
    """The score of a text from its vector, or from a vector a token."""
    values = item.get("data")
    if not isinstance(values, list) or not values or not isinstance(values[0], list):
        if wanted.tokens is not None:
            raise NoAnswer(f"tokens is {wanted.tokens!r}, and the server gives one vector a text; leave it out", row)
        return _of_class(_numbers(item, "data", row), row, wanted)
    if wanted.tokens is None and len(values) > 1:
        raise NoAnswer(
            f"the server gives a value a token ({len(values)} of them): choose tokens=last (an outcome reward model), "
            "tokens=mean or tokens=min (a process reward model), or task=classify for one value a text",
            row,
        )
    scores = [_of_class(_numbers({"data": vector}, "data", row), row, wanted) for vector in values]
    if wanted.tokens == "min":
        return min(scores)
    return math.fsum(scores) / len(scores) if wanted.tokens == "mean" else scores[-1]


def _of_class(values: Sequence[float], row: int, wanted: Wanted) -> float:
    """The wanted class of a vector of all classes."""
    if wanted.label is None and len(values) > 1:
        raise NoAnswer(f"the server has {len(values)} classes; choose one with label=0 … {len(values) - 1}", row)
    label = wanted.label or 0
    assert isinstance(label, int)  # Remote refuses names where classes are told by number
    if label >= len(values):
        raise NoAnswer(f"label is {label}, and the server has {len(values)} classes", row)
    return _activated(values[label], values, row, wanted)


def _named_class(item: list[Any], row: int, wanted: Wanted) -> float:
    """The wanted class of {"label", "score"} a class, in any order."""
    if not all(isinstance(part, Mapping) and isinstance(part.get("label"), str) for part in item):
        raise BadAnswer(f'expected {{"label", "score"}} for each class, got {item!r:.120}', row)
    values = {part["label"]: number(part.get("score"), row) for part in item}
    if len(values) != len(item):
        raise BadAnswer(f"a class stands twice in {item!r:.120}", row)
    known = ", ".join(sorted(values))
    if wanted.label is None and len(values) > 1:
        raise NoAnswer(f"the server has {len(values)} classes; choose one with label=: {known}", row)
    # A model without names of its own has LABEL_0, LABEL_1, …
    names = [str(wanted.label), f"LABEL_{wanted.label}"] if wanted.label is not None else list(values)
    found = [name for name in names if name in values]
    if not found:
        raise NoAnswer(f"label is {wanted.label!r}, and the server has {known}", row)
    return _activated(values[found[0]], list(values.values()), row, wanted)


def _activated(chosen: float, values: Sequence[float], row: int, wanted: Wanted) -> float:
    """`chosen` as `output` wants it, once `values` (of all classes) are what was asked for."""
    normal = all(0 <= value <= 1 for value in values)
    if wanted.output == "logit":
        if normal and len(values) > 1 and abs(sum(values) - 1) < 1e-4:
            raise NoAnswer("asked for logits, got probabilities: the server does not know how to leave them out", row)
        return chosen
    if not normal:
        raise NoAnswer(f"asked for probabilities, got {list(values)[:4]}; take output=logit", row)
    if wanted.output == "logprob" and chosen == 0:
        raise BadAnswer("a probability of 0 has no logarithm; take output=prob", row)
    return math.log(chosen) if wanted.output == "logprob" else chosen
