"""A status as the text that `lm-gym annotate status` prints."""

from __future__ import annotations

from collections import Counter

from lm_gym.annotate.status import Status, share
from lm_gym.terminal import shorten


def report(found: Status) -> str:
    """A status as text."""
    kinds = Counter(found.kinds)
    lines = [
        f"answers    {found.given} of {found.wanted} wanted; {found.complete} pairs complete",
        f"pairs      {found.items}: {found.gold} gold, {found.red_team} from the red team, {found.held_back} held back",
        f"kinds      {kinds['preference']} preferences, {kinds['both_bad']} both bad, {kinds['skip']} skips, "
        f"{kinds['flag']} flags",
    ]
    if found.alpha is None:
        lines.append("alpha      - (needs pairs with two answers that are not all the same)")
    else:
        a = found.alpha
        lines.append(
            f"alpha      {a.value:.3f} [{a.low:.3f}, {a.high:.3f}], ordinal, on {a.items} pairs (Krippendorff)"
        )
    width = max([len(p.name) for p in found.people] + [9])
    head = (
        f"{'annotator':<{width}} {'answers':>7} {'skips':>5} {'flags':>5} {'undone':>6} {'median s':>8} {'an hour':>7}"
    )
    lines += ["", f"{head}  {'right on gold':<18} first shown preferred"]
    for p in found.people:
        lines.append(
            f"{p.name:<{width}} {p.answers:>7} {p.skips:>5} {p.flags:>5} {p.undone:>6}"
            f" {_number(p.median_seconds, 1):>8} {_number(p.per_hour, 0):>7}"
            f"  {share(p.gold_right, p.gold_seen):<18} {share(p.first_preferred, p.preferred)}"
        )
    if found.kappas:
        lines += ["", "Cohen's kappa: which is better; seven levels with quadratic weights"]
    for k in found.kappas:
        lines.append(
            f"  {k.first}, {k.second}: {_number(k.direction, 3)}; {_number(k.quadratic, 3)} on {k.items} pairs"
        )
    if found.disagreements:
        lines += ["", "most disagreement (-3: the first completion of the data is significantly better)"]
    for d in found.disagreements:
        votes = ", ".join(
            f"{name} {strength:+d}" if strength else f"{name} 0" for name, strength in d.strengths.items()
        )
        lines.append(f"  {shorten(d.prompt, 70)}  ({votes})")
    return "\n".join(lines)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
