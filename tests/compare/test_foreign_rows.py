"""Rows in and out: what is written is read again, and what is no row is refused with its place."""

import json
from pathlib import Path
from typing import Any

import pytest

from lm_gym.compare import foreign
from lm_gym.compare.rows import Row, read_rows, row_line, write_rows

PAGE = Path(__file__).parents[2] / "docs/compare.md"
ROW = Row(
    "trl-grpo",
    "LMAlign-v0",
    0.1,
    3,
    8192,
    0.62,
    1.5,
    length=15.5,
    distinct_2=0.4,
    win_rate=0.75,
    curve=((0, 0.1), (4096, 0.3), (8192, 0.47)),
    curve_sem=(0.0, 0.05, 0.01),
    prompts=512,
    reward_calls=512,
    cpu_seconds=16.4,
    config={"learning_rate": 1e-3},
    source="trl 1.16",
)


def line(**changes: Any) -> str:
    return json.dumps({**json.loads(row_line(ROW)), **changes})


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    plain = Row("sft", "LMAlign-v0", 0.1, 2**62 + 1, 0, -1.0, 0.0)
    write_rows([ROW, plain], tmp_path / "rows.jsonl")
    assert read_rows(tmp_path / "rows.jsonl") == [ROW, plain]
    assert foreign.read(tmp_path) == foreign.read(tmp_path / "rows.jsonl") == [ROW, plain]
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_the_page_shows_a_row_that_is_read(tmp_path: Path) -> None:
    (example,) = (text for text in PAGE.read_text().splitlines() if text.startswith('{"agent"'))
    (tmp_path / "mine.jsonl").write_text(f"{example}\n")
    (row,) = foreign.read(tmp_path / "mine.jsonl")
    assert row.curve is not None and row.prompts is not None
    assert row.source not in ("lm-gym", "mine.jsonl")


def test_the_page_names_every_key() -> None:
    section = PAGE.read_text().split("## The form of a row")[1]
    assert [key for key in json.loads(row_line(ROW)) if f"| `{key}`" not in section] == []


def test_a_row_that_does_not_say_whose_it_is_gets_the_name_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "their-runs.jsonl"
    file.write_text(
        '\ufeff{"agent": "x", "env": "E-v0", "kl_coef": 1, "seed": 0, "tokens": 8e3, "reward": 1, "kl": 0}\n\n'
    )
    (row,) = foreign.read(file)
    assert (row.source, row.tokens, row.length, row.j) == ("their-runs.jsonl", 8000, None, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"win_rates": 0.5}, "unknown key 'win_rates': did you mean 'win_rate'"),
        ({"zzz": 0.5}, "unknown key 'zzz': a row has agent, env"),
        ({"kl": None}, "there is no kl"),
        ({"reward": "0.6"}, "expected a finite number for 'reward', got '0.6'"),
        ({"reward": float("nan")}, "expected finite numbers, got NaN"),
        ({"kl": float("inf")}, "expected finite numbers, got Infinity"),
        ({"config": {"lr": float("nan")}}, "expected finite numbers, got NaN"),
        ({"tokens": 10**400}, "expected a finite number for 'tokens'"),
        ({"tokens": 12.5}, "expected a whole number from 0 on for 'tokens', got 12.5"),
        ({"seed": -1}, "expected a whole number from 0 on for 'seed', got -1"),
        ({"seed": True}, "for 'seed', got True"),
        ({"kl_coef": -0.1}, "expected 'kl_coef' to be 0 or more, got -0.1"),
        ({"win_rate": 75}, "expected 'win_rate' between 0 and 1, got 75"),
        ({"agent": " "}, "expected a name in one line for 'agent'"),
        ({"agent": "two\nlines"}, "expected a name in one line for 'agent'"),
        ({"config": [1]}, "expected an object of the agent's options for 'config'"),
        ({"curve": 3}, "pairs for 'curve'"),
        ({"curve": []}, "pairs for 'curve'"),
        ({"curve": [[0, 0.1, 3]]}, r"expected a pair \[tokens, J\]"),
        ({"curve": [[10, 0.1], [20, 0.2]]}, r"grow from 0 .*got \[10, 20\]"),
        ({"curve": [[0, 0.1], [20, 0.2], [20, 0.3]]}, "grow from 0"),
        ({"curve_sem": [0.1]}, "a number in 'curve_sem' for each of the 3 points of 'curve', got 1"),
        ({"curve_sem": [0, 0.1, -0.1]}, "standard errors of 0 or more for 'curve_sem'"),
        ({"curve_sem": 0.1}, "a list of numbers for 'curve_sem'"),
        ({"curve": [[0, 0.1], [9000, 0.2]]}, "goes on to 9000 tokens, but the run has 8192"),
    ],
)
def test_a_bad_row_is_refused_with_its_place(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(f"{line(seed=7)}\n{line(**change)}\n")
    with pytest.raises(ValueError, match=message) as error:
        foreign.read(file)
    assert str(error.value).startswith(f"{file}, line 2: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1: expected a JSON object .a run a line., got '{'"),
        ("[1]", "line 1: expected a JSON object with the fields of a run, got \\[1\\]"),
        ('{"agent": "a", "agent": "b"}', "line 1: expected every key once, got 'agent' 2 times"),
        ('{"kl": 1e999}', "line 1: expected finite numbers, got 1e999"),
        ("\n\n", "expected a run a line, got an empty file"),
    ],
)
def test_what_is_no_row_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        foreign.read(tmp_path / "bad.jsonl")


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_bytes(line(agent="agént").encode("utf-16"))
    with pytest.raises(ValueError, match=r"bad\.jsonl: expected UTF-8"):
        foreign.read(tmp_path / "bad.jsonl")


def test_the_same_run_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{line()}\n{line(seed=4)}\n{line(kl_coef=0.2)}\n{line(reward=0.9)}\n")
    with pytest.raises(ValueError, match=r"line 4: expected one row a run, .*trl-grpo.*seed 3 .the first: .*line 1"):
        foreign.read(file)
    with pytest.raises(ValueError, match="one row a run"):
        write_rows([ROW, ROW], tmp_path / "other.jsonl")
    assert not (tmp_path / "other.jsonl").exists()


def test_a_row_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the row of ppo on E-v0, seed 1: expected finite numbers, got NaN"):
        write_rows([Row("ppo", "E-v0", 0.1, 1, 10, float("nan"), 0.0)], tmp_path / "rows.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_of_a_folder_the_files_with_rows_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f"{line()}\n")
    (tmp_path / "b.jsonl").write_text(f"\n{line(seed=4)}\n")
    (tmp_path / "notes.txt").write_text("no rows")
    assert [row.seed for row in foreign.read(tmp_path)] == [3, 4]
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "objective/kl": 0.1}\n')
    with pytest.warns(UserWarning, match=r"metrics\.jsonl is left out: its first line is no run"):
        assert len(foreign.read(tmp_path)) == 2
    (tmp_path / "b.jsonl").write_text(f"{line()}\n")
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(ValueError, match=r"b\.jsonl: expected one row a run.*a\.jsonl"),
    ):
        foreign.read(tmp_path)
    (tmp_path / "rows.jsonl").write_text(f"{line(seed=9)}\n")
    assert [row.seed for row in foreign.read(tmp_path)] == [9]


def test_nothing_to_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a JSONL file with a run a line"):
        foreign.read(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"got no \*\.jsonl"):
        foreign.read(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match=r"got metrics\.jsonl"):
        foreign.read(tmp_path)
