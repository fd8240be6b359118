"""One PPO iteration in plain PyTorch, with no trainer around it: the floor that ours is measured against.

``ppo_iter(shared=True)`` of ../shared/bench/floor.py (a trunk shared with the value head), which runs everything at
import; so it is written out again here, for any GPT-2, on the decoding loop of plain.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from plain import decode
from timing import seconds


def trunk(model: Any, texts: torch.Tensor) -> torch.Tensor:
    """Last hidden states (B, L, d)."""
    return model.transformer(input_ids=texts, use_cache=False).last_hidden_state


def logps(hidden: torch.Tensor, model: Any, texts: torch.Tensor, prompt: int) -> torch.Tensor:
    """(B, T) log-probs of the tokens behind a prompt of so many."""
    logits = model.lm_head(hidden[:, prompt - 1 : -1])
    return torch.log_softmax(logits, -1).gather(-1, texts[:, prompt:, None]).squeeze(-1)


def gae(rewards: torch.Tensor, values: torch.Tensor, lam: float = 0.95) -> torch.Tensor:
    """(B, T) advantages."""
    out, last = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        after = values[:, t + 1] if t + 1 < rewards.shape[1] else 0.0
        last = rewards[:, t] + after - values[:, t] + lam * last
        out[:, t] = last
    return out


def ppo_iteration(
    policy: Any, judge: Any, ids: torch.Tensor, tokens: int, *, minibatches: int, epochs: int = 1
) -> Callable[[], dict[str, float]]:
    """Seconds (:func:`timing.seconds`) of an iteration's parts, a call; the policy goes on from where it is.

    Args:
        policy: a ``GPT2LMHeadModel``, whose copy is the reference. judge: a ``GPT2ForSequenceClassification``.
        ids: (B, P) prompts. tokens: of every text.
    """
    reference = copy.deepcopy(policy).requires_grad_(False)
    head = torch.nn.Linear(policy.config.n_embd, 1).to(ids.device)
    params = [*policy.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(params, lr=1e-5, fused=True)
    n, prompt = ids.shape
    clock = lambda: seconds(ids.device.type)

    def iteration() -> dict[str, float]:
        times = [clock()]
        texts, old, v = decode(policy, ids, tokens, head)
        times.append(clock())
        with torch.no_grad():
            rewards = -0.05 * (old - logps(trunk(reference, texts), reference, texts, prompt))
            rewards[:, -1] += judge.score(trunk(judge, texts)[:, -1]).squeeze(-1)
            adv = gae(rewards, v)
            returns = adv + v
            adv = (adv - adv.mean()) / (adv.std() + 1e-8)
        times.append(clock())
        for at in (part for _ in range(epochs) for part in torch.randperm(n).split(n // minibatches)):
            hidden = trunk(policy, texts[at])
            ratio = (logps(hidden, policy, texts[at], prompt) - old[at]).exp()
            new = head(hidden[:, prompt - 1 : -1]).squeeze(-1)
            loss = torch.max(-adv[at] * ratio, -adv[at] * ratio.clamp(0.8, 1.2)).mean()
            near = v[at] + (new - v[at]).clamp(-0.2, 0.2)
            error = 0.5 * torch.max((new - returns[at]) ** 2, (near - returns[at]) ** 2).mean()
            (loss + 0.1 * error).backward()
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        times.append(clock())
        return {part: b - a for part, a, b in zip(("decode", "score", "update"), times, times[1:])}

    return iteration
