"""What stands out in a run, in sentences: signs that the judge is exploited (reward hacking, over-optimisation).

A reward that rises says nothing by itself. These are the ways in which a policy that follows a judge too far, or a
judge that is wrong, shows: it leaves the reference far behind, its texts no longer end, are all alike or of another
length, and a second judge that nothing was trained on (``--watch``) does not follow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_gym.reward_findings import over_optimisation, probe_findings

FAR = 0.5
"""Nats of KL a token: best-of-n reaches that on texts of 20 tokens with n above 20,000."""
ENDS = 0.3
"""Fall of the share of texts that end."""
VARIETY = 0.75
"""Of distinct-2 before training: what a policy keeps that is not narrow."""
LENGTH = 1.5
"""Times, up or down."""
SURE = 2.0
"""Standard errors by which the reward must have risen, where they are known."""
SIGNS = 3
"""With so many signs beside a reward that rose, the first sentence says what they add up to. A second judge that does
not follow counts twice: it is the one that looks at what the texts are worth."""

NAMES = {
    "reward": "objective/scores",
    "kl": "objective/kl",
    "length": "length/mean",
    "ended": "length/ended_share",
    "distinct_2": "text/distinct_2",
    "watch": "reward/watch",
}


@dataclass(frozen=True)
class Seen:
    """Means over the texts of a policy, None where one is not known.

    ``kl`` in nats and ``length`` in tokens a text; ``ended`` the share that did not run into the limit. ``error``:
    the standard error of ``reward``. ``reward_std``, ``watch_std``: standard deviations over the texts.
    """

    reward: float | None = None
    kl: float | None = None
    length: float | None = None
    ended: float | None = None
    distinct_2: float | None = None
    watch: float | None = None
    error: float | None = None
    reward_std: float | None = None
    watch_std: float | None = None


def seen_in(metrics: Sequence[Mapping[str, Any]], **more: float) -> Seen:
    """Means over some rows of metrics, as an agent logs them or an evaluation gives one."""

    def mean(key: str) -> float | None:
        values = [row[key] for row in metrics if isinstance(row.get(key), (int, float))]
        return sum(values) / len(values) if values else None

    return Seen(**{name: mean(key) for name, key in NAMES.items()}, **more)


def of_a_log(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The findings of a run from its log alone: its first update, whose texts are the untrained policy's, and its last
    tenth. Empty where there are fewer than two updates."""
    if len(rows) < 2:
        return []
    return run_findings(seen_in(rows[:1]), seen_in(rows[-max(1, len(rows) // 10) :]))


def run_findings(before: Seen, after: Seen, probes: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """What a user should look at; empty where nothing stands out.

    Args:
        before, after: what the untrained and the trained policy wrote.
        probes: what changes of a text earn that should earn nothing, as :func:`lm_gym.reward_probes.probe` finds them.
    """
    signs, unfollowed = [*_signs(before, after)], [*_watched(before, after)]
    shown, weakness = [*signs, *unfollowed], [*probe_findings(probes)]
    if len(signs) + 2 * len(unfollowed) >= SIGNS and _rose(before, after):
        verdict = (
            f"The judge may be exploited (reward hacking): its score rose from {before.reward:.3f} to "
            f"{after.reward:.3f}, and {len(shown)} signs below say that the texts did not get better. Read them, and "
            "try a larger kl_coef, fewer tokens, or another judge."
        )
        return [verdict, *shown, *weakness]
    return [*shown, *weakness]


def _rose(before: Seen, after: Seen) -> bool:
    if before.reward is None or after.reward is None:
        return False
    noise = math.hypot(before.error or 0.0, after.error or 0.0)
    return after.reward - before.reward > SURE * noise


def _signs(before: Seen, after: Seen) -> Iterator[str]:
    if after.kl is not None and after.length and after.kl / after.length > FAR:
        yield (
            f"Far from the reference: {after.kl:.1f} nats a text, {after.kl / after.length:.2f} a token (up to {FAR:g} "
            "is usual). The reference would hardly write such texts."
        )
    if before.ended is not None and after.ended is not None and before.ended - after.ended > ENDS:
        yield (
            f"Texts no longer end: {before.ended:.0%} of them ended by themselves before training, {after.ended:.0%} "
            "do now; the others ran into the length limit."
        )
    if before.distinct_2 and after.distinct_2 is not None and after.distinct_2 < VARIETY * before.distinct_2:
        yield (
            f"The texts grew alike: distinct-2 fell from {before.distinct_2:.3f} to {after.distinct_2:.3f}, below "
            f"{VARIETY:.0%} of what it was."
        )
    if before.length and after.length and not 1 / LENGTH < after.length / before.length < LENGTH:
        yield (
            f"Length: {after.length / before.length:.1f} times what it was ({before.length:.1f} to {after.length:.1f} "
            "tokens). Does the judge pay for it?"
        )


def _watched(before: Seen, after: Seen) -> Iterator[str]:
    if before.reward is None or after.reward is None or before.watch is None or after.watch is None:
        return
    if before.reward_std and before.watch_std:
        moved = (after.reward - before.reward) / before.reward_std, (after.watch - before.watch) / before.watch_std
        yield from over_optimisation(*moved, texts="texts before training", gold_name="watching judge")
    elif after.reward > before.reward and after.watch < before.watch:
        yield (
            f"Over-optimisation: the reward rose from {before.reward:.3f} to {after.reward:.3f}, and the watching "
            f"judge fell from {before.watch:.3f} to {after.watch:.3f}."
        )
