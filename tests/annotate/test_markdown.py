"""Text of a model is text: shown as it was written, and never run."""

import html
import time
from html.parser import HTMLParser

import pytest
from hostile_texts import HOSTILE, WORD

from lm_gym.annotate.markdown import LONGEST, TAGS, to_html, turns, visible


class Reader(HTMLParser):
    """Tags, attributes and text of a piece of HTML, as a browser's parser would take it apart."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment hides {data!r}")

    handle_decl = unknown_decl = handle_pi = handle_comment


def test_there_are_forty_hostile_texts() -> None:
    assert len(HOSTILE) >= 40 and all(WORD in text for text in HOSTILE.values())


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_becomes_allowed_tags_around_all_of_its_letters(name: str) -> None:
    text = HOSTILE[name]
    started = time.process_time()
    made = Reader(to_html(text))
    assert time.process_time() - started < 3
    assert set(made.tags) <= set(TAGS) and not made.attributes
    assert WORD in made.text
    written = "".join(filter(str.isalpha, visible(text)))
    assert "".join(filter(str.isalpha, made.text)) == written


@pytest.mark.parametrize(
    "name", ["script", "image with handler", "markdown link", "markdown image", "autolink", "comment"]
)
def test_what_would_have_run_is_shown_as_it_was_written(name: str) -> None:
    assert Reader(to_html(HOSTILE[name])).text.strip() == HOSTILE[name]


def test_markdown_that_helps_reading_is_rendered() -> None:
    made = to_html("# Title\n\n2. **two**\n3. *three*\n\n| a |\n|---|\n| `x<y` |\n\n~~gone~~ one\ntwo\n\n> said")
    for part in (
        "<h1>Title</h1>",
        '<ol start="2">',
        "<strong>two</strong>",
        "<em>three</em>",
        "<td><code>x&lt;y</code></td>",
        "<s>gone</s> one<br>",
        "<blockquote>",
    ):
        assert part in made
    assert "python" in to_html("```python\nprint(1)\n```")  # the language behind a fence is seen


@pytest.mark.parametrize(
    "text",
    ["|a|b|\n|-|-|\n|1|2|dropped|", "> " * 200 + "deep", "x" * (LONGEST + 1)],
    ids=["a cell that Markdown drops", "deeper than the parser goes", "too long to parse"],
)
def test_what_markdown_would_hide_is_shown_plain(text: str) -> None:
    assert to_html(text) == f"<pre>{html.escape(text)}</pre>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\u202eb", "a⟦U+202E⟧b"),
        ("a\u200bb\ufeff", "a⟦U+200B⟧b⟦U+FEFF⟧"),
        ("\x1b[31m\x00", "⟦U+001B⟧[31m⟦U+0000⟧"),
        ("tag \U000e0041", "tag ⟦U+E0041⟧"),
        ("line\r\nnext\tcell", "line\nnext\tcell"),
        ("👨\u200d👩\u200d👧 नर\u200dक", "👨\u200d👩\u200d👧 नर\u200dक"),
        ("pass\u200dword", "pass⟦U+200D⟧word"),
        ("Grüße, שלום, 你好, ❤️", "Grüße, שלום, 你好, ❤️"),
    ],
)
def test_invisible_characters_are_written_out_and_languages_are_left_alone(text: str, expected: str) -> None:
    assert visible(text) == expected


def test_a_conversation_is_turns_and_a_content_in_parts_is_its_text() -> None:
    made = turns(
        [
            {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
            {"role": "assi\u202estant", "content": "**yes**"},
        ]
    )
    assert [(turn["role"], turn["text"]) for turn in made] == [("user", "one\ntwo"), ("assi⟦U+202E⟧stant", "**yes**")]
    assert turns("a") == [{"role": "", "text": "a", "html": "<p>a</p>\n"}]
