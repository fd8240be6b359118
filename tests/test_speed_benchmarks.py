"""benchmarks/decoding.py, stepping.py, iteration.py: what they say of a machine, and that they run in other shapes."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def decoding(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("decoding")


def test_the_limit_of_a_machine_by_hand(decoding: Any) -> None:
    """One layer of width 8, vocabulary 10: 10·8 embeddings, 12·8² + 13·8 weights of the layer, 2·8 of the last norm."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=10, n_positions=64, n_embd=8, n_layer=1, n_head=2))
    lm = SimpleNamespace(model=model, dtype=torch.bfloat16)
    args = SimpleNamespace(prompt_length=16, new_tokens=32)
    weights = 10 * 8 + 12 * 64 + 13 * 8 + 2 * 8
    cache = 2 * 3 * 32 * 8  # keys and values of 3 rows of 32 tokens, the mean length
    slow_memory = decoding.limit(lm, 3, args, bandwidth=1e3, products=1e12)
    assert slow_memory == pytest.approx(3 / (2 * (weights + cache) / 1e3))
    assert decoding.limit(lm, 3, args, bandwidth=1e12, products=1e3) == pytest.approx(1e3 / weights)


def test_ratios_are_of_the_clock_on_a_gpu(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    ratios = importlib.import_module("iteration").ratios
    numbers = lambda cpu, wall: {"iter_cpu": {"median": cpu}, "iter_wall": {"median": wall}, "peak_rss_mb": 1.0}
    for name, found in {
        "ppo.0": {"tool": "trl", "algo": "ppo", **numbers(8.0, 4.0)},
        "cpu.0": {"tool": "lm-gym", "algo": "ppo", "device": "cpu", **numbers(2.0, 3.0)},
        "gpu.0": {"tool": "lm-gym", "algo": "ppo", "device": "cuda", **numbers(2.0, 3.0)},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    ratios(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("median ")[1].split()[0] for line in lines if "median" in line] == ["0.250", "0.750"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["decoding", "stepping"])
def test_another_shape_and_precision_run(name: str, tmp_path: Path) -> None:
    flags = "--rows 2 --rounds 1 --repeats 1 --layers 1 --hidden 64 --dtype bfloat16 --json out.json"
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *flags.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["device"], found["dtype"], found["layers"], found["hidden"]) == ("cpu", "bfloat16", 1, 64)
    rows = found["rows"]["2"]
    assert {"plain loop", "generate"} < set(rows) and all(row["tokens_per_second"] > 0 for row in rows.values())
