"""Whole texts from steps, by hand on small arrays, and by stepping the vector environment in every autoreset mode."""

from typing import Any

import numpy as np
import pytest
import torch
from ppo_runs import problem

from lm_gym import kl
from lm_gym.cached_lm import CachedLM
from lm_gym.measures import distinct
from lm_gym.rollout import Rollout
from lm_gym.vector_env import LMAlignVectorEnv


def observation(*rows: list[int]) -> dict[str, Any]:
    """Left-padded to 6 with 0; ids may be 0 too, the mask tells."""
    return {
        "input_ids": np.array([[0] * (6 - len(r)) + r for r in rows]),
        "attention_mask": np.array([[0] * (6 - len(r)) + [1] * len(r) for r in rows]),
    }


# Row 0 is inside a text when the rollout begins (prompt [7], written [1]); it ends at step 1; a step resets it; a new
# text begins at step 3. Row 1 begins a text, truncated at step 1, then another one, which the edge cuts off.
OBSERVATIONS = [
    observation([7, 1], [8, 9]),
    observation([7, 1, 2], [8, 9, 3]),
    observation([7, 1, 2, 5], [6]),
    observation([8], [6, 4]),
]
ARRAYS: dict[str, Any] = {
    "actions": [[2, 3], [5, 4], [0, 4], [1, 1]],
    "rewards": [[0.1, 0.2], [0.3, 0.4], [9.0, 0.6], [0.7, 0.8]],
    "terminated": [[False, False], [True, False], [False, False], [False, False]],
    "logprobs": [[-1.0, -2.0], [-3.0, -4.0], [-9.0, -6.0], [-7.0, -8.0]],
}
MORE: dict[str, Any] = {
    "truncated": [[False, False], [False, True], [False, False], [False, False]],
    "valid": [[True, True], [True, True], [False, True], [True, True]],
    "values": [[1.0, 2.0], [3.0, 4.0], [99.0, 6.0], [7.0, 8.0]],
    "last_values": [10.0, 20.0],
}


def test_texts_by_hand() -> None:
    r = Rollout.from_steps(OBSERVATIONS, **ARRAYS, **MORE, final_values=[[0, 0], [0, 30.0], [0, 0], [0, 0]], pad_id=0)
    assert r.finish_reasons == ["end", "cut", "cut", "cut"]
    assert r.input_ids.tolist() == [[7, 1, 2, 5], [0, 8, 1, 0], [8, 9, 3, 4], [0, 6, 4, 1]]
    assert r.attention_mask.tolist() == [[1, 1, 1, 1], [0, 1, 1, 0], [1, 1, 1, 1], [0, 1, 1, 1]]
    assert r.response_mask.tolist() == [[True, True], [True, False], [True, True], [True, True]]
    assert r.lengths.tolist() == [2, 1, 2, 2]
    assert r.tokens.tolist() == [[2, 5], [1, 0], [3, 4], [4, 1]]
    torch.testing.assert_close(r.logprobs, torch.tensor([[-1.0, -3.0], [-7.0, 0.0], [-2.0, -4.0], [-6.0, -8.0]]))
    torch.testing.assert_close(r.rewards, torch.tensor([[0.1, 0.3], [0.7, 0.0], [0.2, 0.4], [0.6, 0.8]]))
    torch.testing.assert_close(r.values, torch.tensor([[1.0, 3.0], [7.0, 0.0], [2.0, 4.0], [6.0, 8.0]]))
    assert r.bootstrap.tolist() == [0.0, 10.0, 30.0, 20.0]


def test_without_values_of_its_end_a_cut_text_bootstraps_from_0() -> None:
    more = {k: v for k, v in MORE.items() if k != "last_values"}
    assert Rollout.from_steps(OBSERVATIONS, **ARRAYS, **more).bootstrap.tolist() == [0.0] * 4
    # truncated in the last step: the observation after it is another text's, and its value is not this one's
    late = {**MORE, "truncated": [[False, False]] * 3 + [[True, False]]}
    assert Rollout.from_steps(OBSERVATIONS, **ARRAYS, **late).bootstrap.tolist() == [0.0, 0.0, 20.0]


def test_top_k_actions_are_looked_up_among_their_choices() -> None:
    allowed = np.arange(4 * 2 * 3).reshape(4, 2, 3)
    arrays = {**ARRAYS, "actions": [[0, 1], [2, 0], [0, 1], [1, 2]]}
    r = Rollout.from_steps(OBSERVATIONS, **arrays, **MORE, allowed=allowed)
    assert r.tokens[0].tolist() == [0, 8] and r.tokens[2].tolist() == [4, 9]
    assert r.allowed[0].tolist() == [[0, 1, 2], [6, 7, 8]] and r.allowed[1, 1].tolist() == [0, 0, 0]
    named = Rollout.from_steps(OBSERVATIONS, **arrays, **MORE, allowed=allowed, tokens=ARRAYS["actions"])
    assert named.tokens[0].tolist() == [2, 5]


@pytest.mark.parametrize("key", ["rewards", "terminated", "logprobs", "values", "truncated", "valid", "last_values"])
def test_shapes_are_checked(key: str) -> None:
    arrays: dict[str, Any] = {**ARRAYS, **MORE}
    arrays[key] = arrays[key][:-1]
    with pytest.raises(ValueError, match=f"from_steps expected {key} of"):
        Rollout.from_steps(OBSERVATIONS, **arrays)
    with pytest.raises(ValueError, match="expected 4 observations"):
        Rollout.from_steps(OBSERVATIONS[:3], **ARRAYS)
    with pytest.raises(ValueError, match="at least one valid step"):
        Rollout.from_steps(OBSERVATIONS, **ARRAYS, valid=np.zeros((4, 2), bool))


def test_select_cuts_what_all_have_as_padding() -> None:
    r = Rollout.from_steps(OBSERVATIONS, **ARRAYS, **MORE)
    one = r.select(torch.tensor([1]))
    assert one.input_ids.tolist() == [[8, 1]] and one.rewards.tolist() == [[pytest.approx(0.7)]]
    assert one.bootstrap.tolist() == [10.0] and one.finish_reasons == ["cut"]
    two = r.select(torch.tensor([3, 0]))
    assert two.input_ids.tolist() == [[0, 6, 4, 1], [7, 1, 2, 5]] and len(two) == 2


def test_distinct_n_grams_by_hand() -> None:
    """Texts 5 5 5 6, 5 5 and 7: unigrams 5 6 7 of 7; bigrams 55 56 of 4; no text crosses into the next."""
    mask = torch.tensor([[True] * 4, [True, True, False, False], [True, False, False, False]])
    ids, zeros = torch.tensor([[1, 5, 5, 5, 6], [1, 5, 5, 0, 0], [1, 7, 0, 0, 0]]), torch.zeros(3, 4)
    r = Rollout(ids, torch.ones_like(ids), mask, zeros, zeros)
    assert [distinct(r, n) for n in (1, 2, 4, 5)] == [3 / 7, 2 / 4, 1.0, 0.0]


@pytest.mark.parametrize("mode", ["SameStep", "NextStep"])
@pytest.mark.parametrize("options", [{}, {"top_k": 4}, {"min_new_tokens": 3}], ids=str)
def test_steps_of_the_vector_environment_become_the_texts_it_judged(mode: str, options: dict[str, Any]) -> None:
    mdp = problem(**options)
    view = {"action_mode": "full" if mdp.top_k is None else "top_k", "top_k": mdp.top_k}
    env = LMAlignVectorEnv(3, mdp=mdp, autoreset_mode=mode, **view)
    policy = CachedLM(mdp.initial_policy(), seed=5)
    names = ("obs", "actions", "rewards", "terminated", "logprobs", "valid", "refs", "allowed", "no_eos")
    seen: dict[str, list[Any]] = {k: [] for k in names}
    obs, info = env.reset(seed=0)
    texts = []
    for _ in range(40):
        choices = info.get("action_tokens")
        actions, logprobs, _ = policy.act(obs, action_mask=info["action_mask"], action_tokens=choices)
        age = np.array([len(t) for t in env.stepper.tokens])
        after, rewards, terminated, _, infos = env.step(actions)
        now = (obs, actions, rewards, terminated, logprobs, infos["valid"], infos["ref_logprob"], choices)
        for key, x in zip(names, (*now, age < mdp.min_new_tokens), strict=True):
            seen[key].append(x)
        final = infos.get("final_info", infos)
        for i in np.flatnonzero(terminated):
            texts.append((final["text"][i], float(final["score"][i])))
        obs, info = after, infos
    r = Rollout.from_steps(
        seen["obs"],
        seen["actions"],
        seen["rewards"],
        seen["terminated"],
        seen["logprobs"],
        valid=seen["valid"],
        ref_logprobs=seen["refs"],
        allowed=None if mdp.top_k is None else seen["allowed"],
        no_eos=seen["no_eos"] if mdp.min_new_tokens else None,
        pad_id=mdp.reference.pad_id,
    )
    made = []
    for i, reason in enumerate(r.finish_reasons):
        n = int(r.lengths[i])
        if reason == "end":
            made.append(
                (mdp.reference.decode(r.tokens[i, :n].tolist()), float((r.rewards[i] - 0.1 * r.ref_logprobs[i]).sum()))
            )
    assert sorted(t for t, _ in made) == sorted(t for t, _ in texts) and len(made) > 8
    assert sorted(s for _, s in made) == pytest.approx(sorted(s for _, s in texts), abs=1e-4)
    assert r.finish_reasons.count("cut") <= 3
    # the untrained policy is the reference: shaped rewards are the scores alone, unless the choice was restricted
    shaped = kl.shape(r.rewards, r.logprobs, 0.1)
    if not options:
        ended = torch.tensor([x == "end" for x in r.finish_reasons])
        want = torch.tensor([t.count("a") for t, _ in made]).float()
        torch.testing.assert_close(shaped.sum(-1)[ended], want, atol=1e-3, rtol=0)
