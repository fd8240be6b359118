"""What a run writes: rows that survive growth, crashes and resuming, and what trackers of others are sent."""

from __future__ import annotations

import csv
import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from lm_gym import runinfo
from lm_gym.run_files import read_jsonl
from lm_gym.tracking import METRICS, OPEN_FAMILIES, Tracker

ROOT = Path(__file__).resolve().parents[1]


def tracker(folder: Path | None, **options) -> Tracker:
    options.setdefault("quiet", True)
    return Tracker(folder, config={"model": "tiny", "seed": 3}, **options)


def csv_rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_on_disk_when_log_returns_and_say_what_was_logged(tmp_path):
    run = tracker(tmp_path / "run")
    run.log({"objective/scores": 0.1 + 0.2, "episode": np.int64(8)}, step=1, tokens=100)
    assert csv_rows(tmp_path / "run")[0]["objective/scores"] == repr(0.1 + 0.2)
    row = read_jsonl(tmp_path / "run" / "metrics.jsonl")[0]
    assert row == {**row, "step": 1, "tokens": 100, "objective/scores": 0.1 + 0.2, "episode": 8}
    assert run.history == [row]
    run.close()


def test_csv_stays_valid_as_columns_come_and_go(tmp_path):
    with tracker(tmp_path) as run:
        run.log({"lr": 1.0}, step=1, tokens=1)
        run.log({"lr": 0.5, "reward/a, b": 2.0}, step=2, tokens=2)
        run.log({"objective/kl": 3.0}, step=3, tokens=3)
    rows = csv_rows(tmp_path)
    assert [row["lr"] for row in rows] == ["1.0", "0.5", ""]
    assert [row["reward/a, b"] for row in rows] == ["", "2.0", ""]
    assert [row["objective/kl"] for row in rows] == ["", "", "3.0"]
    assert not list(tmp_path.glob("*.tmp"))
    assert not list(tmp_path.glob(".*.tmp"))


def test_numbers_of_numpy_and_torch_are_taken_and_others_refused(tmp_path):
    with tracker(tmp_path) as run:
        run.log({"lr": np.float32(0.5), "kl_coef": torch.tensor(0.25), "grad/norm": np.array([2.0])}, step=1, tokens=1)
        assert run.history[0]["lr"] == 0.5
        assert run.history[0]["kl_coef"] == 0.25
        for wrong in (torch.ones(2), "1.0", None):
            with pytest.raises(TypeError, match="grad/norm"):
                run.log({"grad/norm": wrong}, step=2, tokens=2)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), torch.tensor(float("nan"))])
def test_a_number_that_is_not_finite_is_refused_before_anything_is_written(tmp_path, value):
    with tracker(tmp_path) as run:
        with pytest.raises(ValueError, match=r"'objective/kl' is -?(nan|inf)"):
            run.log({"lr": 1.0, "objective/kl": value}, step=1, tokens=1)
        assert not (tmp_path / "metrics.jsonl").exists()
        assert not (tmp_path / "metrics.csv").exists()
        run.log({"lr": 1.0}, step=1, tokens=1)  # the step was not used up


def test_a_step_is_logged_once_and_in_order(tmp_path):
    with tracker(tmp_path) as run:
        run.log({"lr": 1.0}, step=2, tokens=1)
        for step in (2, 1):
            with pytest.raises(ValueError, match="does not follow step 2"):
                run.log({"lr": 1.0}, step=step, tokens=1)
        with pytest.raises(ValueError, match="step"):
            run.log({"lr": 1.0}, step=2.5, tokens=1)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="tokens"):
            run.log({"tokens": 7}, step=3, tokens=8)


def test_unknown_names_are_refused_with_the_nearest_and_open_families_are_not(tmp_path):
    with tracker(tmp_path) as run:
        with pytest.raises(ValueError, match="did you mean 'objective/scores'"):
            run.log({"objective/score": 1.0}, step=1, tokens=1)
        for name in ("custom/", "reward/two\nlines", "mine"):
            with pytest.raises(ValueError, match="unknown metric"):
                run.log({name: 1.0}, step=1, tokens=1)
        run.log({family + "x": 1.0 for family in OPEN_FAMILIES}, step=1, tokens=1)


def test_docs_explain_exactly_the_metrics_there_are():
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    sections = re.split(r"^### ", text, flags=re.M)[1:]
    names = [re.match(r"`([^`]+)`\n", section)[1] for section in sections]  # type: ignore[index]
    assert sorted(names) == sorted(METRICS)
    for name, section in zip(names, sections, strict=True):
        for field in ("Formula", "Unit", "Healthy", "TRL"):
            assert f"\n- {field}: " in section, f"{name} has no {field} in docs/metrics.md"


def test_config_is_written_at_once_with_where_the_run_came_from(tmp_path):
    run = Tracker(
        tmp_path, config={"lr": 1e-5, "path": Path("a"), "stop": ("x",), "fn": len, "n": np.int64(2)}, quiet=True
    )
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["lr"] == 1e-5
    assert (config["path"], config["stop"], config["fn"], config["n"]) == ("a", ["x"], "builtins.len", 2)
    assert config["run"]["versions"]["torch"] == torch.__version__
    assert config["run"]["command"]
    run.close()
    given = {"run": {"command": "mine", "hashes": {"reference": "sha256:00"}}}
    with Tracker(tmp_path / "b", config=given, quiet=True):
        assert runinfo.read_config(tmp_path / "b" / "config.yaml") == given


def test_credentials_in_urls_stay_out_of_the_config(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["/x/python", "a.py", "--reward", "http://me:secret@host/score"])
    with Tracker(tmp_path, config={"reward": "http://me:secret@host/score"}, quiet=True):
        text = (tmp_path / "config.yaml").read_text()
    assert "secret" not in text
    assert "http://***@host/score" in text
    assert "python a.py" in text


def test_weights_hash_knows_values_and_not_order():
    a, b = torch.arange(3.0), torch.ones(2, 2, dtype=torch.bfloat16)
    one = runinfo.weights_hash({"a": a, "b": b})
    assert one == runinfo.weights_hash({"b": b.clone(), "a": a.clone()})
    assert one != runinfo.weights_hash({"a": a + 1e-7, "b": b})
    assert one != runinfo.weights_hash({"a": a, "b": b.reshape(4)})
    assert runinfo.weights_hash(torch.nn.Linear(2, 2)).startswith("sha256:")


def test_git_revision_is_that_of_the_checkout_the_file_belongs_to(tmp_path):
    assert runinfo.git_revision(tmp_path) is None
    revision = runinfo.git_revision(ROOT / "lm_gym")
    assert revision is None or re.match(r"[0-9a-f]{40}", revision)  # None: the sources were unpacked without git


def test_samples_are_one_json_a_line_whatever_the_text(tmp_path):
    nasty = 'a "quote"\n\u2028 \ud800 \x00 é [red]'
    with tracker(tmp_path) as run:
        run.samples([{"prompt": "p", "completion": nasty, "score": np.float32(0.5), "length": 3}], step=4)
        with pytest.raises(ValueError, match="sample 0 has no completion"):
            run.samples([{"prompt": "p"}], step=5)
        with pytest.raises(ValueError, match="score is nan"):
            run.samples([{"prompt": "p", "completion": "c", "score": float("nan")}], step=5)
    rows = read_jsonl(tmp_path / "samples.jsonl")
    assert rows == [{"step": 4, "prompt": "p", "completion": nasty, "score": 0.5, "length": 3}]


def test_a_folder_with_a_run_is_refused_and_resumed_when_asked(tmp_path):
    with tracker(tmp_path) as run:
        for step in range(1, 6):
            run.log({"lr": 1.0 / step, **({"objective/kl": 1.0} if step > 3 else {})}, step=step, tokens=step * 10)
            run.samples([{"prompt": "p", "completion": str(step)}], step)
    with pytest.raises(FileExistsError, match="resume=True"):
        tracker(tmp_path)
    with tracker(tmp_path, resume=True) as run:
        assert [row["step"] for row in run.history] == [1, 2, 3, 4, 5]
        run.truncate_to(3)
        assert [row["step"] for row in run.history] == [1, 2, 3]
        run.log({"lr": 9.0}, step=4, tokens=40)
    assert [int(row["step"]) for row in csv_rows(tmp_path)] == [1, 2, 3, 4]
    assert csv_rows(tmp_path)[-1]["lr"] == "9.0"
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    assert [row["completion"] for row in read_jsonl(tmp_path / "samples.jsonl")] == ["1", "2", "3"]
    assert (tmp_path / "config.0.yaml").exists()  # what the first part ran with


def test_resuming_after_a_kill_drops_the_line_that_was_not_finished(tmp_path):
    with tracker(tmp_path) as run:
        run.log({"lr": 1.0}, step=1, tokens=1)
    for name, text in (("metrics.jsonl", '{"step": 2, "to'), ("metrics.csv", "2,2,0.")):
        with open(tmp_path / name, "a") as file:
            file.write(text)
    assert [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1]
    with tracker(tmp_path, resume=True) as run:
        run.log({"lr": 2.0}, step=2, tokens=2)
    assert [row["lr"] for row in csv_rows(tmp_path)] == ["1.0", "2.0"]
    assert [row["lr"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1.0, 2.0]


def test_csv_alone_can_be_resumed(tmp_path):
    with tracker(tmp_path, trackers=["csv"]) as run:
        run.log({"lr": 1.0, "episode": 4}, step=1, tokens=1)
    assert not (tmp_path / "metrics.jsonl").exists()
    with tracker(tmp_path, trackers=["csv"], resume=True) as run:
        assert run.history[0]["episode"] == 4
        with pytest.raises(ValueError, match="does not follow"):
            run.log({"lr": 1.0}, step=1, tokens=1)


def test_read_jsonl_names_a_broken_line_in_the_middle(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": 1}\nbroken\n{"a": 2}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_jsonl(tmp_path / "x.jsonl")


def test_without_a_folder_nothing_is_written_and_history_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with tracker(None) as run:
        run.log({"lr": 1.0}, step=1, tokens=1)
        run.samples([{"prompt": "p", "completion": "c"}], 1)
        run.truncate_to(0)
        assert run.history == []
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError, match="closed"):
        run.log({"lr": 1.0}, step=1, tokens=1)


def test_wrong_trackers_are_refused():
    with pytest.raises(ValueError, match="did you mean 'tensorboard'"):
        tracker(None, trackers=["tensorbord"])
    with pytest.raises(ValueError, match="out_dir"):
        tracker(None, trackers=["tensorboard"])
    with pytest.raises(ValueError, match="terminal"):
        tracker(None, terminal="yes")


@pytest.mark.parametrize("name", ["trackio", "wandb", "tensorboard"])
def test_a_missing_tracker_names_the_extra(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer" if name == "tensorboard" else name, None)
    with pytest.raises(ImportError, match=re.escape("pip install -e '.[track]'")):
        tracker(tmp_path, trackers=[name])


def test_tensorboard_gets_every_number_and_hides_what_a_resumed_run_writes_again(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tracker(tmp_path, trackers=["jsonl", "tensorboard"]) as run:
        for step in (1, 2, 3):
            run.log({"objective/scores": step / 2}, step=step, tokens=step * 10)
    with tracker(tmp_path, trackers=["jsonl", "tensorboard"], resume=True) as run:
        run.truncate_to(1)
        run.log({"objective/scores": 7.0}, step=2, tokens=20)
        with pytest.raises(RuntimeError, match="before the first log"):
            run.truncate_to(1)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"objective/scores", "tokens", "perf/elapsed_seconds"} <= set(events.Tags()["scalars"])
    assert [(event.step, event.value) for event in events.Scalars("objective/scores")] == [(1, 0.5), (2, 7.0)]


def test_trackio_is_called_as_it_wants(tmp_path, monkeypatch):
    calls: list[tuple] = []
    fake = types.ModuleType("trackio")
    fake.init = lambda **kwargs: calls.append(("init", kwargs))  # type: ignore[attr-defined]
    fake.log = lambda row, step=None: calls.append(("log", row, step))  # type: ignore[attr-defined]
    fake.finish = lambda: calls.append(("finish",))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", fake)
    with tracker(tmp_path / "mine", trackers=["trackio"]) as run:
        run.log({"lr": 0.5}, step=3, tokens=7)
    (_, init), (_, row, step), finish = calls
    assert (init["project"], init["name"], init["config"]["seed"]) == ("lm-gym", "mine", 3)
    assert (row["lr"], row["tokens"], step, "step" in row) == (0.5, 7, 3, False)
    assert finish == ("finish",)


def test_wandb_is_called_as_it_wants(tmp_path, monkeypatch):
    calls: list[tuple] = []
    run_object = types.SimpleNamespace(
        log=lambda row, step=None: calls.append(("log", row, step)), finish=lambda: calls.append(("finish",))
    )
    fake = types.ModuleType("wandb")
    fake.init = lambda **kwargs: calls.append(("init", kwargs)) or run_object  # type: ignore[attr-defined,func-returns-value]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with tracker(tmp_path / "mine", trackers=["wandb"]) as run:
        run.log({"lr": 0.5}, step=3, tokens=7)
    (_, init), (_, row, step), finish = calls
    assert (init["project"], init["name"], init["dir"]) == ("lm-gym", "mine", str(tmp_path / "mine"))
    assert (row["lr"], step, finish) == (0.5, 3, ("finish",))


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_what_a_tracker_of_others_raises_names_it(tmp_path, monkeypatch, fails):
    def call(name):
        def raising(*_, **__):
            raise SystemExit("\x1b[31mno account")

        return raising if name == fails else lambda *_, **__: run_object

    run_object = types.SimpleNamespace()
    run_object.log, run_object.finish = call("log"), call("finish")
    fake = types.ModuleType("wandb")
    fake.init = call("init")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    does = {"init": "did not start", "log": "did not take a row", "finish": "could not finish"}[fails]
    message = rf"the wandb tracker {does}.* \(SystemExit: ␛\[31mno account\)"
    with pytest.warns(UserWarning, match=message) if fails == "finish" else pytest.raises(RuntimeError, match=message):
        with tracker(tmp_path, trackers=["jsonl", "wandb"]) as run:
            run.log({"lr": 0.5}, step=3, tokens=7)
    assert fails == "init" or [row["step"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [3]


def test_same_calls_write_the_same_rows(tmp_path):
    def rows(folder: Path) -> list[dict]:
        with tracker(folder) as run:
            for step in range(1, 4):
                run.log({"lr": 1 / step}, step=step, tokens=step)
        return [{**row, "perf/elapsed_seconds": 0} for row in map(json.loads, (folder / "metrics.jsonl").open())]

    assert rows(tmp_path / "a") == rows(tmp_path / "b")
