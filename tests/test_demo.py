"""The demo: its folder, its report, and (slow) that it does what it is shown for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from lm_gym.cli import demo as demo_module
from lm_gym.cli import main
from lm_gym.run_files import read_jsonl

SMALL = {"batch_size": 8, "minibatch_size": 8, "epochs": 1}


def test_demo_shows_texts_and_writes_a_report_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_module, "AGENT", SMALL)
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--total-tokens", "200", "--threads", "1"]) == 0
    first = capsys.readouterr().out
    assert "before" in first
    assert "replaced" not in first
    page = (tmp_path / "runs" / "demo" / "report.html").read_text()
    assert "<svg" in page
    assert yaml.safe_load((tmp_path / "runs" / "demo" / "config.yaml").read_text())["run"]["preset"] == "demo"
    assert main(["demo", "--total-tokens", "1", "--threads", "1"]) == 0
    assert "(the earlier demo in runs/demo is replaced)" in capsys.readouterr().out
    assert len(read_jsonl(tmp_path / "runs" / "demo" / "metrics.jsonl")) == 1


@pytest.mark.parametrize("config", [None, "run: {preset: other}\n", "model: tiny\n", "run: 3\n", "[broken"], ids=repr)
def test_demo_replaces_nothing_but_a_demo(
    config: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    if config is not None:
        (tmp_path / "config.yaml").write_text(config)
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "holds something that is no earlier demo" in capsys.readouterr().err
    assert (tmp_path / "precious.txt").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_demo_learns_to_write_good_reviews(seed: int, tmp_path: Path) -> None:
    assert main(["demo", "--out", str(tmp_path / "demo"), "--seed", str(seed)]) == 0
    rows = read_jsonl(tmp_path / "demo" / "samples_before_after.jsonl")
    before, after = (float(np.mean([row[key] for row in rows])) for key in ("score_before", "score_after"))
    assert before < 0.4
    assert after > 0.7
    assert float(np.mean([row["kl"] for row in rows])) < 15
    assert len({row["after"] for row in rows}) > len(rows) // 2
    assert max(row["tokens"] for row in read_jsonl(tmp_path / "demo" / "metrics.jsonl")) < 60_000
