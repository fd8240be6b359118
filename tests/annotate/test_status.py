"""Where the work stands, by hand; and that every colour of the page can be read."""

import re
from pathlib import Path

import pytest
from annotate_stores import Clock, answer_all, new_id, person, store_with

import lm_gym.annotate
from lm_gym.annotate.answers import Answer, submit, undo
from lm_gym.annotate.lending import next_items
from lm_gym.annotate.status import status
from lm_gym.annotate.status_text import report
from lm_gym.annotate.store import Pair, add_pairs


def test_status_by_hand(tmp_path: Path) -> None:
    clock = Clock()
    store = store_with(tmp_path, 4, need=2, clock=clock)
    add_pairs(store, [Pair("held", "x", "y")], source="later", asked=False)
    add_pairs(store, [Pair("g0", "right", "wrong", gold=-2), Pair("g1", "w", "r", gold=1)], source="gold", gold=True)
    ada, bob = person(store, "ada"), person(store, "bob")
    person(store, "idle")
    answer_all(store, ada, {"p0": 3, "p1": 1, "p2": 0, "p3": -2, "g0": -1, "g1": -3})
    answer_all(store, bob, {"p0": 2, "p1": -3, "p2": 0, "p3": -2, "g0": -3, "g1": 2})
    mistaken = store.rows("SELECT * FROM live ORDER BY seq DESC LIMIT 1")[0]
    undo(store, bob, new_id(), mistaken["id"])
    found = status(store)
    expected = 8 - (store.value("SELECT gold IS NULL FROM items WHERE id = ?", (mistaken["item"],)))
    assert (found.items, found.held_back, found.gold, found.wanted, found.given) == (7, 1, 2, 8, expected)
    (again,) = next_items(store, bob, 1)
    submit(store, bob, Answer(new_id(), again.item, "preference", mistaken["shown"]))
    found = status(store)
    assert (found.given, found.complete, found.kinds) == (8, 4, {"preference": 12})
    people = {person.name: person for person in found.people}
    assert set(people) == {"ada", "bob", "idle"}
    assert (people["ada"].gold_right, people["ada"].gold_seen) == (1, 2)
    assert (people["bob"].gold_right, people["bob"].gold_seen, people["bob"].undone) == (2, 2, 1)
    assert people["idle"].answers == 0 and people["idle"].median_seconds is None
    for name in ("ada", "bob"):
        who = {"ada": ada, "bob": bob}[name]
        shown = [row["shown"] for row in store.rows("SELECT shown FROM live WHERE annotator = ?", (who.id,))]
        assert people[name].first_preferred == sum(value < 0 for value in shown)
        assert people[name].preferred == sum(value != 0 for value in shown)
    (kappa,) = found.kappas
    assert (kappa.first, kappa.second, kappa.items) == ("ada", "bob", 6)
    # Directions of ada +,+,0,-,-,- and of bob +,-,0,-,-,+ on p0 p1 p2 p3 g0 g1: 4 of 6 agree, 14/36 by chance.
    assert kappa.direction == pytest.approx((4 / 6 - 14 / 36) / (1 - 14 / 36))
    worst = [(d.prompt, d.strengths) for d in found.disagreements[:2]]
    assert worst == [("g1", {"ada": -3, "bob": 2}), ("p1", {"ada": 1, "bob": -3})]
    assert found.alpha is not None and found.alpha.items == 6
    text = report(found)
    assert "8 of 8 wanted; 4 pairs complete" in text and "ada -3, bob +2" in text


def test_pauses_are_no_work(tmp_path: Path) -> None:
    clock = Clock()
    store = store_with(tmp_path, 5, clock=clock)
    ada = person(store, "ada")
    for gap in (0, 20, 40, 7200, 30):  # the lunch between the third and the fourth answer does not count
        clock.now += gap
        (loan,) = next_items(store, ada, 1)
        submit(store, ada, Answer(new_id(), loan.item, "skip", seconds=5.0))
    (found,) = status(store).people
    assert found.per_hour == pytest.approx(3600 * 3 / 90)
    assert (found.skips, found.median_seconds) == (5, 5.0)


def test_an_empty_store_has_a_status(tmp_path: Path) -> None:
    found = status(store_with(tmp_path, 3))
    assert found.alpha is None and found.kappas == [] and "alpha      -" in report(found)


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_the_contrast_that_wcag_asks_for(scheme: str) -> None:
    style = (Path(lm_gym.annotate.__file__).parent / "static" / "style.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", style, re.S)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[scheme == "dark"]))
    grounds = [(text, ground) for text in ("ink", "soft") for ground in ("ground", "panel", "faint")]
    grounds += [("first", "first-faint"), ("second", "second-faint"), ("first", "panel"), ("second", "panel")]
    grounds += [("bad", "faint"), ("bad", "ground"), ("good", "ground"), ("on-color", "first")]
    for text, ground in grounds:
        light, dark = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)
