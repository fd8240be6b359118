"""docs/ppo.md: every field of PPO is on the page, with its default, and every test that it names is there."""

import dataclasses
import re
from pathlib import Path

import pytest

from lm_gym.agents.ppo import PPOConfig

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "ppo.md").read_text()


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(PPOConfig)])
def test_every_field_is_explained(field: str) -> None:
    assert re.search(rf"`{field}\b", PAGE)


def test_defaults_are_those_of_the_config() -> None:
    """Numbers, names, True and False in brackets behind a field in the table."""
    told = re.findall(r'`(\w+)` \("?([\w.,-]+)"?[);:]', PAGE.split("## Every detail")[1])
    ours = {f.name: f.default for f in dataclasses.fields(PPOConfig)}  # others are the environment's
    assert len(set(ours) & dict(told).keys()) > 15
    for field, value in told:
        if field not in ours:
            continue
        default = ours[field]
        plain = value.replace(",", "")
        assert str(default) == plain or float(plain) == default, field


def test_every_test_that_is_named_is_there() -> None:
    code = "\n".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    named = re.findall(r"`(test_\w+)(…?)`", PAGE)
    assert len(named) > 25
    for name, cut in named:
        assert re.search(rf"def {name}" + ("" if cut else r"\b"), code), name
    for path in re.findall(r"`(tests/[\w/]+\.py)`", PAGE):
        assert (TESTS.parent / path).is_file(), path
