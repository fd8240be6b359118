"""Rows of different age over one cache give what a whole forward of each text gives."""

import random

import pytest
import torch
from small_models import llama, small_lm, tokenizer

from lm_gym.decoding import Engine, GenerationParams
from lm_gym.models import TransformersLM
from lm_gym.rows import AttentionRows

TOLERANCE = 2e-5


def whole(lm: TransformersLM, ids: list[int]) -> torch.Tensor:
    """The last hidden state (d,) of one text, with nothing beside it and no cache."""
    return layers(lm, ids)[-1][-1]


def layers(lm: TransformersLM, ids: list[int]) -> list[torch.Tensor]:
    """What enters each block, (length, d), and the last hidden states."""
    with torch.no_grad():
        out = lm._base()(input_ids=torch.tensor([ids]), use_cache=False, output_hidden_states=True)
    return [h[0] for h in out.hidden_states]


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gqa", "gpt2"])
@pytest.mark.parametrize("capacity", [12, 40])
def test_random_inserts_steps_and_drops(kind: str, capacity: int, fixed: bool) -> None:
    lm, rng = small_lm(kind).freeze(), random.Random(f"{kind} {capacity}")
    rows = lm.rows(5, capacity)
    rows.keep_below(1)
    if fixed:  # the step that a CUDA graph records, run call by call
        rows.fix_shapes(record=False)
    texts: list[list[int] | None] = [None] * 5

    def prompt() -> list[int]:
        return [rng.randrange(lm.vocab_size) for _ in range(rng.randint(1, capacity // 2))]

    moves = 0
    for step in range(90):
        # texts that are full leave, some others by chance; the rest of the room is filled now and then
        leaving = [i for i, t in enumerate(texts) if t is not None and (len(t) >= capacity - 1 or rng.random() < 0.05)]
        for i in leaving:
            texts[i] = None
        empty = [i for i, t in enumerate(texts) if t is None]
        rows.park(empty)
        if empty and (len(empty) == len(texts) or rng.random() < 0.5):
            chosen = rng.sample(empty, rng.randint(1, len(empty)))
            fresh = [prompt() for _ in chosen]
            if len(chosen) > 1:
                fresh[1] = fresh[0]  # computed once, must be right in both
            hidden = rows.insert(chosen, fresh)
            for i, ids, h in zip(chosen, fresh, hidden, strict=True):
                texts[i] = list(ids)
                torch.testing.assert_close(h, whole(lm, ids), atol=TOLERANCE, rtol=0)
        if step == 60:  # three rows remain, in another order
            rows.keep([3, 0, 4])
            texts = [texts[3], texts[0], texts[4]]
        if all(t is None for t in texts):
            continue
        tokens = torch.tensor([rng.randrange(lm.vocab_size) for _ in texts])
        before = rows.cache.column
        hidden = rows.step(tokens)
        moves += rows.cache.column <= before
        for i, ids in enumerate(texts):
            if ids is not None:
                ids.append(int(tokens[i]))
                torch.testing.assert_close(hidden[i], whole(lm, ids), atol=TOLERANCE, rtol=0)
                below = rows.below(i)
                if fixed:  # such steps keep nothing
                    assert below is None
                else:
                    torch.testing.assert_close(below, layers(lm, ids)[1], atol=TOLERANCE, rtol=0)
    assert torch.isfinite(hidden).all()
    if capacity == 12:
        assert moves > 0, "the columns never ran out: the test does not test moving them"


def test_eager_attention_too() -> None:
    tok = tokenizer("abc")
    lm = TransformersLM(llama(len(tok), attn_implementation="eager"), tok, "eager").freeze()
    rows = lm.rows(2, 10)
    rows.insert([0, 1], [[3, 4, 5], [4]])
    hidden = rows.step(torch.tensor([5, 3]))
    torch.testing.assert_close(hidden[0], whole(lm, [3, 4, 5, 5]), atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(hidden[1], whole(lm, [4, 3]), atol=TOLERANCE, rtol=0)


def test_a_row_of_full_length_and_one_beyond() -> None:
    lm = small_lm().freeze()
    rows = lm.rows(1, 4)
    rows.insert([0], [[3, 4]])
    rows.step(torch.tensor([5]))
    torch.testing.assert_close(rows.step(torch.tensor([6]))[0], whole(lm, [3, 4, 5, 6]), atol=TOLERANCE, rtol=0)
    with pytest.raises(RuntimeError, match="past the 4 tokens"):
        rows.step(torch.tensor([7]))


def test_a_head_may_be_trained_on_what_comes_out() -> None:
    rows = small_lm().freeze().rows(2, 8)
    for hidden in (rows.insert([0, 1], [[3, 4], [5]]), rows.step(torch.tensor([5, 6]))):
        head = torch.nn.Linear(hidden.shape[1], 1)
        head(hidden).sum().backward()
        torch.testing.assert_close(head.weight.grad, hidden.sum(0, keepdim=True))


def test_more_than_the_model_can_read_is_refused() -> None:
    lm = small_lm()
    with pytest.raises(ValueError, match=r"texts of up to 128 tokens, got .* 129 together"):
        AttentionRows(lm, 1, 129)


def test_an_attention_without_masks_is_refused() -> None:
    lm = small_lm()
    lm._base().config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="sdpa or eager attention, got 'flash_attention_2'"):
        lm.rows(1, 8)


def test_no_prefix_is_computed_twice() -> None:
    """What goes through the trunk: each prompt once, then one token a step."""
    lm = small_lm().freeze()
    rows, fed = lm.rows(3, 20), []
    lm._base().register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    rows.insert([0, 1, 2], [[3, 4, 5], [4, 4], [3, 4, 5]])
    for _ in range(4):
        rows.step(torch.tensor([3, 4, 5]))
    rows.insert([1], [[5, 5, 5, 5]])
    rows.step(torch.tensor([3, 4, 5]))
    whole_prompts = [shape for shape in fed if shape[1] > 1]  # a step may have a path of its own
    assert whole_prompts == [(2, 3), (1, 4)] and all(shape == (3, 1) for shape in fed if shape not in whole_prompts)


def test_what_comes_out_below_is_not_kept_by_halves() -> None:
    """A prompt that goes through the model's modules, to which somebody listens, leaves nothing below."""
    lm = small_lm().freeze()
    rows = lm.rows(2, 20)
    rows.keep_below(1)
    rows.insert([0, 1], [[3, 4], [5]])
    rows.step(torch.tensor([3, 4]))
    below = rows.below(0)
    assert below is not None and below.shape == (3, lm.hidden_size)
    lm._base().layers[0].register_forward_hook(lambda *_: None)
    rows.insert([1], [[5, 6]])
    rows.step(torch.tensor([3, 4]))
    assert rows.below(0) is None and rows.below(1) is None


def test_steps_of_fixed_shapes_keep_their_tensors() -> None:
    """What a CUDA graph needs: the same addresses at every step, also after texts began anew and columns ran out."""
    rows = small_lm().freeze().rows(2, 12)
    rows.fix_shapes(record=False)
    rows.insert([0, 1], [[3, 4, 5], [6]])
    places, columns = [], []
    for step in range(80):
        if step % 3 == 2:
            rows.insert([step % 2], [[3, 4]])
        columns.append(rows.cache.column)
        rows.step(torch.tensor([5, 6]))
        assert rows.static is not None
        own = (rows.static.tokens, rows.static.first, rows.static.column)
        places.append(tuple(x.data_ptr() for x in (*own, *rows.cache.keys, *rows.cache.values)))
    assert len(set(places)) == 1 and columns != sorted(columns)


def test_cuda_graphs_are_refused_where_they_cannot_be() -> None:
    lm = small_lm().freeze()
    with pytest.raises(ValueError, match="CUDA graphs expected a model on a CUDA device"):
        Engine(lm, cuda_graphs=True).generate([[3]], GenerationParams(max_new_tokens=2))
    with pytest.raises(ValueError, match="written out here"):
        AttentionRows(lm, 1, 8, fast=False).fix_shapes()
