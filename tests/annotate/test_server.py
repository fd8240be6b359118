"""Who may do what over the network: links, cookies, other sites, sizes, paths; and what the page is not told."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from annotate_stores import Clock, new_id, person, store_with
from fastapi.testclient import TestClient

from lm_gym.annotate.guard import HEADERS, LARGEST_BODY
from lm_gym.annotate.people import invite
from lm_gym.annotate.redteam import LONGEST_PROMPT
from lm_gym.annotate.server import RedTeam, create_app
from lm_gym.annotate.store import Pair, Store, add_pairs
from lm_gym.rewards import Text

URL = "http://127.0.0.1:8765"


def writer(prompt: Text) -> tuple[Text, Text]:
    assert isinstance(prompt, str)
    return (" same", " same") if "twins" in prompt else (f" first to {len(prompt)}", f" second to {len(prompt)}")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with store_with(tmp_path, 6, clock=clock) as store:
        yield store


@pytest.fixture
def client(store: Store) -> Iterator[TestClient]:
    app = create_app(store, guidelines="# Rules\n\n<b>be fair</b>", red_team=RedTeam("stub", writer, False))
    with TestClient(app, base_url=URL, follow_redirects=False) as client:
        yield client


def post(client: TestClient, path: str, body: Any, **headers: str) -> Any:
    return client.post(path, json=body, headers={"Origin": URL} | headers)


def sign_in(client: TestClient, store: Store, name: str = "ada", **options: Any) -> str:
    token = invite(store, name, **options)
    response = post(client, "/api/join", {"token": token})
    assert response.status_code == 200
    return token


def answer_to(client: TestClient, **fields: Any) -> dict[str, Any]:
    (item,) = client.get("/api/next?count=1").json()["items"]
    return {"id": new_id(), "item": item["item"], "kind": "preference", "shown": 2} | fields


def test_a_link_signs_in_by_a_post_and_the_cookie_stays_with_this_site(client: TestClient, store: Store) -> None:
    token = invite(store, "ada")
    for _ in range(2):  # a mail program that looks at the link uses nothing up
        page = client.get(f"/join/{token}")
        assert page.status_code == 200 and "ada" in page.text and "set-cookie" not in page.headers
    assert client.get("/").status_code == 401
    joined = post(client, "/api/join", {"token": token})
    cookie = joined.headers["set-cookie"]
    assert joined.json() == {"to": "/"} and token not in cookie
    assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower() and "Path=/" in cookie
    page = client.get("/")
    assert page.status_code == 200 and "&lt;b&gt;be fair&lt;/b&gt;" in page.text
    assert len(client.get("/api/next?count=2").json()["items"]) == 2


@pytest.mark.parametrize("token", ["", "x", "a" * 43, "../../etc/passwd", "' OR 1=1 --", "\ud800", "é" * 50])
def test_wrong_tokens_are_refused(client: TestClient, store: Store, token: str) -> None:
    invite(store, "ada")
    body = json.dumps({"token": token}).encode()
    headers = {"Origin": URL, "Content-Type": "application/json"}
    response = client.post("/api/join", content=body, headers=headers)
    assert response.status_code == 403 and "set-cookie" not in response.headers
    for wrong in ({}, {"token": None}, {"token": 5}, [], "x"):
        assert post(client, "/api/join", wrong).status_code in (400, 403)
    assert client.get("/join/wrong").status_code == 403


def test_links_and_cookies_end(client: TestClient, store: Store, clock: Clock) -> None:
    token = sign_in(client, store, days=1)
    assert client.get("/").status_code == 200
    clock.now += 86_401
    assert client.get("/").status_code == 401 == client.get("/api/next").status_code
    assert client.get(f"/join/{token}").status_code == 403
    assert post(client, "/api/join", {"token": token}).status_code == 403
    assert post(client, "/api/answers", {}).status_code == 401


def test_an_annotator_is_no_admin_and_the_admin_no_annotator(client: TestClient, store: Store) -> None:
    sign_in(client, store)
    assert client.get("/admin").status_code == 403 == client.get("/api/status").status_code
    client.cookies.clear()
    assert client.get("/admin").status_code == 401
    sign_in(client, store, "admin", admin=True)
    assert client.get("/").headers["location"] == "/admin"
    assert client.get("/admin").status_code == 200 and client.get("/api/status").json()["items"] == 6
    assert client.get("/api/next").status_code == 403


def test_every_response_carries_the_headers(client: TestClient, store: Store) -> None:
    sign_in(client, store)
    paths = [
        "/",
        "/red-team",
        "/join/x",
        "/nothing",
        "/api/next",
        "/api/nothing",
        "/static/style.css",
        "/static/nothing",
    ]
    for response in [*(client.get(path) for path in paths), client.put("/"), post(client, "/api/answers", {})]:
        assert {key: response.headers[key] for key in HEADERS} == HEADERS, response.url
        assert "server" not in response.headers
    policy = HEADERS["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy and "http" not in policy


def test_pages_hold_no_inline_script_or_style_and_no_foreign_address(client: TestClient, store: Store) -> None:
    token = sign_in(client, store)
    pages = [client.get(path).text for path in ("/", "/red-team", f"/join/{token}", "/nothing")]
    sign_in(client, store, "admin", admin=True)
    pages.append(client.get("/admin").text)
    for name in ("style.css", "compare.js", "outbox.js", "view.js", "controls.js", "redteam.js", "join.js", "icon.svg"):
        pages.append(client.get(f"/static/{name}").text.replace("http://www.w3.org/2000/svg", ""))
    for page in pages:
        assert "http://" not in page and "https://" not in page and "//cdn" not in page
        assert "<style" not in page and " style=" not in page and " onclick=" not in page
        assert all('src="/static/' in part for part in page.split("<script")[1:])


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Origin": f"{URL}.evil.example"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 421),
        ({"Host": "[bad", "Origin": "http://[bad"}, 421),
    ],
)
def test_another_site_can_not_answer_in_somebodys_name(
    client: TestClient, store: Store, headers: dict[str, str], code: int
) -> None:
    sign_in(client, store)
    body = json.dumps(answer_to(client)).encode()
    good = {"Origin": URL, "Content-Type": "application/json"}
    assert client.post("/api/answers", content=body, headers=good | headers).status_code == code
    assert store.value("SELECT count(*) FROM answers") == 0
    assert client.post("/api/answers", content=body, headers=good).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py",
        "/static/..%2fserver.py",
        "/static/%2e%2e/%2e%2e/store.py",
        "/static/..%5cserver.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/style.css%00.js",
        "/static/",
        "/static",
        "/templates/compare.html",
        "/prefs.sqlite",
        "/../prefs.sqlite",
        "/join/../../prefs.sqlite",
        "/docs",
        "/openapi.json",
        "/redoc",
    ],
)
def test_no_path_reaches_a_file(client: TestClient, store: Store, path: str) -> None:
    sign_in(client, store)
    response = client.get(path)
    assert response.status_code in (403, 404)
    assert "import" not in response.text and "SQLite format" not in response.text and "root:" not in response.text


def test_a_body_has_a_bound_with_and_without_its_length_said(client: TestClient, store: Store) -> None:
    sign_in(client, store)
    answer = answer_to(client, comment="x" * LARGEST_BODY)
    assert post(client, "/api/answers", answer).status_code == 413
    body = json.dumps(answer).encode()
    pieces = (body[at : at + 5000] for at in range(0, len(body), 5000))
    headers = {"Origin": URL, "Content-Type": "application/json"}
    assert client.post("/api/answers", content=pieces, headers=headers).status_code == 413
    for broken in (b"", b"{", b"[" * 60_000, b'{"id": 1e999}', b'"\xff"', b"9" * 50_000):
        assert client.post("/api/answers", content=broken, headers=headers).status_code == 400
    assert store.value("SELECT count(*) FROM answers") == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "1"}, "id expected a UUID"),
        ({"id": None}, "id expected a UUID"),
        ({"item": "1"}, "item expected a whole number"),
        ({"item": 2**70}, "item expected a whole number"),
        ({"kind": "both"}, "kind expected one of"),
        ({"shown": 4}, "shown from -3 to 3"),
        ({"shown": True}, "shown from -3 to 3"),
        ({"shown": None}, "shown from -3 to 3"),
        ({"kind": "skip"}, "expected no value beside it"),
        ({"kind": "flag", "shown": None}, "expected a reason"),
        ({"reason": "x"}, "expected a reason"),
        ({"comment": "x" * 4001}, "at most 4000"),
        ({"seconds": "3"}, "seconds expected a number"),
        ({"seconds": True}, "seconds expected a number"),
        ({"seconds": 10**400}, "seconds expected a number"),
        ({"seconds": -(10**309)}, "seconds expected a number"),
        ({"strength": 3}, "no field 'strength'"),
    ],
)
def test_a_malformed_answer_is_refused_with_what_was_expected(
    client: TestClient, store: Store, change: dict[str, Any], message: str
) -> None:
    sign_in(client, store)
    response = post(client, "/api/answers", answer_to(client, **change))
    assert response.status_code == 400 and message in response.json()["error"]
    assert store.value("SELECT count(*) FROM answers") == 0


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "9" * 5000])
@pytest.mark.parametrize("field", ["seconds", "item", "shown"])
def test_odd_numbers_are_malformed_requests(client: TestClient, store: Store, field: str, number: str) -> None:
    sign_in(client, store)
    body = json.dumps(answer_to(client, **{field: "HERE"})).replace('"HERE"', number)
    response = client.post("/api/answers", content=body, headers={"Origin": URL, "Content-Type": "application/json"})
    assert response.status_code == 400 and response.json()["error"]


def test_odd_numbers_elsewhere(client: TestClient, store: Store) -> None:
    sign_in(client, store)
    assert client.get(f"/api/next?count={'9' * 5000}").status_code == 400
    assert client.get(f"/api/next?count={10**30}").status_code == client.get("/api/next?count=-1").status_code == 200
    ask = {"id": new_id(), "text": "x", "side": "first"}
    for item in (2**70, True, 10**400):
        assert post(client, "/api/red-team", ask | {"item": item}).status_code == 409
    headers = {"Content-Type": "application/json", "Origin": URL}
    for length, code in (("9" * 5000, 413), ("0" * 5000 + "99999", 413), ("\u0663", 400), ("-1", 400)):
        given = headers | {"Content-Length": length.encode()}  # type: ignore[operator]
        assert client.post("/api/answers", content=b"{}", headers=given).status_code == code
    assert client.post("/api/answers", content=b"{}", headers=headers | {"Origin": "http://["}).status_code == 403


def test_answers_and_undo_over_the_network(client: TestClient, store: Store) -> None:
    sign_in(client, store)
    answer = answer_to(client, comment="half a pair \ud83d", seconds=1e12)
    body = json.dumps(answer).encode()
    headers = {"Origin": URL, "Content-Type": "application/json"}
    first = client.post("/api/answers", content=body, headers=headers)
    assert first.status_code == 200
    assert client.post("/api/answers", content=body, headers=headers).json() == first.json()
    assert post(client, "/api/answers", answer | {"shown": 1, "comment": ""}).status_code == 409
    assert client.get("/api/next").json()["last"] == [answer["id"]]
    take_back = {"id": new_id(), "answer": answer["id"]}
    assert post(client, "/api/undo", take_back).json() == post(client, "/api/undo", take_back).json() == take_back
    assert post(client, "/api/undo", {"id": new_id(), "answer": answer["id"]}).status_code == 409
    for wrong in ([], {"id": "x"}, {"id": new_id()}):
        assert post(client, "/api/undo", wrong).status_code == 400
    assert client.get("/api/next").json()["progress"]["done"] == 0
    assert store.value("SELECT count(*) FROM answers") == 1


def test_looking_at_the_progress_lends_nothing(client: TestClient, store: Store) -> None:
    sign_in(client, store)
    found = client.get("/api/next?count=0").json()
    assert found["items"] == [] and found["progress"]["left"] == 6
    assert store.value("SELECT count(*) FROM loans") == 0
    assert client.get("/api/next?count=many").status_code == 400
    assert len(client.get("/api/next?count=1000").json()["items"]) == 5


def test_the_page_is_not_told_where_a_text_comes_from(client: TestClient, store: Store) -> None:
    secret = {"model": "model-one", "chosen_by": "judge"}
    add_pairs(store, [Pair("gold", "right", "wrong", secret, gold=-3)], source="secret-source.jsonl", gold=True)
    sign_in(client, store)
    for _ in range(7):
        response = client.get("/api/next?count=5")
        for word in ("model-one", "judge", "secret-source", "swapped", '"gold":', "uid"):
            assert word not in response.text
        item = response.json()["items"][0]
        assert item.keys() == {"item", "prompt", "first", "second"}
        post(client, "/api/answers", answer_to(client))
    assert client.get("/api/next").json()["items"] == []


def test_red_team_prompts_enter_the_same_store(client: TestClient, store: Store) -> None:
    ada = sign_in(client, store)
    sent = {"id": new_id(), "text": "  say something bad ", "item": None, "side": None}
    first = post(client, "/api/red-team", sent).json()["item"]
    assert post(client, "/api/red-team", sent).json()["item"] == first  # a retry: the model is not asked again
    assert first["prompt"][0]["text"] == "say something bad"
    assert {first[side][0]["text"] for side in ("first", "second")} == {" first to 17", " second to 17"}
    assert post(client, "/api/red-team", sent | {"text": "other"}).status_code == 409
    answer = {"id": new_id(), "item": first["item"], "kind": "both_bad"}
    assert post(client, "/api/answers", answer).status_code == 200
    on = {"id": new_id(), "text": "worse", "item": first["item"], "side": "second"}
    second = post(client, "/api/red-team", on).json()["item"]
    assert second["prompt"][0]["text"] == f"say something bad{first['second'][0]['text']}\nworse"
    row = store.rows("SELECT * FROM items JOIN live ON live.item = items.id")[0]
    assert (row["source"], row["kind"], row["strength"]) == ("red-team", "both_bad", 0)
    for change, code in (
        ({"text": ""}, 400),
        ({"text": "x" * (LONGEST_PROMPT + 1)}, 400),
        ({"text": "twins"}, 400),
        ({"side": "third", "item": first["item"]}, 400),
        ({"item": 5, "side": "first"}, 409),
        ({"item": store.value("SELECT id FROM items WHERE author IS NULL"), "side": "first"}, 409),
    ):
        assert post(client, "/api/red-team", sent | {"id": new_id()} | change).status_code == code, change
    person(store, "bob")
    sign_in(client, store, "bob")
    assert post(client, "/api/red-team", on | {"id": new_id()}).status_code == 409  # another's conversation
    assert ada


def test_without_a_model_there_is_no_red_team(store: Store) -> None:
    with TestClient(create_app(store), base_url=URL) as client:
        sign_in(client, store)
        assert client.get("/red-team").status_code == 404 and "Red team" not in client.get("/").text
        assert post(client, "/api/red-team", {"id": new_id(), "text": "x"}).status_code == 404
