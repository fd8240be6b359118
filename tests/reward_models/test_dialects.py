"""Every dialect of lm_gym.reward_models.remote against a real server on loopback, and every fault in every dialect."""

import json
import math
import time

import pytest
from scripted_server import Server

from lm_gym.reward_models.remote import Remote
from lm_gym.rewards import RewardModelError, load_reward_model, score_texts

PROMPTS = ["first ", "second ", "third "]
COMPLETIONS = ["a", "bb", "ccc"]
TEXTS = ["first a", "second bb", "third ccc"]
SCORES = [0.25, 0.5, 0.125]


def get_reward(scores):
    return {"rewards": list(scores), "scores": list(scores), "extra_logs": {"dummy_scores": list(scores)}}


def classify(scores):
    return _data([{"label": "LABEL_0", "probs": [score], "num_classes": 1} for score in scores])


def pooling(scores):
    return _data([{"object": "pooling", "data": [score]} for score in scores])


def score(scores):
    return _data([{"object": "score", "score": score} for score in scores])


def predict(scores):
    return [[{"score": score, "label": "good"}] for score in scores]


def _data(items):
    return {"id": "x", "object": "list", "data": [{"index": i, **item} for i, item in enumerate(items)], "usage": {}}


ANSWERS = {"get_reward": get_reward, "classify": classify, "pooling": pooling, "score": score, "predict": predict}
INDEXED = ["classify", "pooling", "score"]


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def remote(server, dialect, **options):
    return Remote(f"{server.url}/{dialect}", **{"backoff": 0.001, "timeout": 5.0, **options})


def scored(reward_model, prompts=PROMPTS, completions=COMPLETIONS, **columns):
    return score_texts(
        reward_model,
        prompts=prompts,
        completions=completions,
        completion_ids=[[7]] * len(completions),
        columns=columns,
    ).scores.tolist()


def items(answer):
    """The list of an answer that has an item a text."""
    return answer if isinstance(answer, list) else answer.get("data", answer.get("rewards"))


def without_last(answer):
    items(answer).pop()
    return answer


def with_one_twice(answer):
    items(answer).append(items(answer)[0])
    return answer


def late(answer):
    def wait(body):
        time.sleep(0.6)
        return answer([9.0, 9.0, 9.0])

    return wait


def text_in_place_of(answer):
    return json.dumps(answer(SCORES)).replace("0.5", '"half"').encode()


# name -> (how the answers of a dialect become a faulty one, what the error says when it stays)
FAULTS = {
    "500": (lambda answer: (500, {}, b'{"error": "out of memory"}'), "HTTP status 500: .*out of memory"),
    "503": (lambda answer: (503, {"Retry-After": "0"}, b""), "HTTP status 503"),
    "late": (late, r"no answer within 0\.3 s"),
    "malformed": (lambda answer: json.dumps(answer(SCORES)).encode()[:-3], "is not JSON"),
    "cut off": (lambda answer: (200, {"Content-Length": "9999"}, answer(SCORES)), "IncompleteRead"),
    "endless": (lambda answer: b"[" * 200_000, "is not JSON"),
    "NaN": (lambda answer: answer([0.25, math.nan, 0.125]), "expected a finite number, got nan"),
    "infinite": (lambda answer: answer([0.25, math.inf, 0.125]), "expected a finite number, got inf"),
    "too large": (lambda answer: answer([0.25, 10**400, 0.125]), "expected a finite number, got 1000"),
    "null": (lambda answer: answer([0.25, None, 0.125]), "expected a finite number, got None"),
    "true": (lambda answer: answer([0.25, True, 0.125]), "expected a finite number, got True"),
    "text": (text_in_place_of, "expected a finite number, got 'half'"),
    "missing": (lambda answer: without_last(answer(SCORES)), "2 (rewards|results) for 3 texts"),
    "one twice": (lambda answer: with_one_twice(answer(SCORES)), "4 (rewards|results) for 3 texts"),
    "empty list": (lambda answer: answer([]), "0 (rewards|results) for 3 texts"),
    "another key": (lambda answer: {"result": SCORES}, r"expected (\{|\[\[)"),
    "an error in a 200": (lambda answer: {"object": "error", "message": "no such model"}, "no such model"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("dialect", ANSWERS)
def test_a_fault_is_cured_or_an_error_and_never_a_number(server, dialect, fault):
    make, message = FAULTS[fault]
    answer = ANSWERS[dialect]
    timeout = 0.3 if fault == "late" else 20.0
    server.answers = [make(answer), answer(SCORES)]
    # on a busy machine the good answer may be late too
    assert scored(remote(server, dialect, retries=8 if fault == "late" else 1, timeout=timeout)) == SCORES
    assert len(server.questions) >= 2
    server.answers = [make(answer)]
    judge = remote(server, dialect, retries=1, timeout=timeout)
    with pytest.raises(RewardModelError, match=f"(?s)no usable answer in 2 tries; the last: .*({message})") as caught:
        scored(judge)
    assert "prompt: '" in str(caught.value)


@pytest.mark.parametrize("dialect", ANSWERS)
def test_the_text_at_fault_is_named_across_batches(server, dialect):
    answer = ANSWERS[dialect]
    server.answers = [answer(SCORES[:2]), answer([math.nan])]
    with pytest.raises(RewardModelError, match="got nan") as caught:
        scored(remote(server, dialect, retries=0, batch_size=2))
    assert caught.value.row == 2


@pytest.mark.parametrize("dialect", INDEXED)
def test_shuffled_items_are_ordered_by_index(server, dialect):
    shuffled = ANSWERS[dialect](SCORES)
    shuffled["data"] = [shuffled["data"][i] for i in (2, 0, 1)]
    server.answers = [shuffled]
    assert scored(remote(server, dialect)) == SCORES


@pytest.mark.parametrize("dialect", INDEXED)
@pytest.mark.parametrize(
    ("indices", "message"),
    [((0, 1, 3), "index 2 is missing"), ((0, 0, 1), "index 2 is missing"), ((0, "1", 2), "whole number as index")],
)
def test_indices_that_cannot_be_right(server, dialect, indices, message):
    answer = ANSWERS[dialect](SCORES)
    for item, index in zip(answer["data"], indices, strict=True):
        item["index"] = index
    server.answers = [answer]
    with pytest.raises(RewardModelError, match=message):
        scored(remote(server, dialect, retries=0))


# What is asked.

QUESTIONS = {
    "get_reward": {"query": TEXTS, "prompts": PROMPTS, "labels": ["", "", ""]},
    "classify": {"input": TEXTS, "use_activation": True},
    "pooling": {"input": TEXTS, "use_activation": True},
    "score": {"text_1": PROMPTS, "text_2": COMPLETIONS, "use_activation": True},
    "predict": {"inputs": [[text] for text in TEXTS], "raw_scores": False, "truncation_direction": "Left"},
}


@pytest.mark.parametrize("dialect", ANSWERS)
def test_the_question(server, dialect):
    server.answers = [ANSWERS[dialect](SCORES)]
    scored(load_reward_model(f"{server.url}/{dialect}"))
    assert server.questions == [QUESTIONS[dialect]]


@pytest.mark.parametrize("dialect", ["classify", "pooling", "score", "predict"])
def test_logits_are_asked_for(server, dialect):
    server.answers = [ANSWERS[dialect]([-3.0, 2.5, 0.0])]
    assert scored(remote(server, dialect, output="logit")) == [-3, 2.5, 0]
    asked = server.questions[0]
    assert asked["raw_scores"] is True if dialect == "predict" else asked["use_activation"] is False
    with pytest.raises(RewardModelError, match="asked for probabilities, got .*; take output=logit"):
        scored(remote(server, dialect))


@pytest.mark.parametrize("dialect", ["classify", "pooling", "predict"])
def test_only_the_completion(server, dialect):
    server.answers = [ANSWERS[dialect](SCORES)]
    scored(remote(server, dialect, text="completion"))
    asked = server.questions[0]
    assert (asked["inputs"] if dialect == "predict" else asked["input"]) in (COMPLETIONS, [[c] for c in COMPLETIONS])


def test_columns_and_token_ids_are_sent(server):
    server.answers = [get_reward(SCORES)]
    judge = remote(server, "get_reward", columns="grade, completion_ids", batch_size=3)
    scored(judge, grade=[3, 4, 5])
    assert server.questions[0]["columns"] == {"grade": [3, 4, 5], "completion_ids": [[7], [7], [7]]}
    with pytest.raises(RewardModelError, match="columns names grade, and the prompts have no such column"):
        scored(judge)


def test_conversations_are_pairs_for_score(server):
    server.answers = [score([0.5])]
    prompt = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    assert scored(remote(server, "score"), [prompt], [[{"role": "assistant", "content": "Hello"}]]) == [0.5]
    assert (server.questions[0]["text_1"], server.questions[0]["text_2"]) == (["Be kind.\nHi"], ["Hello"])


# /pooling: a vector a text, or a vector a token.

PER_TOKEN = {"data": [{"index": 0, "data": [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]}]}


def test_pooling_of_classes(server):
    server.answers = [{"data": [{"index": 0, "data": [0.2, 0.8]}]}]
    assert scored(remote(server, "pooling", label=1, task="classify", model="m"), ["p"], ["c"]) == [0.8]
    assert server.questions[0] == {"input": ["pc"], "use_activation": True, "model": "m", "task": "classify"}


@pytest.mark.parametrize(("tokens", "expected"), [("last", 0.4), ("min", 0.1), ("mean", 1.3 / 3)])
def test_pooling_of_tokens(server, tokens, expected):
    server.answers = [PER_TOKEN]
    assert scored(remote(server, "pooling", label=1, tokens=tokens), ["p"], ["c"]) == pytest.approx([expected])


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ({}, [[0.1], [0.2]], "gives a value a token .2 of them.: choose tokens=last"),
        ({"tokens": "last"}, [0.1], "gives one vector a text; leave it out"),
        ({"tokens": "last"}, [[0.1, 0.9], [0.2, 0.8]], "has 2 classes; choose one with label=0"),
        ({}, [0.1, 0.9], "has 2 classes; choose one with label=0"),
        ({}, "AACAPw==", "expected .data. with a number a class"),
        ({}, [[0.1], "x"], "gives a value a token"),
        ({"tokens": "mean"}, [[0.1], "x"], "expected .data. with a number a class"),
        ({"tokens": "mean"}, [[0.1], [math.nan]], "got nan"),
        ({}, [], "expected .data. with a number a class"),
    ],
)
def test_poolings_that_are_no_score(server, options, data, message):
    server.answers = [{"data": [{"index": 0, "data": data}]}]
    with pytest.raises(RewardModelError, match=message):
        scored(remote(server, "pooling", retries=0, **options), ["p"], ["c"])


# /predict: classes by name, in the order of their scores.

STARS = [[{"score": 0.7, "label": "good"}, {"score": 0.2, "label": "bad"}, {"score": 0.1, "label": "fair"}]]


@pytest.mark.parametrize(("label", "expected"), [("good", 0.7), ("bad", 0.2), ("fair", 0.1)])
def test_predict_tells_classes_by_name(server, label, expected):
    server.answers = [STARS]
    assert scored(load_reward_model(f"{server.url}/predict?label={label}"), ["p"], ["c"]) == [expected]


def test_predict_knows_numbered_classes(server):
    server.answers = [[[{"score": 0.9, "label": "LABEL_1"}, {"score": 0.1, "label": "LABEL_0"}]]]
    assert scored(load_reward_model(f"{server.url}/predict?label=0"), ["p"], ["c"]) == [0.1]


@pytest.mark.parametrize(
    ("options", "answer", "message"),
    [
        ({}, STARS, "has 3 classes; choose one with label=: bad, fair, good"),
        ({"label": "Good"}, STARS, "label is 'Good', and the server has bad, fair, good"),
        ({"label": 0}, STARS, "label is 0, and the server has bad, fair, good"),
        ({"label": "good", "output": "logit"}, STARS, "asked for logits, got probabilities"),
        ({}, [[{"score": 0.7}]], "expected {.label., .score.} for each class"),
        ({}, [[{"score": 0.7, "label": "a"}, {"score": 0.3, "label": "a"}]], "a class stands twice"),
        ({}, STARS[0], "expected \\[\\[{.label., .score.}"),  # what TEI answers to one text that is no batch
    ],
)
def test_predictions_that_are_no_score(server, options, answer, message):
    server.answers = [answer]
    with pytest.raises(RewardModelError, match=message):
        scored(remote(server, "predict", retries=0, **options), ["p"], ["c"])


def test_no_more_texts_a_request_than_tei_takes(server):
    server.answers = [lambda body: predict([0.5] * len(body["inputs"]))]
    assert scored(remote(server, "predict"), ["p"] * 70, ["c"] * 70) == [0.5] * 70
    assert [len(question["inputs"]) for question in server.questions] == [32, 32, 6]


@pytest.mark.parametrize(
    ("dialect", "options", "message"),
    [
        ("get_reward", {"label": 1}, "label=1 has no effect in get_reward; it is for classify, pooling, predict"),
        ("get_reward", {"output": "logit"}, "output='logit' has no effect in get_reward"),
        ("get_reward", {"text": "completion"}, "text='completion' has no effect in get_reward"),
        ("score", {"tokenizer": "x"}, "tokenizer='x' has no effect in score"),
        ("classify", {"task": "classify"}, "task='classify' has no effect in classify; it is for pooling"),
        ("predict", {"model": "m"}, "model='m' has no effect in predict"),
        ("score", {"columns": "a"}, "columns='a' has no effect in score; it is for get_reward"),
        ("classify", {"label": "POSITIVE"}, "label is 'POSITIVE'; classify gives classes without names"),
        ("pooling", {"tokens": "sum"}, "tokens is 'sum'; expected one of last, mean, min"),
        ("classify", {"text": "prompt"}, "text is 'prompt'; expected one of prompt.completion, completion"),
    ],
)
def test_options_without_effect_are_refused(dialect, options, message):
    with pytest.raises(ValueError, match=message):
        Remote(f"http://host/{dialect}", **options)
