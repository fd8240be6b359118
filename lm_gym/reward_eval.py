"""How good is a judge? Its scores on preference data beside the labels and, where it is known, the gold score.

`lm_gym.judged_pairs` asks the judges, `evaluate` measures, `lm_gym.reward_findings` says what stands out, and
`lm_gym.reward_page` shows it. The results are plain data: what `reward_eval.json` holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lm_gym.judged_pairs import Judged
from lm_gym.preference_coverage import coverage
from lm_gym.preferences import Preference
from lm_gym.reward_measures import (
    FEATURES,
    accuracy,
    brier,
    calibration_error,
    fitted_gain,
    groups_of_equal_size,
    mean_of,
    novelty,
    partial,
    reliability,
    right,
    through_origin,
)
from lm_gym.reward_probes import probe
from lm_gym.rewards import plain_text, reward_model_name

__all__ = ["evaluate"]

GROUPS = 4
MISTAKES = 10
PROBED = 200
KIND_COLUMNS = ("kind", "topic", "annotator")
MOST_KINDS = 20

Results = dict[str, Any]


def evaluate(
    judged: Judged,
    *,
    train: Sequence[Preference] | None = None,
    policy: Judged | None = None,
    kind: str | None = None,
    tokenizer: Any = None,
) -> Results:
    """Measure a judge on held-out pairs.

    Args:
        train: what it was trained on, for distances, coverage and leaks. policy: pairs of the trained policy's samples.
        kind: the column to tell kinds of prompt by; None: the first of kind, topic and annotator that differs.

    Returns:
        sections of plain data; a section that the data cannot give is None, and `missing` says what it would need.
    """
    missing = []
    if judged.gold is None:
        missing.append(
            "ceiling and biases against the truth (no gold score: --gold, or columns gold_chosen, gold_rejected)"
        )
    if train is None:
        missing.append("distance from the training data and leaks (--train-data)")
    if policy is None:
        missing.append("the trained policy's own samples (--policy-data)")
    if len(judged.members) == 1:
        missing.append("agreement between ensemble members (several --reward)")
    probes, by_kind = _probes(judged, tokenizer), _by_kind(judged, kind)
    if not probes:
        missing.append("probes (made for texts, and these are conversations)")
    if by_kind is None:
        missing.append("kinds of prompt (--by names their column)")
    results: Results = {
        "judge": [reward_model_name(judge) for judge in judged.judges],
        "pairs": len(judged.preferences),
        "prompts": len(set(judged.prompts)),
        "accuracy": _accuracies(judged),
        "calibration": _calibration(judged),
        "biases": _biases(judged),
        "probes": probes,
        "by_difference": _by_difference(judged),
        "by_novelty": None if train is None else _by_novelty(judged, train),
        "by_kind": by_kind,
        "policy": None if policy is None else _policy(judged, policy),
        "data": {"which": "held-out", **coverage(judged.preferences)}
        if train is None
        else {"which": "training", **coverage(train, judged.preferences)},
        "ensemble": _ensemble(judged) if len(judged.members) > 1 else None,
        "mistakes": _mistakes(judged),
        "missing": missing,
    }
    return results


def _accuracies(judged: Judged) -> Results:
    d, g, labels, prompts = judged.differences, judged.gold_differences, judged.labels, judged.prompts
    found: Results = {"judge": accuracy(d, labels, prompts), "gold": None, "gap": None, "gold_order": None}
    if g is not None:
        found["gold"] = accuracy(g, labels, prompts)
        rows = np.flatnonzero(labels != 0.5)
        gap = (right(g, labels) - right(d, labels))[rows]
        found["gap"] = mean_of(gap, [prompts[row] for row in rows])
        if (g != 0).any():
            found["gold_order"] = accuracy(d, 0.5 + 0.5 * np.sign(g), prompts)
    return found


def _calibration(judged: Judged) -> Results:
    d, labels = judged.differences, judged.labels
    gain = fitted_gain(d, labels)
    bins = reliability(d, labels)
    return {
        "ece": calibration_error(bins),
        "brier": brier(d, labels),
        "gain": gain,
        "ece_after_gain": calibration_error(reliability(gain * d, labels)),
        "brier_after_gain": brier(gain * d, labels),
        "bins": [b._asdict() for b in bins],
    }


def _biases(judged: Judged) -> list[Results]:
    """Correlations of differences: the judge's, the labels', the gold's, and what is left of either beyond the gold."""
    d, g, prompts = judged.differences, judged.gold_differences, judged.prompts
    said = np.sign(judged.labels - 0.5)
    texts = judged.completions()
    features = {name: np.array([f(a) - f(b) for a, b in texts]) for name, f in FEATURES.items()}
    shown = [p.columns.get("shown_first") for p in judged.preferences]
    if all(first in ("chosen", "rejected") for first in shown):
        features["position (shown first)"] = np.array([1.0 if first == "chosen" else -1.0 for first in shown])
    rows = []
    for name, f in features.items():
        row: Results = {
            "name": name,
            "judge": through_origin(d, f, prompts),
            "labels": through_origin(said, f, prompts),
            "gold": None if g is None else through_origin(g, f, prompts),
            "judge_beyond_gold": None,
            "labels_beyond_gold": None,
        }
        if g is not None:
            row["judge_beyond_gold"] = partial(d, f, g, prompts)
            row["labels_beyond_gold"] = partial(said, f, g, prompts)
        rows.append(row)
    return rows


def _deviation(scores: np.ndarray) -> float:
    """Their standard deviation, and 0 where they are equal: 64 scores of .1 have one of 1.4e-17, which is rounding."""
    return float(scores.std()) if np.ptp(scores) else 0.0


def _probes(judged: Judged, tokenizer: Any) -> list[Results]:
    """What changes of a text do to its score, in standard deviations of the scores of all texts."""
    chosen = [(p.prompt, p.chosen, p.columns) for p in judged.preferences if isinstance(p.chosen, str)][:PROBED]
    if not chosen:
        return []
    gold_spread = 1.0 if judged.gold is None else _deviation(judged.gold)
    spread, gold = _deviation(judged.scores), judged.gold_judge
    return probe(chosen, judged.judges, spread, gold=gold, gold_spread=gold_spread, tokenizer=tokenizer)


def _grouped(judged: Judged, rows: np.ndarray, extra: Results) -> Results | None:
    """Accuracies of some of the pairs; None where they are ties only."""
    labels = judged.labels[rows]
    if not (labels != 0.5).any():
        return None
    groups = [judged.prompts[row] for row in rows]
    g = judged.gold_differences
    return {
        **extra,
        "count": len(rows),
        "judge": accuracy(judged.differences[rows], labels, groups),
        "gold": None if g is None else accuracy(g[rows], labels, groups),
    }


def _by_difference(judged: Judged) -> list[Results] | None:
    """By the size of the gold difference: where it is large the noise of annotators is small, and flips remain."""
    if judged.gold_differences is None:
        return None
    size = np.abs(judged.gold_differences)
    rows = [_grouped(judged, at, {"size": float(size[at].mean())}) for at in groups_of_equal_size(size, 5)]
    return [row for row in rows if row is not None]


def _by_novelty(judged: Judged, train: Sequence[Preference]) -> list[Results]:
    known = [plain_text(text) for p in train for text in (p.chosen, p.rejected)]
    texts = judged.completions()
    far = (novelty([a for a, _ in texts], known) + novelty([b for _, b in texts], known)) / 2
    rows = [_grouped(judged, at, {"novelty": float(far[at].mean())}) for at in groups_of_equal_size(far, GROUPS)]
    return [row for row in rows if row is not None]


def _by_kind(judged: Judged, kind: str | None) -> Results | None:
    def value(p: Preference, name: str) -> str:
        return str(p.annotator if name == "annotator" else p.columns.get(name))

    if kind is None:
        for name in KIND_COLUMNS:
            if 1 < len({value(p, name) for p in judged.preferences}) <= MOST_KINDS:
                kind = name
                break
        else:
            return None
    elif kind != "annotator" and not any(kind in p.columns for p in judged.preferences):
        raise ValueError(
            f"kind expected a column of the pairs, got {kind!r}; there are {sorted(judged.preferences[0].columns)}"
        )
    found = [value(p, kind) for p in judged.preferences]
    rows = [
        _grouped(judged, np.array([i for i, k in enumerate(found) if k == one]), {"name": one})
        for one in sorted(set(found))
    ]
    return {"column": kind, "rows": [row for row in rows if row is not None]}


def _policy(judged: Judged, policy: Judged) -> Results:
    """Accuracy on the policy's pairs, and how far its texts are above those of the held-out pairs, in deviations."""

    def shift(ours: np.ndarray, theirs: np.ndarray) -> float:
        return float((theirs.mean() - ours.mean()) / (_deviation(ours) or 1.0))

    return {
        "pairs": len(policy.preferences),
        "accuracy": _accuracies(policy),
        "judge_shift": shift(judged.scores, policy.scores),
        "gold_shift": shift(judged.gold, policy.gold) if judged.gold is not None and policy.gold is not None else None,
    }


def _ensemble(judged: Judged) -> Results:
    d = judged.members[:, :, 0] - judged.members[:, :, 1]
    sizes = np.sqrt((d**2).mean(1, keepdims=True))
    scaled = d / np.where(sizes > 0, sizes, 1.0)
    pairs = [(i, j) for i in range(len(d)) for j in range(i)]
    spread = scaled.std(0)
    rows = [_grouped(judged, at, {"spread": float(spread[at].mean())}) for at in groups_of_equal_size(spread, GROUPS)]
    return {
        "members": len(d),
        "same_order": float(np.mean([np.mean(np.sign(d[i]) == np.sign(d[j])) for i, j in pairs])),
        "correlation": float(np.mean([through_origin(d[i], d[j], judged.prompts).value for i, j in pairs])),
        "by_spread": [row for row in rows if row is not None],
        "accuracies": [accuracy(one, judged.labels, judged.prompts) for one in d],
    }


def _mistakes(judged: Judged) -> list[Results]:
    """Pairs that the judge orders most confidently against the gold or, where that is not known, against the label."""
    g = judged.gold_differences
    truth = np.sign(g) if g is not None else np.sign(judged.labels - 0.5)
    wrong = -judged.differences * truth
    found = []
    for row in np.argsort(-wrong, kind="stable")[:MISTAKES]:
        if wrong[row] <= 0:
            break
        p, (chosen, rejected) = judged.preferences[row], judged.completions()[row]
        better, worse = (0, 1) if truth[row] > 0 else (1, 0)
        found.append(
            {
                "prompt": plain_text(p.prompt),
                "better": (chosen, rejected)[better],
                "worse": (chosen, rejected)[worse],
                "score_better": float(judged.scores[row, better]),
                "score_worse": float(judged.scores[row, worse]),
                "gold_better": None if judged.gold is None else float(judged.gold[row, better]),
                "gold_worse": None if judged.gold is None else float(judged.gold[row, worse]),
                "label": "tie" if p.label == 0.5 else "better" if (p.label > 0.5) == (better == 0) else "worse",
            }
        )
    return found
