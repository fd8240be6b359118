"""The problem: whole texts are paid what the same tokens are paid step by step, and what a plain forward says."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from small_models import PROMPTS, Episode, letter_reward, play, small_lm, small_mdp, tokenizer
from small_models import llama as small_llama

from lm_gym.decoding import Completion, Engine
from lm_gym.env import LMAlignEnv
from lm_gym.mdp import AlignmentMDP
from lm_gym.models import TransformersLM
from lm_gym.rewards import RewardModelError

LM = small_lm("gqa")
TOLERANCE = 1e-4


def plain_logprobs(model: Any, prompt: list[int], tokens: list[int], temperature: float) -> np.ndarray:
    """log π_ref (T,) of a completion by transformers alone: one forward over prompt + completion."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    logp = torch.log_softmax(logits.double() / temperature, -1)
    return logp[torch.arange(len(tokens)), torch.tensor(tokens)].numpy()


def by_hand(episode: Episode, mdp: AlignmentMDP, kl_mode: str) -> np.ndarray:
    """The rewards (T,) of DESIGN.md's formula, worked out without the package."""
    tok = LM.tokenizer
    ref = plain_logprobs(LM.model, tok(episode.prompt)["input_ids"], episode.tokens, mdp.temperature)
    own = np.array(episode.logprobs)
    penalty = {"none": 0 * ref, "reference": mdp.kl_coef * ref, "reported": -mdp.kl_coef * (own - ref)}[kl_mode]
    text = tok.decode(episode.tokens, skip_special_tokens=True)
    ended = episode.tokens[-1] == 2 or any(s in text for s in mdp.stop)
    penalty[-1] += letter_reward([text])[0] - (0.0 if ended else mdp.missing_eos_penalty)
    return penalty


def completion(mdp: AlignmentMDP, episode: Episode) -> Completion:
    prompt = next(p for p in mdp.prompts if p.text == episode.prompt)
    reason = mdp.finish_reason(episode.tokens)
    assert reason is not None
    return Completion(prompt.token_ids, episode.tokens, reason, torch.tensor(episode.logprobs), prompt=prompt)


OPTIONS = list(itertools.product((0.0, 1.5), (1.0, 0.6), ((), ("a", "cd")), (0, 3), (None, 4), (0.0, 0.3)))


@pytest.mark.parametrize("kl_mode", ["reference", "reported", "none"])
def test_stepping_scoring_and_a_plain_forward_agree_on_every_reward(kl_mode: str) -> None:
    """For every option that changes a reward, all combinations of two values each."""
    reasons: set[str] = set()
    for seed, (penalty, temperature, stop, least, top_k, beta) in enumerate(OPTIONS):
        mdp = small_mdp(
            LM,
            missing_eos_penalty=penalty,
            temperature=temperature,
            stop=stop,
            min_new_tokens=least,
            top_k=top_k,
            kl_coef=beta,
            max_new_tokens=4,
        )
        env = LMAlignEnv(mdp=mdp, kl_mode=kl_mode, action_mode="full" if top_k is None else "top_k", top_k=top_k)
        played = play(env, 2, seed=seed)
        scored = mdp.score([completion(mdp, e) for e in played], kl_mode=kl_mode)
        for i, e in enumerate(played):
            n, last = len(e.tokens), e.infos[-1]
            batch = scored.rewards[i, :n].numpy()
            np.testing.assert_allclose(e.rewards, by_hand(e, mdp, kl_mode), atol=TOLERANCE, rtol=0)
            np.testing.assert_allclose(e.rewards, batch, atol=TOLERANCE, rtol=0)
            assert not scored.rewards[i, n:].any() and scored.response_mask[i].sum() == n
            assert last["score"] == pytest.approx(scored.scores[i].item(), abs=1e-6)
            assert last["text"] == scored.texts[i] and last["episode_tokens"] == n >= min(least, n)
            refs = [info["ref_logprob"] for info in e.infos]
            np.testing.assert_allclose(refs, scored.ref_logprobs[i, :n].numpy(), atol=TOLERANCE, rtol=0)
            parts = [info["reward/task"] + info["reward/kl_penalty"] for info in e.infos]
            np.testing.assert_allclose(parts, e.rewards, atol=1e-12)
            assert [info["reward/task"] for info in e.infos[:-1]] == [0.0] * (n - 1)
            assert last["reward/task"] == last["score"]
            reasons.add(last["finish_reason"])
    assert reasons == {"eos", "stop", "length"}


def test_kl_coef_of_the_call_overrules_the_problems() -> None:
    mdp = small_mdp(LM)
    [episode] = play(LMAlignEnv(mdp=mdp), 1)
    c = completion(mdp, episode)
    low, high = (mdp.score([c], kl_mode="reference", kl_coef=b) for b in (0.1, 0.2))
    torch.testing.assert_close(2 * low.kl_penalty, high.kl_penalty)
    torch.testing.assert_close(low.scores, high.scores)


def test_score_gives_the_references_hidden_states() -> None:
    mdp = small_mdp(LM)
    done = [completion(mdp, e) for e in play(LMAlignEnv(mdp=mdp), 4)]
    scored = mdp.score(done, hidden=True)
    assert scored.ref_hidden is not None
    for c, hidden in zip(done, scored.ref_hidden, strict=True):
        ids = torch.tensor([[*c.prompt_ids, *c.tokens]])
        with torch.no_grad():
            whole = LM.model.model(input_ids=ids).last_hidden_state[0, len(c.prompt_ids) - 1 : -1]
        torch.testing.assert_close(hidden[: len(c.tokens)], whole, atol=1e-5, rtol=0)


def test_scoring_in_small_batches_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    mdp = small_mdp(LM)
    done = [completion(mdp, e) for e in play(LMAlignEnv(mdp=mdp), 6)]
    at_once = mdp.score(done)
    monkeypatch.setattr("lm_gym.reference_pass.SCORING_TOKENS", 20)
    torch.testing.assert_close(mdp.score(done).rewards, at_once.rewards, atol=1e-5, rtol=0)


def test_what_cannot_be_scored() -> None:
    mdp = small_mdp(LM)
    [episode] = play(LMAlignEnv(mdp=mdp), 1)
    c = completion(mdp, episode)
    with pytest.raises(ValueError, match="kl_mode expected one of .* got 'exact'"):
        mdp.score([c], kl_mode="exact")
    with pytest.raises(ValueError, match="expected completions with prompt= set"):
        mdp.score([Completion(c.prompt_ids, c.tokens, c.finish_reason)])
    with pytest.raises(ValueError, match="'reported' expected completions with logprobs"):
        mdp.score([Completion(c.prompt_ids, c.tokens, c.finish_reason, prompt=c.prompt)])


def test_the_engine_writes_texts_that_the_problem_can_score() -> None:
    mdp = small_mdp(LM, stop=["ab"], top_k=5, temperature=0.8, min_new_tokens=2)
    engine = Engine(mdp.initial_policy(), guide=mdp.reference, seed=0)
    prompts = mdp.prompts * 6
    done = engine.generate([p.token_ids for p in prompts], mdp.generation_params)
    for c, p in zip(done, prompts, strict=True):
        c.prompt = p
        assert mdp.finish_reason(c.tokens) == c.finish_reason
        assert all(mdp.finish_reason(c.tokens[:n]) is None for n in range(1, len(c.tokens)))
    scored = mdp.score(done)
    # the policy is the reference: what is left of the penalty is the price of choosing among five
    assert (scored.kl_penalty <= 1e-5).all() and scored.kl_penalty.min() < -0.01


def test_ends_that_only_the_generation_config_knows_end_texts() -> None:
    tok = tokenizer("abc")
    model = small_llama(len(tok))
    model.generation_config.eos_token_id = [1, 2]
    mdp = small_mdp(TransformersLM(model, tok, "two ends"), prompts=["ab"])
    assert tok.eos_token_id == 2 and mdp.finish_reason([3, 1]) == "eos" == mdp.finish_reason([2])
    env = LMAlignEnv(mdp=mdp)
    for end in (1, 2):
        env.reset()
        env.step(3)
        _, _, terminated, _, info = env.step(end)
        assert terminated and info["finish_reason"] == "eos" and info["text"] == "a" and info["episode_tokens"] == 2
    assert {c.finish_reason for c in Engine(mdp.reference).generate([[3]] * 40, mdp.generation_params)} == {
        "eos",
        "length",
    }


def test_the_policy_is_a_copy_and_the_reference_stays_the_same_bytes() -> None:
    tok = tokenizer("abc")
    live = small_llama(len(tok))
    mdp = AlignmentMDP(model=live, tokenizer=tok, prompts=["ab"], reward_model=letter_reward, max_new_tokens=4)
    before = mdp.reference.fingerprint()
    policy = mdp.initial_policy()
    assert policy.fingerprint() == before and mdp.reference.model is live  # type: ignore[attr-defined]
    assert not any(p.requires_grad for p in mdp.reference.parameters())
    assert all(p.requires_grad for p in policy.parameters())
    optimizer = torch.optim.SGD(policy.parameters(), lr=1.0)
    ids = torch.tensor([[3, 4, 5]])
    policy.head(policy.trunk(ids, torch.ones_like(ids))).square().sum().backward()
    optimizer.step()
    assert policy.fingerprint() != before == mdp.reference.fingerprint()


def test_a_reference_of_its_own() -> None:
    mdp = small_mdp(small_lm(seed=1), reference=small_lm(seed=2))
    assert mdp.reference.fingerprint() == small_lm(seed=2).fingerprint()
    assert mdp.initial_policy().fingerprint() == small_lm(seed=1).fingerprint()
    with pytest.raises(ValueError, match="expected one vocabulary, got 6 and 12 tokens"):
        small_mdp(small_lm(alphabet="abc"), reference=small_lm()).initial_policy()


def test_layers_in_common_with_the_reference() -> None:
    mdp = small_mdp(small_lm())
    policy = mdp.initial_policy(share=lambda lm: lm.model.model.layers[0].parameters())  # type: ignore[attr-defined]
    frozen = [n for n, p in policy.named_parameters() if not p.requires_grad]
    assert frozen and all("layers.0." in n for n in frozen)


def raising(completions: list[str], **_: Any) -> list[float]:
    raise ZeroDivisionError("no judge today")


JUDGES = {
    "raises": (raising, "raised ZeroDivisionError: no judge today"),
    "nan": (lambda completions, **_: [float("nan")] * len(completions), "expected a finite number"),
    "none": (lambda completions, **_: [None] * len(completions), "returned None"),
    "count": (lambda completions, **_: [0.0] * (len(completions) + 1), "returned 2 scores for 1 completions"),
    "word": (lambda completions, **_: "good", "expected a sequence of 1 numbers"),
}


@pytest.mark.parametrize("kind", JUDGES)
def test_a_broken_reward_model_stops_with_its_name_and_the_prompt(kind: str) -> None:
    judge, message = JUDGES[kind]
    mdp = small_mdp(LM, reward_model=judge, prompts=["hag fed"])
    env = LMAlignEnv(mdp=mdp)
    env.reset()
    with pytest.raises(RewardModelError, match=message) as caught:
        env.step(2)
    assert "prompt: 'hag fed'" in str(caught.value) and "test_mdp" in str(caught.value)
    c = Completion(mdp.prompts[0].token_ids, [2], "eos", torch.zeros(1), prompt=mdp.prompts[0])
    with pytest.raises(RewardModelError, match=message):
        mdp.score([c])


def test_columns_and_extras_reach_the_judge_and_come_back() -> None:
    seen: list[dict[str, Any]] = []

    def judge(completions: list[str], topic: list[str], log_extra: Any, log_metric: Any, **rest: Any) -> list[float]:
        seen.append({"topic": topic, **rest})
        log_extra("letters", [len(c) for c in completions])
        log_extra("nothing", [float("nan")] * len(completions))
        log_extra("tensor", [torch.tensor(2.5)] * len(completions))
        log_metric("topics", 3.0)
        return [1.0] * len(completions)

    rows = [{"prompt": "ab", "topic": "x"}, {"prompt": "cd", "topic": "y"}]
    mdp = small_mdp(LM, prompts=rows, reward_model=judge, max_prompt_tokens=6)
    env = LMAlignEnv(mdp=mdp)
    env.reset(options={"prompt_id": 1})
    env.step(4)
    _, _, _, _, info = env.step(2)
    assert seen[-1]["topic"] == ["y"] and seen[-1]["completion_ids"] == [[4, 2]] and seen[-1]["prompts"] == ["cd"]
    assert info["score/letters"] == 1 and info["score/tensor"] == 2.5 and "score/nothing" not in info
    env.reset(options={"prompt": "hag", "columns": {"topic": "mine"}})
    env.step(2)
    assert seen[-1]["topic"] == ["mine"] and seen[-1]["prompts"] == ["hag"]
    c = Completion(mdp.prompts[0].token_ids, [4, 2], "eos", torch.zeros(2), prompt=mdp.prompts[0])
    scored = mdp.score([c, c])
    assert scored.extra["letters"] == [1, 1] and scored.metrics == {"topics": 3.0}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"max_new_tokens": 0}, "max_new_tokens expected a whole number from 1 to 99999, got 0"),
    ({"max_new_tokens": 2.5}, "max_new_tokens expected a whole number"),
    ({"max_new_tokens": True}, "max_new_tokens expected a whole number"),
    ({"max_new_tokens": 200}, "max_new_tokens expected fewer than the model's limit of 128 tokens, got 200"),
    ({"min_new_tokens": 9}, "min_new_tokens expected a whole number from 0 to 8, got 9"),
    ({"min_new_tokens": -1}, "min_new_tokens expected a whole number from 0 to 8, got -1"),
    ({"kl_coef": -0.1}, "kl_coef expected a finite number of at least 0, got -0.1"),
    ({"kl_coef": float("nan")}, "kl_coef expected a finite number"),
    ({"kl_coef": "big"}, "kl_coef expected a finite number of at least 0, got 'big'"),
    ({"missing_eos_penalty": -1}, "missing_eos_penalty expected a finite number of at least 0, got -1"),
    ({"temperature": 0}, "temperature expected a finite number above 0, got 0"),
    ({"temperature": float("inf")}, "temperature expected a finite number above 0, got inf"),
    ({"top_k": 0}, "top_k expected a whole number from 1 to 12, got 0"),
    ({"top_k": 13}, "top_k expected a whole number from 1 to 12, got 13"),
    ({"stop": ""}, "stop expected a string or several, none of them empty, got ''"),
    ({"stop": ["a", 3]}, "stop expected a string or several"),
    ({"stop": 3}, "stop expected a string or several, none of them empty, got 3"),
    ({"max_prompt_tokens": "long"}, "max_prompt_tokens expected a whole number from 1 to 120, got 'long'"),
    ({"max_prompt_tokens": 3}, "more than 3 tokens"),
    ({"prompts": []}, "no rows; expected at least one prompt"),
    ({"prompts": ["ab", ""]}, "1 of 2 prompts cannot be used"),
    ({"prompts": "tiny:revews"}, "tiny:revews"),
    ({"reward_model": "vadr"}, "vader"),
    ({"reference": 7}, "reference expected .* got a int"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_mdp(LM, **arguments)


def test_prompt_records_pass_as_they_are_and_are_measured() -> None:
    records = small_mdp(LM, prompts=PROMPTS).prompts
    assert small_mdp(LM, prompts=records[:2]).prompts == records[:2]
    with pytest.raises(ValueError, match="expected at most 5 tokens each, got 8 in prompt 'ab cd ef'"):
        small_mdp(LM, prompts=records, max_prompt_tokens=5)


def test_a_prompt_of_ones_own() -> None:
    mdp = small_mdp(LM)
    prompt = mdp.encode_prompt("bag", topic="x")
    env = LMAlignEnv(mdp=mdp)
    with pytest.raises(ValueError, match="has 12 tokens, expected at most 8, .* max_prompt_tokens makes"):
        env.reset(options={"prompt": "abcabcabcabc"})
    assert prompt.id == -1 and prompt.columns == {"topic": "x"} and prompt.text == "bag"
