"""What every decoding engine does alike: the built-in one here, vLLM in `make test-vllm`."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from small_models import wide_lm

from lm_gym.decoding import Completion, Engine, GenerationParams, finish_reason, restrict
from lm_gym.forward import pad_texts, response_hidden, token_logprobs
from lm_gym.models import CausalLM

PROMPTS = [[3, 4, 5], [6], [7, 8, 3, 4, 5, 6, 7], [5, 5], [9, 10]]
KINDS = ["llama", "gqa-tied", "gpt2"]
Maker = Callable[..., Any]


@pytest.fixture(
    params=["builtin", pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.filterwarnings("ignore")])]
)
def make(request: pytest.FixtureRequest) -> Iterator[Maker]:
    """Makes engines: ``make(lm, **options)``."""
    if request.param == "builtin":
        yield Engine
        return
    pytest.importorskip("vllm", reason="vLLM is not installed here: make test-vllm")
    from lm_gym.vllm_engine import VLLMEngine

    made: list[VLLMEngine] = []

    def maker(lm: CausalLM, **options: Any) -> VLLMEngine:
        made.append(VLLMEngine(lm, kv_cache_gib=0.125, **options))
        return made[-1]

    yield maker
    for engine in made:
        engine.close()


@torch.no_grad()
def forced(lm: CausalLM, c: Completion, params: GenerationParams) -> tuple[torch.Tensor, torch.Tensor]:
    """log-probs (T,) and hidden states (T, d) of a completion by one pass over its whole text."""
    ids, seen, _ = pad_texts([c.prompt_ids], [c.tokens], lm.pad_id)
    hidden = response_hidden(lm, ids, seen, len(c.tokens))[0]
    no_eos = torch.arange(len(c.tokens)) < params.min_new_tokens
    logits = restrict(lm.head(hidden) / params.temperature, no_eos=no_eos, eos_ids=lm.eos_ids)
    return token_logprobs(torch.log_softmax(logits, -1), torch.tensor(c.tokens)), hidden


def check(lm: CausalLM, completions: list[Completion], params: GenerationParams, version: int = 0) -> None:
    """Every text ends where it must and not before, and carries the log-probs that it was drawn with."""
    rule = {
        "eos_ids": lm.eos_ids,
        "max_new_tokens": params.max_new_tokens,
        "min_new_tokens": params.min_new_tokens,
        "stop": params.stop,
        "decode": lm.decode,
    }
    for c in completions:
        assert finish_reason(c.tokens, **rule) == c.finish_reason  # type: ignore[arg-type]
        assert all(finish_reason(c.tokens[:t], **rule) is None for t in range(1, len(c.tokens)))  # type: ignore[arg-type]
        assert not set(c.tokens[: params.min_new_tokens]) & set(lm.eos_ids)
        assert c.weight_versions == [version] * len(c.tokens)
        assert c.logprobs is not None and c.logprobs.shape == (len(c.tokens),)
        torch.testing.assert_close(c.logprobs, forced(lm, c, params)[0], atol=1e-4, rtol=0)


def tokens(completions: list[Completion]) -> list[list[int]]:
    return [c.tokens for c in completions]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "how",
    [{}, {"temperature": 0.7}, {"min_new_tokens": 5, "temperature": 1.5}, {"greedy": True, "temperature": 0.7}],
    ids=["plain", "temperature", "min_new_tokens", "greedy"],
)
def test_texts_and_logprobs(make: Maker, kind: str, how: dict[str, Any]) -> None:
    lm, params = wide_lm(kind), GenerationParams(max_new_tokens=16, **how)
    prompts = PROMPTS * 4
    done = make(lm, seed=3).generate(prompts, params)
    assert [c.prompt_ids for c in done] == prompts
    check(lm, done, params)
    assert {"eos", "length"} >= {c.finish_reason for c in done}
    assert len(set(map(len, tokens(done)))) > 1 or params.greedy


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_takes_the_likeliest_token(make: Maker, kind: str) -> None:
    lm, params = wide_lm(kind), GenerationParams(max_new_tokens=20, greedy=True)
    for prompt, c in zip(PROMPTS, make(lm).generate(PROMPTS, params), strict=True):
        text = list(prompt)
        for token in c.tokens:
            with torch.no_grad():
                logits = lm.head(lm.trunk(torch.tensor([text]), torch.ones(1, len(text), dtype=torch.long)))[0, -1]
            assert token == int(logits.argmax())
            text.append(token)


def test_several_ends(make: Maker) -> None:
    lm, params = wide_lm(eos=[2, 5, 8]), GenerationParams(max_new_tokens=12)
    assert lm.eos_ids == (2, 5, 8)
    done = make(lm, seed=1).generate(PROMPTS * 6, params)
    check(lm, done, params)
    assert {c.tokens[-1] for c in done if c.finish_reason == "eos"} == {2, 5, 8}


def test_padding_and_end_may_share_an_id(make: Maker) -> None:
    lm, params = wide_lm("gpt2", pad=None), GenerationParams(max_new_tokens=9)
    assert lm.pad_id == 2 and lm.eos_ids == (2,)
    done = make(lm).generate([[3], [3, 4, 2, 3]] * 8, params)
    check(lm, done, params)
    assert any(c.finish_reason == "eos" and c.tokens[-1] == 2 for c in done)


@pytest.mark.parametrize("least", [0, 6])
def test_stop_strings(make: Maker, least: int) -> None:
    """One that is complete before ``min_new_tokens`` ends the text once they are there."""
    lm, params = wide_lm(), GenerationParams(max_new_tokens=14, min_new_tokens=least, stop=("ab", "c", "zz"))
    done = make(lm, seed=2).generate(PROMPTS * 6, params)
    check(lm, done, params)
    stopped = [c for c in done if c.finish_reason == "stop"]
    assert stopped and all("c" in lm.decode(c.tokens) or "ab" in lm.decode(c.tokens) for c in stopped)
    if least:
        early = [c for c in stopped if len(c.tokens) == least and "c" in lm.decode(c.tokens[: least - 1])]
        assert early


@pytest.mark.parametrize(("least", "most"), [(0, 1), (4, 4), (5, 3)])
def test_lengths(make: Maker, least: int, most: int) -> None:
    lm, params = wide_lm(), GenerationParams(max_new_tokens=most, min_new_tokens=least)
    done = make(lm).generate(PROMPTS * 4, params)
    check(lm, done, params)
    assert least == 0 or all(c.finish_reason == "length" and len(c.tokens) == most for c in done)


@pytest.mark.parametrize("kind", KINDS)
def test_new_weights_decode_and_are_named(make: Maker, kind: str) -> None:
    old, new = (wide_lm(kind, seed=seed, positions=512) for seed in (0, 9))
    params, prompts = GenerationParams(max_new_tokens=12), [*PROMPTS * 2, [3, 4, 5, 6, 7, 8] * 50]
    engine = make(old, seed=1)
    check(old, engine.generate(prompts, params), params)
    engine.update_weights(new, 7)  # what was kept of the long prompt is of the old ones
    done = engine.generate(prompts, params)
    check(new, done, params, version=7)
    far = max(float((c.logprobs - forced(old, c, params)[0]).abs().max()) for c in done if c.logprobs is not None)
    assert far > 0.5  # or the old weights would have passed as well
    engine.update_weights(old, 8)
    check(old, engine.generate(prompts, params), params, version=8)


def test_the_seed_decides_and_the_next_call_goes_on(make: Maker) -> None:
    lm, params = wide_lm(), GenerationParams(max_new_tokens=10)
    first, same, other = make(lm, seed=1), make(lm, seed=1), make(lm, seed=2)
    a, b, c = (tokens(e.generate(PROMPTS, params)) for e in (first, same, other))
    assert a == b != c
    again = tokens(first.generate(PROMPTS, params))
    assert again != a and again == tokens(same.generate(PROMPTS, params))
    first.generator.set_state(other.generator.get_state())  # how a checkpoint goes on
    assert tokens(first.generate(PROMPTS, params)) == tokens(other.generate(PROMPTS, params))


@pytest.mark.parametrize("rows", [1, 3])
def test_fewer_rows_write_the_same_texts(make: Maker, rows: int) -> None:
    lm = wide_lm()
    how = {"max_new_tokens": 10, "stop": ("c",)}
    all_at_once = make(lm, seed=5).generate(PROMPTS * 2, GenerationParams(**how))
    few = make(lm, seed=5).generate(PROMPTS * 2, GenerationParams(rows=rows, **how))
    assert tokens(all_at_once) == tokens(few)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_draws_as_often_as_the_model_says(make: Maker, temperature: float) -> None:
    lm, n, prompt = wide_lm(), 3000, [3, 4, 5]
    done = make(lm, seed=11).generate([prompt] * n, GenerationParams(max_new_tokens=2, temperature=temperature))

    def expected(text: list[int]) -> np.ndarray:
        with torch.no_grad():
            hidden = lm.trunk(torch.tensor([text]), torch.ones(1, len(text), dtype=torch.long))[0, -1]
            return torch.softmax(lm.head(hidden).double() / temperature, -1).numpy()

    def p_value(drawn: list[int], p: np.ndarray) -> float:
        counts = np.bincount(drawn, minlength=len(p))
        rare = p * len(drawn) < 5  # their counts are no normal numbers: together in one class
        seen, due = (np.append(x[~rare], x[rare].sum()) for x in (counts, p * len(drawn)))
        return float(stats.chisquare(seen[due > 0], due[due > 0]).pvalue)

    first = expected(prompt)
    assert p_value([c.tokens[0] for c in done], first) > 1e-3
    common = int(np.argsort(first)[-1])
    second = [c.tokens[1] for c in done if c.tokens[0] == common and len(c.tokens) > 1]
    assert len(second) > 300 and p_value(second, expected([*prompt, common])) > 1e-3


def test_values_and_hidden_states(make: Maker) -> None:
    lm, params = wide_lm("gqa-tied"), GenerationParams(max_new_tokens=12)
    done = make(lm, value_head=lambda h: h.sum(-1), keep_hidden=True, seed=4).generate(PROMPTS * 2, params)
    for c in done:
        hidden = forced(lm, c, params)[1]
        assert c.hidden is not None and c.values is not None
        torch.testing.assert_close(c.hidden, hidden, atol=1e-4, rtol=0)
        torch.testing.assert_close(c.values, hidden.sum(-1), atol=1e-3, rtol=0)
    plain = make(lm, seed=4).generate(PROMPTS * 2, params)
    assert tokens(plain) == tokens(done) and all(c.hidden is None and c.values is None for c in plain)


def test_refused(make: Maker) -> None:
    engine = make(wide_lm())
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        engine.generate([[3], [], [4]], GenerationParams(max_new_tokens=3))
    for how in ({"top_k": 4}, {"top_p": 0.9}):
        with pytest.raises(ValueError, match=r"top_k .*top_p"):
            engine.generate([[3]], GenerationParams(max_new_tokens=3, **how))  # type: ignore[arg-type]
    assert engine.generate([], GenerationParams(max_new_tokens=3)) == []
    assert len(engine.generate([[3]], GenerationParams(max_new_tokens=3))) == 1  # nothing is left of what was refused


def test_the_callers_random_streams_are_untouched(make: Maker) -> None:
    lm, new = wide_lm(), wide_lm(seed=1)
    torch.manual_seed(5), random.seed(5), np.random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index] # noqa: NPY002
    threads = torch.get_num_threads(), torch.set_num_threads
    engine = make(lm)
    engine.generate(PROMPTS, GenerationParams(max_new_tokens=5))
    engine.update_weights(new, 1)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index] # noqa: NPY002
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    assert threads == (torch.get_num_threads(), torch.set_num_threads)
