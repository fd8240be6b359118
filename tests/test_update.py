"""What makes the update fast keeps its result: the plain way is what every faster one is compared with."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium as gym
import pytest
import torch
from small_models import small_lm, small_mdp

from lm_gym import autocast, flat_trunk
from lm_gym.agents import GRPO, PPO
from lm_gym.forward import chosen_logprobs
from lm_gym.models import TransformersLM
from lm_gym.reference_pass import reference_pass
from lm_gym.rows import AttentionRows

Change = Callable[[pytest.MonkeyPatch], None]


def weights_after(kind: str, agent_class: type = PPO, **config: object) -> dict[str, torch.Tensor]:
    """Of two updates on texts of unequal lengths."""
    fixed = {"batch_size": 16, "minibatch_size": 4, "learning_rate": 1e-3, "lr_schedule": "constant", "seed": 0}
    agent = agent_class(gym.make("LMAlign-v0", mdp=small_mdp(small_lm(kind), max_new_tokens=8)), **{**fixed, **config})
    agent.learn(1).learn(1)
    assert agent.updates == 2
    weights = {name: p.detach().clone() for name, p in agent.params.items()}
    for name in weights:
        if name.endswith("c_attn.bias"):  # softmax does not see the keys' bias: its gradient is rounding, which Adam
            weights[name][32:64] = 0.0  # makes steps of
    return weights


def test_a_tokens_log_prob_and_its_gradient() -> None:
    logits = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    tokens = torch.tensor([0, 6, 3, 3, 1])
    logits.data[0, 2] = -torch.inf
    plain = torch.log_softmax(logits, -1)[torch.arange(5), tokens]
    torch.testing.assert_close(chosen_logprobs(logits, tokens), plain)
    grad = torch.randn(5, dtype=torch.float64)
    [expected] = torch.autograd.grad(plain, logits, grad)
    [found] = torch.autograd.grad(chosen_logprobs(logits, tokens), logits, grad)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("agent_class", [PPO, GRPO])
def test_updates_without_padding_end_where_plain_ones_do(
    kind: str, agent_class: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"group_size": 4, "epochs": 2} if agent_class is GRPO else {}
    fast = weights_after(kind, agent_class, **more)
    monkeypatch.setattr(flat_trunk, "is_known", lambda base: False)
    plain = weights_after(kind, agent_class, **more)
    assert fast.keys() == plain.keys()
    for name in plain:
        torch.testing.assert_close(fast[name], plain[name], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_frozen_layers_are_run_while_decoding_alone_and_nothing_else_changes(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, lower, start = [], flat_trunk.lower, flat_trunk._start
    monkeypatch.setattr(flat_trunk, "lower", lambda *a: runs.append("lower") or lower(*a))
    monkeypatch.setattr(flat_trunk, "_start", lambda *a: (runs.append("all") if a[2] is None else None) or start(*a))
    kept = weights_after(kind, frozen_layers=1)
    assert runs == []  # neither the reference nor an update began at the bottom
    monkeypatch.setattr(AttentionRows, "below", lambda *a: None)  # as an engine that keeps nothing
    once = weights_after(kind, frozen_layers=1)
    assert runs.count("lower") == 2  # once an update
    monkeypatch.setattr(TransformersLM, "lower_states", lambda *a: None)
    every_time = weights_after(kind, frozen_layers=1)
    monkeypatch.setattr(flat_trunk, "is_known", lambda base: False)
    plain = weights_after(kind, frozen_layers=1)
    for name in plain:
        for found in (kept, once, every_time):
            torch.testing.assert_close(found[name], plain[name], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_reference_of_its_own_is_run_from_the_bottom(kind: str) -> None:
    mdp = small_mdp(small_lm(kind), reference=small_lm(kind, seed=1), max_new_tokens=8)
    agent = PPO(gym.make("LMAlign-v0", mdp=mdp), batch_size=32, frozen_layers=1, seed=0)
    rollout, _ = agent.collect()
    assert rollout.below is not None and rollout.ref_logprobs is not None
    expected = reference_pass(mdp, *rollout.token_lists()).logprobs
    torch.testing.assert_close(rollout.ref_logprobs, expected * rollout.response_mask, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:autocast='bfloat16' expected a processor")
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_bfloat16_products_give_nearly_the_same_gradient(kind: str) -> None:
    found = []
    for kind_of_products in (None, "bfloat16"):
        agent = PPO(
            gym.make("LMAlign-v0", mdp=small_mdp(small_lm(kind), max_new_tokens=8)),
            batch_size=16,
            minibatch_size=16,
            epochs=1,
            seed=0,
            autocast=kind_of_products,
        )
        gradient: list[torch.Tensor] = []
        step = agent.optimizer.step
        agent.optimizer.step = lambda agent=agent, kept=gradient, step=step: (  # type: ignore[method-assign]
            kept.append(torch.cat([p.grad.flatten() for p in agent.params.values()])),
            step(),
        )
        agent.learn(1)
        assert agent.last is not None
        found.append((gradient[0], agent.last.metrics["val/first_ratio_error"]))
        assert {p.dtype for p in agent.params.values()} == {torch.float32}
    (plain, exact), (rounded, error) = found
    assert exact < 1e-5 < error < 0.2
    assert float(torch.cosine_similarity(plain, rounded, dim=0)) > 0.99


def test_bfloat16_products_of_a_16_bit_model_are_refused() -> None:
    lm = small_lm("gpt2")
    lm.model.to(torch.bfloat16)
    with pytest.raises(ValueError, match="autocast has no effect on a model in torch.bfloat16: leave it out"):
        PPO(gym.make("LMAlign-v0", mdp=small_mdp(lm)), autocast="bfloat16")
    with pytest.raises(ValueError, match=r"autocast expected one of \(None, 'bfloat16'\), got 'float16'"):
        PPO(gym.make("LMAlign-v0", mdp=small_mdp()), autocast="float16")


def test_a_machine_on_which_bfloat16_is_slower_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    make = lambda: PPO(gym.make("LMAlign-v0", mdp=small_mdp()), autocast="bfloat16")
    monkeypatch.setattr(autocast, "bfloat16_cost", lambda device: 40.0)
    with pytest.warns(UserWarning, match="on cpu such a product takes 40 times as long as in float32; leave it out"):
        make()
    monkeypatch.setattr(autocast, "bfloat16_cost", lambda device: 0.5)
    make()


def test_what_bfloat16_costs_here_is_measured() -> None:
    assert 0.01 < autocast.bfloat16_cost("cpu") < 1e4
