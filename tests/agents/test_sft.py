"""SFT: where it goes on texts of the best policy, micro-batches, held-out loss, conversations, the same numbers again.

How near it comes is a matter of the data: maximum likelihood on n texts of π* has a regret of about β·K/(2n) itself,
K = 39 free probabilities of the worked language (13 states of 4 tokens), .0024 at n = 4,000 and .0002 at 40,000.
"""

from pathlib import Path
from typing import Any

import exact_runs
import gymnasium as gym
import numpy as np
import pytest
import torch
from ppo_runs import environment, problem
from preference_runs import TEMPLATE, assert_goes_on_after_loading, assert_same_seed_same_numbers, small_env

from lm_gym import exact
from lm_gym.agents import SFT
from lm_gym.demonstrations import Demonstration
from lm_gym.supervised import held_out
from lm_gym.tracking import METRICS

ROWS = [{"prompt": p, "completion": c} for p in ("abc", "bad", "head", "a") for c in (" aa", " aaa", "a")]
CHAT = [
    {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}] * 2}
    for row in ROWS
]


def drawn(language: Any, policy: np.ndarray, n: int, seed: int = 0) -> list[Demonstration]:
    """n texts of a policy of the worked language, behind its one prompt, the id 4."""
    probs = exact.text_probs(language, policy)
    rows = np.random.default_rng(seed).choice(len(probs), n, p=probs / probs.sum())
    texts = [language.texts.ids(i) for i in rows]
    return [Demonstration((4, *text), (False,) + (True,) * len(text)) for text in texts]


def fitted(language: Any, data: list[Demonstration]) -> np.ndarray:
    """(S, V) maximum likelihood: how often each token followed each state; the reference where none was seen."""
    counts = np.zeros_like(exact.reference_policy(language))
    for d in data:
        for t in range(1, len(d.token_ids)):
            counts[language.state(d.token_ids[1:t]), d.token_ids[t]] += 1
    seen = counts.sum(1, keepdims=True)
    return np.where(seen > 0, counts / np.maximum(seen, 1), exact.reference_policy(language))


def imitated(texts: int, tokens: int, *, seed: int = 0, best: bool = True) -> tuple[Any, Any, list[Demonstration]]:
    """(language, agent, data) after SFT on texts of the best policy, or of the reference."""
    env = gym.make("LMAlignExact-v0")
    language = env.unwrapped.language
    data = drawn(language, exact.optimal_policy(language) if best else exact.reference_policy(language), texts, seed)
    return language, SFT(env, data=data, seed=seed).learn(tokens), data


def test_texts_of_the_best_policy_lead_to_it() -> None:
    """From .784; what is left above the fit of the data is the noise of the last steps."""
    language, agent, data = imitated(4000, 20_000)
    assert exact.evaluate(language, agent).regret < 0.02
    assert exact.kl_between(language, fitted(language, data), agent) < 0.04


@pytest.mark.slow
@pytest.mark.parametrize("seed", exact_runs.SEEDS)
def test_texts_of_the_best_policy_lead_to_it_to_the_digits(seed: int) -> None:
    """100,000 tokens are one pass over 37,000 texts, whose own fit has .0002."""
    language, agent, data = imitated(40_000, exact_runs.TOKENS, seed=seed)
    assert exact.evaluate(language, fitted(language, data)).regret < 0.0006
    assert exact.evaluate(language, agent).regret < 0.002


def test_the_references_own_texts_leave_it_where_it_is() -> None:
    language, agent, _ = imitated(8000, 8000, best=False)
    assert exact.kl_between(language, agent, exact.reference_policy(language)) < 0.02
    assert exact.evaluate(language, agent).regret == pytest.approx(0.7843, abs=0.03)


def test_a_run_on_rows_of_text() -> None:
    """The loss of the first update is that of the data, and falls; tokens are those imitated; the policy says them."""
    agent = SFT(small_env(), data=ROWS, eval_data=ROWS[:6], batch_size=12, learning_rate=3e-3, eval_every=5)
    start = held_out(agent.policy.lm, agent.mdp, agent.data)
    tokens = sum(len(row["completion"]) + 1 for row in ROWS)
    logs = exact_runs.learn(agent, 30 * tokens)
    assert logs[0]["sft/loss"] == pytest.approx(start.loss, rel=1e-5)
    assert logs[0]["sft/perplexity"] == pytest.approx(np.exp(start.loss), rel=1e-4)
    assert logs[0]["sft/token_accuracy"] == pytest.approx(start.right / start.tokens)
    assert start.tokens == tokens and agent.tokens == 30 * tokens and agent.episodes == 30 * 12
    assert logs[-1]["sft/loss"] < 0.7 * logs[0]["sft/loss"]
    assert [i for i, m in enumerate(logs) if "eval/loss" in m] == [0, 5, 10, 15, 20, 25]
    assert [i for i, m in enumerate(logs) if "objective/kl" in m] == [0, 5, 10, 15, 20, 25]
    assert logs[25]["eval/loss"] < logs[0]["eval/loss"] and logs[25]["objective/kl"] > 0.5
    assert logs[0]["eval/perplexity"] == pytest.approx(np.exp(logs[0]["eval/loss"]), rel=1e-5)
    free = {m for m in logs[0] if m.startswith(("eval/", "reward/"))}
    assert set(logs[0]) - free <= set(METRICS)
    assert agent.evaluate(n=64)["objective/scores"] > logs[0]["objective/scores"] + 0.5


def test_micro_batches_are_the_same_training() -> None:
    def logs(**more: Any) -> Any:
        return exact_runs.learn(SFT(small_env(), data=CHAT, batch_size=12, eval_every=100, **more), 300)

    for one, other in zip(logs(), logs(micro_batch_size=5), strict=True):
        assert {k: v for k, v in other.items() if k[:3] == "sft"} == pytest.approx(
            {k: v for k, v in one.items() if k[:3] == "sft"}, abs=1e-3
        )


def test_every_turn_of_a_conversation_is_learned() -> None:
    agent = SFT(small_env(), data=CHAT, batch_size=12, learning_rate=3e-3)
    assert "add_generation_prompt" in TEMPLATE
    first = agent.data[0]
    assert sum(first.imitated) == 2 * (len(ROWS[0]["completion"]) + 1)
    logs = exact_runs.learn(agent, 20 * sum(sum(d.imitated) for d in agent.data))
    assert logs[-1]["sft/loss"] < 0.7 * logs[0]["sft/loss"]


@pytest.mark.parametrize("kind", ["text", "exact"])
def test_the_same_seed_and_a_loaded_checkpoint_give_the_same_numbers(kind: str, tmp_path: Path) -> None:
    language = gym.make("LMAlignExact-v0").unwrapped.language
    data: Any = drawn(language, exact.optimal_policy(language), 50) if kind == "exact" else ROWS * 2
    make = {} if kind == "exact" else {"make": small_env}
    assert_same_seed_same_numbers(SFT, **make, data=data, eval_every=2)
    assert_goes_on_after_loading(SFT, tmp_path, again={"data": data}, **make, data=data, eval_every=2)
    with pytest.raises(ValueError, match=r"a live list, which no file holds: SFT\.load\(folder, env, data="):
        SFT.load(tmp_path, small_env() if kind == "text" else gym.make("LMAlignExact-v0"))


def test_data_in_a_file_goes_on_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "aa bb"}\n{"text": "ab"}\n{"prompt": "abc", "completion": "d"}\n')
    agent = SFT(environment(problem()), data=str(path), batch_size=2)
    agent.learn(40, out=tmp_path / "run")
    taken = SFT.load(tmp_path / "run", environment(problem()))
    assert taken.order.left == agent.order.left and taken.config.data == str(path)
    assert torch.equal(taken.policy.lm.head(torch.ones(32)), agent.policy.lm.head(torch.ones(32)))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "SFT expected data=, demonstrations to imitate"),
        ({"data": []}, "has no rows"),
        ({"data": [{"text": "a" * 128}]}, "1 of 1 rows of the demonstrations are too long: row 0 has 129 tokens"),
        ({"data": ROWS, "eval_data": [{"text": ""}]}, "row 0 has a text that is empty"),
        ({"data": ROWS, "micro_batch_size": 0}, "micro_batch_size expected 1"),
    ],
    ids=["none", "empty", "long", "held out", "micro"],
)
def test_what_makes_no_sense_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SFT(small_env(), **config)
