"""A classifier's score of a text in a batch is that of the text alone, up to the longest text that the model reads."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import transformers
from small_models import LETTERS
from small_models import tokenizer as make_tokenizer

from lm_gym.reward_models.classifier import Classifier

SIZES = {"vocab_size": 12, "num_labels": 1, "pad_token_id": 0, "initializer_range": 0.3}
ENCODER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
KINDS: dict[str, dict[str, Any]] = {
    # the head reads the last column
    "XLNet": {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 16},
    # padding gets into the trunk
    "FNet": {**ENCODER, "tpu_short_seq_length": 64},
    "ConvBert": {**ENCODER, "embedding_size": 16, "max_position_embeddings": 64},
    # positions begin behind the pad token's id
    "Roberta": {**ENCODER, "max_position_embeddings": 24},
    "MPNet": {**ENCODER, "max_position_embeddings": 24},
    "Longformer": {**ENCODER, "max_position_embeddings": 24, "attention_window": 4},
    "Bert": {**ENCODER, "max_position_embeddings": 24},
    # frequencies follow the longest text of a batch
    "Phi3": {**ENCODER, "original_max_position_embeddings": 6, "max_position_embeddings": 64, "rope_scaling": LONGROPE},
    "Llama": {**ENCODER, "rope_scaling": {**LONGROPE, "original_max_position_embeddings": 6}},
    # layers see four tokens
    "Mistral": {**ENCODER, "num_key_value_heads": 2, "sliding_window": 4},
    # sparse attention changes with the length of the batch, and for good after a short text
    "BigBird": {**ENCODER, "max_position_embeddings": 64, "block_size": 4, "num_random_blocks": 1},
}
LIMITS = {
    "Roberta": 23,
    "MPNet": 22,
    "Longformer": 23,
    "Bert": 24,
}  # MPNet's padding_idx is 1, whatever the config says


def words(count: int) -> str:
    return "".join("abcdefgh"[(i * i + count) % 8] for i in range(count))


def classifier(kind: str) -> Any:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = getattr(transformers, f"{kind}Config")(**SIZES, **KINDS[kind])
        model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    for weight in model.parameters():  # some heads start so small that all logits are about equal
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_in_a_batch_gets_what_it_gets_alone(kind: str) -> None:
    tokenizer, judge = make_tokenizer(LETTERS), Classifier(classifier(kind), tokenizer=make_tokenizer(LETTERS))
    texts = [words(n) for n in (6, 12, 3, 8, 12, 40 if kind == "BigBird" else 14)]
    alone = []
    for text in texts:  # of a model that has read nothing before
        with torch.no_grad():
            alone.append(float(classifier(kind)(input_ids=torch.tensor([tokenizer(text).input_ids])).logits))
    assert max(alone) - min(alone) > 0.05
    for _ in range(2):
        assert judge(prompts=[""] * len(texts), completions=texts) == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize("kind", LIMITS)
def test_the_longest_text_is_the_longest_that_the_model_reads(kind: str) -> None:
    tokenizer, model, limit = make_tokenizer(LETTERS), classifier(kind), LIMITS[kind]
    judge = Classifier(model, tokenizer=tokenizer)
    assert judge.max_length == limit
    whole = tokenizer(words(60)).input_ids
    with torch.no_grad():
        kept = model(input_ids=torch.tensor([whole[-limit:]])).logits
        with pytest.raises((IndexError, RuntimeError)):  # one token more is beyond the table
            model(input_ids=torch.tensor([whole[: limit + 1]]))
    with pytest.warns(UserWarning, match=f"the limit is {limit}"):
        assert judge([""], [words(60)]) == pytest.approx(kept[0].tolist(), abs=1e-5)
    with pytest.raises(ValueError, match=f"max_length is {limit + 1}; expected at most {limit} tokens"):
        Classifier(model, tokenizer=tokenizer, max_length=limit + 1)


def test_a_limit_that_would_move_a_dynamic_encoding_is_refused() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0}
    config = transformers.LlamaConfig(**SIZES, **ENCODER, max_position_embeddings=24, rope_scaling=rope)
    model = transformers.LlamaForSequenceClassification(config).eval()
    assert Classifier(model, tokenizer=make_tokenizer(LETTERS)).max_length == 24
    with pytest.raises(ValueError, match="at most 24 tokens .its dynamic position encoding changes"):
        Classifier(model, tokenizer=make_tokenizer(LETTERS), max_length=25)


@pytest.mark.parametrize("kind", ["XLNet", "Llama", "Mistral"])
def test_training_has_the_gradients_of_texts_alone(kind: str) -> None:
    tokenizer, model = make_tokenizer(LETTERS), classifier(kind)
    judge = Classifier(model, tokenizer=tokenizer)
    texts = [tokenizer(words(n)).input_ids for n in (12, 3, 5)]
    found = []
    alone = lambda: torch.cat([model(input_ids=torch.tensor([text])).logits for text in texts])
    for scores in (lambda: judge.logits(texts), alone):
        model.zero_grad()
        (scores()[:, 0] * torch.tensor([1.0, -2.0, 3.0])).sum().backward()
        found.append({key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None})
    assert found[0]
    for key, gradient in found[1].items():
        torch.testing.assert_close(found[0][key], gradient, atol=1e-4, rtol=1e-4)
