"""Classifiers of two texts: `[CLS] prompt [SEP] completion [SEP]` as the tokenizer writes it, beside transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lm_gym.reward_models.classifier import Classifier
from lm_gym.rewards import load_reward_model, reward_model_hash

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefgh"]
SIZES = {"vocab_size": 12, "num_labels": 1, "pad_token_id": 0, "initializer_range": 0.3}
ENCODER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
KINDS: dict[str, dict[str, Any]] = {
    "Bert": {**ENCODER, "max_position_embeddings": 16},
    "DebertaV2": {**ENCODER, "max_position_embeddings": 16, "type_vocab_size": 2},
    "Roberta": {**ENCODER, "max_position_embeddings": 17},
    "XLNet": {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 16},
    "Llama": {**ENCODER, "max_position_embeddings": 16},
}
PROMPTS = ["a b c", "d", "h g f e", "a"]
COMPLETIONS = ["d e", "f g h a b", "c", "b"]


def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    single, pair = "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"
    if kind == "XLNet":
        single, pair = "$A [SEP] [CLS]:2", "$A [SEP] $B:1 [SEP]:1 [CLS]:2"
    if kind == "Roberta":
        pair = "[CLS] $A [SEP] [SEP] $B [SEP]"
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [("[CLS]", 1), ("[SEP]", 2)]
    raw.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)
    names = ["input_ids", "attention_mask", *([] if kind == "Roberta" else ["token_type_ids"])]
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=names,
    )


def classifier(kind: str) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES, **KINDS[kind])
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    for weight in model.parameters():  # some heads start so small that all logits are about equal
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.3)
    return model.eval()


def alone(kind: str, *texts: str) -> float:
    """What transformers says of one text, or of two."""
    inputs = tokenizer(kind)(*texts, return_tensors="pt")
    if kind == "Llama":
        inputs.pop("token_type_ids")  # it knows of no segments
    with torch.no_grad():
        return float(classifier(kind)(**inputs).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_is_read_as_the_tokenizer_writes_it(kind: str) -> None:
    judge = Classifier(classifier(kind), tokenizer=tokenizer(kind), text="pair")
    want = [alone(kind, *texts) for texts in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert judge(PROMPTS, COMPLETIONS) == pytest.approx(want, abs=1e-5)
    joined = Classifier(classifier(kind), tokenizer=tokenizer(kind))(PROMPTS, COMPLETIONS)
    assert max(abs(a - b) for a, b in zip(want, joined, strict=True)) > 0.01


@pytest.mark.parametrize("kind", ["Bert", "XLNet"])
def test_a_single_text_has_its_segments_too(kind: str) -> None:
    judge = Classifier(classifier(kind), tokenizer=tokenizer(kind), text="completion")
    assert judge(PROMPTS, COMPLETIONS) == pytest.approx([alone(kind, text) for text in COMPLETIONS], abs=1e-5)


def test_messages_are_their_contents() -> None:
    judge = Classifier(classifier("Bert"), tokenizer=tokenizer("Bert"), text="pair")
    asked = [{"role": "user", "content": "a b c"}]
    assert judge([asked], [[{"role": "assistant", "content": "d e"}]]) == judge(["a b c"], ["d e"])


@pytest.mark.parametrize(
    ("prompt", "completion", "read"),
    [
        ("a b c d e f g h a b c", "d e f", ("c d e f g h a b c", "d e f")),  # what is left of the prompt is its end
        ("a b", "a b c d e f g h a b c d e f", ("", "a b c d e f g h a b c d")),  # of the completion its beginning
        ("", "a b c", ("", "a b c")),
    ],
)
def test_a_pair_that_is_too_long_loses_its_prompt_first(prompt: str, completion: str, read: tuple[str, str]) -> None:
    judge = Classifier(classifier("Bert"), tokenizer=tokenizer("Bert"), text="pair", max_length=15)
    expected = tokenizer("Bert")(*read)["input_ids"]
    if read == (prompt, completion):
        assert judge.tokens(prompt, completion) == expected
        return
    with pytest.warns(UserWarning, match="a pair of 1[79] tokens loses the beginning of its prompt, or all of it, the"):
        assert judge.tokens(prompt, completion) == expected
    assert len(expected) == 15
    assert judge([prompt], [completion]) == pytest.approx([alone("Bert", *read)], abs=1e-5)


def test_a_pair_by_its_name(tmp_path: Path) -> None:
    classifier("Bert").save_pretrained(tmp_path)
    tokenizer("Bert").save_pretrained(tmp_path)
    judge = load_reward_model(f"hf:{tmp_path}?text=pair&device=cpu")
    want = [alone("Bert", *texts) for texts in zip(PROMPTS, COMPLETIONS, strict=True)]
    assert judge(prompts=PROMPTS, completions=COMPLETIONS) == pytest.approx(want, abs=1e-5)
    assert reward_model_hash(judge) != reward_model_hash(load_reward_model(f"hf:{tmp_path}?device=cpu"))


def test_a_tokenizer_that_joins_two_texts_without_a_mark_is_refused() -> None:
    plain = tokenizer("Llama")
    plain.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", pair="[CLS] $A $B", special_tokens=[("[CLS]", 1)]
    )
    with pytest.raises(ValueError, match="text=pair expected a tokenizer that writes something between two texts"):
        Classifier(classifier("Llama"), tokenizer=plain, text="pair")
    with pytest.raises(ValueError, match="text is 'pairs'; expected one of prompt.completion, completion, pair"):
        Classifier(classifier("Llama"), tokenizer=plain, text="pairs")
