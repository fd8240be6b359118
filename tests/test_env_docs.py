"""docs/envs.md says what the code does, and LMAlign-v0 stays what it is."""

import ast
import hashlib
import inspect
import json
import re
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.utils.env_checker import check_env
from pin_lmalign_v0 import PINNED, paid
from stable_baselines3.common.env_checker import check_env as check_sb3

import lm_gym
from lm_gym.env import LMAlignEnv
from lm_gym.exact.envs import LMAlignExactEnv, LMAlignExactVectorEnv
from lm_gym.mdp import AlignmentMDP
from lm_gym.vector_env import LMAlignVectorEnv

PAGE = (Path(__file__).parents[1] / "docs" / "envs.md").read_text(encoding="utf-8")


def tables() -> list[dict[str, Any]]:
    """The tables of the page whose columns are argument, default and meaning."""
    found = []
    for block in re.findall(r"\| argument \| default \|.*?\n\n", PAGE + "\n\n", re.DOTALL):
        cells = re.findall(r"^\| `(\w+)` \| `(.+?)` \|", block, re.MULTILINE)
        assert len(cells) == block.strip().count("\n") - 1, "a row of the table could not be read"
        found.append({name: ast.literal_eval(default) for name, default in cells})
    return found


def defaults(*callables: Any) -> dict[str, Any]:
    """The defaults of their arguments, leaving out what takes the rest."""
    parameters = [p for c in callables for p in inspect.signature(c).parameters.values()]
    return {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != "max_episode_steps"}


def test_every_default_is_on_the_page() -> None:
    shared, vector, exact = tables()
    code = defaults(AlignmentMDP, LMAlignEnv)
    assert shared == code and [type(x) for x in shared.values()] == [type(code[k]) for k in shared]
    both = defaults(AlignmentMDP, LMAlignVectorEnv)
    assert {**shared, **vector} == {**both, "autoreset_mode": both["autoreset_mode"].value}
    code = defaults(LMAlignExactEnv)
    assert {**exact, "top_k": None} == code
    assert {**code, "num_envs": 1} == defaults(LMAlignExactVectorEnv)


def test_the_ids_are_on_the_page() -> None:
    registered = {name for name in gym.registry if name.startswith("LMAlign")}
    assert registered == set(re.findall(r"^\| `(LMAlign\w*-v\d)` \|", PAGE, re.MULTILINE))


def test_the_code_on_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
    exec(compile(code, "docs/envs.md", "exec"), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("observation_mode", ["tokens", "hidden", "text"])
def test_the_checkers_on_the_environment_as_it_comes(observation_mode: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make("LMAlign-v0", observation_mode=observation_mode).unwrapped)
        if observation_mode != "text":
            check_sb3(gym.make("LMAlign-v0", observation_mode=observation_mode))
            check_sb3(gym.make("LMAlignTopK-v0", observation_mode=observation_mode))


def test_the_reference_agent_writes_what_the_reference_would() -> None:
    """Its scores do not depend on how it is stepped, and it pays no KL but that of sampling."""
    env = gym.make_vec("LMAlign-v0", num_envs=32, kl_mode="reported")
    agent = lm_gym.reference_agent(env, seed=0)
    obs, _ = env.reset(seed=0)
    for _ in range(5):
        actions, _ = agent.predict(obs)
        env.unwrapped.report_logprob(env.stepper.logp[range(32), actions].numpy())
        obs, rewards, *_, info = env.step(actions)
        assert abs(info["reward/kl_penalty"]).max() < 1e-6 and (rewards == info["reward/task"]).all()


def test_lmalign_v0_pays_what_it_always_paid() -> None:
    """20 fixed texts. If this fails, do not write new numbers: what moves them is LMAlign-v1 (docs/envs.md)."""
    env, texts = gym.make("LMAlign-v0"), json.loads(PINNED.read_text(encoding="utf-8"))
    assert len(texts) == 20 and {text["finish_reason"] for text in texts} == {"eos", "length"}
    for text in texts:
        now = paid({key: text[key] for key in ("prompt_id", "tokens")}, env)
        assert {**now, "rewards": None, "score": None} == {**text, "rewards": None, "score": None}
        assert now["score"] == pytest.approx(text["score"], abs=1e-9)
        assert now["rewards"] == pytest.approx(text["rewards"], abs=1e-4)


BYTES = {
    "model/config.json": "2b050b9ac9cc63f4196f45729314ce4ee458f61cd9771015d8910f91a7e7d7e2",
    "model/generation_config.json": "7f58c28f9b7efba3779daed124680ff8b3feee93d34466a34cd3a93e6a30e09c",
    "model/model.safetensors": "951021473ddda5f1e3b4a4d9132cb65461162470900213e11760e69aaced0ab0",
    "model/tokenizer.json": "bce160188efc548aee071b7f18b98050a10594af5e9a8146dc3876193cde5b92",
    "model/tokenizer_config.json": "3413130cabe4fb71b2281440dc4c64a406a74a80870d828e398262b8d0cf625a",
    "prompts/reviews.train.jsonl": "940852388c0e2e4caf4e7726fd64177f2c04db424418cd18bb2fed378aa59861",
}
"""sha256 of the files that LMAlign-v0 reads where no argument says otherwise."""


@pytest.mark.parametrize("name", BYTES)
def test_the_bytes_that_lmalign_v0_reads(name: str) -> None:
    data = (lm_gym.tiny.tiny_path().parent / name).read_bytes()
    assert hashlib.sha256(data).hexdigest() == BYTES[name], "what moves them is LMAlign-v1"
