"""docs/envs.md's table of Gymnasium's vector wrappers: each cell is tried."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import vector

PAGE = (Path(__file__).parents[1] / "docs" / "envs.md").read_text(encoding="utf-8")
MODES = ("SameStep", "NextStep", "Disabled")

WRAP: dict[str, Callable[[Any], Any]] = {
    "RecordEpisodeStatistics": vector.RecordEpisodeStatistics,
    "TransformReward": lambda env: vector.TransformReward(env, lambda r: 2 * r),
    "ClipReward": lambda env: vector.ClipReward(env, -1, 1),
    "TransformAction": lambda env: vector.TransformAction(env, lambda a: a, env.action_space),
    "DictInfoToList": vector.DictInfoToList,
    "NormalizeReward": vector.NormalizeReward,
    "TransformObservation": lambda env: vector.TransformObservation(env, lambda x: 2 * x),
    "VectorizeTransformObservation": lambda env: vector.VectorizeTransformObservation(
        env, gym.wrappers.TransformObservation, func=lambda x: 2 * x, observation_space=env.single_observation_space
    ),
    "FlattenObservation": vector.FlattenObservation,
    "FilterObservation": lambda env: vector.FilterObservation(env, ["input_ids"]),
    "ReshapeObservation": lambda env: vector.ReshapeObservation(env, (*env.single_observation_space.shape, 1)),
    "RescaleObservation": lambda env: vector.RescaleObservation(env, 0.0, 1.0),
    "DtypeObservation": lambda env: vector.DtypeObservation(env, np.float64),
    "NormalizeObservation": vector.NormalizeObservation,
    "NumpyToTorch": vector.NumpyToTorch,
    "ArrayConversion": lambda env: vector.ArrayConversion(env, env_xp=np, target_xp=torch),
    "RecordVideo": lambda env: vector.RecordVideo(env, "videos"),
    "HumanRendering": vector.HumanRendering,
}
ON_DICTS = ("FilterObservation",)
OUTCOMES = {"yes": None, "runs": None, "refused": ValueError, "fails": Exception}


def rows() -> dict[str, list[str]]:
    """Wrapper -> what the page says of each mode."""
    block = PAGE[PAGE.index("| wrapper of `gymnasium.wrappers.vector` |") :].split("\n\n")[0]
    found = {}
    for line in block.splitlines()[2:]:
        names, *said = (cell.strip() for cell in line.strip("|").split("|"))
        found |= dict.fromkeys(re.findall(r"`(\w+)`", names), said[: len(MODES)])
    return found


def make(mode: str, view: str) -> Any:
    return gym.make_vec("LMAlignExact-v0", 3, kl_mode="none", autoreset_mode=mode, observation_mode=view)


def play(env: Any, mode: str, *, tensors: bool = False, steps: int = 8) -> Any:
    """Random actions, the ended rows reset as the mode asks for; the last info."""
    _, info = env.reset(seed=0)
    draws, done = np.random.default_rng(0), np.zeros(3, bool)
    for _ in range(steps):
        if mode == "Disabled" and done.any():
            env.reset(options={"reset_mask": done.copy()})
        actions = draws.integers(0, 4, 3)
        _, _, ended, _, info = env.step(torch.as_tensor(actions) if tensors else actions)
        done = np.asarray(ended)
    return info


def test_the_table_knows_every_wrapper_that_texts_can_have() -> None:
    of_images = {"GrayscaleObservation", "ResizeObservation", "JaxToNumpy", "JaxToTorch"}
    of_boxes = {"ClipAction", "RescaleAction", "VectorizeTransformAction", "VectorizeTransformReward"}
    assert set(rows()) == set(WRAP) == set(vector.__all__) - of_images - of_boxes


@pytest.mark.filterwarnings("ignore:.*precision lowered", "ignore:overflow encountered in cast")
@pytest.mark.parametrize("name", WRAP)
def test_a_row_of_the_table(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tensors = name in ("NumpyToTorch", "ArrayConversion")
    if tensors:
        pytest.importorskip("array_api_compat", reason="gymnasium[array-api]")
    for mode, said in zip(MODES, rows()[name], strict=True):
        view = "tokens" if name in ON_DICTS else "hidden"
        if OUTCOMES[said] is None:
            play(WRAP[name](make(mode, view)), mode, tensors=tensors)
        else:
            with pytest.raises(OUTCOMES[said]):
                play(WRAP[name](make(mode, view)), mode, tensors=tensors)


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What the block under the table defines."""
    [code] = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "NumbersInInfo" in block]
    found: dict[str, Any] = {}
    exec(compile(code, "docs/envs.md", "exec"), found)
    return found


@pytest.mark.parametrize("mode", MODES)
def test_the_way_out_for_tensors(mode: str, page: dict[str, Any]) -> None:
    pytest.importorskip("array_api_compat", reason="gymnasium[array-api]")
    info = play(vector.NumpyToTorch(page["NumbersInVectorInfo"](make(mode, "hidden"))), mode, tensors=True)
    assert set(info) == set(page["KEYS"]) and all(isinstance(x, torch.Tensor) for x in info.values())


def test_the_way_out_for_equal_keys(page: dict[str, Any]) -> None:
    env = page["NumbersInInfo"](gym.make("LMAlignExact-v0", kl_mode="none"))
    _, info = env.reset(seed=0)
    kinds = [{key: type(value) for key, value in info.items()}]
    for _ in range(6):
        *_, ended, _, info = env.step(env.action_space.sample())
        kinds.append({key: type(value) for key, value in info.items()})
        if ended:
            env.reset()
    assert all(kind == kinds[0] == dict.fromkeys(page["KEYS"], np.float64) for kind in kinds)


def test_torchrl_reads_info_as_the_page_says(page: dict[str, Any]) -> None:
    envs = pytest.importorskip("torchrl.envs", reason="TorchRL is a development dependency")

    def single() -> Any:
        return gym.make("LMAlignExact-v0", kl_mode="none")

    with pytest.raises(AttributeError, match="'str' object"):
        envs.GymWrapper(single()).auto_register_info_dict()
    with pytest.raises((KeyError, RuntimeError)):
        envs.GymWrapper(make("SameStep", "tokens")).auto_register_info_dict()
    for env in (page["NumbersInInfo"](single()), page["NumbersInVectorInfo"](make("Disabled", "tokens"))):
        found = envs.GymWrapper(env).auto_register_info_dict().rollout(4, break_when_any_done=False)
        assert "ref_logprob" in found["next"].keys()
