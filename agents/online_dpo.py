"""Online DPO: pairs drawn from the policy as it is, judged by the environment's reward (Guo et al. 2024,
arXiv:2402.04792).

Every update draws ``group_size`` texts for each prompt and makes one pair of them: the two texts, or of a larger group
the one with the best and the one with the worst score (of equal scores the first and the last text). The loss is that
of :mod:`lm_gym.agents.dpo`, on pairs held fixed; no gradient goes through the drawing. One optimizer step an update.

Where it ends depends on the labels of a pair with scores R_1, R_2 (``labels``):

- "probability" (default), σ(R_1 − R_2), and "sampled", drawn with it (the model of Bradley & Terry): at the optimum π*
  β·h = R_1 − R_2 fits every pair, so that the expected gradient vanishes there, whatever draws the pairs. It vanishes
  nowhere else: at any other point the text with the largest β·log(π/π_ref) − R is pushed down by every pair that it is
  in. Regret 0; the default configuration ends at .0013 (.0011 to .0016, 5 seeds) on the worked example after
  100,000 tokens.
- "hard", 1 for the higher score (what an annotator without doubt says): h grows without bound, towards the reference
  among the best texts, whatever β is. Regret .418 on the worked example. Equal scores are a tie, .5.

With label smoothing .1 the end is at regret .0517 (hard labels: .135), IPO's at .5026: the fit of the pairs that the
end point itself draws (``lm_gym.exact.dpo_endpoint(..., on_policy=True)``; for groups of two).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from lm_gym import judged, measures
from lm_gym.agent import LMAgent, Update
from lm_gym.agent_config import AgentConfig
from lm_gym.agents.dpo import check_pair_config, fit_pairs
from lm_gym.judged import Batch
from lm_gym.rollout import Rollout


@dataclass
class OnlineDPOConfig(AgentConfig):
    """Online DPO's fields, beside those of :class:`lm_gym.agent_config.AgentConfig`."""

    batch_size: int = 32
    """Texts an update."""
    group_size: int = 2
    """Texts of a prompt that a pair is made of."""
    micro_batch_size: int | None = None
    """Texts a forward pass, the gradients adding up to the batch's; None: the batch. Saves memory only."""
    labels: str = "probability"
    """The "probability" that the first text is better, "sampled" with it, or "hard" (the higher score)."""
    loss: str = "dpo"
    """"dpo" or "ipo"."""
    label_smoothing: float = 0.0
    """ε of conservative DPO: the share of labels that is taken to be wrong, below .5."""


class OnlineDPO(LMAgent):
    """DPO on fresh pairs of the policy's own texts, judged by the environment's reward.

    The module's docstring says where it ends, :class:`OnlineDPOConfig` has every field.
    """

    config_class: ClassVar[type[OnlineDPOConfig]] = OnlineDPOConfig
    name: ClassVar[str] = "online-dpo"
    config: OnlineDPOConfig

    def __init__(self, env: Any, **config: Any) -> None:
        super().__init__(env, **config)
        check_pair_config(self.config, self.kl_coef)

    def one_update(self) -> Update:
        started = time.perf_counter()
        texts, judgement = judged.draw(self, self.policy.lm, self.prompts_for_update(), hidden=True)
        metrics = self.describe(texts)
        before = time.perf_counter()
        metrics |= fit_pairs(self, self.pairs(texts, judgement))
        metrics |= {"perf/data_seconds": before - started, "perf/update_seconds": time.perf_counter() - before}
        return Update(metrics, int(texts.lengths.sum()), len(texts), measures.samples(texts, self.mdp))

    def pairs(self, texts: Rollout, metrics: dict[str, float]) -> Batch:
        """One pair of every group of texts."""
        group = self.config.group_size
        assert texts.scores is not None
        scores = texts.scores.view(-1, group)
        ends = torch.arange(2)[None]
        if group > 2:  # stable: of equal scores the first text is the best and the last the worst
            ends = scores.sort(dim=-1, descending=True, stable=True).indices[:, [0, -1]]
        chosen = (torch.arange(len(scores))[:, None] * group + ends).flatten()
        part = texts.select(chosen)
        assert part.scores is not None
        first, second = part.scores.view(-1, 2).T
        return Batch.drawn(part, judged.preferred(first, second, self.config.labels, self.generator), metrics)
