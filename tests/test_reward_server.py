"""lm_gym.reward_server and `lm-gym serve-reward` over real sockets on loopback."""

import http.client
import json
import os
import re
import signal
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from lm_gym.cli import main
from lm_gym.cli.serve_reward import ServeReward, reward_spec, serve_reward
from lm_gym.reward_models.remote import Remote
from lm_gym.reward_server import Limits, RewardServer
from lm_gym.rewards import RewardModelError, load_reward_model, score_texts

PROMPTS = ["The film was ", "The soup was ", "", "é 😀 "]
COMPLETIONS = ["a joy.", "cold, and the waiter rude.", "fine", " "]


def scored(judge, prompts=PROMPTS, completions=COMPLETIONS, ids=None, **columns):
    ids = [[1] * len(text) for text in completions] if ids is None else ids
    return score_texts(
        judge, prompts=prompts, completions=completions, completion_ids=ids, columns=columns
    ).scores.tolist()


def post(url, body, headers=None, method="POST"):
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
    body = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
    connection.request(method, parts.path, body, {"Content-Type": "application/json", **(headers or {})})
    answer = connection.getresponse()
    status, content = answer.status, json.loads(answer.read())
    connection.close()
    return status, content


def awkward(prompts, completions):
    """Numbers that a careless way through text would change."""
    return [[1 / 3, -1e-300, -3.4028234663852886e38, 0.1 + 0.2][len(text) % 4] for text in completions]


@pytest.fixture
def served():
    """A function that serves a reward model until the test ends."""
    servers = []

    def serve(reward_model, **options):
        servers.append(RewardServer(load_reward_model(reward_model), **options).start())
        return servers[-1]

    yield serve
    for server in servers:
        assert server.close(5)


# The round trip.


def classifier_folder(folder):
    letters = {letter: i for i, letter in enumerate(["<pad>", *"abcdefghijklmnopqrstuvwxyzT. ,é"])}
    inner = Tokenizer(models.BPE(vocab=letters, merges=[], unk_token="<pad>"))
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<pad>").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(letters), pad_token_id=0, num_labels=1, **sizes)
    model = LlamaForSequenceClassification(config)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    return reward_spec(str(folder))


@pytest.mark.parametrize("judge", ["vader", "folder", awkward])
def test_the_round_trip_gives_exactly_the_same_scores(served, judge, tmp_path):
    judge = classifier_folder(tmp_path) if judge == "folder" else judge
    local = load_reward_model(judge)
    expected = scored(local)
    assert len(set(expected)) > 1
    url = served(local).url
    assert scored(Remote(f"{url}/get_reward")) == expected
    # /classify has no prompts: a classifier reads prompt + completion, the others the completion alone
    text = "prompt+completion" if str(judge).startswith("hf:") else "completion"
    assert scored(Remote(f"{url}/classify", output="logit", text=text)) == expected


def test_probabilities_need_no_output(served):
    url = served(lambda completions: [1 / (1 + len(text)) for text in completions]).url
    assert scored(load_reward_model(f"{url}/classify?text=completion")) == [1 / 7, 1 / 27, 1 / 5, 1 / 2]


def test_labels_columns_and_token_ids_travel(served):
    def judge(completions, completion_ids, grade, label):
        return [100 * g + 10 * int(mark) + len(ids) for ids, g, mark in zip(completion_ids, grade, label, strict=True)]

    url = served(judge).url
    columns = {"grade": [1, 2, 3, 4], "label": ["5", "6", "7", "8"]}
    ids = [[1], [2, 3], [], [4]]
    remote = Remote(f"{url}/get_reward", columns="grade,completion_ids")
    assert scored(remote, ids=ids, **columns) == scored(judge, ids=ids, **columns) == [151, 262, 370, 481]


def test_the_golds_of_tiny_travel_with_their_columns(served):
    from lm_gym import tiny

    rows = tiny.prompts("questions")[:8]
    columns = {key: [row[key] for row in rows] for key in rows[0] if key != "prompt"}
    prompts, completions = (
        [row["prompt"] for row in rows],
        [" It is red.", " They speak french.", " four legs"] * 2 + ["", " kennel"],
    )
    local = load_reward_model("tiny-helpfulness")
    remote = Remote(f"{served(local).url}/get_reward", columns=",".join(columns))
    assert scored(remote, prompts, completions, **columns) == scored(local, prompts, completions, **columns)


@pytest.mark.parametrize("limits", [Limits(), Limits(whole_text=True)])
def test_prompts_split_the_query(served, limits):
    url = served(
        lambda prompts, completions: [100 * len(p) + len(c) for p, c in zip(prompts, completions)], limits=limits
    ).url
    _, answer = post(f"{url}/get_reward", {"query": ["abcde"], "prompts": ["ab"]})
    assert answer["rewards"] == [5] if limits.whole_text else [203]
    assert post(f"{url}/get_reward", {"query": ["abcde"]})[1]["rewards"] == [5]
    assert post(f"{url}/classify", {"input": "abcde"})[1]["data"][0]["probs"] == [5]


def test_a_judge_of_token_ids_is_not_given_none(served):
    url = served("length?target=4&unit=words").url
    assert post(f"{url}/get_reward", {"query": ["a b c"]})[1]["rewards"] == [-0.25]
    url = served("length?target=4").url
    status, answer = post(f"{url}/get_reward", {"query": ["a b c"]})
    assert status == 500 and "there are no completion_ids; take unit=words" in answer["error"]["message"]
    status, answer = post(f"{url}/get_reward", {"query": ["a b"], "columns": {"completion_ids": [[1, 2]]}})
    assert answer["rewards"] == [-0.5]

    url = served(lambda completion_ids: [len(ids) for ids in completion_ids]).url
    status, answer = post(f"{url}/get_reward", {"query": ["a"]})
    assert status == 400 and "reads token ids: send them to /get_reward as columns" in answer["error"]["message"]
    url = served(lambda **columns: [len(ids) for ids in columns["completion_ids"]]).url
    status, answer = post(f"{url}/get_reward", {"query": ["a"]})
    assert status == 500 and "KeyError: 'completion_ids'" in answer["error"]["message"]


def test_batches_and_turns(served):
    seen, under_way = [], []

    def judge(completions):
        under_way.append(1)
        time.sleep(0.01)
        seen.append((len(completions), len(under_way)))
        under_way.pop()
        return [float(text) for text in completions]

    server = served(judge, limits=Limits(batch_size=4))
    results = {}
    threads = [
        threading.Thread(target=lambda k=k: results.update({k: post(f"{server.url}/get_reward", texts(k))[1]}))
        for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {k: answer["rewards"] for k, answer in results.items()} == {k: list(range(k, k + 6)) for k in range(4)}
    assert sorted(seen) == [(2, 1)] * 4 + [(4, 1)] * 4  # calls take turns
    health = post(f"{server.url}/health", None, method="GET")
    assert health[1] == {"status": "ok", "reward_model": server.name, "hash": server.hash, "requests": 4, "texts": 24}


def texts(start):
    return {"query": [str(i) for i in range(start, start + 6)]}


# What is refused.

JSON = "application/json"
BAD = [
    ("get_reward", b"{", 400, "the request is not JSON"),
    ("get_reward", b"[" * 100_000, 400, "the request is not JSON"),
    ("get_reward", b'{"query": ["a"], "labels": [NaN]}', 400, "NaN is no number of JSON"),
    ("get_reward", ["a"], 400, "expected a JSON object, got list"),
    ("get_reward", {}, 400, "query expected a list of texts, got none"),
    ("get_reward", {"query": "a"}, 400, "query expected a list of texts, got str"),
    ("get_reward", {"query": ["a", 1]}, 400, r"query\[1\] expected a text, got int"),
    ("get_reward", {"query": ["a"], "promts": ["a"]}, 400, "unknown key 'promts'; there are query, prompts"),
    ("get_reward", {"query": ["a"], "prompts": ["a", "b"]}, 400, "prompts expected a list of 1 values, .* got 2"),
    ("get_reward", {"query": ["ab"], "prompts": ["b"]}, 400, "query 0 does not begin with its prompt 'b'"),
    ("get_reward", {"query": ["a"], "labels": "x"}, 400, "labels expected a list of 1 values"),
    ("get_reward", {"query": ["a"], "columns": [1]}, 400, "columns expected an object of lists"),
    ("get_reward", {"query": ["a"], "columns": {"x": [1, 2]}}, 400, "columns.x expected a list of 1 values"),
    ("get_reward", {"query": ["a"], "columns": {"prompts": [1]}}, 400, "a column cannot have this name"),
    ("get_reward", {"query": ["a"], "columns": {"label": [1]}, "labels": [2]}, 400, "are the same column"),
    ("get_reward", {"query": ["a"], "columns": {"completion_ids": [["a"]]}}, 400, "expected a list of whole numbers"),
    ("get_reward", {"query": ["a"], "columns": {"completion_ids": [[-1]]}}, 400, "expected a list of whole numbers"),
    ("get_reward", {"query": ["a"], "columns": {"completion_ids": [[2**63]]}}, 400, "expected a list of whole numbers"),
    ("get_reward", {"query": ["a"], "columns": {"self": ["x"]}}, 400, "columns.self: a column cannot have this name"),
    ("get_reward", b'{"query": ["a"], "columns": {"x": [1e999]}}', 400, "1e999 is beyond the range of numbers"),
    ("get_reward", b'{"query": ["a"], "columns": {"x": [' + b"9" * 350 + b"]}}", 400, "350 digits is beyond the range"),
    ("get_reward", b'{"query": ["a"], "columns": {"x": [' + b"9" * 1900 + b"]}}", 400, "1900 digits is beyond"),
    ("get_reward", {"query": ["a"] * 9}, 413, "9 texts in one request; at most 8"),
    ("get_reward", b" " * 3000, 413, "3000 bytes in one request; at most 2000"),
    ("classify", {"input": [[1, 2]]}, 400, r"input\[0\] expected a text, got list"),
    ("classify", {"messages": []}, 400, "unknown key 'messages'"),
    ("classify", {"input": ["a"], "use_activation": 1}, 400, "use_activation expected true or false"),
    ("classify", {"input": ["a"], "use_activation": True}, 400, "gave 7, which is no probability"),
    ("classify", {"input": ["a"], "model": "gpt"}, 404, "there is no model 'gpt' here, only "),
    ("score", {}, 404, "there is no /score; there are /get_reward, /classify, /health"),
    ("health", {}, 405, "/health takes GET, not POST"),
]


@pytest.mark.parametrize(("path", "body", "status", "message"), BAD)
def test_a_bad_question_is_a_clear_error(served, path, body, status, message):
    lines = []
    limits = Limits(max_texts=8, max_bytes=2000) if b"[[" not in (body if isinstance(body, bytes) else b"") else None
    server = served(lambda completions: [7.0] * len(completions), limits=limits, on_error=lines.append)
    got, answer = post(f"{server.url}/{path}", body)
    assert (got, answer["error"]["code"]) == (status, status)
    assert re.search(message, answer["error"]["message"])
    assert len(lines) == 1 and lines[0].startswith(f"POST /{path}: {status} ")
    assert post(f"{server.url}/get_reward", {"query": ["a"]})[1]["rewards"] == [7]  # it goes on


def test_headers_and_methods(served):
    url = served("vader").url
    assert post(f"{url}/get_reward", {"query": []}, {"Content-Type": "text/plain"})[0] == 415
    assert post(f"{url}/get_reward", None, {"Transfer-Encoding": "chunked"})[0] == 411
    assert post(f"{url}/get_reward", None, method="GET")[0] == 405
    assert post(f"{url}/get_reward", None, method="DELETE")[0] == 501
    assert post(f"{url}/get_reward", {"query": []})[1]["rewards"] == []


def test_a_bug_of_the_server_is_an_answer_too(served, monkeypatch):
    server = served("vader")
    monkeypatch.setattr(server, "score", lambda texts: 1 / 0)
    status, answer = post(f"{server.url}/get_reward", {"query": ["a"]})
    assert (status, answer["error"]["type"]) == (500, "InternalError")
    assert answer["error"]["message"] == "ZeroDivisionError: division by zero"


def test_a_client_that_falls_silent(served):
    url = served("vader", limits=Limits(timeout=0.1)).url
    status, answer = post(f"{url}/get_reward", b"{}", {"Content-Length": "10"})
    assert status == 408 and "the request had not come after 0.1 s" in answer["error"]["message"]


def test_the_reason_of_a_failure_and_its_text(served):
    def judge(completions):
        return [float("nan") if text == "bad" else 1.0 for text in completions]

    url = served(judge, limits=Limits(batch_size=2)).url
    status, answer = post(f"{url}/get_reward", {"query": ["a", "b", "c", "bad"]})
    assert (status, answer["error"]["type"], answer["error"]["row"]) == (500, "RewardModelError", 3)
    assert "returned nan, expected a finite number" in answer["error"]["message"]
    with pytest.raises(RewardModelError, match="HTTP status 500: .*returned nan"):
        scored(Remote(f"{url}/get_reward", retries=1, backoff=0.001), ["", ""], ["a", "bad"])


def test_a_token(served, monkeypatch):
    url = served("vader", token="s3cret").url
    question = {"query": ["good"]}
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
        status, answer = post(f"{url}/get_reward", question, headers)
        assert (status, answer["error"]["type"]) == (401, "Unauthorized")
    assert post(f"{url}/health", None, method="GET")[0] == 200
    monkeypatch.setenv("JUDGE_TOKEN", "s3cret")
    assert scored(Remote(f"{url}/get_reward", token_env="JUDGE_TOKEN")) == scored(load_reward_model("vader"))
    for token in ("", " ", "s3cret\n", "é"):
        with pytest.raises(ValueError, match="token of a reward server is empty, or has spaces"):
            RewardServer(load_reward_model("vader"), token=token)


# What takes its time, or more than its share.


def opened(url, sent=b""):
    parts = urlsplit(url)
    connection = socket.create_connection((parts.hostname, parts.port), timeout=10)
    connection.sendall(sent)
    return connection


def ended(connection, *, sending=b""):
    """Seconds until the server hangs up on a client that sends `sending` every 20 ms, and what it had answered."""
    started, answer = time.monotonic(), b""
    connection.settimeout(0.02)
    while time.monotonic() - started < 5:
        try:
            connection.sendall(sending)
            got = connection.recv(1 << 16)
        except TimeoutError:
            continue
        except OSError:
            break
        if not got:
            break
        answer += got
    connection.close()
    return time.monotonic() - started, answer


HEAD = b"POST /get_reward HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("sent", "sending"),
    [
        (b"", b""),
        (b"POST /get", b""),
        (b"POST /get", b"x"),
        (HEAD, b"X-Header: x\r\n"),
        (HEAD + b"Content-Length: 1000\r\n\r\n", b" "),
    ],
)
def test_a_request_has_one_deadline(served, sent, sending):
    url = served("vader", limits=Limits(timeout=0.25)).url
    seconds, answer = ended(opened(url, sent), sending=sending)
    assert 0.2 < seconds < 1.5
    assert (b" 408 " in answer) == (b"Length" in sent)


def test_the_token_comes_before_the_body(served):
    """17 MB that are announced are not waited for: the answer is there before the first of them is sent."""
    url = served("vader", token="s3cret").url
    connection = opened(url, HEAD + b"Content-Length: 16000000\r\n\r\n")
    assert connection.recv(1 << 16).startswith(b"HTTP/1.0 401 ")
    connection.close()
    assert post(f"{url}/get_reward", b" " * 4_000_000)[0] == 401  # and a client that sends them all sees it too


@pytest.mark.parametrize("length", ["9" * 5000, "9" * 30, "-1", "1.5", "\u00b2", ""])
def test_odd_lengths(served, length):
    connection = opened(served("vader").url, HEAD + f"Content-Length: {length}\r\n\r\n".encode("latin-1"))
    assert connection.recv(1 << 16).split()[1] == (b"413" if length.isdecimal() else b"411")
    connection.close()


def test_silent_connections_lock_nobody_out(served):
    server = served("vader", limits=Limits(max_connections=4))
    silent = [opened(server.url, b"POST /get") for _ in range(12)]
    assert post(f"{server.url}/get_reward", {"query": ["good"]})[0] == 200
    assert sum(ended(connection)[0] < 1 for connection in silent[:8]) == 8  # the oldest made room
    for connection in silent:
        connection.close()


def test_more_requests_than_the_limit_are_told_to_come_back(served):
    begun, go = threading.Event(), threading.Event()

    def judge(completions):
        begun.set()
        go.wait(10)
        return [1.0] * len(completions)

    url = served(judge, limits=Limits(max_connections=1)).url
    answers = []
    thread = threading.Thread(target=lambda: answers.append(post(f"{url}/get_reward", {"query": ["a"]})))
    thread.start()
    begun.wait(10)
    connection = opened(url)
    refusal = connection.recv(1 << 16)
    assert refusal.startswith(b"HTTP/1.0 503 ") and b"\r\nRetry-After: 1\r\n" in refusal
    connection.close()
    go.set()
    thread.join()
    assert answers[0][1]["rewards"] == [1.0]


def test_what_a_client_sends_does_not_steer_the_terminal(served, capsys):
    from lm_gym.cli.errors import say

    lines = []
    server = served("vader", on_error=lambda line: (lines.append(line), say(line)))
    for path in (b"/x\x1b[31m", b"/\x9b31m", b"/\x07"):
        connection = opened(server.url, b"POST " + path + b" HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
        assert connection.recv(1 << 16).split()[1] == b"404"
        connection.close()
    say("a judge's words: \x1b]0;X\x07\u202e")
    shown = capsys.readouterr().err
    assert len(lines) == 3 and all(line.isprintable() for line in shown.splitlines())


# The command.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_request_under_way_end(number, tmp_path, capsys, monkeypatch):
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\n"
        "def judge(completions):\n"
        "    pathlib.Path(__file__).with_name('begun').touch()\n"
        "    time.sleep(0.3)\n"
        "    return [2.5] * len(completions)\n"
    )
    monkeypatch.setenv("JUDGE_TOKEN", "s3cret")
    found, answers = [], []

    def client():
        deadline = time.monotonic() + 60
        while not found and time.monotonic() < deadline:
            found.extend(word for word in capsys.readouterr().out.split() if word.endswith("/get_reward"))
            time.sleep(0.02)
        asking = threading.Thread(
            target=lambda: answers.append(post(found[0], {"query": ["a"]}, {"Authorization": "Bearer s3cret"}))
        )
        asking.start()
        while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), number)
        asking.join()

    thread = threading.Thread(target=client)
    thread.start()
    before = signal.getsignal(number)
    options = ServeReward(f"py:{tmp_path}/slow.py:judge", port=0, token_env="JUDGE_TOKEN")
    assert serve_reward(options) == 0
    thread.join()
    assert answers == [(200, {"rewards": [2.5], "scores": [2.5], "extra_logs": {}})]
    assert "stopped: 1 texts in 1 requests" in capsys.readouterr().out
    assert signal.getsignal(number) is before
    with pytest.raises(ConnectionRefusedError):
        post(found[0], {"query": ["a"]})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["vadr"], "unknown reward model 'vadr'. Did you mean 'vader'?"),
        (["vader", "--token-env", "NO_SUCH_VARIABLE"], "there is no such environment variable, or empty"),
        (["vader", "--max-texts", "0"], "expected batch_size, max_texts, max_bytes and max_connections of at least 1"),
        (["vader", "--port", "99999"], "cannot listen on 127.0.0.1:99999"),
    ],
)
def test_what_cannot_be_served_is_refused(flags, message, capsys):
    assert main(["serve-reward", *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_port_that_is_taken(served, capsys):
    port = urlsplit(served("vader").url).port
    assert main(["serve-reward", "vader", "--port", str(port)]) == 2
    assert "port 0 takes a free one" in capsys.readouterr().err
