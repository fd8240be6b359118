"""Every agent that `lm-gym ls agents` lists trains on `tiny` from the command line, and leaves what a run leaves."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from safetensors.torch import load_file

from lm_gym.cli import main
from lm_gym.cli.options import agent_names, load_agent
from lm_gym.run_files import read_jsonl
from lm_gym.tracking import METRICS, OPEN_FAMILIES

TOKENS = 1000
SMALL = ["--batch-size", "32", "--max-new-tokens", "8", "--eval-texts", "4", "--threads", "1"]
NEEDS = {
    "sft": ["--data", "{data}", "--eval-data", "{data}", "--eval-every", "3"],
    "reinforce++": ["--minibatch-size", "16"],
}
"""Flags that an agent cannot do without: demonstrations, and minibatches no larger than these small batches."""


@pytest.mark.parametrize("name", agent_names())
def test_it_trains(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "run"
    rows = [{"prompt": "The film was", "completion": f" a {word} one."} for word in ("good", "great", "fine", "nice")]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [flag.format(data=data) for flag in NEEDS.get(name, [])]
    assert main(["train", name, "--out", str(out), "--total-tokens", str(TOKENS), *SMALL, *flags]) == 0

    logged = read_jsonl(out / "metrics.jsonl")
    assert logged[-1]["tokens"] >= TOKENS > logged[-2]["tokens"], "it stops with the update that passes them"
    assert all(math.isfinite(x) for row in logged for x in row.values())
    names = {key for row in logged for key in row if not key.startswith(OPEN_FAMILIES)}
    assert names - {"step"} <= set(METRICS)
    assert (out / "metrics.csv").read_text().count("\n") == len(logged) + 1
    assert {"objective/scores", "rewards/margins"} & names, "what it is worth, or what it makes of its pairs"

    trains = load_agent(name).trains
    assert all(row["grad/norm"] > 0 for row in logged) if trains else "grad/norm" not in names
    checkpoint = out / "checkpoints" / f"step-{len(logged)}"
    state = json.loads((checkpoint / "state.json").read_text())
    assert (state["agent"], state["updates"], state["tokens"]) == (name, len(logged), logged[-1]["tokens"])
    assert bool(load_file(checkpoint / "policy.safetensors")) == trains
    assert len((out / "samples_before_after.jsonl").read_text().splitlines()) == 4
    assert f"name: {name}" in (out / "config.yaml").read_text()
    assert "<svg" in (out / "report.html").read_text()
    printed = capfd.readouterr().out
    assert "means of 4 texts" in printed and str(checkpoint) in printed.replace("\n", "")


def test_what_is_listed_is_what_trains(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "agents"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == agent_names()
    assert not [row for row in rows if "cannot be loaded" in row]
