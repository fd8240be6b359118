"""Comparisons as a reward model is trained on them: token ids, labels, a split by prompt, batches of equal length."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lm_gym.data_rows import Rows
from lm_gym.models import check_ids
from lm_gym.preferences import Preference, Ranking

UNNAMED = "unnamed"
"""The annotator of comparisons that name none."""
POOL = 16
"""So many batches are drawn at a time and sorted by length among themselves."""


@dataclass(frozen=True)
class Comparison:
    """K completions from best to worst: a pair with its label, or a ranking of more."""

    texts: tuple[tuple[int, ...], ...]
    """K texts as the model reads them, prompt and completion."""
    label: float
    """P(first is better), of pairs."""
    margin: float
    annotator: int
    """Index in the annotators' names."""
    prompt: str
    """What a split keeps together."""

    @property
    def length(self) -> int:
        return max(map(len, self.texts))


def annotator_names(data: Sequence[Preference | Ranking]) -> tuple[str, ...]:
    """Every annotator of the data, sorted."""
    return tuple(sorted({UNNAMED if row.annotator is None else row.annotator for row in data}))


def encode(
    data: Sequence[Preference | Ranking], judge: Any, names: Sequence[str], rows: Rows, *, margins: bool
) -> list[Comparison]:
    """Comparisons as `judge`, a `Classifier`, reads their texts.

    Args:
        rows: what is done with comparisons that cannot be used, and with those of a text that is longer than the judge
            takes: where it is cut, it loses its beginning.

    Raises:
        ValueError: an annotator that `names` lacks; with `margins`, a pair that has none, or a ranking; a conversation
            that the chat template refuses.
    """
    rows.total = len(data)
    index = {name: place for place, name in enumerate(names)}
    cache: dict[str, tuple[int, ...]] = {}
    found: list[Comparison] = []
    for place, row in enumerate(data):
        with rows.row(f"comparison {place}"):
            one = _encoded(row, judge, index, cache, margins)
            longest = max(map(len, one.texts))
            if judge.max_length is not None and longest > judge.max_length:
                if not rows.keep_long(f"comparison {place}", f"has {longest} tokens (at most {judge.max_length})"):
                    continue
                one = _encoded(row, judge, index, {}, margins, cut=True)
            found.append(one)
    rows.finish(len(found))
    return found


def _encoded(
    row: Preference | Ranking,
    judge: Any,
    index: Mapping[str, int],
    cache: dict[str, tuple[int, ...]],
    margins: bool,
    cut: bool = False,
) -> Comparison:
    pair = isinstance(row, Preference)
    who = UNNAMED if row.annotator is None else row.annotator
    if who not in index:
        raise ValueError(f"is by the annotator {who!r}, of whom the training data has nothing")
    margin = row.margin if isinstance(row, Preference) else None
    if margins and margin is None:
        what = "has no margin" if pair else "is a ranking, which has no margins"
        raise ValueError(f"{what}: give every pair one, or leave use_margin out")
    completions = (row.chosen, row.rejected) if isinstance(row, Preference) else row.completions
    texts = []
    for completion in completions:
        key = repr((row.prompt, completion))
        if key not in cache:
            cache[key] = tuple(judge.tokens(row.prompt, completion, cut=cut, warn=False))
        texts.append(cache[key])
    check_ids(texts, len(judge.model.get_input_embeddings().weight), "text", judge.name, judge.tokenizer)
    label = row.label if isinstance(row, Preference) else 1.0
    wanted = margin if margins and margin is not None else 0.0
    return Comparison(tuple(texts), label, wanted, index[who], repr(row.prompt))


def split(data: Sequence[Comparison], share: float, seed: int) -> tuple[list[Comparison], list[Comparison], str]:
    """(train, held out, how): no prompt in both, or no comparison where there are fewer than ten prompts."""
    prompts = sorted({c.prompt for c in data})
    rng = random.Random(seed)
    if len(prompts) >= 10:
        chosen = set(rng.sample(prompts, max(1, round(share * len(prompts)))))
        held = [c.prompt in chosen for c in data]
        how = f"{len(chosen)} of {len(prompts)} prompts"
    else:
        places = set(rng.sample(range(len(data)), max(1, round(share * len(data)))))
        held = [i in places for i in range(len(data))]
        how = f"drawn at random, since the data has only {len(prompts)} different prompts"
    train = [c for c, out in zip(data, held, strict=True) if not out]
    return train, [c for c, out in zip(data, held, strict=True) if out], how


def batches(data: Sequence[Comparison], size: int, rng: random.Random) -> Iterator[list[Comparison]]:
    """One pass in random order, each batch of texts of similar length."""
    order = list(data)
    rng.shuffle(order)
    for start in range(0, len(order), POOL * size):
        pool = sorted(order[start : start + POOL * size], key=lambda c: c.length)
        parts = [pool[i : i + size] for i in range(0, len(pool), size)]
        rng.shuffle(parts)
        yield from parts


def table(scores: Tensor, data: Sequence[Comparison]) -> tuple[Tensor, Tensor]:
    """Scores (B, K) and mask (B, K), bool, from the scores of all texts, one comparison after the other."""
    width = max(len(c.texts) for c in data)
    mask = torch.tensor([[k < len(c.texts) for k in range(width)] for c in data], device=scores.device)
    return scores.new_zeros(mask.shape).masked_scatter(mask, scores), mask
