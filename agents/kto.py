"""KTO: learning from single texts that are good or bad (Ethayarajh et al. 2024, arXiv:2402.01306, eq. 8).

With r = log(π(y|x)/π_ref(y|x)) and a reference point z_0:

    L = E[λ_y − v],   v = λ_D·σ(β·(r − z_0)) for good texts,   λ_U·σ(β·(z_0 − r)) for bad ones

z_0 stands for KL(π‖π_ref), and is estimated as in HALOs and TRL: the mean log-ratio, over the batch, of every prompt
with the text of the prompt before it, clipped at 0, without gradient. β is the environment's ``kl_coef``.

Texts are given (``feedback``), or drawn from the reference, and compared with each other: a text is good if it wins
against another one of its prompt, with P = σ(R_1 − R_2), as if pairs for DPO had been taken apart. By default the label
is that probability, over all other texts drawn with it, and the loss the mean over both outcomes.

KTO does not end at the optimum. On a single prompt the mismatched texts are draws of the reference too, of which the
mean log-ratio is −KL(π_ref‖π) ≤ 0: z_0 is 0, and what is minimised is the reference's mean of −(2d − 1)·σ(β·r), with
d the probability that a text is good. Texts with d < ½ end with probability 0, the others at
(2d − 1)·β·σ'(β·r) = μ·exp(r). ``lm_gym.exact.kto_endpoint`` solves it (by bisection in r and μ): on the worked example
regret .1644, E[R] 1.848, KL .918; with hard labels .2133.

The default step size is twice that of other agents: the loss is flat where a text is far from z_0, and the texts that
end with probability 0 get there slowly. On the worked example (a tabular simulation, 100,000
tokens) it ends at regret .164 in the mean of 5 seeds (.155 to .174), .004 to .021 nats from the end point's policy to
theirs. Four times the step brings that below .005 (agents: regret .158, .149 to .162), and is too large for `tiny`: in
20,000 tokens J goes from .21 to −.03 there, and to .44 with the default.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from lm_gym import judged
from lm_gym.agent import LMAgent, Update
from lm_gym.agent_config import AgentConfig
from lm_gym.choices import check_choice
from lm_gym.data_rows import Rows
from lm_gym.example_source import ExampleSource, read_feedback
from lm_gym.judged import LABELS, Batch
from lm_gym.reference_pass import reference_pass


@dataclass
class KTOConfig(AgentConfig):
    """KTO's fields, beside those of :class:`lm_gym.agent_config.AgentConfig`."""

    batch_size: int = 32
    """Texts an update."""
    micro_batch_size: int | None = None
    """Texts a forward pass, the gradients adding up to the batch's; None: the batch. Saves memory only."""
    feedback: str | None = None
    """Judged texts: a file (.jsonl, .json, .csv, .tsv, .parquet), a folder or a hub id with `prompt`, `completion` and
    `label`; in Python also a list or a `Dataset`. None: drawn from the reference, labelled by the reward."""
    unusable: str = "error"
    """Given rows that cannot be used: an "error", or "drop": they are left out, and a warning counts them."""
    too_long: str = "error"
    """Given rows that the environment has no room for: an "error"; "drop"; or "cut": an answer ends at max_new_tokens,
    a prompt loses its beginning (BOS aside). A warning counts them."""
    max_length: int | None = None
    """The longest prompt and answer together, in tokens, of given rows: beyond it the prompt is cut until half of that
    is left of it, then the answers. None: the environment's own limits."""
    texts_per_prompt: int = 8
    """Of drawn texts: so many of a prompt are drawn together, and each is compared with the others."""
    n_texts: int = 0
    """Of drawn texts: so many, drawn once and gone over repeatedly, as a data set is; 0: fresh ones each update."""
    labels: str = "probability"
    """Of drawn texts: the "probability" of winning against another, "sampled" with it, or the share of those that
    score less ("hard")."""
    desirable_weight: float = 1.0
    """λ_D, the weight of good texts."""
    undesirable_weight: float = 1.0
    """λ_U, the weight of bad texts."""


def kto_loss(
    ratios: torch.Tensor, good: torch.Tensor, z0: float, beta: float, lambda_d: float = 1.0, lambda_u: float = 1.0
) -> torch.Tensor:
    """p·λ_D·(1 − σ(β·(r − z_0))) + (1 − p)·λ_U·(1 − σ(β·(z_0 − r))) (Ethayarajh et al. 2024, eq. 8).

    Args:
        ratios: (n,) r, log-ratios of texts to the reference. good: (n,) p, the probability that the text is good.
        z0: the reference point, nats, at least 0. beta: β above 0. lambda_d, lambda_u: weights of good and bad.

    Returns:
        (n,) losses.
    """
    better, worse = torch.sigmoid(beta * (z0 - ratios)), torch.sigmoid(beta * (ratios - z0))
    return good * lambda_d * better + (1 - good) * lambda_u * worse


class KTO(LMAgent):
    """KTO: learning from single texts that are good or bad.

    The module's docstring has the loss and where it ends, :class:`KTOConfig` every field.
    """

    config_class: ClassVar[type[KTOConfig]] = KTOConfig
    name: ClassVar[str] = "kto"
    step_scale: ClassVar[float] = 2.0
    extra_groups: ClassVar[tuple[str, ...]] = ("examples",)
    config: KTOConfig
    example_source: ExampleSource

    def __init__(self, env: Any, **config: Any) -> None:
        given = config.pop("feedback", None)
        super().__init__(env, **config)
        c = self.config
        check_choice("labels", c.labels, LABELS)
        if self.kl_coef <= 0:
            raise ValueError("kl_coef expected above 0: it is the β of the loss, and 0 leaves nothing to learn")
        if min(c.desirable_weight, c.undesirable_weight) < 0 or not c.desirable_weight + c.undesirable_weight:
            raise ValueError("desirable_weight and undesirable_weight expected at least 0, and one of them above")
        if self.mdp.top_k is not None:
            raise ValueError("KTO expected an environment without top_k: z_0 is of texts that it might not let write")
        if c.batch_size < 2:
            raise ValueError("batch_size expected at least 2 texts: z_0 is estimated on each other's prompts")
        if given is not None and (c.n_texts or c.labels != "probability"):
            raise ValueError("n_texts and labels are of drawn texts, which feedback=None asks for; got feedback too")
        k = c.texts_per_prompt
        if given is None and (k < 2 or c.batch_size % k or c.n_texts % k or 0 < c.n_texts < c.batch_size):
            raise ValueError(
                "texts_per_prompt expected at least 2, batch_size a multiple of it, n_texts 0 or a multiple of at "
                f"least batch_size, got {k}, {c.batch_size} and {c.n_texts}"
            )
        if given is None and (c.unusable, c.too_long, c.max_length) != ("error", "error", None):
            raise ValueError(
                "unusable, too_long and max_length are of given feedback, which feedback= asks for; got none"
            )
        rows = Rows("feedback data", unusable=c.unusable, too_long=c.too_long, max_length=c.max_length)
        self.example_source = ExampleSource(self, given, rows, read=read_feedback, draw=self.draw, fixed=c.n_texts)
        c.feedback = self.example_source.name

    def draw(self, n: int) -> Batch:
        """n texts of the reference, some of each prompt, labelled by how they compare with each other."""
        k, how = self.config.texts_per_prompt, self.config.labels
        prompts = [p for p in self.next_prompts(n // k) for _ in range(k)]
        texts, metrics = judged.draw(self, self.mdp.reference, prompts)
        assert texts.scores is not None
        scores = texts.scores.view(-1, k)
        comparison = "hard" if how == "hard" else "probability"
        wins = judged.preferred(scores[:, :, None], scores[:, None, :], comparison, self.generator)
        labels = (wins.sum(-1) - 0.5) / (k - 1)  # a text ties with itself
        if how == "sampled":
            labels = (torch.rand(labels.shape, generator=self.generator) < labels).float()
        apart = torch.arange(n).view(-1, k).T.flatten()  # so that the text before has another prompt
        return Batch.drawn(texts.select(apart), labels.T.flatten(), metrics)

    @torch.no_grad()
    def reference_point(self, batch: Batch) -> float:
        """z_0: max(0, mean log-ratio of each prompt with the text of the one before it)."""
        prompts, tokens = batch.texts.token_lists()
        shifted = judged.as_rollout(prompts, [tokens[-1], *tokens[:-1]], self.mdp)
        step, total = self.config.micro_batch_size or len(prompts), 0.0
        for index in torch.arange(len(prompts)).split(step):
            part = shifted.select(index)
            ref = reference_pass(self.mdp, *part.token_lists()).logprobs
            total += float(judged.text_logprobs(self, part).sum()) - float(ref.sum())
        return max(0.0, total / len(prompts))

    def one_update(self) -> Update:
        started = time.perf_counter()
        c, beta = self.config, self.kl_coef
        batch = self.example_source.next(c.batch_size)
        before = time.perf_counter()
        z0 = self.reference_point(batch)

        def loss(logps: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
            ratios = (logps - batch.ref_logprobs[at].to(logps.device))[:, 0]
            labels = batch.labels[at].to(logps.device)
            return kto_loss(ratios, labels, z0, beta, c.desirable_weight, c.undesirable_weight)

        metrics, logps = judged.descend(self, batch, loss)
        metrics |= batch.metrics | {"val/kto_reference": z0, "length/mean": float(batch.texts.lengths.float().mean())}
        metrics |= feedback_metrics(logps[:, 0], batch.ref_logprobs[:, 0], batch.labels, beta)
        metrics |= {"perf/data_seconds": before - started, "perf/update_seconds": time.perf_counter() - before}
        return Update(metrics, int(batch.texts.lengths.sum()), len(batch.texts), judged.samples(batch, self.mdp))


def feedback_metrics(logps: torch.Tensor, ref_logps: torch.Tensor, good: torch.Tensor, beta: float) -> dict[str, float]:
    """What TRL logs, of log-probs and labels (n,): means over good and over bad texts, weighted by the labels."""
    rewards, bad = beta * (logps - ref_logps), 1 - good
    out = {}
    for name, weight in (("chosen", good), ("rejected", bad)):
        if weight.sum() > 0:
            out[f"rewards/{name}"] = float((weight * rewards).sum() / weight.sum())
            out[f"logps/{name}"] = float((weight * logps).sum() / weight.sum())
    if "rewards/chosen" in out and "rewards/rejected" in out:
        out["rewards/margins"] = out["rewards/chosen"] - out["rewards/rejected"]
    return out
