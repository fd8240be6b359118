"""A whole comparison: processes, what is kept, what is refused, and the command line."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from compare_jobs import job

from lm_gym.cli import main
from lm_gym.cli.options import load_agent
from lm_gym.compare import ledger, run
from lm_gym.compare.ledger import Ledger
from lm_gym.compare.pool import Outcome, run_all
from lm_gym.compare.rows import Problem, Row
from lm_gym.compare.settings import Job, Settings
from lm_gym.compare.training import Trained
from lm_gym.run_files import read_jsonl

pytest.importorskip("matplotlib")
WORKED = "LMAlignExact-v0"
SMALL = ["--total-tokens", "300", "--points", "2", "--eval-texts", "8", "--seeds", "1"]


def settings(**more: Any) -> Settings:
    options: dict[str, Any] = {"problems": {WORKED: (0.5,)}, "agents": {"ppo": load_agent("ppo")}} | more
    return Settings(**options)


def here(function: Callable[[Any], Any], jobs: Sequence[Any], processes: int) -> Iterator[Outcome[Any]]:
    """Jobs in this process, which takes no seconds to start."""
    for each in jobs:
        try:
            yield Outcome(each, function(each))
        except (ValueError, FloatingPointError) as error:
            yield Outcome(each, error=str(error), diverged=isinstance(error, FloatingPointError))


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "run_all", here)


# ---- processes ---------------------------------------------------------------------------------------------------


def test_a_job_that_dies_takes_no_other_with_it() -> None:
    kinds = ["dies", "refuses", "diverges", "works"]
    found = {outcome.job: outcome for outcome in run_all(job, kinds, 4)}
    assert sorted(found) == sorted(kinds)
    assert (found["works"].value, found["works"].error) == ("WORKS", None)
    assert "exit code 3" in str(found["dies"].error)
    assert found["refuses"].error == "ValueError: expected something else" and not found["refuses"].diverged
    assert found["diverges"].diverged


# ---- what is kept ------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    made = Ledger(tmp_path, settings())
    trial = Job("ppo", None, WORKED, 0.5, 10_001, 300, 8, 2, trial=1)
    made.add_problem(Problem(WORKED, 0.5, 0.7, 1.5, ((0.0, 0.7), (1.0, 1.9)), True))
    made.add_reference("LMAlign-v0", {"a text": (0.5, 1.0), "of\u2028several\x85lines\u2029": (0.0,)})
    made.add_trial(trial, {"epochs": 2}, 1.25)
    made.add_row(Row("ppo", WORKED, 0.5, 3, 300, 1.0, 0.25))
    again = Ledger(tmp_path, settings())
    for kept in ("problems", "reference", "trials", "rows"):
        assert getattr(again, kept) == getattr(made, kept) != {}


def test_a_line_that_a_kill_left_unfinished_is_cut_off(tmp_path: Path) -> None:
    made = Ledger(tmp_path, settings())
    for seed in (0, 1):
        made.add_row(Row("ppo", WORKED, 0.5, seed, 300, 1.0, 0.25))
    path = tmp_path / "rows.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert [key[-1] for key in Ledger(tmp_path, settings()).rows] == [0]
    assert path.read_text().count("\n") == 1


def test_the_winner(tmp_path: Path) -> None:
    """The highest J, of equals the first; what diverged never."""
    made = Ledger(tmp_path, settings())
    group = ("ppo", WORKED, 0.5)
    for number, j in enumerate([0.5, None, 0.9, 0.9]):
        trial = Job(group[0], None, group[1], group[2], 10_000 + number, 300, 8, 2, trial=number)
        made.add_trial(trial, {"epochs": number}, j, None if j is not None else "nan")
    assert made.winner(group) == {"epochs": 2} and made.winner(("rloo", WORKED, 0.5)) is None


def test_other_settings_are_refused(tmp_path: Path) -> None:
    both = {"ppo": load_agent("ppo"), "rloo": load_agent("rloo")}
    Ledger(tmp_path, settings(total_tokens=300))
    with pytest.raises(ValueError, match="holds results of total_tokens=300 and not 400, tune_trials=0 and not 5"):
        Ledger(tmp_path, settings(total_tokens=400, tune_trials=5))
    with pytest.raises(ValueError, match=r"ppo with no field set and not \{'epochs': 2\}"):
        Ledger(tmp_path, settings(total_tokens=300, fixed={"ppo": {"epochs": 2}}))
    Ledger(tmp_path, settings(total_tokens=300, agents=both, fixed={"rloo": {"group_size": 2}}, seeds=3))
    with pytest.raises(ValueError, match="rloo with .*group_size.* and not none"):
        Ledger(tmp_path, settings(total_tokens=300, agents=both))


# ---- the command line --------------------------------------------------------------------------------------------


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_run_and_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "runs", tmp_path / "fig.pdf"
    call = ["compare", "--agents", "rloo", *SMALL, "--results", str(folder), "--out", str(out)]
    assert main(call) == 0
    said = capsys.readouterr().out
    assert "run 1 of 1: rloo on LMAlignExact-v0 at β=0.5, seed 0, J " in said and "Default configurations" in said
    assert "| rloo" in said and (tmp_path / "fig.csv").exists() and (tmp_path / "fig-score.pdf").exists()
    assert main(call) == 0
    again = capsys.readouterr().out
    assert "run 1" not in again and again.partition("Made by")[0] in said  # nothing runs, the same is printed
    assert main([*call, "--total-tokens", "400"]) == 2
    assert "holds results of total_tokens=300 and not 400" in capsys.readouterr().err


@pytest.mark.usefixtures("fast")
def test_tuned_then_run_with_fresh_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["compare", "--agents", "grpo,best-of-n", *SMALL, "--seeds", "2", "--kl-coef", ".5,1", "--tune-trials", "3"]
    call += ["--set", "grpo.group_size=4", "--results", str(tmp_path), "--out", str(tmp_path / "fig.svg")]
    assert main(call) == 0
    trials, rows = lines(tmp_path / "trials.jsonl"), lines(tmp_path / "rows.jsonl")
    assert [t["seed"] for t in trials] == [s for s in (10_000, 10_001, 10_002) for _ in range(4)]
    assert [r["seed"] for r in rows] == [0] * 4 + [1] * 4
    assert len(rows) == 8 and {t["kl_coef"] for t in trials} == {0.5, 1.0}
    for row in rows:
        of = [t for t in trials if (t["agent"], t["kl_coef"]) == (row["agent"], row["kl_coef"])]
        assert row["config"] == max(of, key=lambda t: t["j"])["config"]
        assert row["agent"] == "best-of-n" or row["config"]["group_size"] == 4
    assert "Tuned by 3 trials of about 300 tokens" in capsys.readouterr().out


@pytest.mark.usefixtures("fast")
def test_imported_rows_stand_beside_and_never_mix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Row(agent, env, 0.5, 0, 300, 1.0, 0.1) for agent in ("rloo", "trl") for env in (WORKED, "Other-v0")]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(vars(row)) + "\n" for row in rows))
    call = ["compare", "--agents", "rloo", *SMALL, "--import", str(tmp_path / "mine.jsonl")]
    assert main([*call, "--results", str(tmp_path / "runs"), "--out", str(tmp_path / "fig.pdf")]) == 0
    said = capsys.readouterr()
    assert all(f"| {name}" in said.out for name in ("rloo  ", "rloo (mine.jsonl)", "trl  "))
    assert "2 of 4 imported rows are of other problems" in said.err
    assert len(lines(tmp_path / "runs" / "rows.jsonl")) == 1


@pytest.mark.usefixtures("fast")
def test_a_run_that_breaks_off_is_said_kept_and_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["compare", "--agents", "rloo,dpo", *SMALL, "--kl-coef", "0"]  # β is part of DPO's loss
    call += ["--results", str(tmp_path), "--out", str(tmp_path / "fig.pdf")]
    for calls in (1, 2):
        assert main(call) == 1
        said = capsys.readouterr()
        assert "runs that broke off, 1:" in said.err and "kl_coef expected above 0" in said.err and "| rloo" in said.out
        assert len(lines(tmp_path / "failures.jsonl")) == calls
    assert main([*call, "--tune-trials", "0", "--agents", "rloo"]) == 0


@pytest.mark.usefixtures("fast")
def test_another_coefficient_needs_no_texts_of_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {"agents": {"reference": load_agent("reference")}, "seeds": 1, "eval_texts": 2}
    first = run.compare(settings(problems={"LMAlign-v0": (0.05,)}, **asked), tmp_path, lambda line: None)
    monkeypatch.setattr(run, "measure_reference", None)
    both = run.compare(settings(problems={"LMAlign-v0": (0.05, 0.2)}, **asked), tmp_path, lambda line: None)
    [known, new] = both.problems
    assert known == first.problems[0] and new == dataclasses.replace(known, kl_coef=0.2) and len(both.rows) == 2


def test_the_time_that_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 4 runs of 30 and 90 s on two processes: first as if all took as long as the first, then as each agent did."""
    row = {"ppo": Row("ppo", WORKED, 0.5, 0, 300, 1.0, 0.25), "rloo": Row("rloo", WORKED, 0.5, 0, 300, 1.0, 0.25)}

    def run_all(function: Any, jobs: Sequence[Any], processes: int) -> Iterator[Outcome[Any]]:
        for each in jobs:
            if isinstance(each, Job):
                done = Trained(dataclasses.replace(row[each.agent], seed=each.seed), {})
                yield Outcome(each, done, seconds={"ppo": 30.0, "rloo": 90.0}[each.agent])
            else:
                yield Outcome(each, function(each), seconds=4.0)

    monkeypatch.setattr(run, "run_all", run_all)
    said: list[str] = []
    agents = {name: load_agent(name) for name in ("ppo", "rloo")}
    run.compare(settings(agents=agents, seeds=2), tmp_path, said.append)
    left = [line.partition("(")[2] for line in said]
    assert left == ["", "about 45 s left)", "about 60 s left)", "about 45 s left)", ""]
    assert [line.partition(":")[0] for line in said[1:]] == [f"run {n} of 4" for n in (1, 2, 3, 4)]


@pytest.mark.usefixtures("fast")
def test_rows_of_several_revisions_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["compare", "--agents", "reference", *SMALL, "--results", str(tmp_path), "--out", str(tmp_path / "fig.pdf")]
    for revision, said in (("abc", "at abc."), ("def", "at abc, def (several")):
        monkeypatch.setattr(ledger, "git_revision", lambda folder, revision=revision: revision)
        assert main(call) == 0 and said in capsys.readouterr().out


@pytest.mark.usefixtures("fast")
def test_a_trial_that_diverges_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no failure and does not win; where all diverge there is nothing to run."""
    blown = {1}

    def train(job: Job) -> Any:
        if job.trial in blown:
            raise FloatingPointError("loss expected finite, got nan")
        return real(job)

    real = run.train
    monkeypatch.setattr(run, "train", train)
    asked = settings(agents={"rloo": load_agent("rloo")}, seeds=1, total_tokens=300, tune_trials=2, eval_texts=8)
    found = run.compare(asked, tmp_path / "a", lambda line: None)
    assert len(found.rows) == len(found.diverged) == 1 and not found.failures and found.rows[0].config == {}
    blown.add(0)
    found = run.compare(asked, tmp_path / "b", lambda line: None)
    assert found.rows == [] and len(found.diverged) == 2
    assert found.failures == ["rloo on LMAlignExact-v0 at β=0.5: no final runs, every trial of its tuning diverged"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--agents", "rlo"], "there is no agent 'rlo'; did you mean 'rloo'?"),
        (["--env", "LMAlignExact-v9"], "LMAlignExact"),
        (["--env", "CartPole-v1"], "expected an environment of LM Gym"),
        (["--agents", "ppo,,rloo"], "names with commas between them"),
        (["--kl-coef", "a"], "--kl-coef expected numbers"),
        (["--kl-coef", "-1"], "--kl-coef expected at least 0"),
        (["--set", "ppo.epoch=2"], "did you mean 'epochs'?"),
        (["--set", "ppo.epochs=two"], "ppo.epochs expected a whole number"),
        (["--set", "grpo.epochs=2"], "'grpo' is not among --agents"),
        (["--set", "epochs=2"], "agent.field=value"),
        (["--set", "ppo.seed=2"], "no field 'seed'"),
        (["--out", "fig.eps"], "--out"),
        (["--import", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--processes", "0"], "processes expected at least 1"),
    ],
)
def test_refused(given: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = [] if "--out" in given else ["--out", str(tmp_path / "fig.pdf")]
    agents = [] if "--agents" in given else ["--agents", "ppo"]
    assert main(["compare", *agents, *given, *out, "--results", str(tmp_path / "runs")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_an_agent_of_a_file_stands_beside_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under the name of its class, in processes that load its file again."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from lm_gym.agents.reinforce import REINFORCE\n\n\n"
        'class Mine(REINFORCE):\n    """Mine."""\n\n    name = \'mine\'\n'
    )
    flags = f"--env {WORKED} --seeds 1 --total-tokens 300 --tune-trials 0 --eval-texts 8 --out fig.svg --results rows"
    agents = ["--agents", "py:./mine.py:Mine,reinforce", "--set", "mine.batch_size=32"]
    assert main(["compare", *agents, *flags.split()]) == 0
    rows = read_jsonl(tmp_path / "rows" / "rows.jsonl")
    assert sorted(row["agent"] for row in rows) == ["mine", "reinforce"]
    assert main(["compare", "--agents", "py:mine.py:Mine,py:./mine.py:Mine", *flags.split()]) == 2
    assert "names two agents 'mine'" in capsys.readouterr().err


def test_a_call_that_found_nothing_binds_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The corrected command goes on in the folder of one that broke off; what was found still binds."""
    flags = [
        "compare",
        "--agents",
        "rloo",
        *SMALL,
        "--results",
        str(tmp_path / "rows"),
        "--out",
        str(tmp_path / "f.pdf"),
    ]
    assert main([*flags, "--set", "rloo.learning_rate=1e30"]) == 1  # its only run blows up
    assert "runs that broke off, 1" in capsys.readouterr().err
    assert main([*flags, "--set", "rloo.learning_rate=1e-3"]) == 0
    assert main([*flags, "--set", "rloo.learning_rate=2e-3"]) == 2
    assert "holds results of rloo with {'learning_rate': 0.001}" in capsys.readouterr().err
