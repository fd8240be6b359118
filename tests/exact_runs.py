"""Agents on exact languages: training to a regret, to an end point, and one gradient against numbers by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import lm_gym  # noqa: F401  (registers the environments)
from lm_gym import exact

SEEDS = range(5)
TOKENS = 100_000
"""What an agent has for the thresholds: unbiased ones end below .002 regret."""
BIASED_TOKENS = 200_000
"""What biased ones have: at their end point texts still earn differently, so that noise is left to average out."""
BETA = 0.5


def train(
    kind: Any, tokens: int, *, env: dict[str, Any] | None = None, id: str = "LMAlignExact-v0", **config: Any
) -> Any:
    """(language, agent) after training."""
    made = gym.make(id, **(env or {}))
    return made.unwrapped.language, kind(made, **config).learn(tokens)


def regret(kind: Any, tokens: int, **how: Any) -> float:
    return exact.evaluate(*train(kind, tokens, **how)).regret


def distance(kind: Any, tokens: int, objective: dict[str, Any], **config: Any) -> tuple[float, float, float]:
    """Regret, the end point's regret, and KL to the end point's policy after training."""
    language, agent = train(kind, tokens, **config)
    end = exact.endpoint(language, **objective)
    return exact.evaluate(language, agent).regret, end.regret, exact.kl_between(language, agent, end.policy)


def assert_ends_at(kind: Any, objective: dict[str, Any], **config: Any) -> None:
    """The issue's thresholds: mean regret of 5 seeds within .002 of the end point's, each policy within .005 nats.

    Fresh seeds: not those that anything was chosen on.
    """
    found = np.array([distance(kind, BIASED_TOKENS, objective, seed=seed, **config) for seed in range(20, 25)])
    regrets, end, kls = found.T
    sem = regrets.std(ddof=1) / len(regrets) ** 0.5
    print(f"{kind.name}: {(regrets - end).mean():+.5f} ± {sem:.5f} from its end point, KL {kls.round(5)}")
    assert regrets.mean() == pytest.approx(end[0], abs=0.002)
    assert kls.max() < 0.005


def learn(agent: Any, tokens: int, **how: Any) -> list[dict[str, float]]:
    """What every update logged, but for its seconds."""
    logs: list[dict[str, float]] = []
    agent.learn(tokens, callback=lambda _, m: logs.append(m), **how)
    return [{k: v for k, v in m.items() if not k.startswith("perf/")} for m in logs]


def assert_same_seed_same_numbers(kind: Any, **config: Any) -> None:
    """Bit for bit, whatever the global stream does; other numbers from another seed."""

    def run(seed: int) -> tuple[list[dict[str, float]], torch.Tensor]:
        torch.manual_seed(torch.seed())
        agent = kind(gym.make("LMAlignExact-v0"), seed=seed, batch_size=32, minibatch_size=16, **config)
        return learn(agent, 300), agent.policy.lm.logits.detach()

    (logs, table), (again, same), (other, _) = run(0), run(0), run(1)
    assert logs == again and torch.equal(table, same) and logs != other


def assert_goes_on_after_loading(kind: Any, folder: Path, **config: Any) -> None:
    """Stopped and taken up again from its checkpoint, a run ends where an unbroken one does, to the bit."""
    config = {"batch_size": 32, "minibatch_size": 16, **config}
    whole, broken = (kind(gym.make("LMAlignExact-v0"), **config) for _ in range(2))
    logs = learn(whole, 400)
    broken.learn(400, out=folder, callback=lambda agent, _: agent.updates < 2)
    taken = kind.load(folder, gym.make("LMAlignExact-v0"))
    assert taken.updates == 2 and taken.config == broken.config
    assert learn(taken, 400, resume=True) == logs[2:]
    assert torch.equal(taken.policy.lm.logits, whole.policy.lm.logits)


# ---- one gradient by hand ----------------------------------------------------------------------------------------


def moved(kind: Any, **config: Any) -> tuple[Any, Any]:
    """(agent, rollout): a policy away from the reference, texts from a policy that is a little different again."""
    config = {"batch_size": 24, "minibatch_size": None, "max_grad_norm": 1e9, "ratio_tolerance": 1e9, **config}
    agent = kind(gym.make("LMAlignExact-v0"), **config)
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        agent.policy.lm.logits.add_(0.5 * torch.randn(agent.policy.lm.logits.shape, generator=noise))
    rollout, _ = agent.collect()
    rollout.logprobs += 0.3 * torch.randn(rollout.logprobs.shape, generator=noise) * rollout.response_mask
    return agent, rollout


def update_gradient(agent: Any, rollout: Any) -> tuple[np.ndarray, dict[str, float]]:
    """(S, V) gradient of the table that one update of a single optimizer step is made with, and its metrics."""
    found: list[np.ndarray] = []
    agent.optimizer.step = lambda: found.append(agent.policy.lm.logits.grad.T.double().numpy().copy())
    metrics = agent.update(rollout)
    assert len(found) == 1
    return found[0], metrics


Coefficient = Callable[[int, int, float, float], float]


def gradient_by_hand(
    agent: Any, rollout: Any, slope: Coefficient, weight: Callable[[int, int], float]
) -> tuple[np.ndarray, list[list[float]]]:
    """(S, V) Σ_i Σ_t weight(i, T_i)·slope(i, t, ρ, π/π_ref)·(e_a − π(·|s)), and every ρ.

    ``slope`` is the derivative of a token's loss by its log π.
    """
    language = agent.base.language
    probs, ref = agent.exact_policy(language), exact.reference_policy(language)
    out, ratios = np.zeros_like(probs), []
    for i, tokens in enumerate(rollout.token_lists()[1]):
        ratios.append([])
        for t, a in enumerate(tokens):
            s = language.state(tuple(tokens[:t]))
            ratios[-1].append(probs[s, a] / np.exp(float(rollout.logprobs[i, t])))
            c = weight(i, len(tokens)) * slope(i, t, ratios[-1][-1], probs[s, a] / ref[s, a])
            out[s] -= c * probs[s]
            out[s, a] += c
    return out, ratios


def clipped_slope(ratio: float, advantage: float, low: float = 0.2, high: float = 0.2) -> float:
    """d/d log π of −min(ρ·A, clip(ρ, 1 − low, 1 + high)·A): 0 where the clip took hold."""
    held = ratio > 1 + high if advantage > 0 else ratio < 1 - low
    return 0.0 if held else -ratio * advantage


def scores(rollout: Any) -> list[float]:
    """The worked language's rewards, written out: #3 − ½·#2 + 1 where a text ends in EOS."""
    texts = rollout.token_lists()[1]
    return [y.count(3) - 0.5 * y.count(2) + (1.0 if y[-1] == 0 else 0.0) for y in texts]


def step_rewards(agent: Any, rollout: Any) -> list[list[float]]:
    """r_t = −β·(log π_old − log π_ref), and the score on the last token, for the rollout as it was collected."""
    language, out = agent.base.language, []
    ref = exact.reference_policy(language)
    before = agent.exact_policy(language)  # the policy has not moved since; ``moved`` only touches what was recorded
    for tokens, score in zip(rollout.token_lists()[1], scores(rollout), strict=True):
        states = [language.state(tuple(tokens[:t])) for t in range(len(tokens))]
        out.append([-BETA * float(np.log(before[s, a] / ref[s, a])) for s, a in zip(states, tokens, strict=True)])
        out[-1][-1] += score
    return out
