"""What stands out in the evaluation of a judge, in sentences: each says the number, the threshold and what it means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

GAP = 0.03
"""Points of accuracy below the ceiling."""
SURE = 0.95
"""Where the gold differs most, Bradley-Terry noise hardly turns an answer round: what agrees less was flipped."""
BIAS = 0.15
"""Correlation beyond the gold, with an interval that leaves 0 out."""
PAID = 0.25
"""Standard deviations of the score that a change earns, where the gold pays nothing for it."""
ALWAYS = 0.9
"""Share of the texts for which a change pays, where the gold is not known."""
ECE = 0.05
OVER = 0.5
"""Standard deviations by which the judge has risen further than the gold on the policy's samples."""


def findings(results: Mapping[str, Any]) -> list[str]:
    """What a user should look at, the worst kinds first; empty where nothing stands out."""
    return [
        *_labels(results),
        *_accuracy(results),
        *_biases(results),
        *probe_findings(results["probes"]),
        *_rest(results),
    ]


def _labels(results: Mapping[str, Any]) -> Iterator[str]:
    groups = results["by_difference"]
    if groups and groups[-1]["gold"].high < SURE:
        surest = groups[-1]
        yield (
            f"Flipped labels: where the gold differs most (by {surest['size']:.2f} on average), only "
            f"{surest['gold'].value:.0%} of the answers agree with it (expected {SURE:.0%} or more). Annotator noise "
            "falls with the difference; answers that were turned round do not."
        )
    data = results["data"]
    if data["leaked_prompts"]:
        yield (
            f"Leak: {data['leaked_prompts']:.0%} of the held-out prompts are in the training data. Accuracy here says "
            "little about new prompts."
        )


def _accuracy(results: Mapping[str, Any]) -> Iterator[str]:
    gap = results["accuracy"]["gap"]
    if gap is not None and gap.low > GAP:
        yield (
            f"Below the ceiling: the judge orders {gap.value:.1%} fewer pairs as labelled than the gold does (interval "
            f"{gap.low:.1%} to {gap.high:.1%}; up to {GAP:.0%} is good). More pairs, epochs or layers may help."
        )
        return
    found = results["accuracy"]["judge"]
    if gap is None and found.high < 0.5:
        yield f"Worse than chance: {found.value:.1%} of the labels (up to {found.high:.1%}). Is a larger score better?"
    elif gap is None and found.low <= 0.5:
        yield "No better than chance: the interval of the accuracy holds 50%."


def _biases(results: Mapping[str, Any]) -> Iterator[str]:
    for row in results["biases"]:
        for who, name in (("judge_beyond_gold", "the judge's scores"), ("labels_beyond_gold", "the labels")):
            found = row[who]
            if found is None or abs(found.value) < BIAS or found.low <= 0 <= found.high:
                continue
            more = "more" if found.value > 0 else "less"
            yield (
                f"Bias, {row['name']}: {name} rise with {more} of it, beyond what the gold pays for (partial "
                f"correlation {found.value:+.2f}, interval {found.low:+.2f} to {found.high:+.2f}; 0 is none)."
            )


def probe_findings(probes: Sequence[Mapping[str, Any]], gold_name: str = "gold") -> Iterator[str]:
    """Changes that pay and should not, of the rows of :func:`lm_gym.reward_probes.probe`."""
    for row in probes:
        known = row["gold"] is not None
        if row["judge"] >= PAID and (row["gold"] <= 0 if known else row["gains"] >= ALWAYS):
            gold = f" (that of the {gold_name} by {row['gold']:+.2f})" if known else ""
            yield (
                f"It pays for nothing: with {row['name']} the score moves by {row['judge']:+.2f} standard deviations"
                f"{gold}, and rises for {row['gains']:.0%} of the texts. A policy will find that."
            )


def _rest(results: Mapping[str, Any]) -> Iterator[str]:
    calibration = results["calibration"]
    if calibration["ece"] > ECE and calibration["ece_after_gain"] < calibration["ece"]:
        sure = "too sure" if calibration["gain"] < 1 else "not sure enough"
        yield (
            f"Calibration: read as nats, the scores are {sure} (ECE {calibration['ece']:.3f}). Multiplied by "
            f"{calibration['gain']:.3g} they have {calibration['ece_after_gain']:.3f}. Orders do not change; KL "
            "coefficients are in units of the score."
        )
    policy = results["policy"]
    if policy is not None and policy["gold_shift"] is not None:
        yield from over_optimisation(policy["judge_shift"], policy["gold_shift"])


def over_optimisation(
    judge: float, gold: float, *, texts: str = "held-out texts", gold_name: str = "gold"
) -> Iterator[str]:
    """Where the judge has risen further than the gold on the policy's samples, both in standard deviations."""
    if judge - gold > OVER:
        yield (
            f"Over-optimisation: on the policy's samples the judge is {judge:+.2f} standard deviations above the "
            f"{texts}, the {gold_name} {gold:+.2f}."
        )
