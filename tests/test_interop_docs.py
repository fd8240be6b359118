"""The Python of docs/interop.md runs, from top to bottom, as it stands there."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "interop.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_python_of_the_page_runs(monkeypatch, tmp_path, capsys):
    for module in ("trl", "torchrl", "math_verify"):
        pytest.importorskip(module, reason="development dependencies of docs/interop.md")
    monkeypatch.chdir(tmp_path)  # what it writes goes there
    printed = []
    for block in BLOCKS:
        exec(compile(block, "docs/interop.md", "exec"), {"__name__": "__main__"})
        printed.append(capsys.readouterr().out)
    assert "1.0 1.0" in printed[2]
    score, kl = map(float, printed[-1].split())
    assert -1 <= score <= 1 and 0 <= kl < 0.1  # one step away from the reference
