"""The code in docs/exact.md runs."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs" / "exact.md"


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL))
def test_blocks_run(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block, str(DOCS), "exec"), {"__name__": "docs"})
    numbers = [float(word) for word in capsys.readouterr().out.split()]
    claimed = [float(x) for x in re.findall(r"(?<![\w.])\d*\.\d{4}", re.sub(r"^(?!.*#).*$", "", block, flags=re.M))]
    for value in claimed:
        assert min(abs(value - number) for number in numbers) < 5.1e-5, value
