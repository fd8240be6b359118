"""Going on exactly: every agent, wrapped environments, kills at any moment, what a run's folder holds afterwards."""

from __future__ import annotations

import importlib
import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ppo_runs import count_a, environment, ppo, problem

import lm_gym  # noqa: F401  (registers the environments)
from lm_gym import checkpoints
from lm_gym.agents import PPO

SMALL: dict[str, dict[str, Any]] = {
    "best-of-n": {"n": 4},
    "dpo": {"n_pairs": 40},
    "grpo": {"group_size": 4},
    "nlpo": {"mask_every": 2},
    "ppo": {"kl_target": 0.5, "kl_horizon": 100, "kl_reference": "ema"},
}
"""What makes an agent's own state part of the test."""
DEMONSTRATIONS = [{"prompt": p, "completion": c} for p in ("abc", "a", "bad") for c in ("aa", "bab", "cab", "head")]


def agents() -> list[str]:
    return sorted(point.name for point in entry_points(group="lm_gym.agents"))


def made(name: str) -> tuple[Any, Any, dict[str, Any]]:
    """An agent's class, an environment and a small configuration."""
    (kind,) = (point.load() for point in entry_points(group="lm_gym.agents") if point.name == name)
    config = {"batch_size": 16, **SMALL.get(name, {})}
    if hasattr(kind.config_class, "minibatch_size"):
        config["minibatch_size"] = 4
    if name == "sft":
        return kind, environment(problem()), {**config, "data": DEMONSTRATIONS, "batch_size": 5, "eval_every": 2}
    return kind, gym.make("LMAlignExact-v0"), config


def contents(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A checkpoint's tensors as bytes, and its state."""
    groups, state = checkpoints.load(folder)
    return {f"{g}/{k}": t.numpy().tobytes() for g, group in groups.items() for k, t in group.items()}, state


def rows(run: Path) -> tuple[list[dict[str, Any]], str]:
    """What a run logged, but for its seconds, and its samples."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in lines]
    return kept, (run / "samples.jsonl").read_text() if (run / "samples.jsonl").exists() else ""


def assert_same_run(one: Path, other: Path) -> None:
    assert rows(one) == rows(other)
    assert checkpoints.latest(one).name == checkpoints.latest(other).name
    assert contents(checkpoints.latest(one)) == contents(checkpoints.latest(other))


@pytest.mark.parametrize("name", agents())
def test_every_agent_goes_on_as_if_nothing_had_happened(name: str, tmp_path: Path) -> None:
    kind, env, config = made(name)
    total = 60 if name == "sft" else 170
    kind(env, **config).learn(total, out=tmp_path / "whole")
    kind(made(name)[1], **config).learn(total, out=tmp_path / "part", save_every=1, callback=lambda a, _: a.updates < 3)
    live = {"data": config["data"]} if "data" in config else {}
    taken = kind.load(tmp_path / "part" / "checkpoints" / "step-2", made(name)[1], **live)
    assert taken.updates == 2
    taken.learn(total, out=tmp_path / "part", resume=True)
    assert taken.updates > 3
    assert_same_run(tmp_path / "whole", tmp_path / "part")


# ---- what is kept -------------------------------------------------------------------------------------------------


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    for keep, expected in ((2, 2), (None, 5)):
        out = tmp_path / str(keep)
        agent = PPO(gym.make("LMAlignExact-v0"), batch_size=16, minibatch_size=8)
        agent.learn(10_000, out=out, save_every=1, keep_checkpoints=keep, callback=lambda a, _: a.updates < 5)
        found = sorted(p.name for p in (out / "checkpoints").iterdir())
        assert found == [f"step-{i}" for i in range(6 - expected, 6)]
    with pytest.raises(ValueError, match="keep_checkpoints expected at least 1"):
        agent.learn(10, keep_checkpoints=0)


def test_going_on_from_an_older_checkpoint_removes_the_later_ones(tmp_path: Path) -> None:
    agent = PPO(gym.make("LMAlignExact-v0"), batch_size=16, minibatch_size=8)
    agent.learn(10_000, out=tmp_path, save_every=1, keep_checkpoints=None, callback=lambda a, _: a.updates < 5)
    (tmp_path / "checkpoints" / ".step-6.writing").mkdir()
    older = PPO.load(tmp_path / "checkpoints" / "step-2", gym.make("LMAlignExact-v0"))
    older.learn(10_000, out=tmp_path, resume=True, callback=lambda a, _: False)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-1", "step-2", "step-3"]
    assert [row["step"] for row in rows(tmp_path)[0]] == [1, 2, 3]


def test_a_run_stopped_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    def stop(agent: Any, _: Any) -> None:
        if agent.updates == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PPO(gym.make("LMAlignExact-v0"), batch_size=16, minibatch_size=8).learn(
            100, out=tmp_path / "part", callback=stop
        )
    assert len(rows(tmp_path / "part")[0]) == 2 and not (tmp_path / "part" / "checkpoints").exists()
    PPO(gym.make("LMAlignExact-v0"), batch_size=16, minibatch_size=8).learn(100, out=tmp_path / "part", resume=True)
    PPO(gym.make("LMAlignExact-v0"), batch_size=16, minibatch_size=8).learn(100, out=tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "part")


# ---- wrapped environments -----------------------------------------------------------------------------------------


class Noisy(gym.RewardWrapper):
    """A wrapper with a random state of its own."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.rng = np.random.default_rng(3)

    def reward(self, reward: Any) -> float:
        return float(reward) + float(self.rng.normal())


class Kept(Noisy):
    def state_dict(self) -> dict[str, Any]:
        return dict(self.rng.bit_generator.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rng.bit_generator.state = state


def doubled(env: Any) -> Any:
    return gym.wrappers.TransformReward(env, lambda r: 2 * r)


@pytest.mark.filterwarnings("ignore:the environment is wrapped")
@pytest.mark.parametrize("wrap", [doubled, Kept, lambda env: doubled(Kept(env))], ids=["plain", "state", "both"])
def test_a_wrapped_environment_goes_on_where_its_random_state_was(wrap: Any, tmp_path: Path) -> None:
    def env() -> Any:
        return wrap(environment(problem(max_new_tokens=4)))

    config = {"batch_size": 6, "minibatch_size": 6, "epochs": 1}
    ppo(env(), **config).learn(90, out=tmp_path / "whole")
    ppo(env(), **config).learn(90, out=tmp_path / "part", callback=lambda a, _: a.updates < 2)
    PPO.load(tmp_path / "part", env()).learn(90, out=tmp_path / "part", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "part")


@pytest.mark.filterwarnings("ignore:the environment is wrapped")
def test_a_vector_environment_goes_on_with_every_rows_random_state(tmp_path: Path) -> None:
    def env() -> Any:
        made = gym.make_vec("LMAlignExact-v0", num_envs=4)
        return gym.wrappers.vector.TransformReward(made, lambda r: 2 * r)

    PPO(env(), batch_size=16, minibatch_size=8).learn(170, out=tmp_path / "whole")
    PPO(env(), batch_size=16, minibatch_size=8).learn(170, out=tmp_path / "part", callback=lambda a, _: a.updates < 2)
    PPO.load(tmp_path / "part", env()).learn(170, out=tmp_path / "part", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "part")


@pytest.mark.filterwarnings("ignore:the environment is wrapped")
def test_a_wrapper_whose_state_is_not_known_cannot_go_on_exactly(tmp_path: Path) -> None:
    env = environment(problem(max_new_tokens=4))
    ppo(Noisy(env), batch_size=6, minibatch_size=6, epochs=1).learn(30, out=tmp_path)
    again = PPO.load(tmp_path, Noisy(env))
    with pytest.raises(ValueError, match=r"does not hold what the wrapper Noisy keeps .*state_dict"):
        again.learn(90, resume=True)
    again.learn(10)  # not exactly, but on
    with pytest.raises(ValueError, match=r"in the wrappers \['Noisy'\], got \['TransformReward'\]"):
        PPO.load(tmp_path, doubled(env))
    with pytest.warns(UserWarning, match="this one has no wrapper"):
        PPO.load(tmp_path, env)


# ---- kills --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ppo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dpo", "nlpo"))])
def test_runs_disturbed_at_random_moments_end_bit_for_bit_equal(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One trial of each kind (a kill, a full disk, two at once); benchmarks/kill_resume.py makes more of them."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    kill_resume = importlib.import_module("kill_resume")
    count = kill_resume.disturb_runs(name, "exact", 5, 500, 0, tmp_path)
    assert count["trials"] == count["equal"] == 5 and count["refused"] == 1
    assert all(count[kind] == 1 for kind in kill_resume.KINDS)


# ---- the disk -----------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = PPO(gym.make("LMAlignExact-v0"), batch_size=16, minibatch_size=8)
    agent.learn(10_000, out=tmp_path, save_every=1, callback=lambda a, _: a.updates < 2)
    save_file = checkpoints.save_file

    def full(tensors: Any, path: str) -> None:
        save_file(tensors, path)
        if "optimizer" in path:
            raise OSError(28, "No space left on device", path)

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OSError, match=r"step-3 could not be written: the disk is full.*before is whole"):
        agent.learn(10_000, out=tmp_path, save_every=1)
    with pytest.raises(OSError, match="the disk is full"):
        agent.save(tmp_path / "checkpoints" / "step-2")
    monkeypatch.undo()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-1", "step-2"]
    again = PPO.load(tmp_path, gym.make("LMAlignExact-v0"))
    assert again.updates == 2
    again.learn(10_000, out=tmp_path, callback=lambda a, _: False)
    assert [row["step"] for row in rows(tmp_path)[0]] == [1, 2, 3]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    agent = ppo(environment(problem(reward_model=count_a)))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="could not be written"):
        agent.save(tmp_path / "file" / "step-1")
