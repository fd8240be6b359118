"""The server is killed at moments of its own choosing: every answer that it confirmed is there, once, as it was said.

The whole of it (20 annotators, 2,000 answers, 5 kills) is `python tests/annotate_load.py`, and a slow test.
"""

from pathlib import Path

import pytest
from annotate_load import Outcome, load


def check(found: Outcome) -> None:
    assert found.wrong == []
    assert (found.lost, found.changed, found.twice, found.unconfirmed, found.over_asked) == (0, 0, 0, 0, 0)
    assert found.broken_requests >= found.kills > 0


def test_nothing_confirmed_is_lost_when_the_server_is_killed(tmp_path: Path) -> None:
    found = load(tmp_path, annotators=4, answers=120, kills=2, pause=0.0)
    check(found)
    assert (found.confirmed - found.undone, found.kills) == (120, 2)


@pytest.mark.slow
def test_twenty_annotators_two_thousand_answers_five_kills(tmp_path: Path) -> None:
    found = load(tmp_path, annotators=20, answers=2000, kills=5, pause=0.3)
    check(found)
    assert (found.confirmed - found.undone, found.kills) == (2000, 5)
    assert found.milliseconds(0.95) < 100
