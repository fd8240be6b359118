"""The cached policy against whole forwards, and how little it computes."""

from typing import Any

import numpy as np
import pytest
import torch
from ppo_runs import environment, problem
from small_models import small_lm

from lm_gym.adam import Adam32
from lm_gym.cached_lm import CachedLM, masked, reference_agent
from lm_gym.vector_env import LMAlignVectorEnv


def whole(lm: Any, obs: Any, temperature: float = 1.0) -> torch.Tensor:
    """(N, V) log-probs by one forward a row, without padding."""
    rows = []
    for ids, mask in zip(np.atleast_2d(obs["input_ids"]), np.atleast_2d(obs["attention_mask"]), strict=True):
        with torch.no_grad():
            rows.append(lm.model(input_ids=torch.tensor(ids[mask.astype(bool)])[None]).logits[0, -1] / temperature)
    return torch.log_softmax(torch.stack(rows), -1)


@pytest.mark.parametrize("kind", ["llama", "gqa", "gpt2"])
@pytest.mark.parametrize("mode", ["SameStep", "NextStep"])
def test_it_equals_whole_forwards_through_random_episodes(kind: str, mode: str) -> None:
    lm = small_lm(kind)
    env = LMAlignVectorEnv(5, mdp=problem(kind), autoreset_mode=mode)
    head = torch.nn.Linear(32, 1)
    policy = CachedLM(lm, value_head=head, temperature=0.8)
    obs, _ = env.reset(seed=0)
    for _ in range(14):
        logits, hidden = policy.logits(obs)
        want = whole(lm, obs, 0.8)
        torch.testing.assert_close(torch.log_softmax(logits, -1), want, atol=1e-4, rtol=0)
        actions, logprobs, values = policy.act(obs)
        np.testing.assert_allclose(logprobs, want[torch.arange(5), torch.tensor(actions)].numpy(), atol=1e-4)
        np.testing.assert_allclose(values, head(hidden)[:, 0].detach().numpy(), atol=1e-4)
        obs, *_ = env.step(actions)


def test_single_observations_give_single_actions() -> None:
    env = environment(problem(top_k=3, min_new_tokens=4))
    policy = CachedLM(small_lm())
    obs, info = env.reset(seed=0)
    for _ in range(20):
        action, logprob, value = policy.act(obs, action_mask=info["action_mask"], action_tokens=info["action_tokens"])
        assert np.ndim(action) == 0 and value is None and info["action_mask"][action] == 1
        logp = whole(env.mdp.reference, obs)[0][torch.tensor(info["action_tokens"])]
        logp = torch.log_softmax(logp.masked_fill(torch.tensor(info["action_mask"]) == 0, -torch.inf), -1)
        assert float(logprob) == pytest.approx(float(logp[action]), abs=1e-4)
        greedy = policy.act(
            obs, action_mask=info["action_mask"], action_tokens=info["action_tokens"], deterministic=True
        )
        assert int(greedy[0]) == int(logp.argmax())
        obs, _, ended, _, info = env.step(int(action))
        if ended:
            obs, info = env.reset()


def test_a_prefix_is_computed_once() -> None:
    """Tokens that go through the trunk: every prompt's once, then one a row and step."""
    lm = small_lm()
    policy = CachedLM(lm)
    env = LMAlignVectorEnv(4, mdp=problem(min_new_tokens=8))
    obs, info = env.reset(seed=0)
    made: list[int] = []
    policy.act(obs)
    rows = policy._rows
    insert, step = rows.insert, rows.step
    rows.insert = lambda i, p: made.append(sum(map(len, p))) or insert(i, p)
    rows.step = lambda t: made.append(len(t)) or step(t)
    for _ in range(7):
        actions, *_ = policy.act(obs, action_mask=info["action_mask"])
        obs, *_, info = env.step(actions)
    assert policy._rows is rows
    assert made[1:] == [4] * 6, "one token a row and step"


@pytest.mark.parametrize("fused", [True, False])
def test_changed_weights_are_noticed(fused: bool) -> None:
    lm = small_lm()
    params = dict(lm.named_parameters())
    optimizer: Any = Adam32(params, lr=0.05) if fused else torch.optim.SGD(params.values(), lr=0.5)
    policy = CachedLM(lm)
    env = LMAlignVectorEnv(3, mdp=problem(min_new_tokens=8))
    obs, info = env.reset(seed=0)
    for _ in range(4):
        actions, *_ = policy.act(obs, action_mask=info["action_mask"])
        obs, *_, info = env.step(actions)
        before = policy.logits(obs)[0]
        lm.model(input_ids=torch.tensor([[3, 4, 5]])).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        after = policy.logits(obs)[0]
        torch.testing.assert_close(torch.log_softmax(after, -1), whole(lm, obs), atol=1e-4, rtol=0)
        assert float((after - before).abs().max()) > 1e-3


def test_a_fused_optimizers_step_in_the_middle_of_a_text_is_noticed() -> None:
    """Fused Adam leaves the version of the tensors as it was; rows that grew by a token would go on in old weights."""
    lm = small_lm()
    optimizer = torch.optim.AdamW(lm.parameters(), lr=0.05, fused=True)
    policy, env = CachedLM(lm), LMAlignVectorEnv(3, mdp=problem(min_new_tokens=8))
    obs, info = env.reset(seed=0)
    for _ in range(3):
        actions, *_ = policy.act(obs, action_mask=info["action_mask"])
        lm.model(input_ids=torch.tensor([[3, 4, 5]])).logits.square().mean().backward()
        optimizer.step()
        obs, *_, info = env.step(actions)
        torch.testing.assert_close(torch.log_softmax(policy.logits(obs)[0], -1), whole(lm, obs), atol=1e-4, rtol=0)


def test_one_mask_for_all_rows_is_as_good_as_one_each() -> None:
    logits = torch.arange(12.0).reshape(3, 4)
    for row in ([1, 1, 1, 1], [0, 1, 1, 0]):
        shared = np.broadcast_to(np.array(row, dtype=np.int8), (3, 4))
        out = masked(logits, shared)
        assert torch.equal(out, masked(logits, shared.copy()))
        assert torch.isinf(out).any(0).tolist() == [not allowed for allowed in row]


def test_the_same_seed_draws_the_same_and_observations_are_checked() -> None:
    env = LMAlignVectorEnv(4, mdp=problem())
    obs, _ = env.reset(seed=0)
    one, two, other = (CachedLM(small_lm(), seed=s).act(obs)[0] for s in (1, 1, 2))
    assert one.tolist() == two.tolist() != other.tolist()
    with pytest.raises(ValueError, match="observations of observation_mode='tokens'"):
        CachedLM(small_lm()).act(np.zeros(3))


@pytest.mark.parametrize("options", [{}, {"top_k": 4}, {"min_new_tokens": 8}], ids=str)
def test_the_reference_agent_samples_the_reference(options: dict[str, Any]) -> None:
    mdp = problem(**options)
    view = {"action_mode": "full" if mdp.top_k is None else "top_k", "top_k": mdp.top_k}
    env = LMAlignVectorEnv(400, mdp=mdp, **view)
    obs, info = env.reset(seed=0, options={"prompt_id": 0})
    actions, _ = reference_agent(env, seed=3).predict(obs)
    tokens = actions if mdp.top_k is None else info["action_tokens"][np.arange(400), actions]
    logp = whole(mdp.reference, {k: v[:1] for k, v in obs.items()})[0]
    allowed = torch.zeros(len(logp), dtype=torch.bool)
    choices = info["action_tokens"][0] if mdp.top_k else np.arange(len(logp))
    allowed[torch.tensor(choices[info["action_mask"][0] == 1])] = True
    want = torch.softmax(logp.masked_fill(~allowed, -torch.inf), -1).numpy()
    share = np.bincount(tokens, minlength=len(want)) / 400
    assert (np.abs(share - want) < 4 * np.sqrt(want * (1 - want) / 400) + 1e-9).all()
