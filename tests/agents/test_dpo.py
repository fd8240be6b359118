"""DPO, conservative DPO and IPO: losses by hand, end points, data in every format, the same numbers again."""

import json
import math
import warnings
from pathlib import Path
from typing import Any

import exact_runs
import gymnasium as gym
import numpy as np
import pytest
import torch
from datasets import Dataset
from ppo_runs import environment, problem
from preference_runs import (
    CHAT_PAIRS,
    PAIRS,
    assert_goes_on_after_loading,
    assert_same_seed_same_numbers,
    small_env,
    weights,
)

from lm_gym import exact
from lm_gym.agents import DPO
from lm_gym.agents.dpo import dpo_loss, ipo_loss, pair_metrics
from lm_gym.judged import preferred
from lm_gym.tracking import METRICS

ENDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dpo": ({}, {}),
    "conservative": ({"label_smoothing": 0.1}, {"label_smoothing": 0.1}),
    "ipo": ({"loss": "ipo"}, {"variant": "ipo"}),
}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_losses_by_hand() -> None:
    """h = 2, −1 and 0 with β = .3, labels 1, .8 and 0; TRL's sigmoid, smoothed and IPO losses for labels of 1."""
    h, labels = torch.tensor([2.0, -1.0, 0.0]), torch.tensor([1.0, 0.8, 0.0])
    want = [
        -math.log(sigmoid(0.6)),
        -0.8 * math.log(sigmoid(-0.3)) - 0.2 * math.log(sigmoid(0.3)),
        math.log(2),
    ]
    torch.testing.assert_close(dpo_loss(h, labels, 0.3), torch.tensor(want))
    smooth = -0.9 * math.log(sigmoid(0.6)) - 0.1 * math.log(sigmoid(-0.6))
    assert float(dpo_loss(h, labels, 0.3, 0.1)[0]) == pytest.approx(smooth, abs=1e-6)
    torch.testing.assert_close(ipo_loss(h, labels, 0.5), torch.tensor([1.0, (-1 - 0.6) ** 2, 1.0]))


def test_labels_of_drawn_pairs() -> None:
    a, b = torch.tensor([1.0, 0.0, 2.0]), torch.tensor([0.0, 0.0, 5.0])
    generator = torch.Generator().manual_seed(0)
    torch.testing.assert_close(preferred(a, b, "hard", generator), torch.tensor([1.0, 0.5, 0.0]))
    p = preferred(a, b, "probability", generator)
    torch.testing.assert_close(p, torch.tensor([sigmoid(1), 0.5, sigmoid(-3)]))
    drawn = preferred(a.repeat(4000), b.repeat(4000), "sampled", generator).view(-1, 3)
    assert set(drawn.flatten().tolist()) == {0.0, 1.0}
    np.testing.assert_allclose(drawn.mean(0), p, atol=0.03)


def test_metrics_by_hand() -> None:
    """The second pair is turned round by its label, the tie is left out."""
    logps = torch.tensor([[-1.0, -2.0], [-3.0, -1.0], [0.0, 0.0]])
    ref = torch.tensor([[-2.0, -2.0], [-1.0, -2.0], [0.0, 0.0]])
    found = pair_metrics(logps, ref, torch.tensor([1.0, 0.2, 0.5]), 0.5)
    assert found == pytest.approx(
        {
            "rewards/chosen": 0.5,
            "rewards/rejected": -0.5,
            "rewards/accuracies": 1.0,
            "rewards/margins": 1.0,
            "logps/chosen": -1.0,
            "logps/rejected": -2.5,
        }
    )
    assert pair_metrics(logps[2:], ref[2:], torch.tensor([0.5]), 0.5) == {}


def test_an_update_of_given_pairs_by_hand() -> None:
    """The loss with transformers' own logits at temperature .7, and it falls; no token of the prompt counts."""
    env = small_env(temperature=0.7)
    agent = DPO(env, pairs=PAIRS, batch_size=18, learning_rate=1e-3)
    with torch.no_grad():
        for p in agent.params.values():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    lm, tok = agent.policy.lm.model, agent.mdp.reference.tokenizer

    def logprob(model: Any, prompt: str, text: str) -> float:
        start, ids = tok(prompt)["input_ids"], tok(prompt + text)["input_ids"] + [tok.eos_token_id]
        with torch.no_grad():
            logp = torch.log_softmax(model(torch.tensor([ids])).logits[0] / 0.7, -1)
        return sum(float(logp[t - 1, ids[t]]) for t in range(len(start), len(ids)))

    def h(row: dict[str, str]) -> float:
        sides = [(model, row[k]) for k in ("chosen", "rejected") for model in (lm, agent.mdp.reference.model)]
        a, ra, b, rb = (logprob(model, row["prompt"], text) for model, text in sides)
        return (a - ra) - (b - rb)

    want = np.mean([-math.log(sigmoid(agent.kl_coef * h(row))) for row in PAIRS])
    logs = exact_runs.learn(agent, 1000)
    assert logs[0]["loss/preference_avg"] == pytest.approx(want, abs=1e-5)
    assert logs[-1]["loss/preference_avg"] < logs[0]["loss/preference_avg"] - 0.05
    assert logs[-1]["rewards/accuracies"] == 1.0
    assert {m for m in logs[0] if not m.startswith("reward/")} <= set(METRICS)
    tokens = sum(len(tok(row[k])["input_ids"]) + 1 for row in PAIRS for k in ("chosen", "rejected"))
    assert agent.tokens == agent.updates * tokens and agent.episodes == agent.updates * 18


@pytest.mark.parametrize("name", ENDS)
def test_it_goes_to_its_end_point(name: str) -> None:
    """The short version: 15,000 tokens bring the policy within .05 nats of it (from .06 to 1.4)."""
    config, end = ENDS[name]
    language, agent = exact_runs.train(DPO, 15_000, learning_rate=0.06, **config)
    assert exact.kl_between(language, agent, exact.dpo_endpoint(language, **end).policy) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", ENDS)
def test_the_end_points_to_the_digits(name: str) -> None:
    """Default configuration: mean regret of 5 seeds within .002 of the end point's, each policy within .005 nats."""
    config, arguments = ENDS[name]
    regrets = []
    for seed in exact_runs.SEEDS:
        language, agent = exact_runs.train(DPO, exact_runs.TOKENS, seed=seed, **config)
        end = exact.dpo_endpoint(language, **arguments)
        regrets.append(exact.evaluate(language, agent).regret)
        assert exact.kl_between(language, agent, end.policy) < 0.005
    assert np.mean(regrets) == pytest.approx(end.regret, abs=0.002)


def test_micro_batches_change_nothing() -> None:
    def logs(micro: int | None) -> Any:
        return exact_runs.learn(DPO(gym.make("LMAlignExact-v0"), micro_batch_size=micro), 200)

    for whole, parts in zip(logs(None), logs(6), strict=True):
        assert parts == pytest.approx(whole, abs=1e-4)


@pytest.mark.parametrize(
    ("make", "config"),
    [
        (None, {}),
        (None, {"n_pairs": 20, "labels": "sampled"}),
        (small_env, {"pairs": PAIRS, "batch_size": 8}),
        (lambda: environment(problem(top_k=4)), {}),
        (lambda: environment(problem(min_new_tokens=3)), {"loss": "ipo"}),
    ],
    ids=["fresh", "fixed", "given", "top_k", "min_new_tokens"],
)
def test_the_same_seed_and_a_loaded_checkpoint_give_the_same_numbers(
    make: Any, config: dict[str, Any], tmp_path: Path
) -> None:
    where = {} if make is None else {"make": make}
    assert_same_seed_same_numbers(DPO, **where, **config)
    again = {"pairs": config["pairs"]} if "pairs" in config else {}
    assert_goes_on_after_loading(DPO, tmp_path, again=again, **where, **config)


def test_a_wrapped_environment_judges_the_pairs() -> None:
    """A wrapper that turns the reward round turns the policy round."""
    language = exact.ExactLanguage()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the environment is wrapped")
        env = gym.wrappers.vector.TransformReward(gym.make_vec("LMAlignExact-v0", num_envs=16), lambda r: -r)
        agent = DPO(env, learning_rate=0.1).learn(4000)
    assert exact.evaluate(language, agent).reward < exact.evaluate(language, exact.reference_policy(language)).reward


@pytest.mark.parametrize("kind", ["list", "dataset", "jsonl", "csv", "chat"])
def test_formats_of_pairs(kind: str, tmp_path: Path) -> None:
    rows: Any = CHAT_PAIRS if kind == "chat" else PAIRS[:6]
    source: Any = {"list": rows, "chat": rows, "dataset": Dataset.from_list(rows)}.get(kind)
    if kind == "jsonl":
        source = tmp_path / "pairs.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if kind == "csv":
        source = str(tmp_path / "pairs.csv")
        Dataset.from_list(rows).to_csv(source)
    agent = DPO(small_env(), pairs=source, batch_size=4, learning_rate=1e-3)
    agent.learn(200, out=tmp_path / "run")
    assert exact_runs.learn(agent, 60)[-1]["rewards/margins"] > 0.01
    named = agent.config.pairs
    assert named.startswith("live data ") if kind in ("list", "dataset", "chat") else named == str(source)
    if kind in ("jsonl", "csv"):  # a file is read again by its name
        assert exact_runs.learn(DPO.load(tmp_path / "run", small_env()), 30)[-1]["rewards/margins"] > 0.01
    row = json.loads((tmp_path / "run" / "samples.jsonl").read_text().splitlines()[0])
    assert {"prompt", "completion", "other", "label"} <= set(row)


def test_a_checkpoint_of_live_pairs_evaluates_without_them_and_says_what_training_needs(tmp_path: Path) -> None:
    agent = DPO(small_env(), pairs=PAIRS, batch_size=4).learn(60)
    agent.save(tmp_path / "step")
    loaded = DPO.load(tmp_path / "step", small_env())
    assert torch.equal(weights(loaded), weights(agent))
    assert loaded.evaluate(n=4) == agent.evaluate(n=4)
    with pytest.raises(ValueError, match=r"give them to load\(...\) again"):
        loaded.learn(100)
    with pytest.warns(UserWarning, match="not those that the checkpoint was trained on"):
        DPO.load(tmp_path / "step", small_env(), pairs=PAIRS[:5]).learn(50)


def test_a_text_ends_at_the_environments_stop_strings() -> None:
    """With the letter that completes one, as the environment ends a text; from min_new_tokens on."""
    pairs = [{"prompt": "a", "chosen": "abcabc", "rejected": "bcd"}]
    for options, wanted in (({}, ["abc", "bc"]), ({"min_new_tokens": 3}, ["abc", "bcd"]), ({"stop": "e"}, None)):
        env = small_env(**{"stop": "bc", **options})
        agent = DPO(env, pairs=pairs, batch_size=2)
        tokens = agent.example_source.examples.tokens
        texts = [agent.mdp.reference.decode(ids) for ids in tokens]
        assert texts == (wanted or ["abcabc", "bcd"])
        reasons = {agent.mdp.finish_reason(ids) for ids in tokens}
        assert reasons == ({"stop"} if wanted else {"eos"})


def test_a_text_that_fills_the_limit_has_no_eos() -> None:
    """9 tokens with EOS at max_new_tokens=8: the environment ends such a text by its length."""
    agent = DPO(small_env(), pairs=[{"prompt": "a", "chosen": "b" * 8, "rejected": "c"}] * 2, batch_size=4)
    assert exact_runs.learn(agent, 1)[0]["length/mean"] == 5.0


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([{"prompt": "a", "chosen": "b" * 9, "rejected": "c"}], "row 0 has a response of 10 tokens .at most 8"),
        ([{"prompt": "a" * 125, "chosen": "b", "rejected": "c"}], "row 0 has a prompt of 125 tokens .at most 120"),
        ([{"prompt": "a", "chosen": "b"}], "row 0 has no 'rejected'"),
        ([], "has no rows"),
        ("no/such/file.jsonl", "no/such/file.jsonl"),
    ],
    ids=["long response", "long prompt", "no rejected", "empty", "no file"],
)
def test_bad_pairs_are_refused(pairs: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DPO(small_env(), pairs=pairs)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"loss": "hinge"}, "loss expected one of"),
        ({"labels": "soft"}, "labels expected one of"),
        ({"label_smoothing": 0.5}, "label_smoothing expected 0 to below .5"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "label_smoothing is of loss='dpo'"),
        ({"kl_coef": 0.0}, "kl_coef expected above 0"),
        ({"batch_size": 15}, "batch_size expected an even number"),
        ({"n_pairs": 3}, "n_pairs expected 0 or at least a batch of 16"),
        ({"pairs": PAIRS, "n_pairs": 30}, "n_pairs and labels are of drawn pairs"),
        ({"pairs": PAIRS}, "expected a model with a tokenizer"),
    ],
)
def test_what_makes_no_sense_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DPO(gym.make("LMAlignExact-v0"), **config)


def test_given_pairs_need_every_token() -> None:
    with pytest.raises(ValueError, match="without top_k"):
        DPO(environment(problem(top_k=4)), pairs=PAIRS)
    with pytest.raises(ValueError, match="without top_k"):
        DPO(environment(problem(top_k=4)), n_pairs=40)
