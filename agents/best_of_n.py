"""Best-of-n: draw n texts of the reference for a prompt, keep the one with the highest score. Nothing is trained.

The policy that it stands for (Nakano et al. 2021, arXiv:2112.09332; Beirami et al. 2024, arXiv:2401.01879) puts on a
text

    π_n(y|x) = π_ref(y|x)·((F(y) + p(y))^n − F(y)^n)/p(y),   ties broken evenly,

with F the mass of texts that score less and p that of those that score the same. On an exact language
:func:`lm_gym.exact.best_of_n` has it; on others its KL is not known, and

    KL(π_n‖π_ref) ≤ log n − (n − 1)/n

is what ``objective/kl`` says here, so that ``objective/j`` is a lower bound. Regret on the worked example (β = .5):
.1756 at n = 4, .0978 at 16, not the optimum at any n, since it cares for ranks and not for differences.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from lm_gym.agent import LMAgent, Update
from lm_gym.agent_config import AgentConfig
from lm_gym.agent_texts import records_of
from lm_gym.decoding import Completion
from lm_gym.evaluation import Drawn
from lm_gym.prompts import Prompt

UNKNOWN = ("objective/kl_k1", "objective/rlhf_reward", "objective/non_score_reward", "objective/entropy")
"""Metrics that need the policy's own log-probs."""


@dataclass
class BestOfNConfig(AgentConfig):
    """Best-of-n's fields, beside those of :class:`lm_gym.agent_config.AgentConfig`."""

    n: int = 16
    """Texts a prompt, of which the best is kept."""


class BestOfN(LMAgent):
    """Best-of-n of the model that policies start from; ``learn`` measures it and trains nothing."""

    config_class: ClassVar[type[BestOfNConfig]] = BestOfNConfig
    name: ClassVar[str] = "best-of-n"
    trains: ClassVar[bool] = False
    config: BestOfNConfig

    def __init__(self, env: Any, **config: Any) -> None:
        super().__init__(env, **config)
        self.drawn_tokens = 0
        if self.config.n < 1:
            raise ValueError(f"n expected at least 1 text a prompt, got {self.config.n}")
        if self.wrappers:
            raise ValueError("best-of-n judges whole texts: it expected an environment without wrappers")

    @property
    def kl_bound(self) -> float:
        """log n − (n − 1)/n, nats: no best-of-n is further from its reference."""
        n = self.config.n
        return math.log(n) - (n - 1) / n

    def complete(
        self, prompts: Any, *, greedy: bool = False, max_new_tokens: int | None = None, seed: int = 0
    ) -> list[Completion]:
        """The best of n completions for each prompt, the first of equals; ``logprobs`` are the reference's."""
        if greedy:
            raise ValueError("best-of-n draws n texts a prompt: greedy would make them all the same")
        n, records = self.config.n, records_of(self.mdp, prompts)
        drawn = super().complete([p for p in records for _ in range(n)], max_new_tokens=max_new_tokens, seed=seed)
        self.drawn_tokens += sum(len(c.tokens) for c in drawn)
        asked = [c.prompt for c in drawn if c.prompt is not None]
        scores, *_ = self.mdp.judge(
            asked, [c.tokens for c in drawn], [c.finish_reason for c in drawn], trainer_state=self.state
        )
        best = scores.reshape(-1, n).argmax(-1) + n * np.arange(len(records))
        return [drawn[i] for i in best]

    def evaluate_on(self, prompts: Sequence[Prompt], seed: int) -> Drawn:
        found = super().evaluate_on(prompts, seed)
        metrics = {k: v for k, v in found.metrics.items() if k not in UNKNOWN}
        metrics["objective/kl"] = self.kl_bound
        metrics["objective/j"] = metrics["objective/scores"] - self.kl_coef * self.kl_bound
        return dataclasses.replace(found, kls=[self.kl_bound] * len(found.kls), metrics=metrics)

    def one_update(self) -> Update:
        """Measure on the next prompts; ``tokens`` counts all n texts of each."""
        prompts = self.next_prompts(max(1, self.config.batch_size // self.config.n))
        before = self.drawn_tokens
        seed = int(torch.randint(2**31, (), generator=self.generator))
        found = self.evaluate_on(prompts, seed=seed)
        found.metrics.pop("objective/j")
        found.metrics.pop("objective/scores_sem")
        rows = zip(found.prompts, found.texts, found.scores, found.lengths, strict=True)
        samples = [
            {"prompt": p.text, "completion": text, "score": score, "kl": self.kl_bound, "length": length}
            for p, text, score, length in rows
        ]
        return Update(found.metrics, self.drawn_tokens - before, len(prompts) * self.config.n, samples[:2])

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> Any:
        raise ValueError("best-of-n chooses among whole texts, not tokens: use generate(prompts)")

    def exact_policy(self, language: Any) -> np.ndarray:
        """(S, V) of the exact best-of-n policy, for languages whose states are prefixes."""
        from lm_gym.exact import best_of_n

        policy = best_of_n(language, self.config.n).policy
        if policy is None:
            raise ValueError("best-of-n expected states='prefixes': a policy over steps cannot know the score so far")
        return np.asarray(policy)
