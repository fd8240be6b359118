"""The untouched reference as an agent: its texts, its KL of 0, its regret, and that nothing trains it."""

from pathlib import Path

import exact_runs
import gymnasium as gym
import pytest
from ppo_runs import environment, problem

from lm_gym import exact
from lm_gym.agents import Reference
from lm_gym.tracking import METRICS


def test_it_is_the_reference_and_stays_it(tmp_path: Path) -> None:
    agent = Reference(environment(problem()))
    before = agent.policy.lm.fingerprint()
    logs = exact_runs.learn(agent, 3000)
    assert agent.policy.lm.fingerprint() == before == agent.mdp.reference.fingerprint() and not agent.params
    assert len(logs) > 1 and set(logs[0]) <= set(METRICS)
    assert all(m["objective/kl"] == pytest.approx(0.0, abs=1e-5) for m in logs)
    assert all(m["objective/rlhf_reward"] == pytest.approx(m["objective/scores"], abs=1e-4) for m in logs)
    agent.save(tmp_path / "step")
    assert Reference.load(tmp_path / "step", environment(problem())).evaluate(n=16) == agent.evaluate(n=16)


def test_where_everybody_begins() -> None:
    """J(π_ref) = .7685 and the regret .7843 of DESIGN.md, after training too; the texts agree within their error."""
    agent = Reference(gym.make("LMAlignExact-v0")).learn(500)
    found = exact.evaluate(agent.base.language, agent)
    assert (found.regret, found.objective, found.kl) == pytest.approx((0.78435, 0.7685, 0.0), abs=1e-4)
    drawn = agent.evaluate(n=1000)
    assert drawn["objective/j"] == pytest.approx(0.7685, abs=4 * drawn["objective/scores_sem"])


def test_a_run_goes_on_after_loading(tmp_path: Path) -> None:
    def fresh() -> Reference:
        return Reference(gym.make("LMAlignExact-v0"), batch_size=32)

    whole = exact_runs.learn(fresh(), 400)
    fresh().learn(400, out=tmp_path, callback=lambda agent, _: agent.updates < 2)
    taken = Reference.load(tmp_path, gym.make("LMAlignExact-v0"))
    assert taken.updates == 2 and exact_runs.learn(taken, 400, resume=True) == whole[2:]
