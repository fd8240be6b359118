"""What decoding is asked for and what it gives: parameters, completions, why they end, and the record of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from lm_gym.models import CausalLM
from lm_gym.prompts import Prompt


@dataclass(frozen=True)
class GenerationParams:
    """How to decode.

    Attributes:
        max_new_tokens: a text ends after so many tokens. min_new_tokens: no EOS and no stop string before so many.
        stop: strings that end a text once its completion contains one. temperature: divides the logits, above 0;
            ``greedy`` takes the most likely token instead (log-probs stay those of the distribution).
        top_k: choose among the k likeliest tokens of the engine's ``guide`` only, EOS always among them.
        top_p: choose among the ``guide``'s likeliest tokens that have so much probability together only.
        rows: how many texts decode together; the rest wait and refill finished rows. None: all at once.
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    temperature: float = 1.0
    greedy: bool = False
    top_k: int | None = None
    top_p: float | None = None
    rows: int | None = None


@dataclass
class Completion:
    """One finished text.

    Attributes:
        prompt_ids: what it continues. tokens: T ids, the ending EOS among them. finish_reason: "eos", "stop", "length".
        logprobs: (T,) float32, log π of each token in the distribution it was drawn from; None if unknown.
        weight_versions: T ints, the version of the weights that drew each token.
        values: (T,) value estimates of the states before each token, if the engine has a value head.
        hidden: (T, d) last hidden states before each token, if asked for.
        below: (P+T−1, d) what came out of the model's lowest blocks for all tokens but the last, if asked for.
        allowed: (T, k) ids that could be chosen under ``top_k`` or ``top_p`` (where there are fewer, some twice).
        prompt: the prompt's record, which scoring needs.
    """

    prompt_ids: Sequence[int]
    tokens: list[int]
    finish_reason: str
    logprobs: torch.Tensor | None = None
    weight_versions: list[int] = field(default_factory=list)
    values: torch.Tensor | None = None
    hidden: torch.Tensor | None = None
    below: torch.Tensor | None = None
    allowed: torch.Tensor | None = None
    prompt: Prompt | None = None


def finish_reason(
    tokens: Sequence[int],
    *,
    eos_ids: Sequence[int],
    max_new_tokens: int,
    min_new_tokens: int = 0,
    stop: Sequence[str] = (),
    decode: Callable[[Sequence[int]], str] | None = None,
) -> str | None:
    """Why a completion ends with its last token: "eos", "stop", "length", or None if it does not.

    A stop string counts once the text of the completion contains it and ``min_new_tokens`` are there.
    """
    if tokens[-1] in eos_ids:
        return "eos"
    if stop and decode is not None and len(tokens) >= min_new_tokens:
        text = decode(tokens)
        if any(s in text for s in stop):
            return "stop"
    return "length" if len(tokens) >= max_new_tokens else None


class Tails:
    """Texts that grow by a token a step, as :func:`finish_reason` needs them for stop strings, without decoding all.

    Until a stop string appears only the tail is decoded that one may end in: in the text of a fast tokenizer a token
    changes nothing but what stands beside it. Other tokenizers may do what they like, so their texts are decoded whole.

    Args:
        lm: whose texts. stop: what is looked for.
    """

    def __init__(self, lm: CausalLM, stop: Sequence[str]) -> None:
        self.lm, self.stop = lm, stop
        # a character that a later token may complete is shown as U+FFFD
        broken = any("\ufffd" in s for s in stop)
        self.local = (lm.tokenizer is None or getattr(lm.tokenizer, "is_fast", False)) and not broken
        self.room = max(map(len, stop), default=0) + 32
        self.begin: dict[int, int] = {}

    def text(self, key: int, tokens: Sequence[int]) -> str:
        """A text that contains a stop string where that of ``tokens`` does; ``key`` tells growing texts apart.

        To be asked at every step from the first on that counts.
        """
        begin = self.begin.get(key, 0)
        text = self.lm.decode(tokens[begin:])
        if any(s in text for s in self.stop):
            return self.lm.decode(tokens) if begin else text  # the tail's beginning may read otherwise in its place
        middle = (begin + len(tokens)) // 2
        if self.local and len(text) > 4 * self.room and len(self.lm.decode(tokens[middle:])) >= self.room:
            begin = middle
        self.begin[key] = begin
        return text

    def forget(self, key: int) -> None:
        """A new text begins under this key."""
        self.begin.pop(key, None)


class Record:
    """What every prompt's completion is so far: a log of the steps, put in order at the end.

    Places number the tokens of all prompts: prompt times ``max_new_tokens`` plus step.
    """

    def __init__(self, total: int, lm: CausalLM, params: GenerationParams) -> None:
        self.lm, self.params = lm, params
        self.places: list[torch.Tensor] = []
        self.log: dict[str, list[torch.Tensor]] = {}
        self.reasons = [""] * total
        self.lengths = [0] * total
        self.below: list[torch.Tensor | None] = [None] * total
        self.texts: list[list[int]] = [[] for _ in range(total)]  # only where stop strings are looked for
        self.tails = Tails(lm, params.stop)

    def early(self, owner: Sequence[int | None]) -> list[bool]:
        """Which rows may not end with their next token; rows without a prompt count as such."""
        least = self.params.min_new_tokens
        return [at is None or self.lengths[at] < least for at in owner] if least else []

    def write(
        self,
        place: torch.Tensor,
        tokens: torch.Tensor,
        logprobs: torch.Tensor,
        values: torch.Tensor | None,
        hidden: torch.Tensor | None,
        allowed: torch.Tensor | None,
    ) -> None:
        """One step of n rows; nothing given may be written to any more."""
        self.places.append(place)
        given = {"tokens": tokens, "logprobs": logprobs, "values": values, "hidden": hidden, "allowed": allowed}
        for name, x in given.items():
            if x is not None:
                self.log.setdefault(name, []).append(x)

    def finish(self, owner: Sequence[int | None], tokens: torch.Tensor) -> list[int]:
        """The rows whose texts have ended with their last token."""
        params, live = self.params, [(row, at) for row, at in enumerate(owner) if at is not None]
        for _, at in live:
            self.lengths[at] += 1
        lengths = [self.lengths[at] for _, at in live]
        if not params.stop and max(lengths) <= min(params.min_new_tokens, params.max_new_tokens - 1):
            return []  # whatever was drawn: no need to wait for it
        ended, drawn = [], tokens.tolist()
        for (row, at), length in zip(live, lengths, strict=True):
            text = [drawn[row]] * length
            if params.stop:
                self.texts[at].append(drawn[row])
                text = self.texts[at]
            reason = finish_reason(
                text,
                eos_ids=self.lm.eos_ids,
                max_new_tokens=params.max_new_tokens,
                min_new_tokens=params.min_new_tokens,
                stop=params.stop,
                decode=partial(self.tails.text, at),
            )
            if reason is not None:
                self.reasons[at] = reason
                ended.append(row)
        return ended

    def completions(self, prompts: Sequence[Sequence[int]], version: int) -> list[Completion]:
        # the places of rows without a prompt are behind all others
        order = torch.cat(self.places).argsort()[: sum(self.lengths)]

        def in_order(name: str) -> Sequence[torch.Tensor | None]:
            if name not in self.log:
                return [None] * len(prompts)
            steps = self.log.pop(name)
            if name == "allowed":  # sets of all sizes: the first id fills up, as in the set itself
                widest = max(x.shape[1] for x in steps)
                steps = [torch.cat([x, x[:, :1].expand(-1, widest - x.shape[1])], 1) for x in steps]
            whole = torch.cat(steps)
            if whole.is_floating_point():
                whole = whole.float()
            return [x.clone() for x in whole.index_select(0, order).split(self.lengths)]

        tokens = [x.tolist() for x in in_order("tokens") if x is not None]
        logprobs, values, hidden, allowed = map(in_order, ("logprobs", "values", "hidden", "allowed"))
        return [
            Completion(
                prompt_ids=prompt,
                tokens=tokens[i],
                finish_reason=self.reasons[i],
                weight_versions=[version] * self.lengths[i],
                logprobs=logprobs[i],
                values=values[i],
                hidden=hidden[i],
                below=self.below[i],
                allowed=allowed[i],
            )
            for i, prompt in enumerate(prompts)
        ]
