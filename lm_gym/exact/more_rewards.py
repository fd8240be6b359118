"""Rewards of the registered languages beside the worked example's."""

from __future__ import annotations

from lm_gym.exact.language import worked_reward


def tenfold_reward(tokens: list[int]) -> float:
    """Ten times the worked example's reward."""
    return 10.0 * worked_reward(tokens)


def rare_reward(tokens: list[int]) -> float:
    """4 for the text 3 3 3, 0 for every other."""
    return 4.0 if list(tokens) == [3, 3, 3] else 0.0
