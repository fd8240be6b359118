"""lm_gym.reward_models.remote against a real HTTP server on loopback that fails in every way that a server can."""

import email.utils
import math
import time
from types import SimpleNamespace

import pytest
from scripted_server import Server, trickling

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


@pytest.mark.parametrize("items", [[{}, {}, {}], [{"index": 0}, {"index": 1}, {}], [{"index": True}] * 3])
def test_items_without_index_are_no_scores(server, items):
    server.answers = [{"data": [item | {"probs": [0.1]} for item in items]}]
    with pytest.raises(RewardModelError, match="expected a whole number as index in each result"):
        score(remote(server, "/classify", retries=0))


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
    assert Remote("http://[::1]:2/get_reward").name == "http://[::1]:2/get_reward"
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


OK = b"HTTP/1.1 200 OK\r\n"
SLOW = {
    "the status line": (b"", b"H"),
    "the headers": (OK, b"X-Header: x\r\n"),
    "one header": (OK, b"x"),
    "the body": (OK + b"\r\n", b" "),
    "chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "the body of an error": (b"HTTP/1.1 500 Oops\r\n\r\n", b" "),
    "the headers of an error": (b"HTTP/1.1 404 Oops\r\n", b"x"),
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
}
"""What is sent at once, and what is then sent again and again, every 20 ms."""


@pytest.mark.parametrize("part", SLOW)
def test_a_server_that_trickles_is_late(part):
    """The time-out is for the whole answer: the socket's own would start anew with every byte."""
    with trickling(*SLOW[part]) as url:
        started = time.monotonic()
        with pytest.raises(NoAnswer, match=r"no answer within 0.2 s|HTTP status"):
            ask(url, {}, lambda answer: answer, timeout=0.2, retries=0, backoff=0)
        assert time.monotonic() - started < 0.7


@pytest.mark.parametrize("length", [True, False])
def test_an_answer_without_end_is_not_read(length):
    """10 MB a send: with a length that is announced, and without."""
    head = OK + (b"Content-Length: 600000000\r\n" if length else b"") + b"\r\n"
    with trickling(head, b" " * 10_000_000, pause=0) as url:
        with pytest.raises(NoAnswer, match=f"more than {2 * 2**20} bytes"):
            ask(url, {}, lambda answer: answer, timeout=5, retries=3, backoff=0)


def test_the_largest_answer_grows_with_the_texts(server):
    room = " " * int(3.5 * 2**20)
    server.answers = [f'{{"rewards": [1, 2, 3]{room}}}'.encode()]  # 4 MiB are read for 3 texts
    assert score(remote(server)) == [1, 2, 3]
    with pytest.raises(RewardModelError, match=f"more than {3 * 2**20} bytes"):
        score(remote(server, batch_size=2))


# Redirects.


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_refused_and_the_token_goes_nowhere(server, status, monkeypatch):
    other = Server()
    other.answers = [{"rewards": [1.0, 1.0, 1.0]}]
    monkeypatch.setenv("JUDGE_TOKEN", "s3cret")
    for place in (f"{other.url}/get_reward", "/elsewhere"):
        server.answers = [(status, {"Location": place}, b"")]
        with pytest.raises(RewardModelError, match=f"status {status}: the server redirects to {place}, which is not"):
            score(remote(server, token_env="JUDGE_TOKEN"))
    assert other.questions == [] and other.headers == []
    assert len(server.questions) == 2  # asked once each
    other.close()


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/get_reward", "file:///etc/hostname", "data:,[1.0]"])
def test_other_schemes_are_not_asked(url):
    with pytest.raises(ValueError, match="expected an address http"):
        ask(url, {}, lambda answer: answer, timeout=1, retries=0, backoff=0)


def test_a_token_that_no_header_can_hold_is_not_shown(server, monkeypatch):
    monkeypatch.setenv("JUDGE_TOKEN", "s3cret\n")
    with pytest.raises(ValueError, match="the token in JUDGE_TOKEN is empty, or has spaces") as caught:
        remote(server, token_env="JUDGE_TOKEN")
    assert "s3cret" not in str(caught.value)


def test_back_off_doubles_and_obeys_the_server(server, monkeypatch):
    waits = []
    # In place of the module, whose sleep the server's threads use too.
    monkeypatch.setattr(http_json, "time", SimpleNamespace(sleep=waits.append, monotonic=time.monotonic))
    busy = (503, {"Retry-After": "7"}, b"")
    server.answers = [(500, {}, b""), (500, {}, b""), busy, (500, {}, b""), rewards]
    score(remote(server, backoff=1.0))
    assert waits == [1, 2, 7, 8]


def test_a_date_is_a_time_to_wait_until():
    """RFC 9110, 5.6.7: three forms of a date; what passes between it and the server's own clock counts."""
    now = "Sun, 06 Nov 1994 08:49:37 GMT"
    for until in ("Sun, 06 Nov 1994 08:50:00 GMT", "Sunday, 06-Nov-94 08:50:00 GMT", "Sun Nov  6 08:50:00 1994"):
        assert http_json._wait_asked_for({"Retry-After": until, "Date": now}) == 23
    in_a_minute = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert 57 < http_json._wait_asked_for({"Retry-After": in_a_minute}) <= 60
    assert http_json._wait_asked_for({"Retry-After": now, "Date": in_a_minute}) < 0  # the back-off is the wait
    for odd in ("", "soon", "-1", "1.5", "Sun, 99 Nov 1994 08:50:00 GMT", "9" * 5000 + "x"):
        assert http_json._wait_asked_for({"Retry-After": odd, "Date": now}) == 0
    assert http_json._wait_asked_for({"Retry-After": "9" * 5000}) == math.inf  # 60 s, LONGEST_WAIT


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
        ("http://host/classify", {"timeout": float("nan")}, "expected timeout > 0"),
        ("http://host/classify", {"timeout": 1e30}, "at most 86400 s"),
        ("http://host/classify", {"backoff": float("inf")}, "backoff >= 0, both at most"),
        ("http://host:99999/classify", {}, r"this is no URL \(Port out of range"),
        ("http://[::1/classify", {}, r"this is no URL \(Invalid IPv6"),
        ("http://a b/classify", {}, "percent-encode them"),
        ("http://host/\u00e9/classify", {}, "percent-encode them"),
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
