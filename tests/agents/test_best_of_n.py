"""Best-of-n: the exact distribution, what it reports, what it refuses."""

from pathlib import Path
from typing import Any

import exact_runs
import gymnasium as gym
import numpy as np
import pytest
import torch
from ppo_runs import environment, problem
from scipy.stats import chisquare

from lm_gym import exact
from lm_gym.agents import BestOfN, Reference
from lm_gym.tracking import METRICS


def counts(language: Any, texts: list[list[int]]) -> np.ndarray:
    """How often each text of the language was drawn."""
    place = {tuple(language.texts.ids(i)): i for i in range(len(language.texts))}
    return np.bincount([place[tuple(text)] for text in texts], minlength=len(place))


@pytest.mark.parametrize("n", [2, 4, 16])
def test_its_texts_have_the_exact_distribution(n: int) -> None:
    """Chi-square of the best of 6,400/n groups over the 40 texts, those expected below 5 times put together."""
    env = gym.make("LMAlignExact-v0")
    language = env.unwrapped.language
    agent = BestOfN(env, n=n)
    groups = 6400 // n
    drawn = [c.tokens for c in agent.complete([agent.mdp.prompts[0]] * groups, seed=7)]
    expected = groups * exact.text_probs(language, exact.best_of_n(language, n).policy)
    seen = counts(language, drawn)
    rare = expected < 5
    assert seen[expected < 1e-9].sum() == 0 and (~rare).sum() >= 5
    seen, expected = (np.append(x[~rare], x[rare].sum()) for x in (seen, expected))
    kept = expected > 1e-9
    assert chisquare(seen[kept], expected[kept]).pvalue > 0.01
    reference = counts(language, [c.tokens for c in Reference(env).complete([agent.mdp.prompts[0]] * groups, seed=7)])
    reference = np.append(reference[~rare], reference[rare].sum())
    assert chisquare(reference[kept], expected[kept]).pvalue < 1e-9, "the test tells the reference from it"


@pytest.mark.parametrize(("n", "reward", "bound"), [(4, 1.68054, 0.63629), (16, 2.29559, 1.83509)])
def test_the_objective_in_numbers(n: int, reward: float, bound: float) -> None:
    """E[R] as DESIGN.md lists it; KL is the bound log n - (n - 1)/n, and J the lower bound that follows."""
    agent = BestOfN(gym.make("LMAlignExact-v0"), n=n)
    found = agent.evaluate(n=4800 // n)
    assert found["objective/scores"] == pytest.approx(reward, abs=4 * found["objective/scores_sem"])
    assert found["objective/kl"] == pytest.approx(bound, abs=1e-5)
    assert found["objective/j"] == pytest.approx(found["objective/scores"] - 0.5 * bound, abs=1e-5)
    assert found["objective/j"] < exact.best_of_n(agent.base.language, n).objective + 4 * found["objective/scores_sem"]
    assert exact.evaluate(agent.base.language, agent).reward == pytest.approx(reward, abs=1e-5)


@pytest.mark.parametrize(("n", "regret"), [(4, 0.1756), (16, 0.0978)])
def test_the_regret_that_its_docstring_says(n: int, regret: float) -> None:
    agent = BestOfN(gym.make("LMAlignExact-v0"), n=n)
    assert exact.evaluate(agent.base.language, agent).regret == pytest.approx(regret, abs=5e-5)


def test_the_best_is_kept_and_the_first_of_equals() -> None:
    """One prompt, its n texts as the reference draws them: the best by the judge, in its first place."""
    agent = BestOfN(environment(problem()), n=8)
    prompts = agent.mdp.prompts[:3]
    drawn = Reference(environment(problem())).complete([p for p in prompts for _ in range(8)], seed=3)
    for k, best in enumerate(agent.complete(prompts, seed=3)):
        scores = [agent.mdp.reference.decode(c.tokens).count("a") for c in drawn[8 * k : 8 * k + 8]]
        first = drawn[8 * k + scores.index(max(scores))]
        assert best.tokens == first.tokens and torch.equal(best.logprobs, first.logprobs)
        assert best.prompt is prompts[k]
    texts = agent.generate([p.text for p in prompts], seed=3)
    assert texts == [agent.mdp.reference.decode(c.tokens) for c in agent.complete(prompts, seed=3)]


def test_learning_measures_and_trains_nothing(tmp_path: Path) -> None:
    """Every text of every group is counted; draws differ from update to update; a resumed run is the unbroken one."""

    def fresh(seed: int = 0) -> BestOfN:
        return BestOfN(environment(problem()), n=4, batch_size=32, seed=seed)

    whole, broken = fresh(), fresh()
    before = whole.policy.lm.fingerprint()
    logs = exact_runs.learn(whole, 600)
    assert whole.policy.lm.fingerprint() == before == whole.mdp.reference.fingerprint() and not whole.params
    assert whole.episodes == 32 * whole.updates and whole.tokens > 4 * 8 * whole.updates
    assert {m for m in logs[0] if not m.startswith("reward/")} <= set(METRICS)
    assert not {"objective/kl_k1", "objective/entropy", "objective/rlhf_reward"} & set(logs[0])
    assert len({m["objective/scores"] for m in logs}) > 1
    assert exact_runs.learn(fresh(), 600) == logs and exact_runs.learn(fresh(1), 600)[1:] != logs[: len(logs) - 1]
    broken.learn(600, out=tmp_path, callback=lambda agent, _: agent.updates < 1)
    taken = BestOfN.load(tmp_path, environment(problem()))
    assert exact_runs.learn(taken, 600, resume=True) == logs[1:] and len(logs) > 1
    assert (tmp_path / "samples.jsonl").read_text()


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="n expected at least 1 text a prompt, got 0"):
        BestOfN(environment(problem()), n=0)
    agent = BestOfN(environment(problem()), n=2)
    with pytest.raises(ValueError, match="greedy would make them all the same"):
        agent.generate(["a"], greedy=True)
    with pytest.raises(ValueError, match=r"chooses among whole texts, not tokens: use generate\(prompts\)"):
        agent.predict({})
    long = BestOfN(gym.make("LMAlignExactLong-v0"), n=2)
    with pytest.raises(ValueError, match="expected states='prefixes'"):
        long.exact_policy(long.base.language)


@pytest.mark.filterwarnings("ignore:the environment is wrapped")
def test_a_wrapper_is_refused() -> None:
    with pytest.raises(ValueError, match="it expected an environment without wrappers"):
        BestOfN(gym.wrappers.TransformReward(environment(problem()), lambda r: -r), n=2)
