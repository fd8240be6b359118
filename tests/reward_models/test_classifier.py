"""lm_gym.reward_models.classifier on models of a few thousand weights, made here."""

import json

import pytest
import torch
from small_models import small_lm
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForSequenceClassification,
)

from lm_gym.forward import pad_texts
from lm_gym.policy import critic_from_reward_model
from lm_gym.reward_models.classifier import Classifier
from lm_gym.rewards import load_reward_model, reward_model_hash, score_texts

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<user>", "<bot>", *"a b c d e f g h".split()]
INDEPENDENT = "multi_label_classification"
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
PROMPTS = ["a b", "c", "d e f g h a b c", "h"]
COMPLETIONS = [" c d", " d", " a b a b a b c d", " e f g"]


def make_tokenizer():
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def make_llama(**options):
    options.setdefault("pad_token_id", 0)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(WORDS), **SIZES, **options)
    model = LlamaForSequenceClassification(config)
    with torch.no_grad():
        model.score.weight.normal_()  # its own start is so small that all logits are about equal
    return model.eval()


def call(classifier, prompts=PROMPTS, completions=COMPLETIONS):
    return score_texts(
        classifier, prompts=prompts, completions=completions, completion_ids=[[0]] * len(completions)
    ).scores


def expected_logits(model, tokenizer, texts):
    """(B, labels), one text a forward: no padding, no batching."""
    with torch.no_grad():
        return torch.cat([model(input_ids=torch.tensor([tokenizer(text).input_ids])).logits for text in texts])


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def folder(tmp_path, tokenizer):
    make_llama(id2label={0: "NEGATIVE", 1: "POSITIVE", 2: "NEUTRAL"}).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_one_logit_is_the_score_whatever_the_batch(tokenizer, batch_size):
    model = make_llama(num_labels=1)
    texts = [prompt + text for prompt, text in zip(PROMPTS, COMPLETIONS, strict=True)]
    expected = expected_logits(model, tokenizer, texts)[:, 0]
    scores = call(Classifier(model, tokenizer=tokenizer, batch_size=batch_size))
    torch.testing.assert_close(torch.tensor(scores).float(), expected, atol=1e-5, rtol=1e-5)
    assert len(set(scores.round(4))) == 4


def test_a_bidirectional_model_with_padding(tokenizer):
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(WORDS), **SIZES)
    model = BertForSequenceClassification(config).eval()
    expected = expected_logits(model, tokenizer, COMPLETIONS)[:, 1]
    scores = call(Classifier(model, tokenizer=tokenizer, label=1, text="completion"))
    torch.testing.assert_close(torch.tensor(scores).float(), expected, atol=1e-5, rtol=1e-5)


def test_a_model_without_a_pad_token_takes_one_text_at_a_time(tokenizer):
    model = make_llama(num_labels=1, pad_token_id=None)
    expected = expected_logits(model, tokenizer, COMPLETIONS)[:, 0]
    scores = call(Classifier(model, tokenizer=tokenizer, text="completion"))
    torch.testing.assert_close(torch.tensor(scores).float(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("output", "function"), [("prob", torch.softmax), ("logprob", torch.log_softmax)])
def test_outputs_of_several_labels(folder, tokenizer, output, function):
    classifier = load_reward_model(f"hf:{folder}?label=POSITIVE&output={output}&text=completion&device=cpu")
    logits = expected_logits(classifier.model, tokenizer, COMPLETIONS)
    expected = function(logits, dim=1)[:, 1]
    torch.testing.assert_close(torch.tensor(call(classifier)).float(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{"num_labels": 1}, {"num_labels": 2, "problem_type": INDEPENDENT}])
def test_outputs_of_one_logit_and_of_independent_labels(tokenizer, options):
    model = make_llama(**options)
    logit, prob, logprob = (
        torch.tensor(call(Classifier(model, tokenizer=tokenizer, label=0, output=output)))
        for output in ("logit", "prob", "logprob")
    )
    torch.testing.assert_close(prob, logit.sigmoid(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(logprob, torch.nn.functional.logsigmoid(logit), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("label", ["POSITIVE", "positive", 1, "1"])
def test_labels_by_name_and_number(folder, label):
    assert Classifier(str(folder), label=label, device="cpu").label == 1


def test_a_wrong_label_says_which_there_are(folder):
    with pytest.raises(ValueError, match=r"has 3 labels, choose one with label=: 0 'NEGATIVE', 1 'POSITIVE'"):
        load_reward_model(f"hf:{folder}")
    with pytest.raises(ValueError, match=r"no label 'POSITVE'. Did you mean 'POSITIVE'\?"):
        load_reward_model(f"hf:{folder}?label=POSITVE")
    with pytest.raises(ValueError, match="no label 3"):
        Classifier(str(folder), label=3)


def test_a_conversation_goes_through_the_classifiers_own_template(tokenizer):
    tokenizer = make_tokenizer()
    prompts = [[{"role": "user", "content": "a b"}]]
    completions = [[{"role": "assistant", "content": "c"}]]
    model = make_llama(num_labels=1)
    with pytest.raises(Exception, match="its tokenizer has no chat template"):
        call(Classifier(model, tokenizer=tokenizer), prompts, completions)
    tokenizer.chat_template = (
        "<s> {% for m in messages %}{{ '<user>' if m['role'] == 'user' else '<bot>' }} {{ m['content'] }} {% endfor %}"
    )
    ids = torch.tensor([[WORDS.index(word) for word in "<s> <user> a b <bot> c".split()]])  # <s> once
    with torch.no_grad():
        expected = model(input_ids=ids).logits[:, 0]
    scores = torch.tensor(call(Classifier(model, tokenizer=tokenizer), prompts, completions)).float()
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)


def test_a_long_text_keeps_its_end_and_its_special_tokens(tokenizer):
    model = make_llama(num_labels=1)
    classifier = Classifier(model, tokenizer=tokenizer, max_length=4)
    with pytest.warns(UserWarning, match="a text of 5 tokens loses its beginning, the limit is 4"):
        scores = call(classifier)
    expected = expected_logits(model, tokenizer, ["b c d", "c d", "b c d", "e f g"])[:, 0]  # and <s> before each
    torch.testing.assert_close(torch.tensor(scores).float(), expected, atol=1e-5, rtol=1e-5)
    assert tokenizer.truncation_side == "right"


def test_the_models_own_limit(tokenizer):
    model = make_llama(num_labels=1, max_position_embeddings=8)
    assert Classifier(model, tokenizer=tokenizer).max_length == 8


def test_an_empty_completion_has_a_score(tokenizer):
    scores = call(Classifier(make_llama(num_labels=1), tokenizer=tokenizer, text="completion"), [""], [""])
    assert scores.shape == (1,)


def test_a_live_model_keeps_its_mode_and_its_weights(tokenizer):
    model = make_llama(num_labels=1).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    classifier = Classifier(model, tokenizer=tokenizer)
    assert classifier.model is model
    call(classifier)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_without_a_trained_head_is_refused(tmp_path, tokenizer):
    config = LlamaConfig(vocab_size=len(WORDS), **SIZES)
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no weights for score.weight: it is no trained classifier"):
        Classifier(str(tmp_path), label=1)


def test_what_is_no_model_says_so(tmp_path):
    with pytest.raises(ValueError, match="cannot be loaded as a sequence classifier"):
        Classifier(str(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "logits"}, "expected one of logit, prob, logprob"),
        ({"text": "prompt"}, r"expected one of prompt\+completion, completion"),
        ({"batch_size": 0}, "expected at least 1"),
        ({}, "a live model needs its tokenizer"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        Classifier(make_llama(num_labels=1), **options)


def test_a_wrong_dtype(folder):
    with pytest.raises(ValueError, match="dtype is 'float64'; expected one of auto, float32"):
        Classifier(str(folder), label=1, dtype="float64")


def test_half_precision(folder):
    full = call(Classifier(str(folder), label=1, device="cpu"))
    half = call(Classifier(str(folder), label=1, device="cpu", dtype="bfloat16"))
    assert abs(full - half).max() < 0.05
    assert Classifier(str(folder), label=1, device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16


def test_the_hash_follows_the_weights(folder):
    one, two = (Classifier(str(folder), label=1, device="cpu") for _ in range(2))
    other_label = Classifier(str(folder), label=0, device="cpu")
    assert reward_model_hash(one) == reward_model_hash(two) != reward_model_hash(other_label)
    with torch.no_grad():
        two.model.score.weight[0, 0] += 1
    assert reward_model_hash(one) != reward_model_hash(two)


def test_the_pad_token_of_the_tokenizer_stands_in(folder):
    config = json.loads((folder / "config.json").read_text())
    config["pad_token_id"] = None
    (folder / "config.json").write_text(json.dumps(config))
    assert Classifier(str(folder), label=1, device="cpu").model.config.pad_token_id == 0


@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
def test_a_sliding_window_counts_in_a_judge_and_in_a_critic(kind, tokenizer, tmp_path):
    options = {"num_key_value_heads": 2, "sliding_window": 8, "num_labels": 1, "pad_token_id": 0}
    options |= {"initializer_range": 0.3, "max_position_embeddings": 64}
    torch.manual_seed(0)
    if kind == "mistral":
        model = MistralForSequenceClassification(MistralConfig(vocab_size=len(WORDS), **SIZES, **options)).eval()
    else:  # the second layer alone has the window
        options |= {"use_sliding_window": True, "max_window_layers": 1}
        model = Qwen2ForSequenceClassification(Qwen2Config(vocab_size=len(WORDS), **SIZES, **options)).eval()
    texts = [" ".join("abcdefgh"[(i * i + n) % 8] for i in range(n)) for n in (22, 3, 40, 8, 9)]
    expected = expected_logits(model, tokenizer, texts)[:, 0]
    found = call(Classifier(model, tokenizer=tokenizer), prompts=[""] * len(texts), completions=texts)
    assert found == pytest.approx(expected.tolist(), abs=1e-5)

    model.save_pretrained(tmp_path)
    small_lm(alphabet="abcdefgh").tokenizer.save_pretrained(tmp_path)
    critic = critic_from_reward_model(str(tmp_path), small_lm(alphabet="abcdefgh"))
    ids, seen, mask = pad_texts([[6, 7, 8], [9]], [[6 + i * i % 8 for i in range(20)], [10, 11]], 0)
    with torch.no_grad():
        values = critic(ids, seen, mask)
        alone = []
        for row in range(2):
            text = ids[row][seen[row].bool()]
            states = model.base_model(input_ids=text[None]).last_hidden_state[0]
            alone.append(model.score(states)[-int(mask[row].sum()) - 1 : -1, 0])
    torch.testing.assert_close(values, torch.cat(alone), atol=1e-5, rtol=1e-5)
