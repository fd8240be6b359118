"""What a wrapper returns is what is trained on, and the two views pay one reward."""

import re
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ppo_runs import environment, ppo, problem, train

from lm_gym import collect
from lm_gym.decoding import Completion
from lm_gym.vector_env import LMAlignVectorEnv

WRAPPED = "ignore:the environment is wrapped"
Double = lambda env: gym.wrappers.TransformReward(env, lambda r: 2 * r)
VectorDouble = lambda env: gym.wrappers.vector.TransformReward(env, lambda r: 2 * r)
Same = lambda env: gym.wrappers.TransformReward(env, lambda r: r)
PROBLEMS: list[dict[str, Any]] = [
    {},
    {"top_k": 4},
    {"min_new_tokens": 3},
    {"stop": ["b"], "missing_eos_penalty": 1.5},
    {"temperature": 0.7},
    {"top_k": 4, "min_new_tokens": 3, "temperature": 1.3, "kind": "gpt2"},
]


def vector(mdp: Any, n: int = 16) -> LMAlignVectorEnv:
    return LMAlignVectorEnv(n, mdp=mdp, action_mode="full" if mdp.top_k is None else "top_k", top_k=mdp.top_k)


@pytest.mark.filterwarnings(WRAPPED)
@pytest.mark.parametrize("options", PROBLEMS, ids=str)
@pytest.mark.parametrize("config", [{}, {"kl_in": "loss"}, {"kl_in": "entropy"}], ids=str)
def test_stepped_rewards_equal_the_batched_views_for_the_same_tokens(
    options: dict[str, Any], config: dict[str, Any]
) -> None:
    """Texts stepped through an identity wrapper, scored again in one batch: rewards, log-probs and values agree."""
    mdp = problem(**options)
    agent = ppo(VectorSame(vector(mdp)), batch_size=32, kl_coef=0.4, whiten_advantages=False, **config)
    assert agent.wrappers == ["TransformReward"]
    torch.nn.init.normal_(agent.policy.value_head.weight)
    with torch.no_grad():
        for p in agent.policy.lm.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    stepped, metrics = agent.collect()
    ids = {tuple(p.token_ids): p for p in mdp.prompts}
    completions = []
    for i in range(32):
        n, keep = int(stepped.lengths[i]), stepped.attention_mask[i].bool()
        whole = stepped.input_ids[i][keep].tolist()
        prompt = whole[: len(whole) - n]
        completions.append(
            Completion(
                prompt, whole[-n:], stepped.finish_reasons[i], stepped.logprobs[i, :n], prompt=ids[tuple(prompt)]
            )
        )
    scored = mdp.score(completions, kl_mode=agent.kl_control.reward_mode, kl_coef=0.4)
    torch.testing.assert_close(stepped.rewards, scored.rewards, atol=1e-4, rtol=0)
    torch.testing.assert_close(stepped.ref_logprobs, scored.ref_logprobs, atol=1e-4, rtol=0)
    torch.testing.assert_close(stepped.scores, scored.scores, atol=1e-5, rtol=0)
    assert stepped.texts == scored.texts
    with torch.no_grad():
        _, values = agent.policy.at_tokens(stepped.input_ids, stepped.attention_mask, stepped.response_mask)
    torch.testing.assert_close(stepped.values[stepped.response_mask], values, atol=1e-3, rtol=0)
    assert not stepped.values[~stepped.response_mask].any()
    assert agent.update(stepped)["val/first_ratio_error"] < 1e-4
    assert metrics["objective/kl"] > 0.01


def VectorSame(env: Any) -> Any:
    return gym.wrappers.vector.TransformReward(env, lambda r: r)


@pytest.mark.filterwarnings(WRAPPED)
@pytest.mark.parametrize("many", [False, True], ids=["single", "vector"])
def test_a_wrapped_environments_reward_is_what_is_trained_on(many: bool) -> None:
    mdp = problem()
    env = VectorDouble(vector(mdp)) if many else Double(environment(mdp))
    agent = ppo(env, batch_size=16, minibatch_size=16, kl_coef=0.4)
    with torch.no_grad():
        agent.policy.lm.model.lm_head.weight.mul_(1.1)
    rollout, _ = agent.collect()
    k1 = (rollout.logprobs - rollout.ref_logprobs) * rollout.response_mask
    want = -0.4 * k1
    want[torch.arange(16), rollout.lengths - 1] += rollout.scores
    torch.testing.assert_close(rollout.rewards, 2 * want, atol=1e-4, rtol=0)
    assert float(k1.abs().sum()) > 1.0
    assert agent.base.kl_mode == "reference" and agent.base.kl_coef == 0.1, "set back after the rollout"


@pytest.mark.filterwarnings(WRAPPED)
def test_wrapped_environments_are_learnt_as_wrapped() -> None:
    """The same problem plain, through an identity wrapper, and through one that pays for the opposite."""
    plain = train(problem())
    wrapped = train(problem(), wrap=lambda env: VectorSame(vector(env.mdp, 32)))
    turned = train(problem(), wrap=lambda env: gym.wrappers.vector.TransformReward(vector(env.mdp, 32), lambda r: -r))
    assert abs(plain.after - wrapped.after) < 1.0 and wrapped.after > 3.0
    assert turned.after < 0.2, "no letter 'a' where it costs"


def test_the_warning_comes_once_and_names_the_wrapper() -> None:
    with pytest.warns(UserWarning, match="wrapped in TransformReward, which may change rewards") as found:
        ppo(Double(environment(problem())), batch_size=8, minibatch_size=8).learn(30)
    assert len([w for w in found if "wrapped" in str(w.message)]) == 1


def test_harmless_wrappers_keep_the_batched_view() -> None:
    env: Any = environment(problem())
    for wrapper in (
        gym.wrappers.PassiveEnvChecker,
        gym.wrappers.OrderEnforcing,
        gym.wrappers.RecordEpisodeStatistics,
        lambda e: gym.wrappers.TimeLimit(e, 100_000),
    ):
        env = wrapper(env)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ppo(env).wrappers == []
        assert ppo(gym.wrappers.vector.RecordEpisodeStatistics(vector(problem()))).wrappers == []
        made = gym.make("LMAlignExact-v0")
        assert ppo(made).wrappers == []

    class Pays(gym.wrappers.RecordEpisodeStatistics):  # a subclass may do anything
        pass

    with pytest.warns(UserWarning, match="wrapped in Pays"):
        assert ppo(Pays(environment(problem()))).wrappers == ["Pays"]


@pytest.mark.filterwarnings(WRAPPED)
def test_a_time_limit_below_the_length_cuts_texts_that_bootstrap() -> None:
    mdp = problem(min_new_tokens=4)
    agent = ppo(gym.wrappers.TimeLimit(environment(mdp), 3), batch_size=8, minibatch_size=8, lam=1.0, kl_coef=0.0)
    assert agent.wrappers == ["TimeLimit"]
    torch.nn.init.normal_(agent.policy.value_head.weight)
    rollout, metrics = agent.collect()
    assert rollout.finish_reasons == ["cut"] * 8 and rollout.lengths.tolist() == [3] * 8
    assert metrics["length/ended_share"] == 0.0
    for i in range(8):
        ids = rollout.input_ids[i][rollout.attention_mask[i].bool()]
        with torch.no_grad():
            hidden = agent.policy.lm.trunk(ids[None], torch.ones_like(ids)[None])[0, -1]
            after = agent.policy.value(hidden)
        assert float(rollout.bootstrap[i]) == pytest.approx(float(after), abs=1e-4)
    agent.config.whiten_advantages = False
    _, returns = agent.advantages(rollout)
    torch.testing.assert_close(returns[:, 0], rollout.bootstrap, atol=1e-4, rtol=0)
    separate = ppo(gym.wrappers.TimeLimit(environment(mdp), 3), batch_size=8, minibatch_size=8, critic="separate")
    torch.nn.init.normal_(separate.policy.critic.head.weight)
    assert separate.collect()[0].bootstrap.abs().min() > 0


@pytest.mark.filterwarnings(WRAPPED)
def test_wrappers_that_break_the_text_are_refused() -> None:
    class Other(gym.ActionWrapper):
        def action(self, action: int) -> int:
            return 3 if action != 3 else 4

    with pytest.raises(ValueError, match="a wrapper changed the action in row 0"):
        ppo(Other(environment(problem(min_new_tokens=4))), batch_size=8, minibatch_size=8).collect()

    class Cuts(gym.vector.VectorWrapper):
        def step(self, actions: Any) -> Any:
            obs, rewards, terminated, truncated, infos = self.env.step(actions)
            return obs, rewards, terminated, np.ones_like(truncated), infos

    with pytest.raises(ValueError, match="a wrapper ended the text of row 0, but the environment inside goes on"):
        ppo(Cuts(vector(problem(min_new_tokens=4))), batch_size=8, minibatch_size=8).collect()


@pytest.mark.filterwarnings(WRAPPED)
def test_environments_that_cannot_be_trained_on_are_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("expected an LM Gym environment (gym.make('LMAlign-v0')")):
        ppo(gym.make("CartPole-v1"))
    late = VectorSame(LMAlignVectorEnv(4, mdp=problem(), autoreset_mode="NextStep"))
    with pytest.raises(ValueError, match="same-step autoreset"):
        ppo(late, batch_size=8, minibatch_size=8).collect()
    with pytest.raises(ValueError, match="without wrappers"):
        ppo(Double(environment(problem())), normalize_scores=16)


@pytest.mark.filterwarnings(WRAPPED)
def test_stepped_texts_do_not_favour_short_ones() -> None:
    """Mean length of stepped texts against the engine's, on 400 of each: within three standard errors."""
    mdp = problem()
    stepped = ppo(VectorSame(vector(mdp, 50)), batch_size=400).collect()[0].lengths.float()
    batched = ppo(environment(mdp), batch_size=400).collect()[0].lengths.float()
    error = float((stepped.var() / 400 + batched.var() / 400).sqrt())
    assert abs(float(stepped.mean() - batched.mean())) < 3 * error


def test_unwrap_finds_the_environment() -> None:
    env = environment(problem())
    base, names = collect.unwrap(Same(Double(env)))
    assert base is env and names == ["TransformReward", "TransformReward"]
