"""An interpolated Kneser-Ney n-gram model: what `tiny` has to beat, so that its world is not too narrow.

Source: Chen and Goodman, An Empirical Study of Smoothing Techniques for Language Modeling (1998), section 2.7, the
interpolated form, with their modified discounts for counts of 1, 2 and 3 or more (section 3).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence


class KneserNey:
    """p(token | the order-1 tokens before it), interpolated down to the uniform distribution over the vocabulary.

    Lower orders count in how many contexts a token was seen, not how often (the continuation counts of Kneser-Ney).
    """

    def __init__(self, texts: Iterable[Sequence[int]], *, order: int = 5, vocab_size: int) -> None:
        """`texts`: token ids, each beginning with BOS (never predicted) and ending with EOS."""
        if order < 1:
            raise ValueError(f"order: expected at least 1, got {order}")
        self.order, self.vocab_size = order, vocab_size
        counts: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(order)]
        for text in texts:
            ids = tuple(text)
            for end in range(2, len(ids) + 1):
                start = max(0, end - order)
                # A text's first tokens have no longer context: they count in full at the order that they have.
                counts[end - start - 1][ids[start:end]] += 1
        for n in range(order - 1, 0, -1):
            for gram in counts[n]:
                counts[n - 1][gram[1:]] += 1
        self._counts = counts
        self._totals: list[dict[tuple[int, ...], list[int]]] = []
        self._discounts: list[tuple[float, float, float]] = []
        for table in counts:
            totals: dict[tuple[int, ...], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
            for gram, count in table.items():
                row = totals[gram[:-1]]
                row[0] += count
                row[min(count, 3)] += 1
            self._totals.append(dict(totals))
            self._discounts.append(_discounts(table))

    def prob(self, context: Sequence[int], token: int) -> float:
        """p(token | context), over the whole vocabulary: sums to 1 for every context."""
        p = 1.0 / self.vocab_size
        past = tuple(context)[-(self.order - 1) :] if self.order > 1 else ()
        for n in range(len(past) + 1):
            suffix = past[len(past) - n :]
            row = self._totals[n].get(suffix)
            if row is None:
                continue
            count = self._counts[n].get((*suffix, token), 0)
            cut = self._discounts[n]
            left = sum(d * kinds for d, kinds in zip(cut, row[1:], strict=True)) / row[0]
            p = max(count - (cut[min(count, 3) - 1] if count else 0.0), 0.0) / row[0] + left * p
        return p

    def perplexity(self, texts: Iterable[Sequence[int]]) -> float:
        """exp of the mean negative log-probability of every token after the first of each text."""
        nats, tokens = 0.0, 0
        for text in texts:
            for t in range(1, len(text)):
                nats -= math.log(self.prob(text[:t], text[t]))
                tokens += 1
        return math.exp(nats / tokens)


def _discounts(table: Counter[tuple[int, ...]]) -> tuple[float, float, float]:
    """Chen and Goodman's D1, D2, D3+ from how many n-grams were counted once, twice, three and four times."""
    seen = Counter(table.values())
    n1, n2, n3, n4 = (max(seen[c], 1) for c in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2)
    d1, d2, d3 = 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3
    return min(max(d1, 0.1), 1.0), min(max(d2, 0.1), 2.0), min(max(d3, 0.1), 3.0)
