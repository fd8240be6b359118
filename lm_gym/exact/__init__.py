"""Exact languages: regret as a number, for any policy. numpy only. See docs/exact.md."""

from lm_gym.exact.endpoints import PRESETS, Endpoint, Objective, endpoint
from lm_gym.exact.language import WORKED_TABLE, WORKED_TRANSITIONS, ExactLanguage, worked_reward
from lm_gym.exact.policies import (
    Tilted,
    best_of_n,
    discounted_optimum,
    top_k_mask,
    top_p_mask,
)
from lm_gym.exact.preferences import dpo_endpoint, kto_endpoint
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
    visits,
)
from lm_gym.exact.states import ENDED, EOS, StateTable, Texts

__all__ = [
    "ENDED",
    "EOS",
    "PRESETS",
    "WORKED_TABLE",
    "WORKED_TRANSITIONS",
    "Endpoint",
    "Evaluation",
    "ExactLanguage",
    "Objective",
    "StateTable",
    "Texts",
    "Tilted",
    "as_policy",
    "best_of_n",
    "discounted_optimum",
    "dpo_endpoint",
    "endpoint",
    "evaluate",
    "kl_between",
    "kto_endpoint",
    "optimal_policy",
    "optimum",
    "reference_policy",
    "score_distribution",
    "soft_values",
    "text_probs",
    "top_k_mask",
    "top_p_mask",
    "visits",
    "worked_reward",
]
