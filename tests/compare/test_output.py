"""What a comparison writes: numbers by hand, files that can be read back, figures without overlapping words."""

import csv
import io
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lm_gym.compare import drawing, figures, output, tables
from lm_gym.compare.results import Results, gather
from lm_gym.compare.rows import Problem, Row, write_rows

EXACT = Problem("Exact-v0", 0.5, 1.0, 3.0, ((0.0, 1.0), (1.0, 2.5), (4.0, 4.0)), True)
OTHER = Problem("Other-v0", 0.5, 0.0, 2.0, ((0.0, 0.0), (2.0, 3.0)), True)
OPEN = Problem("Open-v0", 0.1, 0.2, None, ((0.0, 0.2), (0.3, 0.4), (0.7, 0.6)), False)
PROBLEMS = (EXACT, OTHER, OPEN)


def row(agent: str, problem: Problem, seed: int, j: float, kl: float = 1.0, **more: object) -> Row:
    reward = j + problem.kl_coef * kl
    return Row(agent, problem.env, problem.kl_coef, seed, 1000, reward, kl, **more)  # type: ignore[arg-type]


def many(agents: int, seeds: int, problems: tuple[Problem, ...] = PROBLEMS) -> list[Row]:
    """Agents of different quality, with curves and costs, in all places."""
    rng = np.random.default_rng(0)
    rows = []
    for problem in problems:
        gap = (problem.j_star or 1.0) - problem.j_ref
        for agent in range(agents):
            for seed in range(seeds):
                left = 10 ** (-3 * (agents - agent) / agents + 0.1 * rng.normal())
                curve = tuple(
                    (t, problem.j_ref + gap * (1 - max(left, math.exp(-t / 100)))) for t in range(0, 1001, 100)
                )
                cost = {"prompts": 10, "reward_calls": 100, "cpu_seconds": 3.25, "length": 9.5, "win_rate": 0.8}
                rows.append(
                    row(f"agent-{agent:02}", problem, seed, problem.j_ref + gap * (1 - left), curve=curve, **cost)
                )
    return rows


def lines(text: str, header: str) -> list[list[str]]:
    """The cells of the first table with this column."""
    table = next(part for part in text.split("\n\n") if header in part)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "---" not in line]


def parsed(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_score_regret_and_gain_by_hand() -> None:
    rows = [row("ppo", EXACT, 0, 2.5), row("ppo", OPEN, 0, 0.5)]
    results = gather(rows, PROBLEMS)
    exact, gained = results.runs["ppo", ("Exact-v0", 0.5)][0], results.runs["ppo", ("Open-v0", 0.1)][0]
    assert (exact.gain, exact.regret, exact.score) == pytest.approx((1.5, 0.5, 0.75))
    assert gained.gain == pytest.approx(0.3) and gained.regret is None and gained.score is None
    assert [setting.problem.env for setting in results.settings] == ["Exact-v0", "Open-v0"]


def test_tokens_to_the_gap_by_hand() -> None:
    curve = ((0, 1.0), (500, 2.5), (1000, 2.5))
    # J* is known: half of the gap is J = 2, 95 % is 2.9. Elsewhere the gap is the best agent's.
    rows = [row("ppo", EXACT, 0, 2.5, curve=curve)]
    rows += [row("ppo", OPEN, 0, 0.6, curve=((0, 0.2), (1000, 0.6))), row("rloo", OPEN, 0, 1.2)]
    results = gather(rows, PROBLEMS)
    (exact,), (gained,) = results.runs["ppo", ("Exact-v0", 0.5)], results.runs["ppo", ("Open-v0", 0.1)]
    assert exact.half == pytest.approx(1000 / 3) and exact.most == math.inf
    assert gained.half == math.inf  # rloo gained 1.0, so that half of the gap is J = .7
    assert results.runs["rloo", ("Open-v0", 0.1)][0].half is None
    assert any("the gap is what the best agent gained, rloo" in note for note in results.notes)
    cells = lines(tables.text(results), "to half the gap")
    assert cells[1][2:4] == ["333", "not reached (0/1)"]


def test_unknown_numbers_are_dashes_and_never_zeros() -> None:
    text = tables.text(gather([row("ppo", EXACT, seed, 2.5, offline_pairs=0) for seed in (0, 1)], PROBLEMS))
    results, cost = lines(text, "score, IQM"), lines(text, "offline pairs")
    assert results[1][7:] == ["–", "–", "–"]  # length, distinct-2, win rate
    assert cost[1] == ["ppo", "1,000", "–", "–", "–", "–", "0", "–"]


def test_a_cost_that_one_seed_does_not_say_is_not_averaged_over_the_others() -> None:
    rows = [row("ppo", EXACT, 0, 2.5, cpu_seconds=4.0, win_rate=0.5), row("ppo", EXACT, 1, 2.5)]
    results = gather(rows, PROBLEMS)
    assert lines(tables.text(results), "CPU s")[1][-1] == "–"
    assert any("the win rate (the IQM is that of the others) of some runs of ppo" in note for note in results.notes)


def test_missing_problems_are_seen_and_not_imputed() -> None:
    rows = [row(agent, problem, s, 1.5) for agent in ("ppo", "rloo") for problem in (EXACT, OTHER) for s in range(5)]
    rows += [row("kto", EXACT, seed, 2.9) for seed in range(5)]
    results = gather(rows, PROBLEMS)
    assert results.complete() == ("ppo", "rloo") and results.agents[0] == "kto"
    text = tables.text(results)
    assert [cells[0] for cells in lines(text, "worst problem")[1:]] == ["ppo", "rloo"]
    assert "- Other-v0, β = 0.5: no runs of kto." in text
    assert "- kto: not in what is put together over the 2 problems" in text
    found = tables.improvements(results)
    assert found["kto", "ppo"] == (1.0, (1.0, 1.0), 1) and found["ppo", "rloo"] == (0.5, (0.5, 0.5), 2)


@pytest.mark.parametrize(("seeds", "words"), [(1, "there is no interval"), (2, "intervals mean little")])
def test_few_seeds_are_said(seeds: int, words: str) -> None:
    results = gather(many(3, seeds), PROBLEMS)
    assert words in results.notes[0] and "all agents" in results.notes[0]
    assert (lines(tables.text(results), "score, IQM")[1][3] == "–") == (seeds == 1)
    figure = figures._score(results)
    assert "fewer than 5 seeds" in figure._supxlabel.get_text()
    assert not any("mean little" in note for note in gather(many(3, 5), PROBLEMS).notes)


def test_agents_with_different_numbers_of_seeds() -> None:
    rows = [row("ppo", EXACT, seed, 2.0) for seed in range(7)] + [row("trl", EXACT, 0, 2.5, source="trl")]
    results = gather(rows, PROBLEMS)
    assert [cells[:3] for cells in lines(tables.text(results), "seeds")[1:]] == [
        ["trl", "1", "0.7500"],
        ["ppo", "7", "0.5000"],
    ]
    assert any("number of seeds differs" in note for note in results.notes)
    assert any(note.startswith("1 seed for trl") for note in results.notes)


def test_a_reference_that_is_the_optimum_has_regrets_and_no_scores() -> None:
    results = gather([row("ppo", replace(EXACT, j_star=1.0), 0, 0.5)], [replace(EXACT, j_star=1.0)])
    (run,) = results.runs["ppo", ("Exact-v0", 0.5)]
    assert run.score is None and run.regret == 0.5 and not results.scored
    assert any("the reference is the best policy already" in note for note in results.notes)
    assert "J* − J" in tables.text(results)


def test_a_row_above_the_optimum_is_pointed_out() -> None:
    notes = gather([row("trl", EXACT, 0, 3.1)], PROBLEMS).notes
    assert any("J above J* for trl" in note for note in notes)


@pytest.mark.parametrize(
    ("rows", "problems", "message"),
    [
        ([], PROBLEMS, "at least one run"),
        ([row("ppo", EXACT, 0, 1.0)] * 2, PROBLEMS, "one row a run"),
        ([row("ppo", EXACT, 0, 1.0)], [EXACT, EXACT], "one is there twice"),
        ([row("trl", OPEN, 0, 1.0, source="trl")], [EXACT], r"trl: a row of trl is of Open-v0 at kl_coef 0\.1.*--env"),
    ],
)
def test_what_cannot_be_compared_is_refused(rows: list[Row], problems: list[Problem], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gather(rows, problems)


def test_csv_holds_the_numbers_of_the_rows() -> None:
    rows = [*many(2, 2), row("dpo, hard", EXACT, 0, 2.0, offline_pairs=7, config={"β": [1, "a,b"]}, source="x")]
    rows.append(row("flat", EXACT, 0, 1.0, curve=((0, 1.0), (1000, 1.0))))
    results = gather(rows, PROBLEMS)
    by_key = {(r.agent, r.env, r.seed): r for r in rows}
    table = parsed(tables.runs_csv(results))
    assert len(table) == len(rows)
    for cells in table:
        made = by_key[cells["agent"], cells["env"], int(cells["seed"])]
        for name in ("kl_coef", "tokens", "reward", "kl", "length", "prompts", "offline_pairs", "cpu_seconds", "j"):
            value = getattr(made, name)
            assert cells[name] == "" if value is None else float(cells[name]) == value
        assert json.loads(cells["config"]) == made.config and cells["source"] == made.source
    assert [cells["tokens_to_95"] for cells in table if cells["agent"] in ("dpo, hard", "flat")] == ["", "inf"]
    points = parsed(tables.curves_csv(results))
    assert len(points) == 2 * 2 * 3 * 11 + 2
    first = [(int(p["tokens"]), float(p["j"])) for p in points[:11]]
    assert tuple(first) == by_key[points[0]["agent"], points[0]["env"], int(points[0]["seed"])].curve


def test_a_cell_that_a_spreadsheet_would_compute_is_a_text() -> None:
    names = ["=HYPERLINK(1)", "+1+cmd", "-2+3", "@sum", "\t=1", "\r=1", "\n=1", "-1.5", "+.5e3", "plain=1"]
    rows = [row(name, EXACT, seed, -1.5) for name in names for seed in (0, 1)]
    for text in (tables.runs_csv(gather(rows, [EXACT])), tables.summary_csv(gather(rows, [EXACT]))):
        found = dict.fromkeys(cells["agent"] for cells in parsed(text) if cells["env"] == EXACT.env)
        texts = ["'=HYPERLINK(1)", "'+1+cmd", "'-2+3", "'@sum", "' =1", "'␍=1", "'\n=1"]
        assert sorted(found) == sorted([*texts, *names[7:]])
    assert {cells["j"] for cells in parsed(tables.runs_csv(gather(rows, [EXACT])))} == {"-1.5"}  # a number stays one


def test_the_summary_has_a_line_an_agent_and_problem_and_one_for_all() -> None:
    results = gather(many(2, 5), PROBLEMS)
    table = parsed(tables.summary_csv(results))
    assert [(cells["env"], cells["agent"]) for cells in table] == [
        (env, agent) for env in ("Exact-v0", "Other-v0", "Open-v0", "all") for agent in ("agent-00", "agent-01")
    ]
    exact, together = table[0], table[-2]
    estimate = results.estimate("agent-00", results.settings[0], lambda run: run.score)
    assert estimate is not None and estimate.interval is not None
    assert tuple(float(exact[key]) for key in ("score_low", "score_high")) == estimate.interval
    assert float(exact["score"]) == estimate.value and exact["reached_half"] == "5"
    assert float(exact["score_low"]) <= float(exact["score"]) <= float(exact["score_high"])
    assert float(together["score"]) == results.aggregate("agent-00").value and together["tokens"] == ""


def test_the_files_of_a_comparison_are_the_same_for_the_same_rows(tmp_path: Path) -> None:
    """In another process, with another hash seed and another date, and in another order of rows."""
    rows, problems = many(2, 2, (EXACT,)), (EXACT,)
    for name, order in (("1", rows), ("2", rows[::-1])):
        (tmp_path / name).mkdir()
        write_rows(order, tmp_path / name / "rows.jsonl")
    texts = [output.write(rows, problems, tmp_path / "1" / f"fig{suffix}") for suffix in (".pdf", ".svg")]
    script = f"""if True:
        from pathlib import Path
        from lm_gym.compare import foreign, output
        from lm_gym.compare.rows import Problem
        here = Path({str(tmp_path / "2")!r})
        for suffix in (".pdf", ".svg"):
            output.write(foreign.read(here), {problems!r}, here / ("fig" + suffix))"""
    environment = {**os.environ, "PYTHONHASHSEED": "5", "SOURCE_DATE_EPOCH": "5"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)

    drawn = [f"fig-{name}" for name in ("curves", "frontier", "improvement", "profiles", "score")]
    names = [f"{name}{suffix}" for name in drawn for suffix in (".pdf", ".svg")]
    names += ["fig-curves.csv", "fig-improvement.csv", "fig-summary.csv", "fig.csv", "fig.md"]
    files = {name: (tmp_path / "1" / name).read_bytes() for name in names}
    assert sorted(file.name for file in (tmp_path / "1").iterdir()) == sorted([*names, "rows.jsonl"])
    assert [name for name in names if files[name] != (tmp_path / "2" / name).read_bytes()] == []
    assert texts == [files["fig.md"].decode()] * 2
    for name in drawn:
        assert b"Date" not in files[f"{name}.pdf"] and b"<dc:date>" not in files[f"{name}.svg"]
        assert b"/FontFile2" in files[f"{name}.pdf"]  # TrueType, embedded


def lines_of(figure: drawing.Figure, agents: Results, name: str) -> list[drawing.Line2D]:
    """The lines in an agent's colour."""
    colour = drawing.style(agents.agents.index(name))["color"]
    return [line for axis in figure.axes for line in axis.get_lines() if line.get_color() == colour]


def test_a_profile_falls_where_its_runs_are() -> None:
    """Of runs at 1.1, 1.2 and 1.5 above J_ref: 1, 2/3, 1/3, 0, straight down at each."""
    results = gather([row("a", OPEN, seed, 0.2 + gain) for seed, gain in enumerate((1.1, 1.5, 1.2))], PROBLEMS)
    with drawing.styled():
        line = lines_of(figures._profiles(results), results, "a")[0]
    assert line.get_drawstyle() == "steps-post"
    places, share = line.get_data()
    assert np.asarray(places)[1:-1] == pytest.approx([1.1, 1.2, 1.5])
    assert share == pytest.approx([1, 2 / 3, 1 / 3, 0, 0])


@pytest.mark.parametrize(("seeds", "bold"), [(3, 0), (4, 0), (5, 2)])
def test_nothing_is_bold_below_five_seeds(seeds: int, bold: int) -> None:
    """Of two agents where one always wins, and the interval is [1, 1]."""
    results = gather([row(a, OPEN, s, j + s / 100) for a, j in (("a", 1.0), ("b", 0.5)) for s in range(seeds)], [OPEN])
    assert results.seeds("a", "b") == seeds
    with drawing.styled():
        figure = figures._improvement(results, tables.improvements(results))
    assert figure is not None
    assert [text.get_fontweight() for text in figure.axes[0].texts].count("bold") == bold


def test_means_of_the_frontier_have_intervals() -> None:
    """KL 1 to 5 at one J: of the mean of five draws among them with replacement, here drawn anew."""
    results = gather([row("a", OPEN, s, 0.5, kl=1.0 + s) for s in range(5)] + [row("b", OPEN, 0, 0.5)], [OPEN])
    with drawing.styled():
        axis = figures._frontier(results).axes[0]
    spans = [np.ptp(path.vertices, axis=0) for lines in axis.collections for path in lines.get_paths()]
    (upright, across) = sorted(spans, key=lambda span: span[0])  # one of each, of the agent that has several seeds
    assert upright[0] == 0 and across[1] == 0
    low, high = np.quantile(np.random.default_rng(7).integers(1, 6, (20_000, 5)).mean(1), [0.025, 0.975])
    assert across[0] == pytest.approx(high - low, abs=0.25) and upright[1] == pytest.approx(across[0] * OPEN.kl_coef)


def test_a_single_run_is_drawn_with_the_errors_of_its_points() -> None:
    curve: dict[str, Any] = {"curve": ((0, 0.2), (500, 0.4), (1000, 0.6)), "curve_sem": (0.0, 0.1, 0.05)}
    results = gather([row("a", OPEN, 0, 0.6, **curve)], [OPEN])
    with drawing.styled():
        figure = figures._curves(results)
    assert figure is not None
    ends = np.concatenate([path.vertices for c in figure.axes[0].collections for path in c.get_paths()])
    assert ends[:, 1] == pytest.approx([0.2, 0.2, 0.204, 0.596, 0.502, 0.698])
    assert [line["j_sem"] for line in parsed(tables.curves_csv(results))] == ["0.0", "0.1", "0.05"]


def test_unequal_data_is_said() -> None:
    unequal = [replace(row(a, OPEN, 0, 0.5), tokens=n) for a, n in (("a", 1000), ("b", 1060), ("reference", 0))]
    assert any("unequal data, from 1,000 tokens (a) to 1,060 (b)" in note for note in gather(unequal, [OPEN]).notes)
    assert not any("unequal" in note for note in gather([unequal[0], unequal[2]], [OPEN]).notes)


def test_a_figure_without_numbers_is_not_left_from_before(tmp_path: Path) -> None:
    output.write(many(2, 1, (OPEN,)), PROBLEMS, tmp_path / "fig.png")
    assert (tmp_path / "fig-curves.png").exists() and (tmp_path / "fig-improvement.png").exists()
    output.write([row("ppo", OPEN, 0, 0.5)], PROBLEMS, tmp_path / "fig.png")
    assert not (tmp_path / "fig-curves.png").exists() and not (tmp_path / "fig-improvement.png").exists()
    assert (tmp_path / "fig-score.png").exists() and (tmp_path / "fig-frontier.png").exists()


def test_a_bad_name_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a name that ends in \.pdf, \.svg .* or \.png, got 'fig\.eps'"):
        output.check(tmp_path / "fig.eps")
    assert list(tmp_path.iterdir()) == []
    output.check(tmp_path / "a" / "b" / "fig.pdf")
    assert (tmp_path / "a" / "b").is_dir(), "a folder that is not there is made"


def test_without_matplotlib_the_extra_is_named(tmp_path: Path) -> None:
    script = "import sys; sys.modules['matplotlib'] = None; from lm_gym.compare.output import check; check('x.pdf')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "pip install -e '.[report]'" in done.stderr


def test_eighty_agents_look_different_without_colour() -> None:
    looks = {
        (look["marker"], look["markerfacecolor"] == "white", look["linestyle"])
        for look in (drawing.style(index) for index in range(80))
    }
    assert len(looks) == 80


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    names = {"agent-00": "_mine", "agent-01": "a$b$ | é"}
    rows = [replace(r, agent=names[r.agent]) for r in many(2, 2, (EXACT,))]
    text = output.write(rows, PROBLEMS, tmp_path / "fig.svg")
    assert "a$b$ \\| é" in text and "_mine" in text
    with drawing.styled():
        legend = figures._frontier(gather(rows, PROBLEMS)).legends[0]
    assert {text.get_text() for text in legend.get_texts()} > set(names.values())


@pytest.mark.parametrize("results", [gather(many(15, 2), PROBLEMS), gather(many(2, 1), PROBLEMS)], ids=["15", "2"])
@pytest.mark.parametrize("name", ["score", "curves", "profiles", "improvement", "frontier"])
def test_no_words_of_a_figure_overlap(results: Results, name: str) -> None:
    with drawing.styled():
        figure = {
            "score": lambda: figures._score(results),
            "curves": lambda: figures._curves(results),
            "profiles": lambda: figures._profiles(results),
            "improvement": lambda: figures._improvement(results, tables.improvements(results)),
            "frontier": lambda: figures._frontier(results),
        }[name]()
        assert figure is not None
        figure.draw_without_rendering()
        words = [text for axis in figure.axes for text in axis.texts if text.get_text()]
        for axis in figure.axes:
            for ticked in (axis.xaxis, axis.yaxis):
                low, high = sorted(ticked.get_view_interval())
                shown = [tick for tick in ticked.get_major_ticks() if low <= tick.get_loc() <= high]
                words += [label for tick in shown for label in (tick.label1, tick.label2) if label.get_visible()]
            words += [axis.title, axis.xaxis.label, axis.yaxis.label]
        for legend in figure.legends:
            words += [*legend.get_texts(), legend.get_title()]
        words += [figure._supxlabel] if figure._supxlabel else []
        boxes = [(text.get_text(), text.get_window_extent()) for text in words if text.get_text()]
    assert len(boxes) > 6
    width, height = figure.canvas.get_width_height()
    for index, (text, box) in enumerate(boxes):
        assert box.x0 > -1 and box.y0 > -1 and box.x1 < width + 1 and box.y1 < height + 1, f"{text!r} is cut"
        for other, there in boxes[index + 1 :]:
            apart = box.x1 <= there.x0 or there.x1 <= box.x0 or box.y1 <= there.y0 or there.y1 <= box.y0
            assert apart, f"{text!r} and {other!r} overlap"
