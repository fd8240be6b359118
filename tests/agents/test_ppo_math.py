"""PPO's losses and weights against numbers by hand, and a minibatch against its micro-batches."""

import math
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from small_models import small_lm, small_mdp

from lm_gym import kl
from lm_gym.agents import PPO
from lm_gym.env import LMAlignEnv
from lm_gym.losses import policy_loss, value_loss, weights
from lm_gym.policy_gradient import Minibatch, gradient
from lm_gym.rollout import Rollout


def agent(lm: Any = None, *, problem: dict[str, Any] | None = None, **config: Any) -> PPO:
    config = {"batch_size": 16, "minibatch_size": 8, "learning_rate": 1e-3, **config}
    top_k = (problem or {}).get("top_k")
    mdp = small_mdp(lm, **(problem or {}))
    return PPO(LMAlignEnv(mdp=mdp, action_mode="full" if top_k is None else "top_k", top_k=top_k), **config)


def minibatch(ppo: PPO, rollout: Rollout, index: torch.Tensor, *, first: bool = False) -> dict[str, float]:
    """Adds up the gradient of some texts of a rollout, as an update does."""
    advantages, returns = ppo.advantages(rollout)
    return gradient(ppo, rollout, index, lambda b: ppo.loss(b, advantages, returns, rollout.values), first=first)


def gradients(ppo: PPO) -> dict[str, torch.Tensor]:
    return {k: p.grad.clone() for k, p in ppo.params.items() if p.grad is not None}


def test_the_clipped_surrogate_by_hand() -> None:
    """ρ = 2, .5, 1.1 with A = +1, then −1; ε = .2."""
    ratio = torch.tensor([[2.0, 0.5, 1.1], [2.0, 0.5, 1.1]])
    adv = torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]])
    loss, clipped = policy_loss(ratio.log(), torch.zeros(2, 3), adv, 0.2)
    torch.testing.assert_close(loss, torch.tensor([[-1.2, -0.5, -1.1], [2.0, 0.8, 1.1]]))
    assert clipped.tolist() == [[True, False, False], [False, True, False]]


def test_the_upper_clip_by_hand() -> None:
    """ρ = 2, 1.4, .5 with A = +1, then −1; ε = .2 below and .5 above."""
    ratio = torch.tensor([[2.0, 1.4, 0.5], [2.0, 1.4, 0.5]])
    adv = torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]])
    loss, clipped = policy_loss(ratio.log(), torch.zeros(2, 3), adv, 0.2, 0.5)
    torch.testing.assert_close(loss, torch.tensor([[-1.5, -1.4, -0.5], [2.0, 1.4, 0.8]]))
    assert clipped.tolist() == [[True, False, False], [False, False, True]]


def test_the_clip_stops_the_gradient_only_where_it_took_hold() -> None:
    logp = torch.tensor([[math.log(2.0), math.log(0.5), 0.0]], requires_grad=True)
    policy_loss(logp, torch.zeros(1, 3), torch.tensor([[1.0, 1.0, 2.0]]), 0.2)[0].sum().backward()
    torch.testing.assert_close(logp.grad, torch.tensor([[0.0, -0.5, -2.0]]))


def test_value_clipping_by_hand() -> None:
    """V_old = 0, returns 1: V = .1 is inside; V = .5 is held at .2, whose error .64 is the larger; V = −1 has 4."""
    values = torch.tensor([[0.1, 0.5, -1.0]])
    loss, clipped = value_loss(values, torch.zeros(1, 3), torch.ones(1, 3), 0.2)
    torch.testing.assert_close(loss, 0.5 * torch.tensor([[0.81, 0.64, 4.0]]))
    assert clipped.tolist() == [[False, True, False]]
    free, never = value_loss(values, torch.zeros(1, 3), torch.ones(1, 3), None)
    torch.testing.assert_close(free, 0.5 * torch.tensor([[0.81, 0.25, 4.0]]))
    assert not never.any()


def test_weights_of_each_aggregation() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]).bool()
    torch.testing.assert_close(weights(mask, "token_mean"), mask / 4.0)
    rows = torch.tensor([[1 / 6, 1 / 6, 1 / 6, 0], [1 / 2, 0, 0, 0]])
    torch.testing.assert_close(weights(mask, "sequence_mean"), rows)
    torch.testing.assert_close(weights(mask, "sequence_sum"), mask / 2.0)
    torch.testing.assert_close(weights(mask, "constant", 10), mask / 20.0)
    assert float(weights(mask, "token_mean").sum()) == float(weights(mask, "sequence_mean").sum()) == 1.0


@pytest.mark.parametrize(
    ("aggregation", "kl_in"), [("token_mean", "loss"), ("sequence_mean", "reward"), ("sequence_sum", "entropy")]
)
def test_micro_batches_give_the_gradient_of_the_minibatch(aggregation: str, kl_in: str) -> None:
    config: dict[str, Any] = {"aggregation": aggregation, "kl_in": kl_in, "whiten_advantages": False}
    if kl_in == "loss":
        config["kl_estimator"] = "exact"
    found = []
    for micro in (None, 1, 3):
        ppo = agent(small_lm(), micro_batch_size=micro, **config)
        rollout, _ = ppo.collect()
        stats = minibatch(ppo, rollout, torch.arange(8), first=True)
        found.append((gradients(ppo), stats))
    (whole, stats), *others = found
    size = max(float(g.abs().max()) for g in whole.values())
    for grads, other in others:
        assert set(grads) == set(whole)
        for key, g in whole.items():
            torch.testing.assert_close(grads[key], g, atol=1e-6 * max(1.0, size), rtol=1e-4)
        assert set(other) == set(stats)
        for key, value in stats.items():
            assert other[key] == pytest.approx(value, abs=1e-5), key


def test_the_whole_loss_by_hand() -> None:
    """One loss of a small batch, worked out with transformers' own logits: policy, value, KL and entropy terms."""
    lm = small_lm()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ppo = agent(lm, kl_in="loss", kl_estimator="k3", ent_coef=0.1, vf_coef=0.7, lam=0.9, whiten_advantages=False)
    with torch.no_grad():  # a policy that has moved away, so that no term is zero
        for p in ppo.policy.lm.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
        ppo.policy.value_head.weight.add_(0.1)
    rollout, _ = ppo.collect()
    with torch.no_grad():
        for p in ppo.policy.lm.parameters():
            p.mul_(1.01)
    advantages, returns = ppo.advantages(rollout)
    index = torch.tensor([0, 5, 3])
    share = torch.zeros(rollout.response_mask.shape)
    share[index] = weights(rollout.response_mask[index], "token_mean")
    batch = Minibatch(ppo, rollout, index, share, 1.0)
    loss, _ = ppo.loss(batch, advantages, returns, rollout.values)
    more, stats = ppo.kl_control.in_the_loss(batch)
    loss = loss + more

    total, count, kls = 0.0, 0, 0.0
    for i in index.tolist():
        n, keep = int(rollout.lengths[i]), rollout.attention_mask[i].bool()
        ids = rollout.input_ids[i][keep][None]
        model = ppo.policy.lm.model
        with torch.no_grad():
            out = model(input_ids=ids, output_hidden_states=True)
            ref_logits = lm.model(input_ids=ids).logits[0, -n - 1 : -1]
            values = ppo.policy.value_head(out.hidden_states[-1][0, -n - 1 : -1]).squeeze(-1)
        logp = torch.log_softmax(out.logits[0, -n - 1 : -1], -1)
        tokens = ids[0, -n:]
        new = logp.gather(-1, tokens[:, None])[:, 0]
        ref = torch.log_softmax(ref_logits, -1).gather(-1, tokens[:, None])[:, 0]
        ratio = (new - rollout.logprobs[i, :n]).exp()
        a, ret, old_v = advantages[i, :n], returns[i, :n], rollout.values[i, :n]
        surrogate = -torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
        near = old_v + (values - old_v).clamp(-0.2, 0.2)
        vf = 0.5 * torch.maximum((values - ret) ** 2, (near - ret) ** 2)
        k3 = (ref - new).exp() - 1 - (ref - new)
        entropy = -(logp.exp() * logp).sum(-1)
        total += float((surrogate + 0.7 * vf + 0.3 * k3 - 0.1 * entropy).sum())
        kls += float(k3.sum())
        count += n
    assert float(loss.detach()) == pytest.approx(total / count, abs=2e-5)
    assert stats["loss/kl_avg"].item() == pytest.approx(kls / count, abs=1e-5)  # before β
    assert stats["loss/kl_avg"].item() > 1e-4


def test_advantages_end_with_the_text() -> None:
    ppo = agent(problem={"max_new_tokens": 12}, batch_size=64, minibatch_size=64)
    rollout, _ = ppo.collect()
    advantages, returns = ppo.advantages(rollout)
    behind = ~rollout.response_mask
    assert behind.any() and rollout.values is not None
    for x in (advantages, returns, rollout.values, rollout.logprobs, rollout.rewards, rollout.ref_logprobs):
        assert not x[behind].any()


def test_no_gradient_comes_from_behind_the_end() -> None:
    """Garbage in every padded place leaves the gradient of a minibatch as it was."""
    found = []
    for spoil in (False, True):
        ppo = agent(small_lm(), problem={"max_new_tokens": 12})
        rollout, _ = ppo.collect()
        advantages, returns = ppo.advantages(rollout)
        if spoil:
            behind = ~rollout.response_mask
            for x in (advantages, returns, rollout.values, rollout.logprobs, rollout.ref_logprobs):
                x[behind] = 7.0
            rollout.input_ids[:, -behind.shape[1] :][behind] = 5
        loss = partial(ppo.loss, advantages=advantages, returns=returns, old_values=rollout.values)
        gradient(ppo, rollout, torch.arange(16), loss)
        found.append(gradients(ppo))
    for key, g in found[0].items():
        torch.testing.assert_close(found[1][key], g, atol=1e-6, rtol=1e-5)


def test_whitened_advantages_and_rewards() -> None:
    ppo = agent(batch_size=64, minibatch_size=64, problem={"kl_coef": 0.0})
    rollout, _ = ppo.collect()
    a = ppo.advantages(rollout)[0][rollout.response_mask]
    assert float(a.mean()) == pytest.approx(0.0, abs=1e-5) and float(a.std(unbiased=False)) == pytest.approx(
        1, abs=1e-4
    )
    ppo.config.whiten_advantages, ppo.config.whiten_rewards = False, True
    rewards = rollout.rewards[rollout.response_mask]
    _, returns = ppo.advantages(rollout)
    last = returns[torch.arange(64), rollout.lengths - 1]  # γ = 1: the last step's return is its reward
    scaled = (rollout.scores - rewards.mean()) / rewards.std(unbiased=False) + rewards.mean()
    torch.testing.assert_close(last, scaled, atol=1e-4, rtol=1e-4)


def test_adaptive_kl_takes_the_sum_over_the_text_and_moves_after_the_update() -> None:
    """DESIGN.md: from .15, target 6, horizon 10000, n = 512, KL 12 comes .151536."""
    assert kl.AdaptiveKL(0.15, 6.0, 10_000).update(12.0, 512) == pytest.approx(0.151536, abs=1e-9)
    ppo = agent(kl_target=0.005, kl_horizon=100, kl_coef=0.15, ratio_tolerance=1.0, problem={"kl_coef": 0.3})
    rollout, _ = ppo.collect()
    assert ppo.kl_coef == 0.15
    rollout.logprobs = rollout.ref_logprobs + 0.001 * rollout.response_mask  # .001 nats a token
    ppo.update(rollout)
    per_text = 0.001 * float(rollout.lengths.float().mean())
    step = per_text / 0.005 - 1.0
    assert 0.01 < abs(step) < 0.2, "within the clip, so that the number shows"
    assert ppo.kl_coef == pytest.approx(0.15 * (1 + step * 16 / 100), rel=1e-4)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"kl_in": "return"}, "kl_in expected one of"),
        ({"kl_estimator": "k4"}, "kl_estimator expected one of"),
        ({"kl_estimator": "k3"}, "has no effect with kl_in='reward'"),
        ({"kl_estimator": "k3", "kl_in": "entropy"}, "has no effect with kl_in='entropy'"),
        ({"kl_target": 1.0, "kl_in": "entropy"}, "kl_target expected"),
        ({"kl_target": 1.0, "kl_coef": 0.0}, "above 0"),
        ({"kl_reference": "best"}, "kl_reference expected"),
        ({"aggregation": "sum"}, "aggregation expected one of"),
        ({"critic": "none"}, "PPO needs values"),
        ({"minibatch_size": 17}, "minibatch_size expected 1 to batch_size=16, got 17"),
        ({"minibatch_size": 0}, "minibatch_size expected"),
        ({"micro_batch_size": 0}, "micro_batch_size expected 1 to inf"),
        ({"epochs": 0}, "epochs expected 1 to inf"),
        ({"gamma": 1.1}, "gamma expected 0 to 1"),
        ({"lam": -0.1}, "lam expected 0 to 1"),
        ({"clip_range": 0.0}, "clip_range expected"),
        ({"clip_range_value": -1.0}, "clip_range_value expected"),
        ({"vf_coef": -1.0}, "vf_coef expected"),
        ({"ema_decay": 1.5}, "ema_decay expected 0 to 1"),
        ({"normalize_scores": -5}, "normalize_scores expected"),
        ({"lr_schedule": "step"}, "lr_schedule expected"),
        ({"lora_rank": 2, "frozen_layers": 1}, "expected one of the two"),
        ({"frozen_layers": 3}, "got 3 for a model with 2 layers"),
        ({"frozen_layers": 1, "frozen_head": "False"}, "frozen_head expected True or False, got 'False'"),
        ({"frozen_head": True}, "frozen_head has no effect with frozen_layers=0"),
        ({"learning_rat": 0.1}, "did you mean 'learning_rate'"),
    ],
)
def test_what_makes_no_sense_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        agent(**config)


def test_a_problem_without_kl_refuses_a_price_in_the_reward() -> None:
    with pytest.raises(ValueError, match="kl_mode='none'"):
        PPO(LMAlignEnv(mdp=small_mdp(), kl_mode="none"))
    PPO(LMAlignEnv(mdp=small_mdp(), kl_mode="none"), kl_coef=0.0)
    with pytest.warns(UserWarning, match="whitening rescales"):
        PPO(LMAlignEnv(mdp=small_mdp(), kl_mode="none"), kl_in="loss")


@pytest.mark.parametrize("config", [{"kl_in": "loss"}, {"kl_in": "entropy"}, {"ent_coef": 0.01}])
def test_whitening_beside_a_kl_or_entropy_in_the_loss_warns(config: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match="set whiten_advantages=False"):
        agent(**config)
    with pytest.warns(UserWarning, match="set whiten_advantages=False"):
        agent(**config, whiten_advantages=False, whiten_rewards=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent(**config, whiten_advantages=False)


def test_k1_in_the_loss_warns_that_it_has_no_gradient() -> None:
    with pytest.warns(UserWarning, match="no expected gradient"):
        agent(kl_in="loss", kl_estimator="k1", whiten_advantages=False)


def test_normalized_scores_have_mean_0_and_std_1_on_the_reference() -> None:
    ppo = agent(batch_size=512, minibatch_size=512, normalize_scores=500, kl_coef=0.0)
    rollout, metrics = ppo.collect()  # the untrained policy is the reference
    paid = rollout.rewards.sum(-1)
    assert float(paid.mean()) == pytest.approx(0.0, abs=6 / math.sqrt(512))
    assert float(paid.std()) == pytest.approx(1.0, abs=0.15)
    assert abs(metrics["objective/scores"]) > 0.1, "the score as it is logged is not rescaled"
    mean, std = ppo.score_scale
    torch.testing.assert_close(paid, (rollout.scores - mean) / std, atol=1e-5, rtol=1e-5)
    at = torch.arange(512), rollout.lengths - 1
    torch.testing.assert_close(rollout.rewards[at], paid)
    before = ppo.score_scale
    ppo.collect()
    assert ppo.score_scale == before, "measured once"


def test_scores_that_do_not_differ_cannot_be_normalized() -> None:
    ppo = agent(normalize_scores=16, problem={"reward_model": lambda completions, **_: [1.0] * len(completions)})
    with pytest.raises(ValueError, match="scores that differ, got 1.0 for 16 samples"):
        ppo.collect()


def test_a_text_that_never_ends_pays_for_it_and_a_stop_string_counts_as_an_end() -> None:
    problem = {
        "missing_eos_penalty": 5.0,
        "stop": "b",
        "reward_model": lambda completions, **_: [1.0] * len(completions),
    }
    ppo = agent(problem=problem, batch_size=128, minibatch_size=64, kl_coef=0.0)
    rollout, _ = ppo.collect()
    reasons = np.array(rollout.finish_reasons)
    assert set(reasons) == {"eos", "stop", "length"}
    np.testing.assert_allclose(rollout.rewards.sum(-1).numpy(), np.where(reasons == "length", -4.0, 1.0))


def test_the_reward_stands_at_the_ending_action() -> None:
    ppo = agent(problem={"reward_model": lambda completions, **_: [3.0] * len(completions)}, batch_size=64, kl_coef=0.0)
    rollout, _ = ppo.collect()
    want = torch.zeros_like(rollout.rewards)
    want[torch.arange(64), rollout.lengths - 1] = 3.0
    torch.testing.assert_close(rollout.rewards, want)
    ended = [i for i, reason in enumerate(rollout.finish_reasons) if reason == "eos"]
    assert (rollout.tokens[ended, rollout.lengths[ended] - 1] == 2).all()
