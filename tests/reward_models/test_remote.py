"""lm_gym.reward_models.remote against a real HTTP server on loopback that fails in every way that a server can."""

import math
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from scripted_server import Server

from lm_gym.reward_models import http_json
from lm_gym.reward_models.http_json import NoAnswer, ask
from lm_gym.reward_models.remote import Remote
from lm_gym.rewards import RewardModelError, load_reward_model, reward_model_name, score_texts

PROMPTS = ["first ", "second ", "third "]
COMPLETIONS = ["a", "bb", "ccc"]


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def rewards(body):
    """What OpenRLHF's server answers, here: the length of each text."""
    return {"rewards": [float(len(text)) for text in body["query"]]}


def classes(body, order=lambda items: items):
    """What vLLM's server answers: two classes, the second of probability 1/length."""
    data = [
        {"index": row, "label": "LABEL_0", "probs": [1 - 1 / len(text), 1 / len(text)], "num_classes": 2}
        for row, text in enumerate(body["input"])
    ]
    return {"id": "classify-1", "object": "list", "created": 1, "model": "m", "data": order(data), "usage": {}}


def remote(server, path="/get_reward", **options):
    return Remote(server.url + path, **{"backoff": 0.001, "timeout": 5.0, **options})


def score(reward_model, prompts=PROMPTS, completions=COMPLETIONS, **columns):
    return score_texts(
        reward_model,
        prompts=prompts,
        completions=completions,
        completion_ids=[[0]] * len(completions),
        columns=columns,
    ).scores.tolist()


# What is asked and read.


def test_get_reward(server):
    server.answers = [rewards]
    assert score(remote(server)) == [7, 9, 9]
    assert server.questions == [
        {"query": ["first a", "second bb", "third ccc"], "prompts": PROMPTS, "labels": ["", "", ""]}
    ]


def test_labels_are_a_column(server):
    server.answers = [rewards]
    score(remote(server), label=["x", "y", "z"])
    score(remote(server, labels_column="solution"), solution=["1", "2", "3"], label=["x", "y", "z"])
    assert [question["labels"] for question in server.questions] == [["x", "y", "z"], ["1", "2", "3"]]


def test_a_column_of_a_tensor(server):
    server.answers = [{"rewards": [[1.0], [2.0], [3.0]]}]
    assert score(remote(server)) == [1, 2, 3]


@pytest.mark.parametrize("output", ["prob", "logprob"])
def test_classify(server, output):
    server.answers = [classes]
    scores = score(remote(server, "/classify", label=1, model="judge", output=output))
    expected = [1 / 7, 1 / 9, 1 / 9]
    assert scores == pytest.approx(expected if output == "prob" else [math.log(p) for p in expected])
    assert server.questions == [
        {"input": ["first a", "second bb", "third ccc"], "use_activation": True, "model": "judge"}
    ]


def test_classify_asks_for_logits(server):
    server.answers = [{"data": [{"index": row, "probs": [3.0 - row]} for row in range(3)]}]
    assert score(remote(server, "/classify", output="logit")) == [3, 2, 1]
    assert server.questions[0]["use_activation"] is False
    assert "model" not in server.questions[0]


def test_shuffled_items_are_ordered_by_index(server):
    server.answers = [lambda body: classes(body, order=lambda items: items[::-1])]
    assert score(remote(server, "/classify", label=1)) == pytest.approx([1 / 7, 1 / 9, 1 / 9])


def test_items_without_index_are_in_order(server):
    server.answers = [{"data": [{"probs": [0.1]}, {"probs": [0.2]}, {"probs": [0.3]}]}]
    assert score(remote(server, "/classify")) == [0.1, 0.2, 0.3]


def test_batches(server):
    server.answers = [rewards]
    assert score(remote(server, batch_size=2)) == [7, 9, 9]
    assert [len(question["query"]) for question in server.questions] == [2, 1]


def test_as_a_string(server):
    server.answers = [classes]
    judge = load_reward_model(f"{server.url}/score?dialect=classify&label=1&backoff=0&timeout=5")
    assert score(judge) == pytest.approx([1 / 7, 1 / 9, 1 / 9])
    assert reward_model_name(judge) == f"{server.url}/score"
    with pytest.raises(ValueError, match=r"unknown argument 'dialct'. Did you mean 'dialect'\?"):
        load_reward_model("http://localhost/score?dialct=classify")


def test_a_token_comes_from_the_environment_and_stays_out_of_the_name(server, monkeypatch):
    server.answers = [rewards]
    monkeypatch.setenv("JUDGE_TOKEN", "s3cret")
    judge = remote(server, token_env="JUDGE_TOKEN")
    score(judge)
    assert server.headers[0]["Authorization"] == "Bearer s3cret"
    assert "s3cret" not in str(vars(judge)) + judge.fingerprint()
    assert Remote("http://user:password@host:1/get_reward?key=s3cret").name == "http://host:1/get_reward"


def test_a_proxy_is_not_asked_for_loopback(server, monkeypatch):
    server.answers = [rewards]
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert score(remote(server)) == [7, 9, 9]


# What fails once and is cured by another try.

CURED = {
    "500": (500, {}, b"oops"),
    "503": (503, {"Retry-After": "0"}, b""),
    "429": (429, {}, b""),
    "malformed": b'{"rewards": [1.0, ',
    "empty": b"",
    "html": b"<html>starting up</html>",
    "latin-1": b'{"rewards": "\xe9"}',
    "nan": b'{"rewards": [1.0, NaN, 3.0]}',
    "infinity": b'{"rewards": [1.0, 1e999, 3.0]}',
    "missing": {"rewards": [1.0, 2.0]},
    "too many": {"rewards": [1.0, 2.0, 3.0, 4.0]},
    "null": {"rewards": [1.0, None, 3.0]},
    "text": {"rewards": [1.0, "2.0", 3.0]},
    "another key": {"scores": [1.0, 2.0, 3.0]},
    "a list": [1.0, 2.0, 3.0],
    "cut off": (200, {"Content-Length": "1000"}, b'{"rewards": [1.0, 2.0, 3.0]}'),
}


@pytest.mark.parametrize("fault", CURED.values(), ids=CURED.keys())
def test_a_fault_is_cured_by_another_try(server, fault):
    server.answers = [fault, fault, rewards]
    assert score(remote(server, retries=2, timeout=0.3 if "cut off" in str(fault) else 5)) == [7, 9, 9]
    assert len(server.questions) == 3


@pytest.mark.parametrize("fault", CURED.values(), ids=CURED.keys())
def test_a_fault_that_stays_is_an_error_with_the_prompt(server, fault):
    server.answers = [fault]
    with pytest.raises(RewardModelError, match="no usable answer in 2 tries") as caught:
        score(remote(server, retries=1))
    assert server.url in str(caught.value)
    assert "prompt: '" in str(caught.value)
    assert len(server.questions) == 2  # the batch is not halved and asked for again


def test_the_item_at_fault_is_named(server):
    server.answers = [b'{"rewards": [1.0, 2.0]}', b'{"rewards": [NaN]}']
    with pytest.raises(RewardModelError, match="expected a finite number, got nan") as caught:
        score(remote(server, retries=0, batch_size=2))
    assert caught.value.row == 2
    assert "prompt: 'third '" in str(caught.value)


def test_a_late_answer(server):
    server.answers = [0.5, rewards]
    assert score(remote(server, timeout=0.1)) == [7, 9, 9]
    server.answers = [0.5]
    with pytest.raises(RewardModelError, match=r"no answer within 0.1 s"):
        score(remote(server, timeout=0.1, retries=0))


def test_nobody_listens():
    server = Server()
    server.close()
    with pytest.raises(RewardModelError, match="no usable answer in 2 tries; the last: ConnectionRefusedError"):
        score(remote(server, retries=1))


def test_a_server_that_trickles_is_late():
    """The time-out is for the whole answer: one byte every 20 ms would keep the socket's own from running out."""

    class Trickle(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range(100):
                    self.wfile.write(b" ")
                    time.sleep(0.02)
            except OSError:
                pass

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Trickle)
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    started = time.monotonic()
    with pytest.raises(NoAnswer, match="no answer within 0.2 s"):
        ask(f"http://127.0.0.1:{http.server_address[1]}/", {}, lambda answer: answer, timeout=0.2, retries=0, backoff=0)
    assert time.monotonic() - started < 1.5
    http.shutdown()
    http.server_close()


def test_back_off_doubles_and_obeys_the_server(server, monkeypatch):
    waits = []
    # In place of the module, whose sleep the server's threads use too.
    monkeypatch.setattr(http_json, "time", SimpleNamespace(sleep=waits.append, monotonic=time.monotonic))
    busy = (503, {"Retry-After": "7"}, b"")
    server.answers = [(500, {}, b""), (500, {}, b""), busy, (500, {}, b""), rewards]
    score(remote(server, backoff=1.0))
    assert waits == [1, 2, 7, 8]


# What no retry cures.


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_refusal_is_an_error_at_once(server, status):
    server.answers = [(status, {}, b'{"detail": "the key query is missing"}')]
    with pytest.raises(RewardModelError, match=f"HTTP status {status}: .*the key query is missing"):
        score(remote(server))
    assert len(server.questions) == 1


BAD_CLASSES = [
    ({}, "expected {.data.: "),
    ({"data": [1, 2, 3]}, "expected {.data.: "),
    ({"data": [{"index": 0, "probs": [1.0]}, {"index": 2, "probs": [1.0]}]}, "2 results for 3 texts; index 1"),
    ({"data": [{"index": row, "probs": [1.0]} for row in (0, 1, 1)]}, "index 2 is missing"),
    ({"data": [{"index": row, "probs": [1.0]} for row in (0, 1, 2, 2)]}, "4 results for 3 texts"),
    ({"data": [{"index": row} for row in range(3)]}, "expected .probs. with a number a class"),
    ({"data": [{"index": row, "probs": [None]} for row in range(3)]}, "expected a finite number, got None"),
    ({"data": [{"index": row, "probs": [0.1, 0.9]} for row in range(3)]}, "has 2 classes; choose one with label=0"),
    ({"data": [{"index": row, "probs": [-1.0]} for row in range(3)]}, "asked for probabilities, got"),
]


@pytest.mark.parametrize(("answer", "message"), BAD_CLASSES, ids=range(len(BAD_CLASSES)))
def test_classes_that_cannot_be_read(server, answer, message):
    server.answers = [answer]
    with pytest.raises(RewardModelError, match=message):
        score(remote(server, "/classify", retries=0))


def test_a_class_that_is_not_there(server):
    server.answers = [classes]
    with pytest.raises(RewardModelError, match="label is 5, and the server has 2 classes"):
        score(remote(server, "/classify", label=5))


def test_probabilities_in_place_of_logits_are_refused(server):
    server.answers = [classes]
    with pytest.raises(RewardModelError, match="asked for logits, got probabilities"):
        score(remote(server, "/classify", label=1, output="logit"))


def test_a_probability_of_zero_has_no_logarithm(server):
    server.answers = [{"data": [{"index": row, "probs": [0.0, 1.0]} for row in range(3)]}]
    with pytest.raises(RewardModelError, match="take output=prob"):
        score(remote(server, "/classify", label=0, output="logprob", retries=0))


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("localhost:5000/get_reward", {}, "is no URL"),
        ("http://host/judge", {}, r"dialect is 'judge'; expected one of get_reward, classify"),
        ("http://host/score", {"dialect": "tei"}, "dialect is 'tei'"),
        ("http://host/classify", {"output": "probs"}, "expected one of prob, logit, logprob"),
        ("http://host/classify", {"timeout": 0}, "expected timeout > 0"),
        ("http://host/classify", {"label": -1}, "label is -1"),
        ("http://host/classify", {"token_env": "NO_SUCH_VARIABLE"}, "no such environment variable"),
    ],
)
def test_wrong_options(url, options, message):
    with pytest.raises(ValueError, match=message):
        Remote(url, **options)


# Conversations.


def test_conversations_need_a_template(server, tmp_path):
    server.answers = [rewards]
    prompts = [[{"role": "user", "content": "Hi"}]]
    completions = [[{"role": "assistant", "content": "Hello"}]]
    with pytest.raises(RewardModelError, match="give tokenizer="):
        score(remote(server), prompts, completions)

    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    tokenizer.save_pretrained(tmp_path)
    score(remote(server, tokenizer=str(tmp_path)), prompts, completions)
    assert server.questions[-1]["query"] == ["[user] Hi[assistant] Hello"]
    assert server.questions[-1]["prompts"] == ["[user] Hi[assistant] "]
