"""One check of every model at load: what is computed of it here is what its own forward pass says.

Texts of two lengths go through everything that models are used by: the trunk in a padded batch, the trunk written out
(:mod:`lm_gym.flat_trunk`) where it is, and rows that decode with a cache, alone and at different ages, one of them
reset while the other goes on. Log-probs are compared with one plain, unpadded forward pass of the untouched model for
each text. A model that differs is refused in one sentence; a list of classes would be out of date tomorrow.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import logging

from lm_gym import flat_trunk, models
from lm_gym.forward import pad_texts
from lm_gym.hooks import has_hooks

if TYPE_CHECKING:
    from lm_gym.models import TransformersLM

TOLERANCE = 1e-3
"""Nats that the largest difference of a log-prob may be in float32: 25 times the rounding that was seen."""

COARSE = 0.25
"""Nats that the mean difference in a state may be in 16 bits, where single log-probs differ by tenths of a nat: .11
was seen (SmolLM2-135M in bfloat16, single ones .5).

Both are for logits with a standard deviation of 1 and more. Where they are closer together, as in a model that was just
made, so are right and wrong ones, and the tolerance shrinks along."""

LONGEST_WINDOW, MOST_WORK = 1024, 1e10
"""The longer text goes past a window of attention, or a change of position encodings, of up to so many tokens, where
tokens times parameters stay below the second number; others would cost too much here."""

_found: dict[str, str | None] = {}
"""What was said of a model, None where nothing was: by :func:`_key`."""


def check_model(lm: TransformersLM) -> None:
    """Compare what is computed of ``lm`` here with its own forward pass, once for each model and process.

    It costs 11 passes over a few tokens, about what writing 15 tokens costs: 20 ms for ``tiny``, 1.6 s for a model of
    135 million parameters on one CPU core, memory for their logits; a window of attention that is short enough makes
    the longer text that long. The state of torch's random generators is left as it was.

    Raises:
        ValueError: names the class and what differs.
    """
    key = _key(lm)
    if key is None or key not in _found:
        devices = [lm.device] if lm.device.type == "cuda" else []
        shown = logging.get_verbosity()
        logging.set_verbosity_error()  # some classes say what they pass over
        try:
            with torch.random.fork_rng(devices):
                # two tries: where a router's choice hangs on rounding, a text alone may differ
                problem = _problem(lm, 0) and _problem(lm, 1)
        finally:
            logging.set_verbosity(shown)
        if key is not None:
            _found[key] = problem
    else:
        problem = _found[key]
    if problem is not None:
        raise ValueError(
            f"model {lm.name!r} ({type(lm.causal_lm()).__name__}) cannot be used here: {problem}. To do: take "
            "another model (docs/models.md lists the classes that were tried)"
        )


@torch.no_grad()
def check_critic(base: Any, lm: TransformersLM, what: str) -> None:
    """Compare the states of a critic's trunk in a padded batch with plain forward passes of its own.

    Args:
        base: a ``transformers`` model without a head, in float32. lm: the policy, whose ids it reads. what: its name.

    Raises:
        ValueError: says how far they are apart, in standard deviations of a state.
    """
    texts = _texts(lm, 0, base.config)
    ids, mask, wanted, width = _batch(lm, texts)
    if not wanted.any():  # a model of one position
        return
    found: list[torch.Tensor] = []
    problem = _failure(lambda: found.append(models.base_states(base, ids, mask, wanted, prompt_width=width)))
    if problem is None:
        plain = [base(input_ids=torch.tensor([t], device=lm.device)).last_hidden_state[0, n:] for t, n in texts]
        own = torch.cat(plain)
        off = float((found[0] - own).abs().max() / own.std())
        if off > TOLERANCE:
            problem = f"states that are {off:.2g} standard deviations off its own forward pass"
    if problem is not None:
        raise ValueError(f"{what} cannot be used here: whole texts in a padded batch give {problem}")


@torch.no_grad()
def _problem(lm: TransformersLM, seed: int) -> str | None:
    texts = _texts(lm, seed)
    own: list[torch.Tensor] = []
    problem = _failure(lambda: own.extend(_own(lm, text) for text, _ in texts))
    if problem is not None:
        return f"its own forward pass over a text fails with {problem}"
    if any(len(x) != len(text) for x, (text, _) in zip(own, texts, strict=True)):
        return f"its own forward pass gives {len(own[0])} log-probs for a text of {len(texts[0][0])} tokens"
    if any(bool(x.isnan().any()) for x in own):
        return "its own forward pass gives log-probs that are no numbers (NaN)"
    for what, compute in PATHS:
        problem = _compared(lm, texts, own, compute)
        if problem is not None and compute is _padded:  # if a text alone is not right either, that is the reason
            alone = _compared(lm, texts, own, _alone)
            what, problem = (what, problem) if alone is None else (HEAD, alone)
        if problem is not None:
            return f"{what} {problem}"
    return None


Texts = list[tuple[list[int], int]]  # ids, and how many of them are the prompt
Found = Iterator[tuple[int, slice, torch.Tensor]]  # a text, places in it, and the last hidden states (n, d) there


def _compared(lm: TransformersLM, texts: Texts, own: list[torch.Tensor], compute: Callable[..., Found]) -> str | None:
    exact = _is_exact(lm)

    def measure(found: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
        apart = _apart(found, want)
        return (apart if exact else apart.mean(-1)).max()

    shapes, off = set[tuple[int, ...]](), []

    def compare() -> None:
        for row, at, hidden in compute(lm, texts):
            found, want = _logprobs(lm.head(hidden)), own[row][at]
            if found.shape == want.shape:
                off.append(measure(found, want))
            else:
                shapes.add(tuple(found.shape))

    failure = _failure(compare)
    if failure is not None:
        return f"fail with {failure}"
    if shapes:
        return f"give log-probs of the shape {shapes.pop()}, its own forward pass {own[0].shape[-1]} a token"
    if not off:
        return None
    spread = max(float(x[x.isfinite()].std()) for x in own)
    worst = float(torch.stack(off).max())
    allowed = (TOLERANCE if exact else COARSE) * min(1.0, spread) + 1e-5
    if worst <= allowed:
        return None
    kind = "" if exact else " on average"
    return f"give log-probs that are {worst:.2g} nats off its own forward pass{kind} (rounding makes {allowed:.2g})"


def _failure(run: Callable[[], None]) -> str | None:
    """What a call fails with, on a line."""
    try:
        run()
    except torch.OutOfMemoryError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        lines = str(e).strip().splitlines()
        return f"{type(e).__name__}: {lines[0][:160].rstrip('. ') if lines else 'no message'}"
    return None


def _texts(lm: TransformersLM, seed: int, config: Any = None) -> Texts:
    """A short and a longer text; ids that mean nothing special, no random numbers."""
    special = {*lm.eos_ids, lm.pad_id, *(getattr(lm.tokenizer, "all_special_ids", None) or ())}
    size = min(lm.vocab_size, lm.input_size)
    ids = [i for i in (size * k // 97 for k in range(97)) if i not in special] or list(range(size))
    config = (config or lm.causal_lm().config).get_text_config(decoder=True)
    fields = ("sliding_window", "attention_chunk_size", "window_size", "local_attention")
    windows = [getattr(config, field, None) for field in fields]
    windows.append((getattr(config, "rope_parameters", None) or {}).get("original_max_position_embeddings"))  # longrope
    most = min(LONGEST_WINDOW, MOST_WORK / sum(p.numel() for p in lm.parameters()))
    passed = [w for w in windows if isinstance(w, int) and 0 < w <= most]
    out = []
    for first, length in ((31, 6), (62, max([9, *(w + 6 for w in passed)]))):
        length = min(length, lm.max_positions)
        text = [ids[(first + 43 * seed + 17 * k * k + 5 * k) % len(ids)] for k in range(length)]
        out.append((text, max(1, length - 3)))
    return out


def _alone(lm: TransformersLM, texts: Texts) -> Found:
    for i, (text, _) in enumerate(texts):
        ids = torch.tensor([text], device=lm.device)
        yield i, slice(None), lm.trunk(ids, torch.ones_like(ids))[0]


def _batch(lm: TransformersLM, texts: Texts) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """ids, mask and what is behind the prompts (B, P+T); P."""
    ids, mask, answers = pad_texts([t[:n] for t, n in texts], [t[n:] for t, n in texts], lm.pad_id)
    width = ids.shape[1] - answers.shape[1]
    return ids, mask, torch.nn.functional.pad(answers, (width, 0)), width


def _padded(lm: TransformersLM, texts: Texts) -> Found:
    ids, mask, _, _ = _batch(lm, texts)
    hidden = lm.trunk(ids.to(lm.device), mask.to(lm.device))
    for i in range(len(texts)):
        yield i, slice(None), hidden[i][mask[i].bool().to(lm.device)]


def _flat(lm: TransformersLM, texts: Texts) -> Found:
    ids, mask, wanted, width = _batch(lm, texts)
    if not wanted.any() or not flat_trunk.is_known(lm._base()):
        return
    hidden = lm.states(ids, mask, wanted, prompt_width=width)
    for i, (text, n) in enumerate(texts):
        yield i, slice(n, None), hidden[: len(text) - n]
        hidden = hidden[len(text) - n :]


def _decoded(lm: TransformersLM, texts: Texts) -> Found:
    """A text alone; a second one put in beside it, as a row is reset; and both begun anew at once."""
    (a, n), (b, m) = texts
    rows, width = lm.rows(2, max(len(a), len(b))), (len(a), len(b))

    def step(*places: int) -> Found:
        tokens = [text[min(at, end - 1)] for text, at, end in zip((a, b), places, width, strict=True)]
        hidden = rows.step(torch.tensor(tokens, device=lm.device))
        for row, at in enumerate(places):
            if at < width[row]:
                yield row, slice(at, at + 1), hidden[row : row + 1]

    yield 0, slice(n - 1, n), rows.insert([0], [a[:n]])
    if n < len(a):
        yield from step(n, len(b))
    yield 1, slice(m - 1, m), rows.insert([1], [b[:m]])
    for k in range(min(len(a) - n - 1, len(b) - m)):
        yield from step(n + 1 + k, m + k)
    hidden = rows.insert([0, 1], [a[:n], b[:m]])
    yield 0, slice(n - 1, n), hidden[:1]
    yield 1, slice(m - 1, m), hidden[1:]
    if min(len(a) - n, len(b) - m) > 0:
        yield from step(n, m)


HEAD = "its trunk and its output head on a text by itself"

PATHS: tuple[tuple[str, Callable[[TransformersLM, Texts], Found]], ...] = (
    ("whole texts in a padded batch", _padded),
    ("whole texts in the trunk that is written out here", _flat),
    ("rows that decode with one cache of keys and values", _decoded),
)


def _own(lm: TransformersLM, text: list[int]) -> torch.Tensor:
    """Log-probs (length, V) of the untouched model's plain forward pass over a text."""
    return _logprobs(lm.model(input_ids=torch.tensor([text], device=lm.device), use_cache=False).logits[0])


def _logprobs(logits: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(logits.float(), -1)


def _apart(found: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    """|found − want|; 0 where both are minus infinity, infinite where one is no number."""
    return torch.where(found == want, 0.0, (found - want).abs()).nan_to_num(nan=torch.inf)


def _is_exact(lm: TransformersLM) -> bool:
    """Whether products are made in float32: not in 16 bits, and not in TF32."""
    return lm.dtype in (torch.float32, torch.float64) and torch.get_float32_matmul_precision() == "highest"


def _key(lm: TransformersLM) -> str | None:
    """What tells models apart; None for one that somebody changed by hand, which is looked at each time.

    The weights count with the first numbers and the sum of each tensor: a model that was just made can hide what it
    would show after training, and one number that is NaN anywhere damages all.
    """
    model = lm.model
    if any(has_hooks(m) or "forward" in vars(m) for m in model.modules()):
        return None
    config = {k: v for k, v in model.config.to_dict().items() if k not in ("_name_or_path", "transformers_version")}
    kind = getattr(lm._base().config, "_attn_implementation", "")
    precision = torch.get_float32_matmul_precision()
    digest = hashlib.sha256(
        json.dumps(
            [
                *(f"{type(m).__module__}.{type(m).__qualname__}" for m in (model, lm.causal_lm())),
                config,
                [kind, precision, str(lm.device), lm.max_positions, lm.pad_id, *lm.eos_ids],
                [(name, list(p.shape), str(p.dtype)) for name, p in model.state_dict().items()],
            ],
            sort_keys=True,
            default=str,
        ).encode()
    )
    numbers = [x.double() for p in model.parameters() for x in (p.detach().flatten()[:8], p.detach().sum()[None])]
    digest.update(torch.cat(numbers).cpu().numpy().tobytes())
    return digest.hexdigest()
