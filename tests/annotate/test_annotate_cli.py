"""`lm-gym annotate` as it is typed."""

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from annotate_load import serving, write_pairs
from annotate_stores import answer_all, person

from lm_gym.annotate.store import Store
from lm_gym.cli import main
from lm_gym.preferences import load_preferences


@pytest.fixture
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = write_pairs(tmp_path / "pairs.jsonl", 6)
    with path.open("a") as file:
        file.write("no JSON\n" + json.dumps({"prompt": "p"}) + "\n")
    return path


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = main(["annotate", *args])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_import_answer_status_export(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "import", "--data", "pairs.jsonl", "--unusable", "bad.jsonl")
    assert code == 0 and "6 pairs added to prefs.sqlite, 0 were there, 2 unusable" in out
    assert "pairs.jsonl, line 7" in err and "pairs.jsonl, line 8" in err
    assert [json.loads(line)["where"] for line in Path("bad.jsonl").read_text().splitlines()] == [
        "pairs.jsonl, line 7,",
        "pairs.jsonl, line 8,",
    ]
    assert "0 pairs added to prefs.sqlite, 6 were there" in run(capsys, "import", "--data", "pairs.jsonl")[1]
    with Store("prefs.sqlite") as store:
        answer_all(store, person(store, "ada"), {f"Question {i}?": i - 3 for i in range(6)})
    code, out, _ = run(capsys, "status")
    assert code == 0 and "6 of 6 wanted" in out and "ada" in out
    assert json.loads(run(capsys, "status", "--json")[1])["complete"] == 6
    code, out, _ = run(
        capsys, "export", "--out", "data/prefs.jsonl", "--aggregate", "none", "--format", "conversational"
    )
    assert code == 0 and "5 answers with a preference" in out
    read = load_preferences("data/prefs.jsonl") + load_preferences("data/prefs.ties.jsonl")
    assert sorted((pair.margin, pair.label) for pair in read) == [(0, 0.5), (1, 1), (1, 1), (2, 1), (2, 1), (3, 1)]
    assert {pair.annotator for pair in read} == {"ada"}


def test_hold_and_select(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "import", "--data", "pairs.jsonl", "--hold")
    assert "0 of 0 wanted" in run(capsys, "status")[1]
    assert "4 more pairs" in run(capsys, "select", "--n", "4")[1]
    assert "0 of 4 wanted" in run(capsys, "status")[1]
    Path("judge.py").write_text("def broken(completions, **_):\n    raise RuntimeError('no judge today')\n")
    code, _, err = run(capsys, "select", "--n", "1", "--by", "margin", "--rewards", "py:./judge.py:broken")
    assert code == 1 and "no judge today" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["status"], "there is no store prefs.sqlite"),
        (["import", "--data", "nothing.jsonl"], "there is no file nothing.jsonl"),
        (["import", "--data", "bad.jsonl"], "bad.jsonl has no pair that can be used"),
        (["import", "--data", "pairs.jsonl", "--gold"], "6 of 6 gold pairs have no known answer"),
        (["serve"], "prefs.sqlite holds no pairs yet: give some with --data"),
        (["serve", "--data", "pairs.jsonl", "--host", "0.0.0.0"], "add --url"),
        (["serve", "--data", "pairs.jsonl", "--url", "somewhere"], "url expected http"),
        (["serve", "--data", "pairs.jsonl", "--per-item", "0"], "at least 1 annotator"),
        (["serve", "--data", "pairs.jsonl", "--guidelines", "none.md"], "none.md: No such file"),
        (["serve", "--data", "pairs.jsonl", "--annotators", "admin", "--port", "0"], "choose another"),
        (["serve", "--data", "pairs.jsonl", "--annotators", "a/b", "--port", "0"], "expected 1 to 60 letters"),
        (["export", "--db", "pairs.jsonl"], "expected a store"),
        (["import", "--data", "pairs.jsonl", "--db", "nowhere/x.sqlite"], "there is no folder nowhere"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    pairs: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    Path("bad.jsonl").write_text("{}\n")
    code, _, err = run(capsys, *args)
    assert code == 2 and message in err.splitlines()[-1] and err.splitlines()[-1].startswith("error: ")


def test_a_port_in_use_is_an_error_before_anybody_is_invited(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, out, err = run(capsys, "serve", "--data", "pairs.jsonl", "--port", str(taken.getsockname()[1]))
    assert code == 2 and "in use" in err and "join" not in out


def test_without_the_extra_the_error_names_it(
    pairs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("uvicorn", "nh3"):
        monkeypatch.setitem(sys.modules, module, None)
    code, _, err = run(capsys, "serve", "--data", "pairs.jsonl")
    assert code == 2 and "pip install -e '.[annotate]'" in err


def test_serve_prints_links_once_and_new_ones_on_demand(pairs: Path) -> None:
    db = pairs.with_name("prefs.sqlite")
    with serving(db, "--data", str(pairs), "--annotators", "ada", "bob") as server:
        first = dict(server.links)
        assert set(first) == {"ada", "bob", "overview"} and len(set(first.values())) == 3
        assert all(link.startswith(f"http://127.0.0.1:{server.port}/join/") for link in first.values())
    with serving(db) as server:
        assert server.links == {}  # only hashes of the old ones are kept
    with serving(db, "--new-links", "--annotators", "bob", "--url", "https://prefs.example") as server:
        assert set(server.links) == {"bob", "overview"} and server.links["bob"] != first["bob"]
        assert server.links["bob"].startswith("https://prefs.example/join/")


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for args in ([], ["--help"]):
        with pytest.raises(SystemExit) as stop:
            main(["annotate", *args])
        assert stop.value.code == 0
        out: Any = capsys.readouterr().out
        assert all(name in out for name in ("serve", "status", "export", "import", "select"))
