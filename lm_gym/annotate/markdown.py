"""Text of a model as HTML that can do nothing: Markdown for headings, lists, tables, emphasis and code, and no more.

Three walls: the parser knows neither HTML nor links nor images (what was written is shown as it was written), the
result goes through an allow-list of tags, and what would hide a letter of the text is shown as plain text instead. The
page's content-security policy is the fourth.
"""

from __future__ import annotations

import functools
import html
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

from lm_gym.extras import install_command
from lm_gym.rewards import Text

LONGEST = 20_000
"""Characters of a text that is parsed as Markdown (0.2 s for the worst that we found); longer ones are shown plain."""
TAGS = "p br strong em s code pre blockquote ul ol li h1 h2 h3 h4 h5 h6 hr table thead tbody tr th td".split()
OFF = ("image", "link", "autolink", "reference", "html_inline", "html_block", "entity")

INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202f\u205f-\u206f\u2800\u3164\ufeff"
    "\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Characters that turn the direction of a text, or are there without being seen."""
JOINERS = "\u200c\u200d"
"""Needed inside emoji and in several scripts: left alone between characters that are no ASCII."""


class _Controls(dict[int, int | str]):
    """What `str.translate` makes of controls, surrogates, private and unassigned characters; filled as they come."""

    def __missing__(self, code: int) -> int | str:
        category = unicodedata.category(chr(code))
        self[code] = f"⟦U+{code:04X}⟧" if category in ("Cc", "Cs", "Co", "Cn") and chr(code) not in "\n\t" else code
        return self[code]


_CONTROLS = _Controls()


def visible(text: str) -> str:
    """`text` with every control, direction override and invisible character written out, as in ⟦U+202E⟧."""

    def shown(match: re.Match[str]) -> str:
        character, at = match.group(), match.start()
        around = text[at - 1 : at] + text[at + 1 : at + 2]
        if character in JOINERS and len(around) == 2 and not around[0].isascii() and not around[1].isascii():
            return character
        return f"⟦U+{ord(character):04X}⟧"

    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return INVISIBLE.sub(shown, text).translate(_CONTROLS)


def to_html(text: str) -> str:
    """Markdown as HTML of the allowed tags; a text that Markdown would show in part stands in one `pre`."""
    text = visible(text)
    plain = f"<pre>{html.escape(text)}</pre>"
    if len(text) > LONGEST:
        return plain
    render, clean = _tools()
    try:
        made = clean(render(text))
    except RecursionError:
        return plain
    return made if _letters(html.unescape(re.sub("<[^>]*>", "", made))) == _letters(text) else plain


def guidelines_html(text: str) -> str:
    """The guidelines of the annotators as HTML, under the same rules as a model's text."""
    return to_html(text)


def turns(text: Text) -> list[dict[str, str]]:
    """A text or conversation as turns for the page: role ("" for a text), text as it is to be seen, HTML."""
    messages: list[Mapping[str, Any]] = [{"role": "", "content": text}] if isinstance(text, str) else list(text)
    shown = []
    for message in messages:
        content = content_of(message)
        # A page asks for the same items several times, and several people see them; a very long text is not kept.
        made = _both(content) if len(content) <= LONGEST else (visible(content), to_html(content))
        shown.append({"role": visible(str(message["role"])), "text": made[0], "html": made[1]})
    return shown


@functools.lru_cache(maxsize=512)
def _both(text: str) -> tuple[str, str]:
    return visible(text), to_html(text)


def content_of(message: Mapping[str, Any]) -> str:
    """The text of a message; of one in parts, their texts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, (list, tuple)) else []
    return "\n".join(str(part.get("text", "")) for part in parts if isinstance(part, Mapping))


@functools.cache
def _tools() -> tuple[Callable[[str], str], Callable[[str], str]]:
    """The Markdown parser and the sanitizer.

    Raises:
        ImportError: without the extra `annotate`.
    """
    try:
        import nh3
        from markdown_it import MarkdownIt
    except ImportError as error:
        raise ImportError(f"the annotation page needs {error.name}: {install_command('annotate')}") from error

    # The names of languages behind a fence would not be seen: they become the first line of the block.
    def fence(_renderer: Any, tokens: Any, at: int, _options: Any, _env: Any) -> str:
        info = tokens[at].info.strip()
        head = f"<em>{html.escape(info)}</em>\n" if info else ""
        return f"<pre>{head}<code>{html.escape(tokens[at].content)}</code></pre>\n"

    parser = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"]).disable(OFF)
    parser.add_render_rule("fence", fence)
    cleaner = nh3.Cleaner(tags=set(TAGS), attributes={"ol": {"start"}}, link_rel=None, url_schemes=set())
    return lambda text: str(parser.render(text)), cleaner.clean


def _letters(text: str) -> str:
    return "".join(filter(str.isalpha, text))
