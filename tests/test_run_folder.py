"""Whose a run's folder is: what goes on there, what is refused, and what a start that failed leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from test_cli import _numbers, reward_file, train

import lm_gym  # noqa: F401  (registers the environments)
from lm_gym import run_folder, runinfo, tracking
from lm_gym.agents import PPO
from lm_gym.cli.commands import main
from lm_gym.cli.options import parse_train
from lm_gym.folders import locked
from lm_gym.rewards import RewardModelError, reward_model_hash


def ppo(seed: int = 0, **options: Any) -> PPO:
    return PPO(gym.make("LMAlignExact-v0"), batch_size=16, minibatch_size=8, epochs=1, seed=seed, **options)


def learn(agent: PPO, updates: int, **options: Any) -> PPO:
    return agent.learn(10_000, save_every=1, callback=lambda a, _: a.updates < updates, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def steps(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().split("\n") if line]


# ---- whose run it is -------------------------------------------------------------------------------------------------


def test_an_agent_goes_on_in_its_own_folder_and_in_no_other(tmp_path: Path) -> None:
    run = tmp_path / "a"
    learn(ppo(), 3, out=run)
    before = contents(run)
    other = learn(ppo(1), 2, out=tmp_path / "b")
    moved = tmp_path / "copy"
    shutil.copytree(run / "checkpoints" / "step-2", moved)
    strangers: list[tuple[PPO, dict[str, Any], str]] = [
        (other, {}, "holds a run that is not this agent's, up to update 3: .*PPO.load"),
        (learn(ppo(1), 1), {}, "holds a run that is not this agent's"),
        (other, {"resume": True}, "holds a run that is not this agent's"),
        (PPO.load(moved, gym.make("LMAlignExact-v0")), {"resume": True}, "holds a run that is not this agent's"),
        (ppo(1), {}, r"already holds a run \(metrics.jsonl, metrics.csv, samples.jsonl, checkpoints\)"),
        (ppo(1), {"resume": True}, "a run with checkpoints, and resume=True on a new agent would begin it again"),
    ]
    for agent, options, message in strangers:
        with pytest.raises(FileExistsError, match=message):
            learn(agent, 9, out=run, **options)
        assert contents(run) == before
    learn(other, 4, out=tmp_path / "b")
    assert steps(tmp_path / "b") == [1, 2, 3, 4]
    learn(PPO.load(run, gym.make("LMAlignExact-v0")), 5, out=run)
    assert steps(run) == [1, 2, 3, 4, 5]


def test_a_checkpoint_is_known_by_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learn(ppo(), 2, out=tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    (tmp_path / "newest").symlink_to(checkpoints / "step-2")
    for updates, folder, path in (
        (3, tmp_path, "newest"),
        (4, checkpoints, "step-3"),
        (5, checkpoints / "step-4", "."),
    ):
        monkeypatch.chdir(folder)
        agent = PPO.load(path, gym.make("LMAlignExact-v0"))
        monkeypatch.chdir(tmp_path)
        learn(agent, updates, out="run", resume=True)
    assert steps(tmp_path / "run") == [1, 2, 3, 4, 5]


def test_what_another_one_went_on_with_is_not_taken_back(tmp_path: Path) -> None:
    first = learn(ppo(), 2, out=tmp_path)
    env = gym.make("LMAlignExact-v0")
    second, third = PPO.load(tmp_path, env), PPO.load(tmp_path, env)
    learn(second, 4, out=tmp_path, resume=True)
    for late in (first, third):
        with pytest.raises(FileExistsError, match=r"has changed since .* \(update 4 is there, update 2 was then\)"):
            learn(late, 3, out=tmp_path, resume=True)
    assert steps(tmp_path) == [1, 2, 3, 4]
    assert learn(PPO.load(tmp_path / "checkpoints" / "step-2", env), 3, out=tmp_path, resume=True).updates == 3
    assert steps(tmp_path) == [1, 2, 3]  # to go back one says from where


def test_a_checkpoint_takes_the_place_of_nothing_but_a_checkpoint(tmp_path: Path) -> None:
    agent = learn(ppo(), 1, out=tmp_path / "run")
    (tmp_path / "empty").mkdir()
    agent.save(agent.save(tmp_path / "empty"))
    before = contents(tmp_path)
    for place in (tmp_path, tmp_path / "run", tmp_path / "run" / "checkpoints", tmp_path / "run" / "config.yaml"):
        with pytest.raises(ValueError, match="and is no checkpoint, which a new one could replace"):
            agent.save(place)
    assert contents(tmp_path) == before


# ---- the configuration -----------------------------------------------------------------------------------------------


def test_a_stop_while_the_configuration_is_renewed_leaves_a_run_that_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = gym.make("LMAlignExact-v0")
    learn(ppo(), 1, out=tmp_path)
    first = (tmp_path / "config.yaml").read_bytes()

    def full(path: Path, config: Any) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(tracking, "write_config", full)
    for _ in range(2):
        with pytest.raises(OSError, match="config.yaml"):
            learn(PPO.load(tmp_path, env), 2, out=tmp_path, resume=True)
        assert (tmp_path / "config.yaml").read_bytes() == first
    monkeypatch.undo()
    learn(PPO.load(tmp_path, env), 2, out=tmp_path, resume=True, run_config={"note": "second"})
    assert (tmp_path / "config.0.yaml").read_bytes() == first != (tmp_path / "config.yaml").read_bytes()
    assert run_folder.kept_configs(tmp_path).keys() == {0}  # the copy is made once


@pytest.mark.filterwarnings("ignore:the reward model .* is not the one of the checkpoint")
def test_a_start_that_fails_leaves_the_configuration_of_a_run_that_would_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(run, "--reward", "length?target=3", "--eval-texts", "0", tokens=1) == 0
    first = (run / "config.yaml").read_bytes()
    judge = reward_file(tmp_path, "    raise ValueError('never')")
    more = ("--resume", "--eval-texts", "0", "--out", str(run), "--total-tokens")
    assert main(["train", "ppo", *more, "200", "--reward", judge]) == 1
    rows = run / "metrics.jsonl"
    kept = rows.read_bytes()
    rows.write_bytes(b"[1]\n")
    capsys.readouterr()
    assert main(["train", "ppo", *more, "200"]) == 2
    assert "metrics.jsonl, line 1: expected an object, got '[1]'" in capsys.readouterr().err
    rows.write_bytes(kept)
    assert (run / "config.yaml").read_bytes() == first
    assert main(["train", "ppo", *more, "80"]) == 0
    assert "length?target=3" in (run / "config.yaml").read_text() and not (run / run_folder.NEXT_CONFIG).exists()


def test_resume_takes_the_newest_configuration_that_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, tokens in (("config.2.yaml", 7), ("config.10.yaml", 8), ("config.old.yaml", 9)):
        (tmp_path / name).write_text(f"total_tokens: {tokens}\n")
    assert parse_train("ppo", ["--resume", "--out", str(tmp_path)]).run.total_tokens == 8
    assert "config.10.yaml is taken, the newest that is kept" in capsys.readouterr().err


# ---- starts that failed, and stops -----------------------------------------------------------------------------------


def test_a_start_that_failed_does_not_occupy_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert train(out, "--reward", reward_file(tmp_path, "    return [float('nan')] * 8")) == 1
    assert "checkpoint" not in capsys.readouterr().err  # none was to be expected yet
    assert {path.name for path in out.iterdir()} <= {"config.yaml", "blame"}
    assert train(out, "--reward", "length?target=3", "--eval-texts", "0", tokens=1) == 0
    assert len(_numbers(out)) == 1 and not (out / ".lock").exists()
    assert train(out) == 2
    assert "already holds a run (metrics.jsonl, metrics.csv, samples.jsonl, checkpoints)" in capsys.readouterr().err


def test_a_folder_in_use_is_refused_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm_gym.folders.threading.get_ident", iter(range(100)).__next__)  # every call is another's
    no_model = tmp_path / "no-model"  # a path that is there, so that loading it would be an error
    no_model.mkdir()
    with locked(tmp_path):
        commands = (
            ["train", "ppo", "--model", str(no_model), "--out"],
            ["demo", "--out"],
            ["compare", "--agents", "reference", "--results"],
            ["pipeline", "--model", str(no_model), "--out"],
        )
        for command in commands:
            assert main([*command, str(tmp_path)]) == 2, command
            assert f"{tmp_path} is in use by another thread" in capsys.readouterr().err
    with locked(tmp_path / "rm", beside=True):
        assert main(["train", "reward-model", "--data", "nowhere.jsonl", "--out", str(tmp_path / "rm")]) == 2
        assert "rm is in use by" in capsys.readouterr().err


def test_sigterm_ends_the_update_and_saves_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, marker = tmp_path / "run", tmp_path / "marker"
    body = (
        f"    if not pathlib.Path({str(marker)!r}).exists():\n"
        f"        pathlib.Path({str(marker)!r}).touch()\n"
        "        for _ in range(2): os.kill(os.getpid(), signal.SIGTERM)\n"  # as process groups pass it on
        "    return [len(c) * 0.1 for c in completions]"
    )
    before = signal.getsignal(signal.SIGTERM)
    assert train(out, "--reward", reward_file(tmp_path, body), "--save-every", "50") == 143
    error = capsys.readouterr().err
    assert error.count("SIGTERM: this update is finished and saved first") == 1
    assert "stopped after update 1" in error and "the evaluation is left out" in error
    assert (out / "checkpoints" / "step-1").is_dir() and (out / "report.html").is_file()
    assert signal.getsignal(signal.SIGTERM) is before
    assert main(["train", "ppo", "--resume", "--out", str(out)]) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_compare_and_pipeline_say_how_to_go_on(
    number: signal.Signals, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    from lm_gym.pipeline.context import Stopped

    def compared(*_: Any) -> None:
        os.kill(os.getpid(), number)

    def piped(*_: Any, stop: Any, **__: Any) -> None:
        os.kill(os.getpid(), number)
        assert stop()
        raise Stopped

    monkeypatch.setattr("lm_gym.compare.run.compare", compared)
    monkeypatch.setattr("lm_gym.pipeline.run.run_pipeline", piped)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    try:
        assert main(["compare", "--agents", "reference", "--results", str(tmp_path / "c")]) == code
        assert f"what has ended is in {tmp_path / 'c'}; the same command goes on" in capsys.readouterr().err
        assert main(["pipeline", "--out", str(tmp_path / "p")]) == code
        assert "stopped; the same command goes on" in capsys.readouterr().err
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_update_whose_row_is_refused_is_kept(tmp_path: Path) -> None:
    class Named(PPO):
        name = "named"

        def update(self, rollout: Any) -> dict[str, float]:
            found = super().update(rollout)
            return found | ({"no/such\nname": 1.0} if self.updates == 2 else {})

    agent = Named(gym.make("LMAlignExact-v0"), batch_size=16, minibatch_size=8, epochs=1)
    with pytest.raises(ValueError, match="unknown metric"):
        agent.learn(10_000, out=tmp_path)
    assert Named.load(tmp_path, gym.make("LMAlignExact-v0")).updates == 3 and steps(tmp_path) == [1, 2]


def test_a_judge_logs_no_name_that_the_log_would_refuse_later(tmp_path: Path) -> None:
    def judge(completions: Any, log_metric: Any) -> list[float]:
        log_metric("a\x1b[31m", 1.0)
        return [0.0] * len(completions)

    env = gym.make("LMAlign-v0", reward_model=judge, max_new_tokens=2)
    agent = PPO(env, batch_size=4, minibatch_size=4)
    with pytest.raises(RewardModelError, match=r"log_metric\('a\\x1b\[31m', …\) of .*expected a name in printable"):
        agent.learn(8, out=tmp_path)
    assert agent.updates == 0


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_names_the_whole_older_ones(tmp_path: Path) -> None:
    env = gym.make("LMAlignExact-v0")
    learn(ppo(), 4, out=tmp_path, keep_checkpoints=None)
    newest = tmp_path / "checkpoints" / "step-4"
    for number in (2, 4):
        path = tmp_path / "checkpoints" / f"step-{number}" / "policy.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"damaged.*step-3, step-1 are whole: remove {newest} to go on from step-3"):
        PPO.load(tmp_path, env)
    shutil.rmtree(newest)
    assert PPO.load(tmp_path, env).updates == 3
    (newest.with_name("step-3") / "state.json").unlink()
    broken = "step-3 has no state.json"
    with pytest.warns(UserWarning, match=broken), pytest.raises(ValueError, match="step-1 is whole"):
        PPO.load(tmp_path, env)
    shutil.rmtree(newest.with_name("step-1"))
    with pytest.warns(UserWarning, match=broken), pytest.raises(ValueError, match="No older one in .* is whole"):
        PPO.load(tmp_path, env)


JUDGE = """
from beside import FACTOR
WORDS = ["a", "b"]
def share(text, cache={}):
    return sum(text.count(word) for word in WORDS) * FACTOR
class Judge:
    def __init__(self, scale: float = 1.0):
        self.scale = scale
    def __call__(self, completions, **_):
        return [self.scale * share(c) for c in completions]
def score(completions, **_):
    return [share(c) for c in completions]
"""


@pytest.mark.parametrize("spec", ["score", "Judge", "Judge?scale=2"])
def test_the_hash_sees_what_a_judge_uses_from_its_folder(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.syspath_prepend(str(tmp_path))

    def hashed(text: str = JUDGE, beside: str = "FACTOR = 1\n") -> str:
        monkeypatch.delitem(sys.modules, "beside", raising=False)
        (tmp_path / "beside.py").write_text(beside)
        (tmp_path / "judge.py").write_text(text)
        for cache in tmp_path.glob("__pycache__/*"):
            cache.unlink()
        from lm_gym.rewards import load_reward_model

        name, _, query = spec.partition("?")
        return reward_model_hash(load_reward_model(f"py:{tmp_path / 'judge.py'}:{name}{'?' + query if query else ''}"))

    first = hashed()
    assert first == hashed() == hashed(JUDGE + "\ndef unused():\n    return 3\n")
    changed = [
        hashed(JUDGE.replace("text.count(word)", "2 * text.count(word)")),
        hashed(JUDGE.replace('"b"]', '"c"]')),
        hashed(beside="FACTOR = 2\n"),
    ]
    assert len({first, *changed}) == 4


@pytest.mark.filterwarnings("default:the reward model")
def test_a_resume_with_another_reward_model_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge = reward_file(tmp_path, "    return [len(c) * 0.1 for c in completions]")
    small = ("--eval-texts", "0")
    assert train(tmp_path / "run", "--reward", judge, *small, tokens=1) == 0
    state = tmp_path / "run" / "checkpoints" / "step-1" / "state.json"
    assert len(json.loads(state.read_text())["reward_model_hash"]) == 16
    again = ["train", "ppo", "--resume", "--out", str(tmp_path / "run"), "--total-tokens"]
    capsys.readouterr()
    assert main([*again, "60"]) == 0
    assert "reward model" not in capsys.readouterr().err
    reward_file(tmp_path, "    return [-len(c) * 0.1 for c in completions]")
    assert main([*again, "120"]) == 0
    assert "is not the one of the checkpoint (its code, weights or configuration is another)" in capsys.readouterr().err
    assert main([*again, "180"]) == 0  # by now it is the run's own
    assert "reward model" not in capsys.readouterr().err


# ---- full disks ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_a_full_disk_is_said_with_the_file(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / name).symlink_to("/dev/full")
    assert train(out, "--reward", "length?target=3", "--eval-texts", "0") == 1
    first, *rest = capsys.readouterr().err.split("\n")
    assert first == f"error: {out / name}: No space left on device"
    assert rest[0].startswith(f"last checkpoint: {out / 'checkpoints' / 'step-1'}")  # the update is not lost


def test_every_write_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runinfo.os, "fsync", full)
    with pytest.raises(OSError, match=r"\[Errno 28\] No space left on device: '.*file.txt'"):
        runinfo.write_atomically(tmp_path / "file.txt", "text")
    assert list(tmp_path.iterdir()) == []
