"""Where 16 bits would lose small numbers: the slow copy, gradients that add up, float16, optimizers of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from ppo_runs import environment, ppo, problem
from small_models import PROMPTS, letter_reward
from stable_baselines3 import A2C

from lm_gym.adam import Adam32
from lm_gym.agents import DPO, PPO, SFT, BestOfN, LMActorCriticPolicy, Reference, SB3VecEnv
from lm_gym.guard import Guard, Watch
from lm_gym.policy_gradient import gradient

HALF = {"dtype": torch.bfloat16}
EMA = {"kl_reference": "ema", "batch_size": 16, "minibatch_size": 16, "epochs": 1, "lr_schedule": "constant"}


def masters(agent: PPO) -> dict[str, torch.Tensor]:
    own = {k.removeprefix("lm."): p for k, p in agent.optimizer.values().items()}
    return {k: own.get(k, p).detach().double().clone() for k, p in agent.policy.lm.named_parameters()}


@pytest.mark.parametrize(
    "config", [{"ema_decay": 0.95}, pytest.param({"ema_decay": 0.995, "lora_rank": 2}, marks=pytest.mark.slow)], ids=str
)
def test_the_slow_copy_is_the_average_of_float64(config: dict[str, Any]) -> None:
    agent = ppo(environment(problem(**HALF)), **EMA, **config)
    start = masters(agent)
    exact, rounded = dict(start), {k: p.clone() for k, p in agent.kl_control.ema.named_parameters()}
    decay = config["ema_decay"]

    def follow(*_: Any) -> None:
        for k, fast in masters(agent).items():
            exact[k] = decay * exact[k] + (1 - decay) * fast
            rounded[k] = rounded[k].lerp(fast.to(rounded[k].dtype), 1 - decay)

    agent.learn(700, callback=follow)
    slow = agent.kl_control.ema_values()

    def off(values: dict[str, torch.Tensor]) -> float:
        """How far from the average, over the way that it went."""
        miss = sum(float((values[k].double() - exact[k]).square().sum()) for k in exact)
        return (miss / sum(float((exact[k] - start[k]).square().sum()) for k in exact)) ** 0.5

    assert agent.updates > 5 and off(slow) < 1e-3
    if "lora_rank" not in config:  # adapters are in float32 anyway
        assert off(rounded) > 0.5  # what a copy in bfloat16 makes of it
    for k, p in agent.kl_control.ema.named_parameters():
        assert torch.equal(p, slow[k].to(p.dtype))


def test_a_resumed_run_with_a_slow_copy_and_a_guard_goes_on_bit_for_bit(tmp_path: Path) -> None:
    make = lambda: ppo(environment(problem(**HALF)), **EMA)
    guard = Guard(every=2, n=8, sigmas=100.0)
    one = make()
    one.learn(500, guard=guard)
    one.save(tmp_path / "at")
    two = PPO.load(tmp_path / "at", environment(problem(**HALF)))
    logs: list[list[dict[str, float]]] = [[], []]
    for agent, log in zip((one, two), logs, strict=True):
        agent.learn(300, guard=guard, callback=lambda _, m, log=log: log.append(m))
    plain = [[{k: v for k, v in m.items() if not k.startswith("perf/")} for m in log] for log in logs]
    assert plain[0] == plain[1] and len(plain[0]) > 2
    a, b = one.kl_control.ema_values(), two.kl_control.ema_values()
    assert {p.dtype for p in a.values()} == {torch.float32}
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(p, p.bfloat16().float()) for p in a.values())  # not what its bfloat16 weights say


def test_a_policy_that_is_taken_back_takes_the_slow_copy_with_it() -> None:
    agent = ppo(environment(problem(**HALF)), **EMA)
    agent.learn(200)
    watch = Watch(agent, Guard(every=1, n=8))
    before = {k: p.clone() for k, p in agent.kl_control.ema_values().items()}
    agent.learn(200)
    watch.roll_back("it is asked for")
    for k, p in agent.kl_control.ema.named_parameters():
        assert torch.equal(agent.kl_control.ema_values()[k], before[k])
        assert torch.equal(p, before[k].to(p.dtype))


def test_gradients_of_16_bit_weights_add_up_in_float32() -> None:
    p = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    optimizer = Adam32({"p": p}, lr=1e-3)
    (p * 1.0).sum().backward()
    optimizer.gather()
    for _ in range(100):  # each is below half a step of bfloat16 at 1
        (p * 0.001).sum().backward()
        optimizer.gather()
    [master] = optimizer.masters
    torch.testing.assert_close(master.grad, torch.full((3,), 1.1), atol=2e-3, rtol=0)
    assert optimizer.clip(0.5) == pytest.approx(1.1 * 3**0.5, abs=3e-3)
    assert float(master.grad.norm()) == pytest.approx(0.5, abs=1e-4)


def test_micro_batches_leave_their_gradients_in_float32() -> None:
    agent = ppo(environment(problem(**HALF)), batch_size=16, minibatch_size=16, micro_batch_size=1)
    rollout, _ = agent.collect()
    gradient(agent, rollout, torch.arange(16), lambda b: (b.mean(b.logprobs), {}))
    found = {k: m.grad for k, m in agent.optimizer.values().items() if m.grad is not None}
    assert found and {g.dtype for g in found.values()} == {torch.float32}
    assert all(p.grad is None for p in agent.policy.lm.parameters())
    # a sum in bfloat16 would be a number of bfloat16
    assert any(not torch.equal(g, g.bfloat16().float()) for k, g in found.items() if k.startswith("lm."))


@pytest.mark.parametrize("kind", [PPO, DPO, SFT])
def test_float16_is_refused_for_training(kind: Any) -> None:
    env = gym.make("LMAlign-v0", mdp=problem(dtype=torch.float16))
    data = {DPO: {"pairs": [{"prompt": "a", "chosen": "b", "rejected": "c"}]}, SFT: {"data": [{"prompt": "a"}]}}
    with pytest.raises(ValueError, match=rf"{kind.__name__} expected a model in bfloat16 or float32 to train"):
        kind(env, **data.get(kind, {}))


@pytest.mark.parametrize("kind", [Reference, BestOfN])
def test_float16_will_do_for_what_is_not_trained(kind: Any) -> None:
    agent = kind(gym.make("LMAlign-v0", mdp=problem(dtype=torch.float16)))
    assert len(agent.generate(["ab", "c"])) == 2


def test_an_optimizer_of_others_is_not_given_16_bit_weights() -> None:
    env = SB3VecEnv(
        gym.make_vec(
            "LMAlign-v0", num_envs=2, model=problem(**HALF).reference, prompts=PROMPTS, reward_model=letter_reward
        )
    )
    with pytest.raises(ValueError, match="LMActorCriticPolicy expected a model in float32, got torch.bfloat16"):
        A2C(LMActorCriticPolicy, env, policy_kwargs={"mdp": env.mdp}, device="cpu")
