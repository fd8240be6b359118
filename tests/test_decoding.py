"""The decoding engine against transformers' generate, against teacher forcing, and against the distribution."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from small_models import gpt2, llama, small_lm, tokenizer

from lm_gym.completions import Tails
from lm_gym.decoding import Completion, Engine, GenerationParams, finish_reason, restrict, sample, top_k_ids
from lm_gym.forward import pad_texts, response_hidden, token_logprobs
from lm_gym.loading import load_model
from lm_gym.models import TransformersLM
from lm_gym.rows import AttentionRows

PROMPTS = [[3, 4, 5], [6], [7, 8, 3, 4, 5, 6, 7], [5, 5], [9, 10]]


@pytest.mark.parametrize("kind", ["llama", "gqa", "gpt2"])
def test_greedy_tokens_equal_those_of_generate(kind: str) -> None:
    lm = small_lm(kind).freeze()
    ours = Engine(lm).generate(PROMPTS, GenerationParams(max_new_tokens=20, greedy=True))
    for prompt, completion in zip(PROMPTS, ours, strict=True):
        theirs = lm.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=2,
            pad_token_id=0,
        )[0, len(prompt) :]
        assert completion.tokens == theirs.tolist()
        assert completion.finish_reason == ("eos" if 2 in completion.tokens else "length")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("params", [{}, {"temperature": 0.7}, {"min_new_tokens": 5}, {"top_k": 4}])
def test_recorded_logprobs_equal_teacher_forced_ones(kind: str, params: dict[str, float]) -> None:
    lm, guide = small_lm(kind).freeze(), small_lm(kind, seed=1).freeze()
    how = GenerationParams(max_new_tokens=16, **params)  # type: ignore[arg-type]
    done = Engine(lm, guide=guide, keep_hidden=True, value_head=lambda h: h.sum(-1), seed=3).generate(PROMPTS * 4, how)
    for c in done:
        ids, mask, _ = pad_texts([c.prompt_ids], [c.tokens], lm.pad_id)
        with torch.no_grad():
            hidden = response_hidden(lm, ids, mask, len(c.tokens))[0]
        no_eos = torch.arange(len(c.tokens)) < how.min_new_tokens
        logits = restrict(lm.head(hidden) / how.temperature, allowed=c.allowed, no_eos=no_eos, eos_ids=lm.eos_ids)
        logp = token_logprobs(torch.log_softmax(logits, -1), torch.tensor(c.tokens))
        assert c.logprobs is not None and c.values is not None and c.hidden is not None
        torch.testing.assert_close(c.logprobs, logp, atol=1e-4, rtol=0)
        torch.testing.assert_close(c.hidden, hidden, atol=1e-4, rtol=0)
        torch.testing.assert_close(c.values, hidden.sum(-1), atol=1e-3, rtol=0)
        assert c.weight_versions == [0] * len(c.tokens)
        if how.top_k is not None:
            assert c.allowed is not None and c.allowed.shape == (len(c.tokens), 4)
            assert all(t in row for t, row in zip(c.tokens, c.allowed.tolist(), strict=True))
        assert not any(t == 2 for t in c.tokens[: how.min_new_tokens])


@pytest.mark.parametrize("rows", [1, 2, 7, 40])
def test_refilled_rows_write_the_same_texts(rows: int) -> None:
    lm = small_lm("gqa").freeze()
    params = GenerationParams(max_new_tokens=12)
    at_once = Engine(lm, seed=5).generate(PROMPTS * 4, params)
    refilled = Engine(lm, seed=5).generate(PROMPTS * 4, dataclasses.replace(params, rows=rows))
    assert len({len(c.tokens) for c in at_once}) > 3  # of different lengths, or refilling is not tested
    for a, b in zip(at_once, refilled, strict=True):
        assert (a.tokens, a.finish_reason) == (b.tokens, b.finish_reason)
        assert a.logprobs is not None and b.logprobs is not None
        torch.testing.assert_close(a.logprobs, b.logprobs, atol=1e-4, rtol=0)


def test_the_seed_decides_and_the_next_call_goes_on() -> None:
    lm, params = small_lm().freeze(), GenerationParams(max_new_tokens=10)
    first, same, other = Engine(lm, seed=1), Engine(lm, seed=1), Engine(lm, seed=2)
    a, b, c = (e.generate(PROMPTS, params) for e in (first, same, other))
    assert [x.tokens for x in a] == [x.tokens for x in b] != [x.tokens for x in c]
    assert [x.tokens for x in first.generate(PROMPTS, params)] != [x.tokens for x in a]


def test_new_weights_and_their_version() -> None:
    old, new = small_lm().freeze(), small_lm(seed=9).freeze()
    engine = Engine(old, seed=1)
    engine.update_weights(new, version=7)
    [c] = engine.generate([[3, 4]], GenerationParams(max_new_tokens=5, greedy=True))
    assert c.tokens == Engine(new).generate([[3, 4]], GenerationParams(max_new_tokens=5, greedy=True))[0].tokens
    assert set(c.weight_versions) == {7}


def test_sample_draws_as_often_as_softmax_says() -> None:
    logp = torch.log_softmax(torch.tensor([1.0, -torch.inf, 0.0, 2.0, -3.0, -torch.inf]), -1)
    n = 40_000
    u = torch.rand(n, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(sample(logp.expand(n, -1), u), minlength=6).double()
    p = logp.exp().double()
    assert counts[1] == counts[5] == 0
    kept = p > 0
    chi2 = float(((counts - n * p)[kept] ** 2 / (n * p)[kept]).sum())
    assert chi2 < 16.3  # .999 quantile, 3 degrees of freedom


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-24])
def test_sample_at_the_edges(u: float) -> None:
    logp = torch.tensor([[-torch.inf, math.log(0.5), -torch.inf, math.log(0.5), -torch.inf]])
    assert sample(logp, torch.tensor([u])).item() in ({1} if u == 0.0 else {3})


def test_top_k_ids_are_ordered_and_contain_an_end() -> None:
    logits = torch.tensor([[0.0, 5.0, 1.0, 4.0, 3.0], [9.0, 0.0, 8.0, 1.0, 2.0]])
    # row 0: ids 1 and 3 are likeliest, no end among them: the likelier end (2) takes the place of 3
    assert top_k_ids(logits, 2, [0, 2]).tolist() == [[1, 2], [0, 2]]
    assert top_k_ids(logits, 1, [4]).tolist() == [[4], [4]]
    assert top_k_ids(logits, 5, [0]).tolist() == [[0, 1, 2, 3, 4]] * 2


def test_restrict() -> None:
    logits = torch.arange(4.0).repeat(2, 1)
    out = restrict(logits, allowed=torch.tensor([[0, 2], [1, 3]]), no_eos=torch.tensor([True, False]), eos_ids=[0, 1])
    inf = -torch.inf
    assert out.tolist() == [[inf, inf, 2.0, inf], [inf, 1.0, inf, 3.0]]
    assert restrict(logits) is logits
    assert logits.tolist() == [[0.0, 1.0, 2.0, 3.0]] * 2


@pytest.mark.parametrize(
    ("tokens", "options", "want"),
    [
        ([5, 2], {}, "eos"),
        ([5, 1], {}, "eos"),
        ([5, 5], {}, None),
        ([5, 5, 5], {}, "length"),
        ([5, 5, 2], {}, "eos"),  # the end comes before the limit
        ([5, 6], {"stop": ("56",)}, "stop"),
        ([5, 6, 7], {"stop": ("56",)}, "stop"),
        ([5, 6], {"stop": ("56",), "min_new_tokens": 3}, None),
        ([5, 6, 7], {"stop": ("56",), "min_new_tokens": 3}, "stop"),
        ([5, 6], {"stop": ("x", "6")}, "stop"),
    ],
)
def test_finish_reason(tokens: list[int], options: dict[str, object], want: str | None) -> None:
    decode = lambda ids: "".join(map(str, ids))
    assert finish_reason(tokens, eos_ids=[1, 2], max_new_tokens=3, decode=decode, **options) == want  # type: ignore[arg-type]


def test_pad_and_end_of_the_same_id_are_told_apart() -> None:
    """GPT-2's tokenizer has one id for both: an end counts as a token of its text, padding never does."""
    tok = tokenizer("abc", pad=None)
    lm = TransformersLM(gpt2(len(tok)), tok, "gpt2").freeze()
    assert lm.pad_id == 2 and lm.eos_ids == (2,)
    done = Engine(lm, seed=0).generate([[3], [3, 4, 5, 3]] * 8, GenerationParams(max_new_tokens=9))
    ended = [c for c in done if c.finish_reason == "eos"]
    assert ended and all(c.tokens.count(2) == 1 and c.tokens[-1] == 2 for c in ended)
    ids, mask, response = pad_texts([c.prompt_ids for c in done], [c.tokens for c in done], lm.pad_id)
    assert mask.sum().item() == sum(len(c.prompt_ids) + len(c.tokens) for c in done)
    assert response.sum(1).tolist() == [len(c.tokens) for c in done]
    with torch.no_grad():
        logp = torch.log_softmax(lm.head(response_hidden(lm, ids, mask, response.shape[1])), -1)
    got = token_logprobs(logp, ids[:, -response.shape[1] :])
    for row, c in zip(got, done, strict=True):
        torch.testing.assert_close(row[: len(c.tokens)], c.logprobs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_more_left_pads_change_no_logprob(kind: str) -> None:
    lm = small_lm(kind).freeze()
    ids, mask, _ = pad_texts([[3, 4, 5], [6]], [[7, 8], [9]], lm.pad_id)
    wider = (
        torch.cat([torch.full((2, 3), lm.pad_id), ids], 1),
        torch.cat([torch.zeros(2, 3, dtype=torch.long), mask], 1),
    )
    with torch.no_grad():
        a = torch.log_softmax(lm.head(response_hidden(lm, ids, mask, 2)), -1)
        b = torch.log_softmax(lm.head(response_hidden(lm, *wider, 2)), -1)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_what_cannot_be_decoded_is_refused() -> None:
    lm = small_lm().freeze()
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        Engine(lm).generate([[3], []], GenerationParams(max_new_tokens=3))
    with pytest.raises(ValueError, match="top_k and top_p expected an engine with guide="):
        Engine(lm).generate([[3]], GenerationParams(max_new_tokens=3, top_k=2))
    with pytest.raises(ValueError, match="up to 128 tokens"):
        Engine(lm).generate([[3]], GenerationParams(max_new_tokens=128))
    assert Engine(lm).generate([], GenerationParams(max_new_tokens=3)) == []


def test_a_model_without_a_tokenizers_vocabulary_decodes_too() -> None:
    lm = TransformersLM(llama(40), tokenizer("abc"), "wide").freeze()  # the head is wider than the tokenizer
    [c] = Engine(lm, seed=0).generate([[3]], GenerationParams(max_new_tokens=30))
    assert max(c.tokens) < 40
    assert isinstance(lm.decode(c.tokens), str)


@pytest.mark.parametrize("stop", [("ab",), ("a b c", "zzz"), ("the",), ("\ufffd",)])
def test_stop_strings_in_tails_are_those_in_whole_texts(stop: tuple[str, ...]) -> None:
    lm = load_model("tiny")
    g = torch.Generator().manual_seed(0)
    found = 0
    for key in range(6):
        tails, tokens = Tails(lm, stop), torch.randint(3, lm.vocab_size, (400,), generator=g).tolist()
        for t in range(1, 401):
            whole = lm.decode(tokens[:t])
            assert any(s in tails.text(key, tokens[:t]) for s in stop) == any(s in whole for s in stop)
            if any(s in whole for s in stop):
                found += 1
                break
        else:
            assert tails.begin[key] > 0 or not tails.local  # or the test does not test tails
    assert found or stop != ("the",)


def test_a_stop_string_may_be_complete_before_texts_may_end() -> None:
    lm = small_lm().freeze()
    early = Tails(lm, ("ab",))
    text = [lm.tokenizer.convert_tokens_to_ids(c) for c in "ab" + 30 * "c"]
    assert "ab" in early.text(0, text)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("how", [{}, {"rows": 3}, {"min_new_tokens": 12}, {"top_p": 0.8, "rows": 4}], ids=str)
def test_the_engine_writes_what_the_models_own_modules_write(
    kind: str, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, guide = small_lm(kind).freeze(), small_lm(kind, seed=1).freeze()
    params, prompts = GenerationParams(max_new_tokens=12, **how), PROMPTS * 3

    def write() -> list[Completion]:
        return Engine(lm, guide=guide, value_head=lambda h: h.sum(-1), keep_hidden=True, seed=4).generate(
            prompts, params
        )

    fast = write()
    monkeypatch.setattr(TransformersLM, "rows", lambda self, n, room: AttentionRows(self, n, room, fast=False))
    for a, b in zip(fast, write(), strict=True):
        assert (a.tokens, a.finish_reason) == (b.tokens, b.finish_reason)
        for x, y in ((a.logprobs, b.logprobs), (a.values, b.values), (a.hidden, b.hidden)):
            torch.testing.assert_close(x, y, atol=1e-4, rtol=0)
