"""What is measured on a rollout: reward, exact KL, entropy, length, variety. Names as in docs/metrics.md."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lm_gym import blame
from lm_gym.advantages import group_std
from lm_gym.mdp import AlignmentMDP
from lm_gym.rollout import Rollout


def describe(rollout: Rollout) -> dict[str, float]:
    """Metrics of a rollout that was scored with the policy that made it."""
    assert rollout.scores is not None and rollout.ref_logprobs is not None
    assert rollout.exact_kl is not None and rollout.entropy is not None
    mask, lengths = rollout.response_mask, rollout.lengths.float()
    blame.check_kl(rollout, rollout.exact_kl)
    k1 = (rollout.logprobs - rollout.ref_logprobs) * mask
    returns = rollout.rewards.sum(-1)
    ended = [r in ("eos", "stop") for r in rollout.finish_reasons or []]
    return {
        "objective/scores": float(rollout.scores.mean()),
        "objective/kl": float(rollout.exact_kl.sum(-1).mean()),
        "objective/kl_k1": float(k1.sum(-1).mean()),
        "objective/rlhf_reward": float(returns.mean()),
        "objective/non_score_reward": float((returns - rollout.scores).mean()),
        "objective/entropy": float(-(rollout.logprobs * mask).sum(-1).mean()),
        "policy/entropy_avg": float(rollout.entropy.sum() / mask.sum()),
        "length/mean": float(lengths.mean()),
        "length/ended_share": float(np.mean(ended)),
        "text/distinct_1": distinct(rollout, 1),
        "text/distinct_2": distinct(rollout, 2),
    }


def of_groups(returns: torch.Tensor, group_size: int) -> dict[str, float]:
    """How much the returns (B,) of a prompt's texts differ."""
    std = group_std(returns, group_size)
    return {"group/std_avg": float(std.mean()), "group/equal_share": float((std == 0).float().mean())}


def distinct(rollout: Rollout, n: int) -> float:
    """Distinct n-grams over all n-grams of the responses' tokens (Li et al. 2016); 0 if no response has n tokens."""
    texts = [row[:length] for row, length in zip(rollout.tokens.tolist(), rollout.lengths.tolist(), strict=True)]
    grams = [gram for text in texts for gram in zip(*(text[i:] for i in range(n)), strict=False)]
    return len(set(grams)) / len(grams) if grams else 0.0


def samples(rollout: Rollout, mdp: AlignmentMDP, n: int = 2) -> list[dict[str, Any]]:
    """The first n texts of a rollout as rows of ``samples.jsonl``; their ``kl`` is that of ``objective/kl``."""
    assert rollout.scores is not None and rollout.exact_kl is not None and rollout.texts is not None
    kls = rollout.exact_kl.sum(-1)
    width = rollout.input_ids.shape[1] - rollout.response_mask.shape[1]
    rows = []
    for i in range(min(n, len(rollout))):
        ids = rollout.input_ids[i, :width][rollout.attention_mask[i, :width].bool()].tolist()
        rows.append(
            {
                "prompt": mdp.reference.decode(ids),
                "completion": rollout.texts[i],
                "score": float(rollout.scores[i]),
                "kl": float(kls[i]),
                "length": int(rollout.lengths[i]),
            }
        )
    return rows
