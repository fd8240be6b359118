"""Supervised fine-tuning: maximum likelihood on demonstrations, of response tokens only.

    L = −(1/N)·Σ log π(y_t|x, y_<t)   over the N imitated tokens of a batch

The first stage of Ouyang et al. 2022 (arXiv:2203.02155). Its end point is the distribution that the demonstrations were
drawn from, as far as the model can represent it: on texts of the best policy of an exact language the regret goes to 0
(at the rate of the data: about β·(S·(V − 1))/(2n) for n texts, .0002 for 40,000, where 100,000 tokens end at .0004 to
.0007 on 5 seeds), on the reference's own texts nothing changes. The reward is not read; it is measured beside, with the
KL to the reference, every ``eval_every`` updates.

Defaults: 32 texts an update, the step size of the model decayed to 0. ``total_tokens`` counts imitated tokens.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from lm_gym import blame, measures
from lm_gym.agent import LMAgent, Update
from lm_gym.agent_config import AgentConfig
from lm_gym.cycle import Cycle
from lm_gym.data_rows import Rows
from lm_gym.demonstrations import Demonstration, fingerprint, read_demonstrations
from lm_gym.supervised import held_out, likelihood


@dataclass
class SFTConfig(AgentConfig):
    """SFT's fields, beside those of :class:`lm_gym.agent_config.AgentConfig`."""

    batch_size: int = 32
    """Texts an update."""
    data: str | None = None
    """Demonstrations: a JSONL, JSON, CSV, TSV or Parquet file, or a hub id; in Python also a list or `Dataset`."""
    eval_data: str | None = None
    """Held-out demonstrations, for eval/loss and eval/perplexity; None: none."""
    unusable: str = "error"
    """Rows that are no demonstrations: an "error", or "drop": they are left out, and a warning counts them."""
    too_long: str = "error"
    """Texts of more than `max_length` tokens: an "error"; "drop"; or "cut": what stands before the first imitated
    token loses its beginning (BOS aside) until half of the room is left of it, then the rest its end. A warning counts
    them."""
    max_length: int | None = None
    """The longest text, in tokens; None: what the model has positions for."""
    eval_every: int = 20
    """Updates between measurements: the held-out loss, and reward and KL of fresh texts."""
    micro_batch_size: int | None = None
    """Texts a forward pass; None: the batch. Saves memory only."""


class SFT(LMAgent):
    """Supervised fine-tuning: imitates demonstrations."""

    config_class: ClassVar[type[SFTConfig]] = SFTConfig
    name: ClassVar[str] = "sft"
    config: SFTConfig

    def __init__(self, env: Any, **config: Any) -> None:
        super().__init__(env, **config)
        c, reference = self.config, self.mdp.reference
        if c.data is None:
            raise ValueError("SFT expected data=, demonstrations to imitate (prompt and completion), got none")
        longest = reference.max_positions if c.max_length is None else min(reference.max_positions, c.max_length)

        def read(source: Any, name: str) -> list[Demonstration]:
            rows = Rows("demonstrations", name=name, unusable=c.unusable, too_long=c.too_long, max_length=longest)
            found = read_demonstrations(source, reference.tokenizer, reference.eos_ids, rows)
            reference.check_ids((d.token_ids for d in found), "demonstration")
            self.data_rows[name] = rows.counts()
            return found

        self.data = read(c.data, "demonstrations")
        self.eval_data = None if c.eval_data is None else read(c.eval_data, "held-out demonstrations")
        self.order = Cycle(len(self.data), self.generator)

    def one_update(self) -> Update:
        c, lm = self.config, self.policy.lm
        metrics, samples = self._measured() if self.updates % c.eval_every == 0 else ({}, [])
        batch = [self.data[i] for i in self.order.take(c.batch_size)]
        count = sum(sum(d.imitated[1:]) for d in batch)
        nll, right = 0.0, 0
        for at in torch.arange(len(batch)).split(c.micro_batch_size or len(batch)):
            part = likelihood(lm, self.mdp, [batch[i] for i in at])
            (part.nll / count).backward()
            self.optimizer.gather()
            nll, right = nll + float(part.nll.detach()), right + part.right
        norm = self.optimizer.clip(c.max_grad_norm)
        blame.check_gradient(norm, None)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        metrics |= {
            "sft/loss": nll / count,
            "sft/perplexity": math.exp(min(nll / count, 700.0)),
            "sft/token_accuracy": right / count,
            "grad/norm": norm,
        }
        return Update(metrics, count, len(batch), samples)

    def _measured(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Held-out loss, and what the policy's own texts are worth, before this update."""
        rollout, metrics = self.collect()
        if self.eval_data is not None:
            loss = held_out(self.policy.lm, self.mdp, self.eval_data).loss
            metrics |= {"eval/loss": loss, "eval/perplexity": math.exp(min(loss, 700.0))}
        return metrics, measures.samples(rollout, self.mdp)

    def extra_state(self) -> dict[str, Any]:
        return {"data": fingerprint(self.data), "data_order": self.order.left}

    def load_extra_state(self, state: Any) -> None:
        if state.get("data", fingerprint(self.data)) == fingerprint(self.data):
            self.order.restore(state["data_order"])
        else:
            warnings.warn(
                "the demonstrations are not those that the checkpoint was trained on: a new pass over them begins",
                stacklevel=4,
            )
