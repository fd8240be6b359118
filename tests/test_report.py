"""report.html: one file without network or scripts, right about its numbers, whatever a model wrote into it."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lm_gym import report, svg_chart
from lm_gym.report import write_report
from lm_gym.tracking import Tracker

CONFIG = {
    "model": "tiny",
    "reward_model": "vader",
    "total_tokens": 400,
    "env": {"kl_coef": 0.05, "stop": []},
    "run": {
        "command": "lm-gym train ppo --prompts 'a b'",
        "versions": {"torch": "2.13.0"},
        "hashes": {"reference": "sha256:ab"},
        "git": {"lm_gym": "0123abcd"},
    },
}
NASTY = "<script>alert('x')</script><img src=x onerror=alert(1)> & \x1b[2J \u202e \ud800 </article>"


def make_run(folder: Path, updates: int = 4, *, pairs: int = 0, samples: bool = True) -> Path:
    with Tracker(folder, config=CONFIG, quiet=True) as run:
        for step in range(1, updates + 1):
            metrics = {"objective/scores": step / 10, "objective/kl": step / 5, "length/mean": 20.0, "lr": 1e-5}
            run.log({**metrics, "reward/part": 1.0 * step}, step=step, tokens=step * 100)
        if samples:
            run.samples([{"prompt": "early", "completion": "first draft", "score": 0.125}], 1)
            run.samples([{"prompt": "late " + NASTY, "completion": "last draft", "score": 0.5, "kl": 2.0}], updates)
    if pairs:
        rows = [
            {"prompt": f"p{n}", "before": NASTY, "after": "fine", "score_before": n % 2, "score_after": 2.0, "kl": 1.5}
            for n in range(pairs)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "samples_before_after.jsonl").write_text(text)
    return folder


class Page(HTMLParser):
    """Checks that elements close in order, and collects tags, attributes and the visible text."""

    VOID = frozenset({"meta", "wbr", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "title"):
            self.text += data


def read(path: Path) -> tuple[str, Page]:
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_one_file_that_asks_the_network_for_nothing(tmp_path):
    text, page = read(write_report(make_run(tmp_path, pairs=20)))
    assert set(page.tags).isdisjoint({"script", "img", "link", "iframe", "object", "base", "form", "a"})
    assert {name for name, _ in page.attributes}.isdisjoint({"src", "href", "srcset", "action", "onerror", "onload"})
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text


def test_text_of_a_model_stays_text(tmp_path):
    text, page = read(write_report(make_run(tmp_path, pairs=2), title=NASTY))
    assert "<script" not in text
    assert "<script>alert('x')</script><img src=x onerror=alert(1)> &" in page.text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert page.tags.count("article") == 2


def test_headline_numbers_from_the_texts(tmp_path):
    _, page = read(write_report(make_run(tmp_path, pairs=20)))
    error = math.sqrt(20 * 0.25 / 19 / 20)  # ten 0s and ten 1s
    assert f"Reward0.50 ± {error:.2f}→2.0020 evaluation texts" in page.text
    assert "KL to the reference, nats1.5020 evaluation texts" in page.text
    assert "Length, tokens20.0→20.0texts of updates: first update → last update" in page.text
    lines = (tmp_path / "samples_before_after.jsonl").read_text().splitlines()
    rows = [json.loads(line) | {"length_before": 10, "length_after": 12} for line in lines]
    _, page = read(write_report(tmp_path, before_after=rows))
    assert "Length, tokens10.0→12.020 evaluation texts" in page.text


def test_the_reward_begins_at_its_own_line(tmp_path):
    """The line is of the curve's first update, not of evaluation texts, whose prompts are others."""
    text, _ = read(write_report(make_run(tmp_path, 5, pairs=20)))
    figure = text.split('<figcaption title="')[1].split("</figure>")[0]
    assert ">Reward<" in figure and ">first update</text>" in figure
    height = re.search(r'class="baseline" [^>]* y1="([\d.]+)"', figure)
    first = re.search(r'class="curve" points="[\d.]+,([\d.]+) ', figure)
    assert height and first and height[1] == first[1]


def test_headline_numbers_from_the_metrics_when_texts_are_few(tmp_path):
    _, page = read(write_report(make_run(tmp_path, 20, pairs=3)))
    assert "Reward0.100→1.950 ± 0.050texts of updates: first update → last 2 updates" in page.text


def test_every_section_is_there(tmp_path):
    text, page = read(write_report(make_run(tmp_path, pairs=14)))
    assert re.findall(r"<h2>([^<]+)</h2>", text) == [
        "Curves",
        "Samples before and after",
        "Configuration",
        "Where the numbers came from",
        "Command",
    ]
    assert "Not in this report" not in page.text
    assert "2 more" in page.text  # 12 of the 14 texts are open
    for fact in ("lm-gym train ppo --prompts 'a b'", "torch 2.13.0", "sha256:ab", "0123abcd", "env.kl_coef0.05"):
        assert fact in page.text
    assert text.count("<svg") == 6  # reward, KL, length, reward against KL, reward/part; lr folded away
    assert text.index("reward/part") < text.index("All other metrics") < text.index("<span>lr</span>")


def test_a_run_in_progress_says_so_and_shows_its_last_samples(tmp_path):
    _, page = read(write_report(make_run(tmp_path, 2)))
    assert "200 tokens of 400 (50% so far)" in page.text
    assert "samples before and after (samples_before_after.jsonl is not there)" in page.text
    assert "last draft" in page.text
    assert "first draft" not in page.text
    assert "Drawn at update 2." in page.text


def test_parts_that_are_missing_are_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "tokens": 10, "lr": 0.1}\n{"step": 2, "tok')
    _, page = read(write_report(tmp_path))
    for name in ("samples.jsonl", "samples_before_after.jsonl", "config.yaml"):
        assert name in page.text
    with Tracker(tmp_path / "new", config=CONFIG, quiet=True):
        _, page = read(write_report(tmp_path / "new"))
        assert "metrics.jsonl is not there" in page.text
        assert "vader" in page.text


def test_given_rows_win_over_the_file_and_out_over_the_folder(tmp_path):
    rows = [{"prompt": [{"role": "user", "content": "hello"}], "before": "", "after": " given"}]
    path = write_report(make_run(tmp_path / "run", pairs=3), out=tmp_path / "x.html", before_after=rows, title="Mine")
    _, page = read(path)
    assert path == tmp_path / "x.html"
    assert "user: hello" in page.text
    assert "(nothing)" in page.text
    assert "p1" not in page.text
    assert "Mine" in page.text


def test_errors_say_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a folder"):
        write_report(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="none of the files"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="row 0 has no before and no after"):
        write_report(make_run(tmp_path / "run"), before_after=[{"prompt": "p"}])


def test_a_long_run_stays_small(tmp_path):
    rows = [
        {"step": n, "tokens": n * 50, "objective/scores": math.sin(n / 9), "objective/kl": n / 1e4} for n in range(5000)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = write_report(tmp_path)
    assert path.stat().st_size < 300_000
    assert "5,000 updates are drawn as the means of 400 equal parts" in read(path)[1].text


def points(svg: str, css: str) -> list[tuple[float, float]]:
    found = re.search(rf'<polyline class="{css}" points="([^"]*)"', svg)
    assert found
    return [tuple(map(float, point.split(","))) for point in found[1].split()]  # type: ignore[misc]


def test_a_curve_lies_where_its_axes_say():
    svg = svg_chart.line_chart([0, 50, 100], [0, 10, 5], label="x")
    left, right = svg_chart.LEFT, svg_chart.WIDTH - svg_chart.RIGHT
    top, bottom = svg_chart.TOP, svg_chart.HEIGHT - svg_chart.BOTTOM
    middle = (left + right) / 2, (top + bottom) / 2
    assert points(svg, "curve") == [(left, bottom), (middle[0], top), (right, middle[1])]
    assert re.findall(r'text-anchor="end">([^<]*)<', svg) == ["0", "2", "4", "6", "8", "10"]
    assert re.findall(r'text-anchor="middle">([^<]*)<', svg) == ["0", "20", "40", "60", "80", "100"]
    assert "<title>10 at 50 tokens</title>" in svg


@pytest.mark.parametrize("ys", [[0.0], [3.0, 3.0], [-1e-9, 1e-9], [1e12, 1e12 + 1], [-5.0, -4.0], [0.0] * 70])
def test_any_finite_numbers_give_a_chart_inside_its_frame(ys):
    for ordered in (True, False):
        svg = svg_chart.line_chart(list(range(len(ys))), ys, label="<&>", from_zero=True, ordered=ordered)
        assert "nan" not in svg
        Page(svg)
        for y in map(float, re.findall(r' (?:cy|y1|y2)="([^"]*)"', svg)):
            assert svg_chart.TOP - 0.1 <= y <= svg_chart.HEIGHT


def test_ticks_are_round_and_cover_the_data():
    assert svg_chart.round_ticks(0.0, 1.0, most=5) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert svg_chart.round_ticks(-0.42, 0.71, most=5) == [-0.5, -0.25, 0.0, 0.25, 0.5, 0.75]
    assert svg_chart.round_ticks(2.0, 2.0, most=4)[0] < 2.0 < svg_chart.round_ticks(2.0, 2.0, most=4)[-1]
    for low, high in ((0.1, 0.30000001), (1e-7, 3e-7), (12345, 99999)):
        ticks = svg_chart.round_ticks(low, high, most=5)
        assert ticks[0] <= low
        assert ticks[-1] >= high
        assert 2 <= len(ticks) <= 7


def test_numbers_are_written_for_reading():
    assert [svg_chart.tick_text(t, 50_000, 150_000) for t in (0, 50_000, 150_000)] == ["0", "50k", "150k"]
    assert [svg_chart.tick_text(t, 2500, 10_000) for t in (0, 2500, 10_000)] == ["0", "2.5k", "10k"]
    assert [svg_chart.tick_text(t, 0.25, 0.5) for t in (-0.5, 0, 0.25)] == ["−0.50", "0.00", "0.25"]
    assert [svg_chart.number_text(x) for x in (0.0, 0.12345, -6.376, 4258.3, 1e-5)] == [
        "0",
        "0.123",
        "−6.38",
        "4,258",
        "1.00e−05",
    ]
    assert [report._duration(s) for s in (4.05, 65, 1215, 7300)] == [
        "4.05 s",
        "1 min 05 s",
        "20 min 15 s",
        "2 h 01 min",
    ]


def test_means():
    assert svg_chart.means_of_parts([1, 2, 3, 4, 5], 2) == [1.5, 4.0]
    assert svg_chart.moving_average([0, 0, 9, 0, 0], 3) == [0, 3, 3, 3, 0]
