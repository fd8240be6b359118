"""The guard: what it refuses, what it puts back, and a planted collapse that a run survives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from ppo_runs import environment, ppo, problem

from lm_gym import exact
from lm_gym.agent_state import weights
from lm_gym.agents import PPO, Reference
from lm_gym.cli import main
from lm_gym.guard import Guard, Watch, worse
from lm_gym.run_files import read_jsonl

SMALL = {"batch_size": 32, "minibatch_size": 16, "lr_schedule": "constant"}


def agent(**config: Any) -> PPO:
    return PPO(gym.make("LMAlignExact-v0"), **{**SMALL, **config})


def copy(agent: PPO) -> dict[str, torch.Tensor]:
    return {f"{g}/{k}": t.detach().clone() for g, group in weights(agent).items() for k, t in group.items()}


def test_the_rule() -> None:
    """d = −1 for every text of 16 is worse; with a scatter of sd 4 the standard error is 1 and three of them 3."""
    best = torch.zeros(16, dtype=torch.float64)
    assert worse(best, best, 3.0) is None, "the same texts are not worse"
    assert "1 below the best" in (worse(best - 1, best, 3.0) or "")
    scatter = torch.tensor([4.0, -4.0] * 8, dtype=torch.float64) * (15 / 16) ** 0.5
    assert worse(scatter - 2.9, best, 3.0) is None and worse(scatter - 3.1, best, 3.0) is not None
    assert worse(scatter - 2.9, best, 2.5) is not None
    assert worse(best + 5, best, 3.0) is None, "better is never refused"


@pytest.mark.parametrize("planted", ["once", "for good"])
def test_a_planted_collapse_is_taken_back_and_the_run_ends_above_its_start(planted: str) -> None:
    """The step size is a hundredfold from update 10 on, or in it alone; without a guard the run collapses."""

    def collapse(agent: Any, _: Any) -> None:
        if agent.updates == 9:
            agent.base_lr *= 100
        if agent.updates == 10 and planted == "once":
            agent.base_lr /= 100

    language = gym.make("LMAlignExact-v0").unwrapped.language  # type: ignore[attr-defined]
    ends, rollbacks = {}, []
    for guard in (None, Guard(every=2, n=256)):
        run = agent()
        start = exact.evaluate(language, run).objective

        def note(agent: Any, metrics: Any) -> None:
            collapse(agent, metrics)
            rollbacks.append(metrics.get("guard/rollbacks", 0))

        run.learn(4000, guard=guard, callback=note)
        ends[guard is not None] = exact.evaluate(language, run).objective - start
    assert rollbacks[-1] >= (1 if planted == "once" else 3)
    assert ends[True] > 0.3
    if planted == "for good":
        assert ends[False] < 0


def test_a_rollback_puts_everything_back_but_the_clock() -> None:
    run = agent(kl_target=1.0, kl_horizon=50, kl_reference="ema")
    run.learn(300, guard=Guard(every=1, n=32))
    watch = run.watch
    assert isinstance(watch, Watch)
    before, beta, updates, rng = copy(run), run.kl_coef, run.updates, run.generator.get_state()
    watch.good, watch.good_control = watch._copy()
    with torch.no_grad():
        for p in run.policy.parameters():
            p.mul_(3)
    run.kl_control.adaptive.value = run.kl_coef = 9.0
    message = watch.roll_back("of a test")
    assert "taken back after update" in message and "of a test" in message
    after = copy(run)
    assert set(after) == set(before) and all(torch.equal(after[k], before[k]) for k in before)
    assert run.kl_coef == beta and run.step_size_factor == 0.5
    assert run.current_lr() == pytest.approx(run.base_lr / 2)
    assert run.updates == updates and torch.equal(run.generator.get_state(), rng)


def broken(run: PPO, times: int) -> PPO:
    """Updates after the third meet a NaN in a weight, so many of them."""
    update, left = run.update, [times]

    def bad(rollout: Any) -> dict[str, float]:
        if run.updates >= 3 and left[0]:
            left[0] -= 1
            with torch.no_grad():
                run.policy.lm.logits[0, 0] = torch.nan
        return update(rollout)

    run.update = bad  # type: ignore[method-assign]
    return run


@pytest.mark.parametrize("where", ["update", "between"])
def test_a_nan_is_taken_back(where: str) -> None:
    run = broken(agent(), 1 if where == "update" else 0)

    def plant(agent: Any, metrics: Any) -> None:
        logs.append(metrics)
        if where == "between" and len(logs) == 3:
            with torch.no_grad():
                agent.policy.lm.logits[0, 0] = torch.nan

    logs: list[dict[str, float]] = []
    run.learn(600, guard=Guard(every=2, n=16), callback=plant)
    assert run.watch is not None and run.watch.rollbacks == 1 == logs[-1]["guard/rollbacks"]
    assert run.step_size_factor == 0.5
    assert all(bool(torch.isfinite(p).all()) for p in run.policy.parameters())
    assert [row["guard/rollbacks"] for row in logs[:4]] == [0, 0, 0, 1]


def test_the_kl_limit() -> None:
    run = agent(kl_coef=0.01)
    run.learn(3000, guard=Guard(every=1, n=64, max_kl=0.3))
    assert run.watch is not None and run.watch.rollbacks >= 1
    language = gym.make("LMAlignExact-v0").unwrapped.language  # type: ignore[attr-defined]
    assert exact.evaluate(language, run).kl < 0.45, "the last update may pass the limit a little"
    with pytest.raises(ValueError, match="nats from the reference before training, and the guard allows 0.05"):
        run.learn(100, guard=Guard(max_kl=0.05))


def test_rollbacks_without_end_stop_the_run() -> None:
    run = broken(agent(), 1000)
    with pytest.raises(FloatingPointError, match="took the policy back 10 times in a row"):
        run.learn(100_000, guard=Guard(every=1, n=8))
    assert bool(torch.isfinite(run.policy.lm.logits).all())


def test_what_it_logs_and_that_its_draws_move_nothing() -> None:
    """A run that is only looked at is the run without a guard; the guard's tokens are counted apart."""
    logs: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    for guarded in (True, False):
        guard = Guard(every=2, n=16, sigmas=100.0) if guarded else None
        agent().learn(400, guard=guard, callback=lambda _, m, to=logs[guarded]: to.append(m))  # type: ignore[misc]

    def plain(rows: list[dict[str, float]]) -> list[dict[str, float]]:
        return [{k: v for k, v in row.items() if not k.startswith(("perf/", "guard/"))} for row in rows]

    assert plain(logs[True]) == plain(logs[False])
    assert [("guard/j" in row) for row in logs[True][:4]] == [False, True, False, True]
    assert logs[True][1]["guard/tokens"] > logs[True][0]["guard/tokens"] > 0
    assert all(row["guard/rollbacks"] == 0 for row in logs[True])


def test_a_guarded_run_goes_on_exactly(tmp_path: Path) -> None:
    guard = Guard(every=2, n=32, max_kl=0.2)
    whole = agent()
    whole.learn(1500, guard=guard)
    assert whole.watch is not None and whole.watch.rollbacks
    agent().learn(1500, guard=guard, out=tmp_path, callback=lambda a, _: a.updates < 5)
    part = PPO.load(tmp_path, gym.make("LMAlignExact-v0"))
    with pytest.raises(ValueError, match="made under a guard"):
        part.learn(1500, resume=True)
    with pytest.raises(ValueError, match="expected the prompts and the number of texts"):
        part.learn(1500, resume=True, guard=Guard(every=2, n=33, max_kl=0.2))
    part.learn(1500, resume=True, guard=guard)
    one, other = copy(whole), copy(part)
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert part.watch is not None and part.watch.state()[0] == whole.watch.state()[0]


@pytest.mark.filterwarnings("ignore:the environment is wrapped")
def test_what_a_guard_cannot_watch() -> None:
    with pytest.raises(ValueError, match="every expected a whole number of at least 1, got 0"):
        Guard(every=0)
    with pytest.raises(ValueError, match="max_kl expected above 0"):
        Guard(max_kl=-1.0)
    with pytest.raises(ValueError, match="reference has nothing to take back"):
        Reference(gym.make("LMAlignExact-v0")).learn(100, guard=Guard())
    wrapped = gym.wrappers.TransformReward(environment(problem()), lambda r: r)
    with pytest.raises(ValueError, match="guard expected an environment without wrappers"):
        ppo(wrapped).learn(100, guard=Guard())


def test_the_command_line_guards_on_held_out_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--batch-size 8 --minibatch-size 8 --epochs 1 --max-new-tokens 4 --eval-texts 0 --threads 1".split()
    run = ["--out", str(tmp_path / "run")]
    guarded = ["--guard-every", "1", "--guard-prompts", "8", "--guard-kl", "50", "--save-every", "1"]
    assert main(["train", "ppo", *run, "--total-tokens", "60", *flags, *guarded, "--keep-checkpoints", "1"]) == 0
    assert main(["train", "ppo", *run, "--total-tokens", "120", "--resume"]) == 0
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert len(rows) >= 3 and [row["guard/rollbacks"] for row in rows] == [0] * len(rows)
    looks = [row["guard/tokens"] for row in rows]
    assert looks == sorted(set(looks)) and looks[0] <= 2 * 8 * 4, "the start and the first update"
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step-{len(rows)}"]
    capsys.readouterr()
    other = ["--out", str(tmp_path / "other"), *flags[6:]]
    assert main(["train", "ppo", *other, "--guard-kl", "5"]) == 2
    assert main(["train", "reference", *other, "--guard-every", "5"]) == 2
    assert main(["train", "ppo", *other, "--guard-every", "5", "--guard-prompts", "2"]) == 2
    errors = capsys.readouterr().err
    for message in ("guard_kl has no effect without guard_every", "which trains nothing", "guard n expected"):
        assert message in errors
