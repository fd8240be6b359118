"""benchmarks/growth.py: the exponents are those of the points, and a small run measures what it says."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def figure() -> ModuleType:
    spec = importlib.util.spec_from_file_location("growth_figure", BENCHMARKS / "growth_figure.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(tool: str, texts: int, **numbers: Any) -> dict[str, Any]:
    parts: dict[str, Any] = {"decode": [0.0, 0.0, 0.0], "score": [0.0, 0.0, 0.0], "update": [0.0, 0.0, 0.0]}
    return {"axis": "texts", "tool": tool, "texts": texts, "peak_mb": 1.0, **parts, **numbers}


def test_a_time_is_the_median_of_whole_iterations(figure: ModuleType) -> None:
    # the sum of the parts' medians would be 1 + 1
    assert figure.seconds(row("ours", 8, decode=[1.0, 5.0, 1.0], update=[1.0, 1.0, 9.0])) == 6.0


def test_exponents_are_of_the_largest_points_whatever_their_order(figure: ModuleType) -> None:
    rows = [row("ours", n, update=[3.0 * n**1.5] * 3, peak_mb=0.5 * n**2) for n in (64, 16, 32)]
    rows += [row("ours", 1, update=[1e4] * 3, peak_mb=1e4), row("floor", 64, update=[1.0] * 3)]
    assert figure.exponent(figure.curve(rows, "texts", "ours", "time")) == pytest.approx(1.5)
    assert figure.exponent(figure.curve(rows, "texts", "ours", "memory")) == pytest.approx(2.0)


def test_the_table_compares_at_both_ends(figure: ModuleType) -> None:
    same = lambda x: {part: [x] * 3 for part in ("decode", "score", "update")}
    rows = [row(tool, n, **same(a * n)) for tool, a in (("ours", 2.0), ("floor", 1.0)) for n in (8, 16, 32)]
    [line] = [x for x in figure.table(rows).splitlines() if "| time |" in x]
    assert line == "| texts of 32 tokens, 8 to 32 | time | 1.00 | 1.00 | 2.00 | 2.00 | 192 s | 96 s |"


@pytest.mark.slow
def test_a_quick_run_measures_and_draws_every_axis(tmp_path: Path) -> None:
    results, picture = tmp_path / "growth.jsonl", tmp_path / "growth.svg"
    command = [sys.executable, str(BENCHMARKS / "growth.py"), "--quick"]
    command += ["--results", str(results), "--figure", str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(rows) == 16 and {(r["axis"], r["tool"]) for r in rows} == {
        (axis, tool) for axis in ("tokens", "texts", "vocab", "params") for tool in ("ours", "floor")
    }
    assert all(min(r["decode"] + r["score"] + r["update"]) > 0 and r["peak_mb"] > 0 for r in rows)
    assert picture.read_text().rstrip().endswith("</svg>")
