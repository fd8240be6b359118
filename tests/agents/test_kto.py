"""KTO: its loss and reference point by hand, its end point, data in every format, the same numbers again."""

import json
import math
from pathlib import Path
from typing import Any

import exact_runs
import gymnasium as gym
import numpy as np
import pytest
import torch
from datasets import Dataset
from ppo_runs import environment, problem
from preference_runs import FEEDBACK, assert_goes_on_after_loading, assert_same_seed_same_numbers, small_env

from lm_gym import exact
from lm_gym.agents import KTO
from lm_gym.agents.kto import feedback_metrics, kto_loss
from lm_gym.tracking import METRICS


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_loss_by_hand() -> None:
    """β = .3, z_0 = 1; λ_D = 1.5, λ_U = .5: TRL's 1 − σ(β(r − z_0)) and 1 − σ(β(z_0 − r)), and a mean of both."""
    found = kto_loss(torch.tensor([2.0, 2.0, -1.0]), torch.tensor([1.0, 0.0, 0.25]), 1.0, 0.3, 1.5, 0.5)
    good, bad = 1 - sigmoid(-0.6), 1 - sigmoid(0.6)
    want = [1.5 * (1 - sigmoid(0.3)), 0.5 * (1 - sigmoid(-0.3)), 0.25 * 1.5 * good + 0.75 * 0.5 * bad]
    torch.testing.assert_close(found, torch.tensor(want))


def test_metrics_by_hand() -> None:
    logps, ref = torch.tensor([-1.0, -3.0, -2.0]), torch.tensor([-2.0, -2.0, -4.0])
    found = feedback_metrics(logps, ref, torch.tensor([1.0, 0.0, 0.5]), 0.5)
    assert found == pytest.approx(
        {
            "rewards/chosen": (0.5 + 0.5 * 1.0) / 1.5,
            "logps/chosen": (-1 - 1) / 1.5,
            "rewards/rejected": (-0.5 + 0.5 * 1.0) / 1.5,
            "logps/rejected": (-3 - 1) / 1.5,
            "rewards/margins": 1.0 / 1.5,
        }
    )
    only = feedback_metrics(logps, ref, torch.ones(3), 0.5)
    assert set(only) == {"rewards/chosen", "logps/chosen"}


def test_the_reference_point_by_hand() -> None:
    """The mean log-ratio of every prompt with the text before it, with transformers' own logits; at least 0."""
    agent = KTO(small_env(), feedback=FEEDBACK, batch_size=6, micro_batch_size=4)
    batch = agent.example_source.next(6)
    prompts, texts = batch.texts.token_lists()
    assert agent.reference_point(batch) == pytest.approx(0.0, abs=1e-5)

    def mean_ratio() -> float:
        total = 0.0
        for prompt, text in zip(prompts, [texts[-1], *texts[:-1]], strict=True):
            ids = torch.tensor([[*prompt, *text]])
            for sign, model in ((1, agent.policy.lm.model), (-1, agent.mdp.reference.model)):
                with torch.no_grad():
                    logp = torch.log_softmax(model(ids).logits[0, len(prompt) - 1 : -1], -1)
                total += sign * float(logp.gather(-1, torch.tensor(text)[:, None]).sum())
        return total / 6

    found = []
    for sharper in (1.1, 0.8):  # what a random model did not mean to write gets rarer, then likelier
        with torch.no_grad():
            for p in agent.params.values():
                p.mul_(sharper)
        found.append(mean_ratio())
        assert agent.reference_point(batch) == pytest.approx(max(0.0, found[-1]), abs=1e-4)
    assert min(found) < -0.01 < 0.01 < max(found)


def test_drawn_texts_are_labelled_by_the_others_of_their_prompt() -> None:
    agent = KTO(gym.make("LMAlignExact-v0"), texts_per_prompt=4, batch_size=8)
    batch = agent.draw(8)
    language = agent.base.language
    scores = [language.reward(y) for y in batch.texts.token_lists()[1]]
    for i in range(8):  # the texts of a prompt are every second one: the text before has another prompt
        others = [scores[j] for j in range(i % 2, 8, 2) if j != i]
        assert float(batch.labels[i]) == pytest.approx(np.mean([sigmoid(scores[i] - r) for r in others]), abs=1e-6)
    hard = KTO(gym.make("LMAlignExact-v0"), labels="hard", texts_per_prompt=2, batch_size=8).draw(8)
    assert set(hard.labels.tolist()) <= {0.0, 0.5, 1.0}
    sampled = KTO(gym.make("LMAlignExact-v0"), labels="sampled").draw(64)
    assert set(sampled.labels.tolist()) == {0.0, 1.0}


def test_the_first_update_by_hand() -> None:
    """At the reference every r and z_0 is 0: the loss is ½, and its gradient −(2p − 1)·β/4 a text."""
    agent = KTO(gym.make("LMAlignExact-v0"), batch_size=16, max_grad_norm=1e9)
    language, drawn, found = agent.base.language, [], []
    draw = agent.draw
    agent.example_source._draw = lambda n: drawn.append(draw(n)) or drawn[-1]
    agent.optimizer.step = lambda: found.append(agent.policy.lm.logits.grad.T.double().numpy().copy())
    [log] = exact_runs.learn(agent, 1)
    probs = exact.reference_policy(language)
    want = np.zeros_like(probs)
    for text, p in zip(drawn[0].texts.token_lists()[1], drawn[0].labels.tolist(), strict=True):
        for t, a in enumerate(text):
            s = language.state(text[:t])
            want[s] += (2 * p - 1) * 0.125 * probs[s] / 16
            want[s, a] -= (2 * p - 1) * 0.125 / 16
    np.testing.assert_allclose(found[0], want, atol=1e-6)
    assert log["loss/preference_avg"] == pytest.approx(0.5, abs=1e-6) and log["val/kto_reference"] < 1e-6
    assert {m for m in log if not m.startswith("reward/")} <= set(METRICS)


@pytest.mark.parametrize("labels", ["probability", "hard"])
def test_it_goes_to_its_end_point(labels: str) -> None:
    """The short version: 15,000 tokens leave .11 of more than .7 nats to it."""
    language, agent = exact_runs.train(KTO, 15_000, learning_rate=0.15, labels=labels)
    kind = "hard" if labels == "hard" else "bradley-terry"
    end = exact.kto_endpoint(language, labels=kind)
    # the end point gives some texts no probability at all, so the KL is taken from its side
    assert exact.kl_between(language, end.policy, agent) < 0.15
    assert exact.kl_between(language, end.policy, exact.reference_policy(language)) > 0.7


@pytest.mark.slow
def test_the_end_point_of_every_seed() -> None:
    """Four times the other agents' step: each policy within .005 nats, the mean regret within .01 (noise)."""
    end = exact.kto_endpoint(exact.ExactLanguage())
    regrets = []
    for seed in exact_runs.SEEDS:
        language, agent = exact_runs.train(KTO, exact_runs.TOKENS, seed=seed, learning_rate=0.08)
        regrets.append(exact.evaluate(language, agent).regret)
        assert exact.kl_between(language, end.policy, agent) < 0.005
    assert np.mean(regrets) == pytest.approx(end.regret, abs=0.01)


@pytest.mark.slow
def test_the_end_point_with_less_noise() -> None:
    """A million tokens in batches of 128: within .002 nats of its policy, and .006 of its regret."""
    language, agent = exact_runs.train(KTO, 1_000_000, batch_size=128, learning_rate=0.08)
    end = exact.kto_endpoint(language)
    assert exact.kl_between(language, end.policy, agent) < 0.002
    assert exact.evaluate(language, agent).regret == pytest.approx(end.regret, abs=0.006)


@pytest.mark.parametrize(
    ("make", "config"),
    [
        (None, {}),
        (None, {"n_texts": 24, "labels": "sampled"}),
        (small_env, {"feedback": FEEDBACK, "batch_size": 5}),
        (lambda: environment(problem()), {"texts_per_prompt": 2}),
    ],
    ids=["fresh", "fixed", "given", "small"],
)
def test_the_same_seed_and_a_loaded_checkpoint_give_the_same_numbers(
    make: Any, config: dict[str, Any], tmp_path: Path
) -> None:
    where = {} if make is None else {"make": make}
    assert_same_seed_same_numbers(KTO, **where, **config)
    again = {"feedback": config["feedback"]} if "feedback" in config else {}
    assert_goes_on_after_loading(KTO, tmp_path, again=again, **where, **config)


@pytest.mark.parametrize("kind", ["list", "dataset", "jsonl", "chat"])
def test_formats_of_feedback(kind: str, tmp_path: Path) -> None:
    rows: Any = FEEDBACK
    if kind == "chat":
        rows = [
            {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["completion"].strip()}],
                "label": row["label"],
            }
            for row in rows
        ]
    source: Any = Dataset.from_list(rows) if kind == "dataset" else rows
    if kind == "jsonl":
        source = str(tmp_path / "feedback.jsonl")
        Path(source).write_text("".join(json.dumps(row) + "\n" for row in rows))
    agent = KTO(small_env(), feedback=source, batch_size=6, learning_rate=1e-3)
    agent.learn(400, out=tmp_path / "run")
    assert exact_runs.learn(agent, 60)[-1]["rewards/margins"] > 0.01
    row = json.loads((tmp_path / "run" / "samples.jsonl").read_text().splitlines()[0])
    assert {"prompt", "completion", "label"} <= set(row)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"labels": "soft"}, "labels expected one of"),
        ({"kl_coef": 0.0}, "kl_coef expected above 0"),
        ({"desirable_weight": -1.0}, "desirable_weight and undesirable_weight expected at least 0"),
        ({"batch_size": 1}, "batch_size expected at least 2"),
        ({"batch_size": 12}, "batch_size a multiple of it"),
        ({"texts_per_prompt": 1}, "texts_per_prompt expected at least 2"),
        ({"feedback": FEEDBACK, "labels": "hard"}, "n_texts and labels are of drawn texts"),
        ({"feedback": FEEDBACK}, "expected a model with a tokenizer"),
    ],
)
def test_what_makes_no_sense_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        KTO(gym.make("LMAlignExact-v0"), **config)


def test_bad_feedback_and_restricted_choices_are_refused() -> None:
    with pytest.raises(ValueError, match="row 1 has the label 'maybe'"):
        KTO(small_env(), feedback=[FEEDBACK[0], {**FEEDBACK[1], "label": "maybe"}])
    with pytest.raises(ValueError, match="without top_k"):
        KTO(environment(problem(top_k=4)))
