"""A person at the page, in headless Chromium: a whole sitting, a lost connection, hostile texts, other pages."""

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from annotate_load import Server, serving, write_pairs
from hostile_texts import HOSTILE, WORD

from lm_gym.annotate.store import Store

CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
if CHROMIUM is None:
    pytest.skip("no browser: apt install chromium, or name one in the variable CHROMIUM", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
expect = sync_api.expect
WAIT = 30_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(WAIT)
    yield context
    context.close()


class Page:
    """The page as a person uses it: by the keyboard, and by what can be seen."""

    def __init__(self, context: Any, server: Server, name: str = "ada") -> None:
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.said: list[str] = []
        context.on("request", lambda request: self.requests.append(request.url))
        self.page = context.new_page()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.errors.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.goto(server.links[name])
        self.page.locator("#join").press("Enter")
        self.item = self.page.locator("#item")

    def shown(self) -> int:
        """Wait until an item can be answered; its id."""
        expect(self.item).to_be_visible(timeout=WAIT)
        self.page.wait_for_timeout(320)  # what is pressed within .3 s of a new item is not taken
        return int(self.item.get_attribute("data-item"))

    def press(self, key: str) -> int:
        """Press a key that answers; the id of the item that it answered."""
        item = self.shown()
        self.page.keyboard.press(key)
        expect(self.page.locator(f'#item[data-item="{item}"]')).to_have_count(0, timeout=WAIT)
        return item

    def saved(self) -> None:
        """Wait until the server has confirmed everything."""
        expect(self.page.locator('body[data-waiting="0"]')).to_have_count(1, timeout=WAIT)

    def undo(self, item: int) -> None:
        self.page.keyboard.press("u")
        expect(self.page.locator(f'#item[data-item="{item}"]')).to_have_count(1, timeout=WAIT)

    def only_local(self, server: Server) -> None:
        assert self.requests and all(url.startswith(server.url + "/") for url in self.requests), self.requests
        assert not self.errors


def stored(db: Path) -> list[sqlite3.Row]:
    with closing(Store(db)) as store:
        return store.rows("SELECT * FROM live ORDER BY seq")


def test_a_sitting_by_keyboard_with_undo_flag_and_a_lost_connection(context: Any, tmp_path: Path) -> None:
    db = tmp_path / "prefs.sqlite"
    data = write_pairs(tmp_path / "pairs.jsonl", 22)
    with serving(db, "--data", str(data), "--annotators", "ada") as server:
        person = Page(context, server)
        page = person.page
        said: list[tuple[int, str, int | None]] = []
        for at in range(6):
            said.append((person.press(str(at + 1)), "preference", at - 3))
        # Two answers are taken back, and said otherwise.
        person.undo(said[5][0])
        person.undo(said[4][0])
        said[4] = (person.press("7"), "preference", 3)
        said[5] = (person.press("b"), "both_bad", None)
        # One is flagged, one skipped, one gets a comment.
        item = person.shown()
        page.keyboard.press("f")
        page.keyboard.type("7 the same twice")
        page.keyboard.press("Enter")
        said.append((item, "flag", None))
        said.append((person.press("s"), "skip", None))
        item = person.shown()
        page.keyboard.press("c")
        page.keyboard.type("1 is a number, ü")
        page.keyboard.press("Escape")
        said.append((person.press("2"), "preference", -2))
        person.saved()
        # The connection goes, the work goes on, and the page claims nothing that the server has not confirmed.
        context.set_offline(True)
        confirmed = int(page.locator("body").get_attribute("data-done"))
        for key in "35":
            said.append((person.press(key), "preference", int(key) - 4))
        expect(page.locator("#saved")).to_contain_text("no connection: 2 kept here", timeout=WAIT)
        assert int(page.locator("body").get_attribute("data-done")) == confirmed == len(stored(db)) == 9
        context.set_offline(False)
        person.saved()
        said.append((person.press("6"), "preference", 2))
        # The server dies with an answer on its way, and comes back.
        person.saved()
        server.kill()
        said.append((person.press("1"), "preference", -3))
        expect(page.locator("#saved")).to_contain_text("no connection: 1 kept here", timeout=WAIT)
        server.start()
        person.saved()
        while len(said) < 20:
            said.append((person.press("4"), "preference", 0))
        person.saved()
        expect(page.locator("#progress")).to_contain_text("20 of 22")
        # A page opened again knows the last answer; a double click on a button is one answer.
        page.reload()
        person.shown()
        person.undo(said[19][0])
        person.shown()
        page.locator('[data-value="1"]').dblclick()
        said[19] = (said[19][0], "preference", 1)
        person.saved()
        person.shown()
        found = [(row["item"], row["kind"], row["shown"]) for row in stored(db)]
        person.only_local(server)
    assert found == said
    rows = stored(db)
    assert [row["reason"] for row in rows if row["reason"]] == ["7 the same twice"]
    assert [row["comment"] for row in rows if row["comment"]] == ["1 is a number, ü"]
    assert all(row["strength"] == (-row["shown"] if row["swapped"] else row["shown"]) for row in rows if row["shown"])
    assert all(0.2 < row["seconds"] < 120 for row in rows)
    with closing(Store(db)) as store:
        assert store.value("SELECT count(*) FROM answers") == 23 and store.value("SELECT count(*) FROM undos") == 3


def test_what_waits_survives_the_page_being_closed(context: Any, tmp_path: Path) -> None:
    db = tmp_path / "prefs.sqlite"
    data = write_pairs(tmp_path / "pairs.jsonl", 5)
    with serving(db, "--data", str(data), "--annotators", "ada") as server:
        person = Page(context, server)
        person.shown()
        context.set_offline(True)
        said = [person.press("2"), person.press("6")]
        person.page.close()
        assert stored(db) == []
        context.set_offline(False)
        person.page = context.new_page()
        person.page.goto(server.url)
        person.item = person.page.locator("#item")
        person.saved()
        assert person.shown() not in said
        assert [(row["item"], row["shown"]) for row in stored(db)] == [(said[0], -2), (said[1], 2)]


def test_hostile_texts_are_shown_and_do_nothing(context: Any, tmp_path: Path) -> None:
    rows = []
    for name, text in HOSTILE.items():
        safe = {"role": "assistant", "content": f"safe answer to {name}"}
        hostile = {"role": "assistant", "content": text}
        rows.append({"prompt": [{"role": "user", "content": text}], "a": [hostile], "b": [safe]})
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    guidelines = tmp_path / "guidelines.md"
    guidelines.write_text("\n\n".join(text for text in HOSTILE.values() if len(text) < 10_000), encoding="utf-8")
    options = ["--data", str(data), "--annotators", "ada", "--guidelines", str(guidelines)]
    with serving(tmp_path / "prefs.sqlite", *options) as server:
        person = Page(context, server)
        page = person.page
        seen = set()
        for _ in HOSTILE:
            person.shown()
            found = page.evaluate(
                """() => {
                const item = document.getElementById("item");
                const parts = ["prompt", "first", "second"].map((id) => document.getElementById(id));
                const bad = "script,img,svg,iframe,object,embed,form,input,style,link,a,math,meta";
                const odd = item.querySelectorAll(bad);
                const marked = [...item.querySelectorAll(".said *")].filter((node) => node.attributes.length);
                return {
                  hacked: window.hacked, odd: odd.length, marked: marked.filter((node) => node.tagName !== "OL").length,
                  texts: parts.map((part) => part.textContent), wide: document.documentElement.scrollWidth,
                  visible: parts.every((part) => part.getBoundingClientRect().height > 20),
                };
                }"""
            )
            assert found["hacked"] is None and found["odd"] == 0 and found["marked"] == 0
            assert WORD in found["texts"][0] and any(WORD in text for text in found["texts"][1:])
            assert found["visible"] and found["wide"] <= 1280
            (safe,) = [text for text in found["texts"] if "safe answer to" in text]
            seen.add(safe.partition("safe answer to ")[2].strip())
            page.keyboard.press("r")  # as written, and back
            assert WORD in page.locator("#prompt").text_content()
            page.keyboard.press("r")
            person.press("s")
        assert seen == set(HOSTILE)
        person.saved()
        person.only_local(server)
        assert page.url == f"{server.url}/"


def test_long_texts_scroll_together_on_a_phone_too(browser: Any, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    long = ["\n\n".join(f"Paragraph {i} of {name}." * 12 for i in range(n)) for name, n in (("a", 40), ("b", 80))]
    data.write_text(json.dumps({"prompt": "p", "a": long[0], "b": long[1]}) + "\n")
    with serving(tmp_path / "prefs.sqlite", "--data", str(data), "--annotators", "ada") as server:
        for width in (1280, 360):
            context = browser.new_context(viewport={"width": width, "height": 740})
            person = Page(context, server)
            person.shown()
            shares = "() => ['first', 'second'].map((id) => { const e = document.getElementById(id);"
            shares += " return e.scrollTop / (e.scrollHeight - e.clientHeight); })"
            assert person.page.evaluate(shares) == [0, 0]
            for _ in range(5):
                person.page.keyboard.press("j")
            deadline = time.monotonic() + 10
            while person.page.evaluate(shares)[1] == 0 and time.monotonic() < deadline:
                person.page.wait_for_timeout(50)
            person.page.wait_for_timeout(200)
            first, second = person.page.evaluate(shares)
            assert first == pytest.approx(second, abs=0.005) and first > 0.02
            assert person.page.evaluate("document.documentElement.scrollWidth") <= width
            for button in person.page.locator("#answer button:visible").all():
                box = button.bounding_box()
                assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["height"] >= 30
            context.close()


@pytest.mark.slow  # loads torch
def test_red_team_and_the_overview(context: Any, tmp_path: Path) -> None:
    options = ["--red-team", "tiny", "--max-new-tokens", "8", "--annotators", "ada"]
    with serving(tmp_path / "prefs.sqlite", *options) as server:
        person = Page(context, server)
        page = person.page
        expect(page.locator("#empty")).to_contain_text("That was all", timeout=WAIT)
        page.goto(f"{server.url}/red-team")
        page.keyboard.type("The food was")
        page.keyboard.press("Control+Enter")
        item = person.shown()
        page.keyboard.press("2")
        expect(page.locator("#compose")).to_be_visible(timeout=WAIT)
        page.locator("text=Go on with B").click()
        page.keyboard.type("And the service was")
        page.keyboard.press("Control+Enter")
        expect(page.locator(f'#item:not([data-item="{item}"])[data-item]')).to_have_count(1, timeout=WAIT)
        assert page.locator("#prompt").text_content().startswith("The food was")
        assert "And the service was" in page.locator("#prompt").text_content()
        person.shown()
        page.keyboard.press("b")
        person.saved()
        assert [row["kind"] for row in stored(tmp_path / "prefs.sqlite")] == ["preference", "both_bad"]
        admin = context.browser.new_context()
        overview = Page(admin, server, "overview")
        expect(overview.page.locator(".figures")).to_contain_text("2 / 2", timeout=WAIT)
        expect(overview.page.locator("table").first).to_contain_text("ada")
        overview.only_local(server)
        person.only_local(server)
        admin.close()
