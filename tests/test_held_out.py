"""Which prompts are kept for evaluation."""

from __future__ import annotations

from lm_gym.held_out import split_prompts, spread
from lm_gym.prompts import Prompt


def prompts_of(*texts: str) -> list[Prompt]:
    return [Prompt(i, text, (1,)) for i, text in enumerate(texts)]


def test_last_tenth_is_held_out_with_all_its_copies() -> None:
    found = prompts_of(*(f"p{i}" for i in range(19)), "p18", "p3", "p19")
    train_prompts, held_out = split_prompts(found, None)
    assert [p.text for p in held_out] == ["p18", "p19"]
    assert [p.text for p in train_prompts] == [*(f"p{i}" for i in range(18)), "p3"]


def test_prompts_that_are_evaluated_on_are_not_trained_on() -> None:
    train_prompts, held_out = split_prompts(prompts_of("a", "b", "c"), prompts_of("b", "z"))
    assert [p.text for p in train_prompts] == ["a", "c"]
    assert [p.text for p in held_out] == ["b", "z"]
    same = prompts_of("a", "b")
    assert split_prompts(same, same) == (same, same)  # nothing else to train on
    assert split_prompts(prompts_of("a"), None)[0] == prompts_of("a")


def test_spread_takes_equal_distances_or_repeats() -> None:
    found = prompts_of(*"abcdefgh")
    assert [p.text for p in spread(found, 4)] == list("aceg")
    assert [p.text for p in spread(found[:2], 4)] == list("aabb")
