"""A page in one file, without network or scripts, and its style sheet: light and dark, wide and narrow, on paper."""

from __future__ import annotations

import html
from collections.abc import Iterable

from lm_gym.terminal import printable

STYLE = """
:root {
  --ground: #ffffff; --ink: #1b1e23; --soft: #5f6773; --line: #dfe3e8; --faint: #f5f6f8;
  --after: #1f5fbf; --before: #7a828e; --raw: #a9c3ea;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14171b; --ink: #e4e7eb; --soft: #98a1ad; --line: #2c323a; --faint: #1b2026;
    --after: #7fb2ff; --before: #98a1ad; --raw: #35527d;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; -webkit-text-size-adjust: 100%;
}
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 26px; line-height: 1.25; font-weight: 650; margin: 0 0 6px; overflow-wrap: anywhere; }
h2 {
  font-size: 17px; font-weight: 650;
  margin: 44px 0 12px; padding-bottom: 6px; border-bottom: 1px solid var(--line);
}
h3 { font-size: 13px; font-weight: 500; color: var(--soft); margin: 0; }
p { margin: 0; }
.facts, .note, .missing, .of { color: var(--soft); font-size: 13px; }
.facts b { color: var(--ink); font-weight: 500; overflow-wrap: anywhere; }
.facts span { display: inline-block; margin-right: 16px; }
.missing { margin-top: 8px; }
.note { margin: 8px 0 12px; }
.headline { margin-top: 28px; }
.numbers { display: flex; flex-wrap: wrap; gap: 20px 48px; padding: 18px 0 6px; border-top: 1px solid var(--line); }
.big { font-size: 25px; line-height: 1.35; font-weight: 600; color: var(--after); white-space: nowrap; }
.big .before { color: var(--before); font-weight: 400; }
.big .to { color: var(--soft); font-weight: 400; padding: 0 .35em; }
.big .error { font-size: 15px; font-weight: 400; color: var(--soft); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); gap: 22px 24px; }
figure { margin: 0; min-width: 0; }
figcaption {
  display: flex; justify-content: space-between; gap: 12px; padding: 0 12px 2px 0;
  font-size: 13px; font-weight: 600;
}
figcaption span:first-child { overflow-wrap: anywhere; }
figcaption .last { font-weight: 500; color: var(--after); }
svg { display: block; width: 100%; height: auto; }
.grid { stroke: var(--line); stroke-width: .75; }
.axis { stroke: var(--soft); stroke-width: .75; }
.tick { fill: var(--soft); font-size: 10.5px; }
.curve { fill: none; stroke: var(--after); stroke-width: 1.75; stroke-linejoin: round; stroke-linecap: round; }
.raw { fill: none; stroke: var(--raw); stroke-width: 1; stroke-linejoin: round; }
.dot { fill: var(--after); }
.baseline { stroke: var(--before); stroke-width: 1; stroke-dasharray: 4 3; }
.hover { fill: transparent; }
.hover:hover { fill: var(--after); fill-opacity: .12; }
article { border-top: 1px solid var(--line); padding: 14px 0 16px; break-inside: avoid; }
.prompt { color: var(--soft); margin-bottom: 8px; }
.prompt, .text { white-space: pre-wrap; overflow-wrap: anywhere; }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 12px 28px; }
.side { border-left: 3px solid var(--line); padding-left: 12px; min-width: 0; }
.side.after { border-color: var(--after); }
.scores { display: flex; gap: 14px; font-size: 12.5px; color: var(--soft); margin-bottom: 2px; }
.scores b { font-weight: 600; margin-right: auto; }
.empty { color: var(--soft); font-style: italic; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 4px 0; border-bottom: 1px solid var(--line); }
th { font-weight: 500; color: var(--soft); padding-right: 24px; width: 1%; white-space: nowrap; }
td { overflow-wrap: anywhere; }
pre {
  margin: 0; padding: 12px 14px; background: var(--faint); border-radius: 4px;
  font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; user-select: all;
}
details { margin-top: 16px; }
summary { cursor: pointer; color: var(--soft); font-size: 13px; margin-bottom: 12px; }
@media (max-width: 640px) {
  main { padding: 24px 16px 48px; }
  h1 { font-size: 22px; }
  .sides { grid-template-columns: 1fr; }
  .big { font-size: 22px; }
  th { white-space: normal; width: 38%; padding-right: 12px; overflow-wrap: anywhere; }
}
@media print {
  main { max-width: none; padding: 0; }
  body { font-size: 10.5pt; }
  .charts { grid-template-columns: repeat(3, 1fr); gap: 12px 14px; }
  figure { break-inside: avoid; }
  details:not([open]) { display: none; }
}
"""


def page(title: str, sections: Iterable[str]) -> str:
    """A whole page of sections in HTML; empty ones are left out.

    Args:
        title: plain text.
    """
    # The policy forbids every request and script, whatever a text in the page may hold.
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{safe(title)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main></body></html>\n"
    )


def safe(text: str) -> str:
    """Text as text: markup escaped, control characters and direction overrides made visible."""
    return html.escape(printable(text), quote=True)
