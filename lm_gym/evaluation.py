"""What finished texts are worth: the numbers that every agent is compared by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lm_gym import measures
from lm_gym.decoding import Completion
from lm_gym.mdp import AlignmentMDP
from lm_gym.models import CausalLM
from lm_gym.prompts import Prompt
from lm_gym.rollout import Rollout


@dataclass
class Drawn:
    """B texts of a policy with what is measured on them.

    Attributes:
        prompts, texts: B each. scores: B of the reward model.
        kls: B, nats a text: KL(π‖π_ref) of every state on its way, summed: their mean is ``objective/kl``.
        lengths: B, tokens.
        extra: columns that the reward model logged, B values each.
        metrics: as :func:`lm_gym.measures.describe`, ``objective/scores_sem`` and ``objective/j`` = E[R] − β·KL.
    """

    prompts: list[Prompt]
    texts: list[str]
    scores: list[float]
    kls: list[float]
    lengths: list[int]
    metrics: dict[str, float]
    extra: dict[str, list[Any]]


def measure(
    mdp: AlignmentMDP,
    lm: CausalLM,
    completions: Sequence[Completion],
    *,
    kl_coef: float | None = None,
    trainer_state: Any = None,
) -> Drawn:
    """Score completions that ``lm`` wrote, with ``prompt`` and ``hidden`` set, and measure them."""
    beta = mdp.kl_coef if kl_coef is None else kl_coef
    scored = mdp.score(completions, kl_coef=beta, policy=lm, trainer_state=trainer_state)
    rollout = Rollout.from_completions(completions, scored, pad_id=lm.pad_id, min_new_tokens=mdp.min_new_tokens)
    metrics = measures.describe(rollout)
    metrics |= {f"reward/{k}": v for k, v in scored.metrics.items()}
    n = len(completions)
    metrics["objective/scores_sem"] = float(scored.scores.std(unbiased=True) / math.sqrt(n)) if n > 1 else 0.0
    metrics["objective/j"] = metrics["objective/scores"] - beta * metrics["objective/kl"]
    assert rollout.exact_kl is not None
    kls = rollout.exact_kl.sum(-1)
    prompts = [c.prompt for c in completions if c.prompt is not None]
    return Drawn(
        prompts=prompts,
        texts=scored.texts,
        scores=scored.scores.tolist(),
        kls=kls.tolist(),
        lengths=rollout.lengths.tolist(),
        metrics=metrics,
        extra=scored.extra,
    )
