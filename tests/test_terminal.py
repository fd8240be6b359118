"""What a run shows: plain lines, a live panel, and a terminal that no text can command."""

from __future__ import annotations

import io
import re

from rich.console import Console

from lm_gym import terminal
from lm_gym.tracking import Tracker


def test_plain_lines_have_the_same_keys_each_time(capsys):
    with Tracker(None, config={}, terminal="auto", total=100) as run:
        run.log({"objective/scores": 0.5, "length/ended_share": 0.25}, step=1, tokens=50)
        run.log({"objective/kl": 2.0}, step=2, tokens=100)
        run.note("saved \x1b[31m")
    first, second, note = capsys.readouterr().out.splitlines()
    keys = [part.split("=")[0] for part in first.split()]
    expected = ["step", "tokens", "total", "reward", "kl", "length", "ended", "entropy", "lr", "tok/s", "eta"]
    assert keys == expected
    assert [part.split("=")[0] for part in second.split()] == keys
    assert "step=1 tokens=50 total=100 reward=0.500 kl=- length=- ended=25%" in first
    assert "\x1b" not in note


def test_plain_lines_can_be_rare_but_the_last_comes(capsys):
    with Tracker(None, config={}, terminal=False, plain_every=1000.0) as run:
        for step in (1, 2, 3):
            run.log({"lr": 1.0}, step=step, tokens=step)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["step=1", "step=3"]


def test_quiet_is_quiet(capsys):
    with Tracker(None, config={}, quiet=True, terminal=True) as run:
        run.log({"lr": 1.0}, step=1, tokens=1)
        run.note("hello")
    assert capsys.readouterr() == ("", "")


def panel(rows, sample=None, *, encoding="utf-8", total=1000) -> str:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=out, width=100, force_terminal=True, color_system=None)
    live = terminal.LivePanel("run", total, console)
    for row in rows:
        live.log(row)
    if sample:
        live.sample(sample)
    live.close()
    out.flush()
    return out.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


def test_panel_shows_progress_numbers_and_a_sample():
    rows = [{"step": n, "tokens": n * 100, "objective/scores": float(n), "lr": 1e-5} for n in range(1, 6)]
    text = panel(rows, {"prompt": "The film", "completion": " was good", "score": 0.25})
    assert "500/1,000 tokens" in text
    assert "5.000" in text
    assert "▁▂▄▆▇" in text
    assert "The film was good" in text
    assert "score 0.250" in text
    assert "update 5" in text


def test_text_of_a_model_is_neither_markup_nor_a_terminal_command():
    text = panel(
        [], {"prompt": "[bold]p[/bold]", "completion": "[/nope] \x1b[2J\x1b]0;title\x07 \u202eevil \x9b31m\ud800"}
    )
    shown = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", text.replace("\x1b[2K", ""))
    assert "[bold]p[/bold]" in shown
    assert "[/nope]" in shown
    assert "\x1b[2J" not in text
    assert "\x1b]0;" not in text
    for character in ("\x07", "\u202e", "\x9b", "\ud800"):
        assert character not in text
    assert "␛[2J" in shown


def test_panel_works_where_the_terminal_has_only_ascii():
    rows = [{"step": n, "tokens": n, "objective/scores": float(n)} for n in range(3)]
    text = panel(rows, {"prompt": "é", "completion": "😀 ok\n"}, encoding="ascii")
    assert "ok" in text
    assert "_-^" in text


def test_sparkline_and_clock():
    assert terminal.sparkline([]) == ""
    assert terminal.sparkline([1.0, 1.0]) == "▁▁"
    assert terminal.sparkline([0, 1, 2, 3], width=2) == "▁▇"
    assert len(terminal.sparkline(list(range(1000)))) == 40
    assert terminal._clock(59.6) == "1:00"
    assert terminal._clock(3725) == "1:02:05"


def test_pace_measures_from_where_a_resumed_run_took_up(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    pace = terminal.Pace(1000)
    pace.restart(400)
    assert pace.rate is None
    assert pace.left is None
    now[0] = 110.0
    pace.add(500)
    assert pace.rate == 10.0
    assert pace.left == 50.0


def test_before_and_after_are_printed_side_by_side():
    out = io.StringIO()
    rows = [{"prompt": "[b]P", "before": " bad", "after": " good", "score_before": -0.5, "score_after": 0.75}]
    terminal.print_before_after(rows, Console(file=out, width=80))
    assert "[b]P" in out.getvalue()
    assert re.search(r"-0\.500\s+bad.*\+0\.750\s+good", out.getvalue())


def test_conversations_are_shown_as_their_contents():
    assert terminal.as_text([{"role": "user", "content": "hi"}]) == "user: hi"
    assert terminal.as_text(["hi", {"role": "user", "content": "you"}]) == "hi\nuser: you"
    assert terminal.shorten("ab" * 1000, 5) == "abab…"
    assert terminal.shorten("ab" * 1000, 5, keep_end=True) == "…abab"
