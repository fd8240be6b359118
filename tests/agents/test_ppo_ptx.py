"""PPO-ptx: the gradient with a share of imitation, where it pulls, what it logs, refuses and resumes."""

from pathlib import Path
from typing import Any

import exact_runs
import gymnasium as gym
import pytest
import torch
from ppo_runs import environment, ppo, problem
from preference_runs import assert_goes_on_after_loading, assert_same_seed_same_numbers, small_env

from lm_gym import exact
from lm_gym.agents import PPO
from lm_gym.demonstrations import Demonstration
from lm_gym.supervised import likelihood
from lm_gym.tracking import METRICS

TEXTS = [{"text": t} for t in ("hgfe", "hh gg", "e hg", "gg", "fgh", "h")]


def test_the_gradient_is_ppos_and_the_coefficient_times_that_of_the_data() -> None:
    """One optimizer step on one minibatch, with the very demonstrations that the shuffled order gives it."""

    def gradient(**ptx: Any) -> tuple[dict[str, torch.Tensor], dict[str, float], Any]:
        agent = ppo(environment(problem()), batch_size=4, minibatch_size=4, epochs=1, max_grad_norm=1e9, **ptx)
        rollout, _ = agent.collect()
        found: list[dict[str, torch.Tensor]] = []
        step = lambda: found.append({k: p.grad.clone() for k, p in agent.params.items() if p.grad is not None})
        agent.optimizer.step = step
        metrics = agent.update(rollout)
        assert len(found) == 1
        return found[0], metrics, agent

    plain, _, _ = gradient()
    mixed, metrics, agent = gradient(ptx_coef=0.7, ptx_data=TEXTS[:4])
    agent.optimizer.zero_grad()
    data = likelihood(agent.policy.lm, agent.mdp, agent.ptx.data)  # all four, in whatever order
    (0.7 * data.nll / data.tokens).backward()
    for key, grad in mixed.items():
        more = agent.params[key].grad
        torch.testing.assert_close(
            grad, plain[key] if more is None else plain[key] + more, atol=1e-4, rtol=1e-4, msg=key
        )
    assert metrics["loss/ptx_avg"] == pytest.approx(data.loss, rel=1e-5)
    assert set(metrics) <= set(METRICS)


def test_it_pulls_towards_the_data() -> None:
    """More of the texts' letters, likelier texts than without, and the reward still learned."""
    runs = {}
    for coef in (0.0, 1.0):
        data = {"ptx_coef": coef, "ptx_data": TEXTS} if coef else {}
        agent = ppo(environment(problem()), **data)
        logs = exact_runs.learn(agent, 3000)
        demonstrations = PPO(environment(problem()), ptx_coef=1.0, ptx_data=TEXTS).ptx.data
        runs[coef] = (likelihood(agent.policy.lm, agent.mdp, demonstrations).loss, logs)
    assert runs[1.0][0] < runs[0.0][0] - 1
    logs = runs[1.0][1]
    assert logs[-1]["loss/ptx_avg"] < 0.7 * logs[0]["loss/ptx_avg"] and "loss/ptx_avg" not in runs[0.0][1][0]
    assert logs[-1]["objective/scores"] > logs[0]["objective/scores"] + 0.3


def test_it_biases_the_end_point() -> None:
    """On the worked language: imitating 1 1 1, which earns nothing, costs regret that PPO alone would not have."""
    data = [Demonstration((4, 1, 1, 1), (False, True, True, True))]
    plain = exact_runs.regret(PPO, 4000)
    language, agent = exact_runs.train(PPO, 4000, ptx_coef=0.5, ptx_data=data)
    assert plain < 0.1 and exact.evaluate(language, agent).regret > plain + 0.1
    assert exact.text_probs(language, agent)[place(language, (1, 1, 1))] > 0.05
    assert exact.text_probs(language, exact.optimal_policy(language))[place(language, (1, 1, 1))] < 0.01


def place(language: Any, text: tuple[int, ...]) -> int:
    """Where a text stands among the language's."""
    return [tuple(language.texts.ids(i)) for i in range(len(language.texts))].index(text)


def test_the_same_seed_and_a_loaded_checkpoint_give_the_same_numbers(tmp_path: Path) -> None:
    more = {"minibatch_size": 8, "epochs": 2, "ptx_coef": 0.5, "ptx_data": TEXTS}
    assert_same_seed_same_numbers(PPO, make=small_env, **more)
    assert_goes_on_after_loading(PPO, tmp_path, make=small_env, again={"ptx_data": TEXTS}, **more)
    with pytest.raises(ValueError, match="ptx_data= a live list"):
        PPO.load(tmp_path, small_env())


@pytest.mark.parametrize("config", [{"ptx_coef": 0.5}, {"ptx_data": TEXTS}])
def test_one_without_the_other_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="PPO-ptx expected ptx_coef above 0 and ptx_data, got"):
        PPO(small_env(), **config)


def test_an_exact_language_takes_demonstrations_only() -> None:
    with pytest.raises(ValueError, match="is text, and the model has no tokenizer"):
        PPO(gym.make("LMAlignExact-v0"), ptx_coef=0.5, ptx_data=TEXTS)
