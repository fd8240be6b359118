"""Texts with a judgement, and the passes over them: what agents share that learn from preferences or feedback.

An example is a prompt with k texts that answer it and a label: a pair (k = 2; the label is P(the first text is
better)) or a judged text (k = 1; 1 is good, 0 is bad). A batch of n examples is a :class:`Rollout` of n·k texts, those
of an example next to each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch

from lm_gym import blame, collect
from lm_gym.choices import check_choice
from lm_gym.forward import chosen_logprobs, pad_texts
from lm_gym.mdp import AlignmentMDP
from lm_gym.models import CausalLM
from lm_gym.policy import Policy
from lm_gym.prompts import Prompt
from lm_gym.reference_pass import reference_pass
from lm_gym.rollout import Rollout

if TYPE_CHECKING:
    from lm_gym.agent import LMAgent


Metrics = dict[str, float]
LABELS = ("probability", "sampled", "hard")
"""How drawn pairs are labelled: see :func:`preferred`."""


@dataclass
class Batch:
    """n examples of k texts: the n·k texts, labels (n,), and log π_ref (n, k) of whole responses."""

    texts: Rollout
    labels: torch.Tensor
    ref_logprobs: torch.Tensor
    metrics: Metrics = field(default_factory=dict)
    """What the judge of drawn texts logged."""

    @classmethod
    def drawn(cls, texts: Rollout, labels: torch.Tensor, metrics: Metrics) -> Batch:
        """From texts that :func:`draw` made."""
        assert texts.ref_logprobs is not None
        return cls(texts, labels, texts.ref_logprobs.sum(-1).view(len(labels), -1), metrics)


@dataclass
class Examples:
    """N examples to keep, with the reference's log-probs once they are known.

    Attributes:
        prompt_ids: N prompts. tokens: N·k responses, those of an example next to each other.
        labels: (N,) P(the first text is better), or 1 for good and 0 for bad.
        ref_logprobs: (N·k,) log π_ref of whole responses; NaN where it was not asked for yet.
    """

    prompt_ids: list[list[int]]
    tokens: list[list[int]]
    labels: torch.Tensor
    ref_logprobs: torch.Tensor

    @classmethod
    def of(cls, prompt_ids: list[list[int]], tokens: list[list[int]], labels: Sequence[float]) -> Examples:
        return cls(prompt_ids, tokens, torch.tensor(labels, dtype=torch.float32), torch.full((len(tokens),), torch.nan))

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def batch(self, where: Sequence[int], mdp: AlignmentMDP) -> Batch:
        """Some of them, by their places; the reference's log-probs are computed once for each and kept."""
        k, n, index = len(self.tokens) // len(self), len(where), torch.tensor(where)
        texts = (index[:, None] * k + torch.arange(k)).flatten()
        batch = as_rollout(
            [self.prompt_ids[i] for i in where for _ in range(k)],
            [self.tokens[i] for i in texts.tolist()],
            mdp,
        )
        new = self.ref_logprobs[texts].isnan().nonzero().flatten()
        if len(new):
            prompts, responses = batch.token_lists()
            found = reference_pass(mdp, [prompts[i] for i in new], [responses[i] for i in new]).logprobs
            self.ref_logprobs[texts[new]] = found.sum(-1)
        return Batch(batch, self.labels[index], self.ref_logprobs[texts].view(n, k))

    @classmethod
    def from_batch(cls, batch: Batch) -> Examples:
        """Examples to keep, from drawn ones."""
        k = batch.ref_logprobs.shape[1]
        prompts, tokens = batch.texts.token_lists()
        return cls(prompts[::k], tokens, batch.labels, batch.ref_logprobs.flatten())

    def fingerprint(self) -> str:
        """sha256 of all token ids and labels."""
        ids = [*self.prompt_ids, *self.tokens]
        return hashlib.sha256(repr((ids, self.labels.tolist())).encode()).hexdigest()[:16]

    def tensors(self, *, whole: bool) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps: the reference's log-probs; where ``whole``, also the examples themselves."""
        if not whole:
            return {"ref_logprobs": self.ref_logprobs}
        rows = [*self.prompt_ids, *self.tokens]
        return {
            "ref_logprobs": self.ref_logprobs,
            "labels": self.labels,
            "ids": torch.tensor([i for row in rows for i in row], dtype=torch.int32),
            "lengths": torch.tensor([len(row) for row in rows], dtype=torch.int32),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Examples:
        """Back from whole :meth:`tensors`."""
        rows = [row.tolist() for row in tensors["ids"].split(tensors["lengths"].tolist())]
        n = len(tensors["labels"])
        return cls(rows[:n], rows[n:], tensors["labels"].clone(), tensors["ref_logprobs"].clone())


def as_rollout(prompt_ids: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]], mdp: AlignmentMDP) -> Rollout:
    """Given texts as a rollout; nobody drew them here, so that log-probs and rewards are zero."""
    ids, attention, mask = pad_texts(prompt_ids, tokens, mdp.reference.pad_id)
    zero = torch.zeros(mask.shape)
    early = (torch.arange(mask.shape[1])[None] < mdp.min_new_tokens) & mask if mdp.min_new_tokens else None
    return Rollout(ids, attention, mask, zero, zero, no_eos=early)


def draw(agent: LMAgent, lm: CausalLM, prompts: Sequence[Prompt], *, hidden: bool = False) -> tuple[Rollout, Metrics]:
    """A text of ``lm`` for each prompt, with scores (B,) as the environment gives them, and what the judge logged.

    Where the environment is wrapped, a score is what stepping it pays for a text without KL. ``hidden``: with the
    reference's hidden states and the exact KL, as :meth:`LMAgent.describe` needs it.
    """
    mdp, beta = agent.mdp, agent.kl_coef
    if agent.wrappers:
        stepped = collect.step_texts(
            agent.env,
            cast(Policy, SimpleNamespace(lm=lm, value_head=None)),
            len(prompts),
            kl_mode="none",  # a wrapper may scale what is paid: the KL is no part of the judgement
            kl_coef=beta,
            generator=agent.generator,
            seed=agent._reset_seed,
            prompts=prompts,
            hidden=hidden,
        )
        agent._reset_seed = None
        completions, scored = stepped.completions, stepped.scored
        scored.scores = stepped.rewards.sum(-1)
    else:
        agent.engine.update_weights(lm, agent.updates)
        params = replace(agent.generation_params, rows=agent.config.rows)
        completions = collect.batched_texts(agent.engine, prompts, params)
        policy = lm if hidden else None
        scored = mdp.score(completions, kl_coef=beta, hidden=hidden, policy=policy, trainer_state=agent.state)
    texts = Rollout.from_completions(
        completions, scored, pad_id=mdp.reference.pad_id, min_new_tokens=mdp.min_new_tokens
    )
    blame.check_rollout(texts)
    if agent.wrappers:
        texts.rewards = texts.rewards - beta * (texts.logprobs - scored.ref_logprobs)
    return texts, {f"reward/{name}": number for name, number in scored.metrics.items()}


def preferred(first: torch.Tensor, second: torch.Tensor, labels: str, generator: torch.Generator) -> torch.Tensor:
    """(n,) labels, P(the first text is better), of scores (n,).

    "probability": σ(R_1 − R_2) itself, the model of Bradley & Terry (1952). "sampled": 1 with that probability, else 0.
    "hard": 1 for the higher score, 0 for the lower, .5 where they are equal.
    """
    check_choice("labels", labels, LABELS)
    if labels == "hard":
        return (torch.sign(first - second) + 1) / 2
    p = torch.sigmoid(first - second)
    return p if labels == "probability" else (torch.rand(p.shape, generator=generator) < p).float()


def text_logprobs(agent: LMAgent, batch: Rollout) -> torch.Tensor:
    """(B,) Σ_t log π(a_t|s_t) of whole responses, with gradient, at the problem's temperature."""
    device, mask = agent.policy.lm.device, batch.response_mask
    hidden, _ = agent.policy.at_tokens(batch.input_ids.to(device), batch.attention_mask.to(device), mask.to(device))
    allowed, no_eos = (None if x is None else x[mask] for x in (batch.allowed, batch.no_eos))
    logits = agent.mdp.logits(agent.policy.lm, hidden, allowed=allowed, no_eos=no_eos)
    chosen = chosen_logprobs(logits, batch.tokens[mask].to(device))
    text = mask.nonzero()[:, 0].to(device)
    return torch.zeros(len(batch), device=device).index_add(0, text, chosen)


def descend(
    agent: LMAgent, batch: Batch, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> tuple[Metrics, torch.Tensor]:
    """One optimizer step on the mean of a loss over n examples of k texts.

    Args:
        loss: of log π(y|x) (m, k) and the places (m,) of these examples in the batch: losses (m,).

    Returns:
        what is logged, and the log-probs (n, k) before the step.
    """
    n, k = batch.ref_logprobs.shape
    step = max(1, (getattr(agent.config, "micro_batch_size", None) or n * k) // k)
    total, found = 0.0, []
    for index in torch.arange(n).split(step):
        texts = (index[:, None] * k + torch.arange(k)).flatten()
        part = batch.texts.select(texts)
        whole = text_logprobs(agent, part)
        blame.check_texts(whole.detach(), part)
        logps = whole.view(-1, k)
        value = loss(logps, index).sum() / n
        value.backward()  # type: ignore[no-untyped-call]
        agent.optimizer.gather()
        total += float(value.detach())
        found.append(logps.detach().cpu())
    norm = agent.optimizer.clip(agent.config.max_grad_norm)
    blame.check_gradient(norm, batch.texts)
    agent.optimizer.step()
    agent.optimizer.zero_grad(set_to_none=True)
    return {"loss/preference_avg": total, "grad/norm": norm}, torch.cat(found)


def samples(batch: Batch, mdp: AlignmentMDP, n: int = 2) -> list[dict[str, Any]]:
    """The first n examples as rows of ``samples.jsonl``: of a pair the first text and, as ``other``, the second."""
    k = batch.ref_logprobs.shape[1]
    prompts, tokens = batch.texts.token_lists()
    rows = []
    for i, label in enumerate(batch.labels[:n].tolist()):
        texts = [mdp.reference.decode(ids) for ids in tokens[i * k : (i + 1) * k]]
        row = {"prompt": mdp.reference.decode(prompts[i * k]), "completion": texts[0], "label": label}
        rows.append(row if k == 1 else row | {"other": texts[1]})
    return rows
