"""Every class of :mod:`model_classes`: environments, a PPO step, save and export beside a plain forward pass of
``transformers``, or the words that refuse it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from model_classes import TABLE, TOKENIZER, Row
from small_models import letter_reward, play
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lm_gym.agents import PPO
from lm_gym.models import TransformersLM

PROBLEM = {"prompts": ["abc", "a", "ab cd"], "reward_model": letter_reward, "max_new_tokens": 5, "kl_coef": 0.3}


def plain(model: Any, prompt: str, tokens: list[int]) -> list[float]:
    """log-probs of a completion's tokens by one unpadded forward pass of the model alone."""
    ids = [*TOKENIZER(prompt)["input_ids"], *tokens]
    with torch.no_grad():
        logp = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float().log_softmax(-1)
    start = len(ids) - len(tokens)
    return [float(logp[start + k - 1, token]) for k, token in enumerate(tokens)]


def single(model: Any) -> None:
    env = gym.make("LMAlign-v0", model=model, tokenizer=TOKENIZER, **PROBLEM)
    for episode in play(env, 2):
        found = [info["ref_logprob"] for info in episode.infos]
        assert found == pytest.approx(plain(model, episode.prompt, episode.tokens), abs=1e-3)


def vector(model: Any) -> None:
    env: Any = gym.make_vec("LMAlign-v0", num_envs=3, model=model, tokenizer=TOKENIZER, **PROBLEM)
    rng, resets = np.random.default_rng(0), 0
    _, info = env.reset(seed=0)
    prompts, tokens, found = list(info["prompt"]), [[], [], []], [[], [], []]
    for _ in range(9):  # rows end at different times, and begin again beside those that go on
        actions = np.where(rng.random(3) < 0.25, 2, rng.integers(3, env.single_action_space.n, 3))
        _, _, ended, _, info = env.step(actions)
        for i in range(3):
            tokens[i].append(int(actions[i]))
            found[i].append(float(info["ref_logprob"][i]))
            if ended[i]:
                assert found[i] == pytest.approx(plain(model, prompts[i], tokens[i]), abs=1e-3)
                prompts[i], tokens[i], found[i] = info["prompt"][i], [], []
                resets += 1
    assert resets > 4


def trained(model: Any, folder: Path) -> None:
    before = [p.clone() for p in model.parameters()]
    env = gym.make("LMAlign-v0", model=model, tokenizer=TOKENIZER, **PROBLEM)
    agent = PPO(env, batch_size=8, minibatch_size=4, epochs=1, learning_rate=1e-2)
    agent.learn(1)
    assert agent.updates == 1 and all(map(torch.equal, before, model.parameters())), "the reference moved"
    env = gym.make("LMAlign-v0", model=model, tokenizer=TOKENIZER, **PROBLEM)
    again = PPO.load(agent.save(folder / "checkpoint"), env)
    exported: Any = AutoModelForCausalLM.from_pretrained(agent.save_pretrained(folder / "model")).eval()
    moved = 0.0
    for prompt, a, b in zip(PROBLEM["prompts"], *(x.complete(PROBLEM["prompts"]) for x in (agent, again)), strict=True):
        found = a.logprobs.tolist()
        assert a.tokens == b.tokens and found == b.logprobs.tolist()
        assert found == pytest.approx(plain(exported, prompt, a.tokens), abs=1e-3)
        moved += sum(abs(x - y) for x, y in zip(found, plain(model, prompt, a.tokens), strict=True))
    assert moved > 1e-3, "nothing was trained"


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.name, marks=[] if row.quick else [pytest.mark.slow]) for row in TABLE]
)
def test_a_class_is_right_or_refused(row: Row, tmp_path: Path) -> None:
    if (row.model_type or row.name) not in CONFIG_MAPPING_NAMES:
        pytest.skip("this version of transformers has no such class")
    model = row.model()
    if row.refused:
        with pytest.raises(ValueError, match=row.refused) as caught:
            TransformersLM(model, TOKENIZER, row.name)
        assert type(model).__name__ in str(caught.value) and "\n" not in str(caught.value)
        return
    single(model)
    vector(model)
    trained(model, tmp_path)


def test_the_page_lists_the_table() -> None:
    page = (Path(__file__).parents[1] / "docs" / "models.md").read_text(encoding="utf-8")
    works, refused = page.split("They work:")[1].split("They are refused:")
    for row in TABLE:
        name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[row.model_type or row.name]
        assert f"`{name}`" in (refused if row.refused else works), name
    assert len(TABLE) >= 60 and sum(row.quick for row in TABLE) >= 12
