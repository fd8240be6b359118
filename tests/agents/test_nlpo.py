"""NLPO: the mask by hand, the masked distribution, the lagged copy, the end point, the same numbers again."""

from pathlib import Path
from typing import Any

import exact_runs
import gymnasium as gym
import numpy as np
import pytest
import torch
from ppo_runs import environment, problem

from lm_gym import exact
from lm_gym.agents import NLPO, PPO
from lm_gym.decoding import top_p_ids
from lm_gym.tracking import METRICS


def logits(*probs: float) -> torch.Tensor:
    return torch.tensor([probs]).log()


def test_the_smallest_set_that_has_the_mass_by_hand() -> None:
    assert top_p_ids(logits(0.1, 0.5, 0.25, 0.15), 0.5).tolist() == [[1]]
    assert top_p_ids(logits(0.1, 0.5, 0.25, 0.15), 0.51).tolist() == [[1, 2]]
    assert top_p_ids(logits(0.1, 0.5, 0.25, 0.15), 0.8).tolist() == [[1, 2, 3]]
    assert top_p_ids(logits(0.1, 0.5, 0.25, 0.15), 1.0).tolist() == [[1, 2, 3, 0]]
    assert top_p_ids(logits(0.25, 0.25, 0.25, 0.25), 0.6).tolist() == [[0, 1, 2]], "of equals the lower ids"
    assert top_p_ids(logits(0.0, 1.0, 0.0), 0.9).tolist() == [[1]], "a set of one"
    assert top_p_ids(logits(0.0, 0.5, 0.5), 1.0).tolist() == [[1, 2]], "what cannot be drawn is in no set"


def test_sets_of_different_sizes_are_filled_up_with_the_likeliest() -> None:
    both = torch.cat([logits(0.7, 0.1, 0.1, 0.1), logits(0.1, 0.2, 0.3, 0.4)])
    assert top_p_ids(both, 0.6).tolist() == [[0, 0], [3, 2]]


def test_a_long_tail_stays_whole_at_p_1() -> None:
    """Rounding brings the sum of the likelier ones to 1 in front of it."""
    steep = 9 * torch.randn(3, 5000, generator=torch.Generator().manual_seed(0))
    assert top_p_ids(steep, 1.0).sort(-1).values.tolist() == [list(range(5000))] * 3


def apart(agent: Any, size: float = 0.3) -> Any:
    """The policy moved away from its lagged copy."""
    noise = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in agent.policy.lm.parameters():
            p.add_(size * p.std() * torch.randn(p.shape, generator=noise))
    return agent


@pytest.mark.parametrize("options", [{}, {"min_new_tokens": 3, "temperature": 0.7}], ids=["plain", "min_new_tokens"])
def test_texts_and_log_probs_are_of_the_masked_distribution(options: dict[str, Any]) -> None:
    """Recomputed text by text from transformers' own logits: the set of the lagged copy, π over it, EOS kept out."""
    agent = apart(NLPO(environment(problem(**options)), batch_size=24, minibatch_size=24, top_p=0.8))
    rollout, metrics = agent.collect()
    t = options.get("temperature", 1.0)
    sizes, smaller = [], 0
    for i, (prompt, tokens) in enumerate(zip(*rollout.token_lists(), strict=True)):
        ids = torch.tensor([[*prompt, *tokens]])
        with torch.no_grad():
            policy, lagged = (
                (lm.model(input_ids=ids).logits[0, len(prompt) - 1 : -1] / t).double().numpy()
                for lm in (agent.policy.lm, agent.lagged)
            )
        for step, token in enumerate(tokens):
            if step < options.get("min_new_tokens", 0):
                lagged[step, 2] = policy[step, 2] = -np.inf
            guide = np.exp(lagged[step] - lagged[step].max())
            guide /= guide.sum()
            chosen: list[int] = []
            for a in np.argsort(-guide):
                if guide[chosen].sum() < 0.8:
                    chosen.append(int(a))
            assert token in chosen
            p = np.exp(policy[step])
            want = np.log(p[token] / p[chosen].sum())
            assert float(rollout.logprobs[i, step]) == pytest.approx(want, abs=1e-4)
            sizes.append(len(chosen))
            smaller += p[chosen].sum() < 0.999 * p.sum()
    assert smaller > len(sizes) / 2 and len(set(sizes)) > 2
    out = agent.update(rollout)
    assert out["val/first_ratio_error"] < 1e-4
    assert out["nlpo/choices"] == pytest.approx(np.mean(sizes), abs=1e-4)
    assert set(metrics) | set(out) <= set(METRICS)


def test_kl_of_the_masked_policy_is_to_the_whole_reference() -> None:
    """Exact per-state KL on the worked language: with the policy the reference, it is -log of the mass kept."""
    agent = NLPO(gym.make("LMAlignExact-v0"), top_p=0.65, batch_size=256)
    language = agent.base.language
    mask, ref = agent.mask(language), exact.reference_policy(language)
    np.testing.assert_allclose(agent.exact_policy(language), np.where(mask, ref, 0) / (ref * mask).sum(1)[:, None])
    assert mask.sum(1).min() < 4
    _, metrics = agent.collect()
    assert metrics["objective/kl"] == pytest.approx(exact.evaluate(language, agent).kl, abs=0.1)
    assert metrics["objective/kl"] > 0.1


def test_the_lagged_copy_moves_every_so_many_updates_and_not_between() -> None:
    agent = NLPO(environment(problem()), batch_size=8, minibatch_size=8, epochs=1, mask_every=3, learning_rate=3e-3)
    policy, lagged = [agent.policy.lm.fingerprint()], [agent.lagged.fingerprint()]
    assert policy == lagged

    def watch(agent: Any, metrics: dict[str, float]) -> bool:
        policy.append(agent.policy.lm.fingerprint())
        lagged.append(agent.lagged.fingerprint())
        return len(policy) < 8

    agent.learn(10_000, callback=watch)
    assert len(set(policy)) == 8
    assert lagged == [policy[i // 3 * 3] for i in range(8)]


def test_it_ends_at_the_best_policy_under_its_mask() -> None:
    language, agent = exact_runs.train(NLPO, 15_000)
    end = exact.optimal_policy(language, mask=agent.mask(language))
    assert exact.kl_between(language, agent, end) < 0.02
    assert exact.kl_between(language, exact.reference_policy(language), exact.optimal_policy(language)) > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("seed", exact_runs.SEEDS)
def test_the_end_point_to_the_digits(seed: int) -> None:
    language, agent = exact_runs.train(NLPO, exact_runs.TOKENS, seed=seed)
    mask = agent.mask(language)
    end = exact.optimal_policy(language, mask=mask)
    assert exact.kl_between(language, agent, end) < 0.005
    assert exact.evaluate(language, agent).regret == pytest.approx(exact.evaluate(language, end).regret, abs=0.002)


def test_p_1_is_ppo() -> None:
    def run(kind: Any, **more: Any) -> Any:
        return exact_runs.learn(kind(gym.make("LMAlignExact-v0"), batch_size=64, **more), 800)

    for ours, theirs in zip(run(NLPO, top_p=1.0), run(PPO), strict=True):
        assert ours.pop("nlpo/choices") == 4.0
        assert ours == pytest.approx(theirs, abs=1e-5)


def test_the_same_seed_and_a_loaded_checkpoint_give_the_same_numbers(tmp_path: Path) -> None:
    """Saved after 2 updates with a mask from the start, which 3 make anew: the checkpoint must hold the old copy."""
    exact_runs.assert_same_seed_same_numbers(NLPO, top_p=0.8, mask_every=3)
    exact_runs.assert_goes_on_after_loading(NLPO, tmp_path, top_p=0.8, mask_every=3)
    taken = NLPO.load(tmp_path, gym.make("LMAlignExact-v0"))
    torch.testing.assert_close(taken.lagged.logits, taken.mdp.reference.logits)
    assert not torch.equal(taken.lagged.logits, taken.policy.lm.logits)
    (tmp_path / "checkpoints" / "step-2" / "lagged.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lagged\.safetensors"):
        NLPO.load(tmp_path, gym.make("LMAlignExact-v0"))


def test_predict_draws_under_the_mask() -> None:
    env = gym.make("LMAlignExact-v0")
    agent = NLPO(env, top_p=0.65)
    mask, language = agent.mask(agent.base.language), agent.base.language
    seen = set()
    for _ in range(60):
        obs, _ = env.reset()
        tokens: list[int] = []
        ended = False
        while not ended:
            action, _ = agent.predict(obs)
            assert mask[language.state(tuple(tokens)), action]
            tokens.append(action)
            obs, _, ended, _, _ = env.step(action)
        seen.add(tuple(tokens))
    assert len(seen) > 10
    held = NLPO(environment(problem(min_new_tokens=3)))
    with pytest.raises(ValueError, match=r"without min_new_tokens: use generate\(prompts\)"):
        held.predict({})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"top_p": 0.0}, "top_p expected above 0 and at most 1, got 0"),
        ({"top_p": 1.1}, "top_p expected above 0 and at most 1, got 1.1"),
        ({"mask_every": 0}, "mask_every expected at least 1 update, got 0"),
        ({"critic": "none"}, "NLPO needs values"),
    ],
)
def test_what_makes_no_sense_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        NLPO(gym.make("LMAlignExact-v0"), **config)


@pytest.mark.filterwarnings("ignore:the environment is wrapped")
def test_an_environment_that_restricts_otherwise_is_refused() -> None:
    with pytest.raises(ValueError, match="NLPO masks by its own copy: it expected an environment without top_k"):
        NLPO(environment(problem(top_k=4)))
    with pytest.raises(ValueError, match="NLPO expected an environment without wrappers"):
        NLPO(gym.wrappers.TransformReward(environment(problem()), lambda r: r))
