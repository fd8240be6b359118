"""Maximum likelihood: the loss and its gradient by hand, held-out loss, PPO-ptx's mixture, data's order."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import pytest
import torch
from ppo_runs import environment, ppo, problem
from small_models import small_lm, small_mdp

from lm_gym import exact
from lm_gym.cycle import Cycle
from lm_gym.demonstrations import Demonstration
from lm_gym.supervised import Mixture, held_out, likelihood


def some(n: int = 9, *, seed: int = 0, longest: int = 40) -> list[Demonstration]:
    """Random texts of the small vocabulary, of 2 to ``longest`` tokens, each imitated in places of its own."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, longest, (n,), generator=draw).tolist()
    ids = [torch.randint(3, 12, (k,), generator=draw).tolist() for k in lengths]
    flags = [(torch.rand(k, generator=draw) < 0.6).tolist() for k in lengths]
    return [Demonstration(tuple(x), (*f[:-1], True)) for x, f in zip(ids, flags, strict=True)]


def by_hand(model: Any, demonstrations: list[Demonstration], temperature: float) -> tuple[float, int, int]:
    """Σ −log π, imitated tokens and those that were the likeliest: a text at a time, transformers' own logits."""
    nll, tokens, right = 0.0, 0, 0
    for d in demonstrations:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([d.token_ids])).logits[0].double() / temperature
        for t in range(1, len(d.token_ids)):
            if d.imitated[t]:
                nll -= float(torch.log_softmax(logits[t - 1], -1)[d.token_ids[t]])
                tokens += 1
                right += int(int(logits[t - 1].argmax()) == d.token_ids[t])
    return nll, tokens, right


@pytest.mark.parametrize("kind", ["llama", "gqa", "gpt2"])
def test_the_loss_by_hand(kind: str) -> None:
    lm = small_lm(kind)
    found = likelihood(lm, small_mdp(lm, temperature=0.7), some())
    nll, tokens, right = by_hand(lm.model, some(), 0.7)
    assert float(found.nll) == pytest.approx(nll, rel=1e-5)
    assert (found.tokens, found.right) == (tokens, right)
    assert found.loss == pytest.approx(nll / tokens, rel=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gqa", "gpt2"])
def test_the_gradient_by_hand(kind: str) -> None:
    """Against torch's cross entropy of transformers' own logits, a text at a time."""
    mdp = small_mdp(small_lm(kind))
    lm = mdp.initial_policy()
    likelihood(lm, mdp, some()).nll.backward()
    found = {k: p.grad.clone() for k, p in lm.named_parameters() if p.grad is not None}
    lm.zero_grad()
    for d in some():
        ids, imitated = torch.tensor(d.token_ids), torch.tensor(d.imitated[1:])
        logits = lm.model(input_ids=ids[None]).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits[imitated], ids[1:][imitated], reduction="sum").backward()
    assert len(found) > 10 and any(float(g.abs().max()) > 1 for g in found.values())
    for key, p in lm.named_parameters():
        scale = float(p.grad.abs().max())
        torch.testing.assert_close(found[key], p.grad, rtol=0, atol=1e-4 * max(scale, 1.0), msg=key)


def test_held_out_loss_of_batches_is_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = small_lm()
    mdp = small_mdp(lm)
    whole = held_out(lm, mdp, some(20))
    widths: list[int] = []
    states = type(lm).states

    def watched(self: Any, ids: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        widths.append(ids.numel())
        return states(self, ids, *rest)

    monkeypatch.setattr("lm_gym.supervised.SCORING_TOKENS", 60)
    monkeypatch.setattr(type(lm), "states", watched)
    parts = held_out(lm, mdp, some(20))
    assert len(widths) > 5 and max(widths) <= 60
    nll, tokens, right = by_hand(lm.model, some(20), 1.0)
    for found in (whole, parts):
        assert found.loss == pytest.approx(nll / tokens, rel=1e-5)
        assert (found.tokens, found.right) == (tokens, right) and not found.nll.requires_grad


def test_an_exact_language_knows_the_loss() -> None:
    """−log of the worked table's entries: prompt 4, then 1 after nothing, 3 after 1, EOS after 3."""
    env = gym.make("LMAlignExact-v0").unwrapped
    assert env.language.n_tokens == 4 and exact.reference_policy(env.language)[0].tolist() == [0.1, 0.4, 0.3, 0.2]
    found = likelihood(env.mdp.reference, env.mdp, [Demonstration((4, 1, 3, 0), (False, True, False, True))])
    assert float(found.nll) == pytest.approx(-math.log(0.4) - math.log(0.4), abs=1e-5)
    assert (found.tokens, found.right) == (2, 2)


def test_the_mixture_adds_the_coefficient_times_the_mean() -> None:
    agent = ppo(environment(problem()))
    data = some(4)
    mixture = Mixture(agent, data, 0.25)
    logged = mixture(4)
    mixed = {k: p.grad.clone() for k, p in agent.params.items() if p.grad is not None}
    agent.optimizer.zero_grad()
    found = likelihood(agent.policy.lm, agent.mdp, data)
    (0.25 * found.nll / found.tokens).backward()
    assert logged == {"loss/ptx_avg": pytest.approx(found.loss, rel=1e-6)}
    for key, grad in mixed.items():
        torch.testing.assert_close(grad, agent.params[key].grad, msg=key)


def test_a_cycle_goes_through_all_before_it_begins_again() -> None:
    cycle = Cycle(5, torch.Generator().manual_seed(0))
    drawn = [i for n in (3, 4, 8, 5) for i in cycle.take(n)]
    rounds = [drawn[k : k + 5] for k in range(0, 20, 5)]
    assert all(sorted(r) == list(range(5)) for r in rounds) and len({tuple(r) for r in rounds}) > 1
    assert cycle.left == []
