"""Exact languages: regret as a number, for any policy. numpy only. See docs/exact.md."""

from lm_gym.exact.language import (
    ENDED,
    EOS,
    WORKED_TABLE,
    WORKED_TRANSITIONS,
    ExactLanguage,
    StateTable,
    Texts,
    worked_reward,
)
from lm_gym.exact.solve import (
    Evaluation,
    as_policy,
    evaluate,
    kl_between,
    optimal_policy,
    optimum,
    reference_policy,
    score_distribution,
    soft_values,
    text_probs,
)

__all__ = [
    "ENDED",
    "EOS",
    "WORKED_TABLE",
    "WORKED_TRANSITIONS",
    "Evaluation",
    "ExactLanguage",
    "StateTable",
    "Texts",
    "as_policy",
    "evaluate",
    "kl_between",
    "optimal_policy",
    "optimum",
    "reference_policy",
    "score_distribution",
    "soft_values",
    "text_probs",
    "worked_reward",
]
