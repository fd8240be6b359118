"""The command line: flags from dataclasses, files under flags, errors in one line, runs that stop and go on."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import yaml

from lm_gym import tiny
from lm_gym.agents.ppo import PPO, PPOConfig
from lm_gym.cli import main, options
from lm_gym.cli import train as training
from lm_gym.cli.errors import Interrupt, Refused
from lm_gym.cli.listing import ENVIRONMENTS
from lm_gym.cli.options import ProblemOptions, parse_train
from lm_gym.mdp import AlignmentMDP
from lm_gym.run_files import read_jsonl

SMALL = "--batch-size 8 --minibatch-size 8 --epochs 1 --max-new-tokens 6 --eval-texts 4 --threads 1".split()


def train(out: Path, *flags: str, tokens: int = 100) -> int:
    return main(["train", "ppo", "--out", str(out), "--total-tokens", str(tokens), *SMALL, *flags])


def reward_file(folder: Path, body: str) -> str:
    path = folder / "judge.py"
    path.write_text(f"import os, signal, pathlib\ncalls = 0\ndef score(completions, **_):\n{body}\n")
    return f"py:{path}:score"


# ---- flags and files -------------------------------------------------------------------------------------------------


def test_every_field_is_a_flag_with_its_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "ppo", "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    names = [f.name for f in dataclasses.fields(PPOConfig)] + list(inspect.signature(AlignmentMDP.__init__).parameters)
    for name in set(names) - {"self"}:
        assert re.search(f"--{name.replace(chr(95), chr(45))}[ ,]", text), name
    assert text.count("--kl-coef") == 1
    assert "Share of the slow copy that an update keeps." in text
    assert "(default: 128)" in text


def test_problem_options_are_those_of_the_problem_with_its_defaults() -> None:
    parameters = dict(inspect.signature(AlignmentMDP.__init__).parameters)
    del parameters["self"]
    ours = {f.name: f.default for f in dataclasses.fields(ProblemOptions)}
    assert ours == {name: p.default for name, p in parameters.items()}


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("reward: length\nkl-coef: 1\nlearning_rate: 1e-4\nagent: {epochs: 2, seed: 7}\nstop: '.'\n")
    options = parse_train("ppo", ["--config", str(path), "--seed", "3", "--total-tokens", "5"])
    assert (options.problem.reward_model, options.problem.kl_coef, options.problem.stop) == ("length", 1.0, (".",))
    assert (options.agent.learning_rate, options.agent.epochs, options.agent.seed) == (1e-4, 2, 3)
    assert (options.run.total_tokens, options.agent.kl_coef) == (5, None)
    assert isinstance(options.agent, PPOConfig)


def test_file_of_the_examples_is_understood() -> None:
    path = Path(__file__).parents[1] / "examples" / "ppo_reviews.yaml"
    options = parse_train("ppo", ["--config", str(path)])
    assert (options.run.total_tokens, options.agent.learning_rate) == (30_000, 5e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate: 1", "unknown key 'lerning_rate'; did you mean 'learning_rate'?"),
        ("agent: {clip_rage: 1}", "unknown key 'clip_rage'; did you mean 'clip_range'?"),
        ("xyzzy: 1", "unknown key 'xyzzy'; known: "),
        ("total_tokens: many", "total_tokens expected a whole number, got 'many'"),
        ("total_tokens: 1.5", "total_tokens expected a whole number, got 1.5"),
        ("batch_size: true", "batch_size expected a whole number, got True"),
        ("whiten_advantages: 1", "whiten_advantages expected true or false, got 1"),
        ("model: 3", "model expected text, got 3"),
        ("stop: [1]", "stop expected a list, each text, got [1]"),
        ("top_k: [2]", "top_k expected a whole number or null, got [2]"),
        ("seed: 1\nseed: 2", "seed is given twice"),
        ("seed: 1\nagent: {seed: 2}", "seed is given twice"),
        ("reward: vader\nreward_model: length", "reward and reward_model are the same"),
        ("kl_coef: 1\nagent: {kl_coef: 2}", "kl_coef is given twice"),
        ("agent: {name: dpo}", "is for the agent 'dpo'"),
        ("out: here", "unknown key 'out'"),
        ("[1, 2]", "expected keys and values"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_file_with_a_mistake_is_refused(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert main(["train", "ppo", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(path) in error


def test_unknown_flag_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "ppo", "--clip-rage", "1"])
    assert stopped.value.code == 2
    assert "--clip-range" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "pppo"], "there is no agent 'pppo'; did you mean 'ppo'? known: a2c, best-of-n, "),
        (["train", "ppo", "--model", "./nowhere"], "could not load './nowhere'"),
        (["train", "ppo", "--prompts", "nowhere.jsonl"], "nowhere.jsonl"),
        (["train", "ppo", "--prompts", "tiny:review"], "Did you mean 'tiny:reviews'?"),
        (["train", "ppo", "--reward", "vadar"], "unknown reward model 'vadar'. Did you mean 'vader'?"),
        (["train", "ppo", "--reward", "py:nowhere:f"], "there is no module 'nowhere'"),
        (["train", "ppo", "--config", "nowhere.yaml"], "nowhere.yaml: No such file or directory"),
        (["train", "ppo", "--batch-size", "0"], "batch_size expected 1 to inf"),
        (["train", "ppo", "--total-tokens", "0"], "total_tokens expected at least 1, got 0"),
        (["train", "ppo", "--trackers", "wandbb"], "trackers expected some of csv, jsonl"),
        (["train", "ppo", "--resume"], "--resume expected --out"),
        (["train", "ppo", "--resume", "--out", "nowhere"], "nowhere has no config.yaml"),
        (["sample", "--model", "./nowhere"], "could not load './nowhere'"),
        (["sample", "-n", "0"], "n expected 1 to"),
        (["sample", "--temperature", "0"], "--greedy takes the likeliest token"),
    ],
)
def test_mistake_is_one_line_and_exit_code_2(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())  # nothing was begun
    if args[0] == "train" and "pppo" not in args:
        with pytest.raises(Refused) as raised:
            main([*args, "--debug"])
        assert raised.value.__cause__ is not None  # the traceback of where it came from


# ---- a run -----------------------------------------------------------------------------------------------------------


def test_run_leaves_everything_and_its_config_repeats_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert train(out, "--kl-coef", "0.3", "--seed", "5") == 0
    printed = capsys.readouterr().out
    for name in ("config.yaml", "metrics.csv", "metrics.jsonl", "samples.jsonl", "report.html"):
        assert (out / name).stat().st_size, name
    rows = read_jsonl(out / "metrics.jsonl")
    assert (out / "checkpoints" / f"step-{rows[-1]['step']}" / "policy.safetensors").is_file()
    assert sum(row["tokens"] < 100 for row in rows) == len(rows) - 1  # the update that passes total_tokens is the last

    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["kl_coef"], config["agent"]["seed"], config["agent"]["name"]) == (0.3, 5, "ppo")
    assert config["eval_prompts"] == "tiny:reviews:test"
    assert set(config["run"]["hashes"]) == {"reference", "reward_model"}
    shown = yaml.safe_load(printed.partition("step=")[0])
    assert shown == {key: value for key, value in config.items() if key != "run"}

    pairs = read_jsonl(out / "samples_before_after.jsonl")
    assert len(pairs) == 4
    trained_on = {row["prompt"] for row in tiny.prompts("reviews")}
    assert not trained_on & {pair["prompt"] for pair in pairs}
    assert "distinct-2" in printed
    table, page = " ".join(printed.partition("means of 4 texts")[2].split()), (out / "report.html").read_text()
    for label, key, form in (("a text", "kl", ".2f"), ("length, tokens", "length_after", ".1f")):
        mean = sum(pair[key] for pair in pairs) / len(pairs)
        assert re.search(rf"{label} [^a-z]* {format(mean, form)} ", table), (label, mean, table)
    assert "first update</text>" in page
    assert pairs[0]["after"].split()[0] in printed

    again = parse_train("ppo", ["--config", str(out / "config.yaml")])
    assert train(tmp_path / "again", "--config", str(out / "config.yaml")) == 0
    assert (again.problem.kl_coef, again.agent.seed, again.agent.batch_size) == (0.3, 5, 8)
    assert _numbers(tmp_path / "again") == _numbers(out)


def _numbers(out: Path) -> list[dict[str, Any]]:
    """Metrics without what a clock measures."""
    rows = read_jsonl(out / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in rows]


def test_folder_that_holds_a_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    assert train(tmp_path) == 2
    assert "already holds a run (metrics.jsonl): choose another --out, or go on with it by --resume" in (
        capsys.readouterr().err
    )
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_ctrl_c_ends_the_update_and_resume_goes_on_as_if_nothing_had_been(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, part, marker = tmp_path / "whole", tmp_path / "part", tmp_path / "marker"
    judge = reward_file(
        tmp_path,
        f"    if not pathlib.Path({str(marker)!r}).exists():\n"
        f"        pathlib.Path({str(marker)!r}).touch(); os.kill(os.getpid(), signal.SIGINT)\n"
        "    return [len(c) * 0.1 for c in completions]",
    )
    assert train(part, "--reward", judge) == 130
    output = capsys.readouterr()
    assert "Ctrl-C: this update is finished and saved first" in output.err
    assert "stopped after update 1" in output.err
    assert f"--resume --out {part}" in output.out
    assert len(_numbers(part)) == 1
    assert (part / "checkpoints" / "step-1").is_dir()
    assert (part / "report.html").is_file()

    assert train(whole, "--reward", judge) == 0
    assert len(_numbers(whole)) > 1
    assert main(["train", "ppo", "--resume", "--out", str(part)]) == 0
    assert _numbers(part) == _numbers(whole)
    assert (part / "config.0.yaml").is_file()  # what the first part ran with

    assert main(["train", "ppo", "--resume", "--out", str(part)]) == 2
    assert "raise --total-tokens" in capsys.readouterr().err
    assert main(["train", "ppo", "--resume", "--out", str(part), "--total-tokens", "200"]) == 0
    assert _numbers(part)[-1]["tokens"] >= 200


def test_second_ctrl_c_stops_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge = reward_file(tmp_path, "    for _ in range(2): os.kill(os.getpid(), signal.SIGINT)\n    return [0.0] * 8")
    before = signal.getsignal(signal.SIGINT)  # ignored where a shell started the tests in the background
    assert train(tmp_path / "run", "--reward", judge) == 130
    error = capsys.readouterr().err
    assert error.endswith("\naborted\n")  # no update was made: there is nothing to say of checkpoints
    assert signal.getsignal(signal.SIGINT) is before


def test_interrupt_leaves_signals_as_they_were() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupt("asked") as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.asked
    assert signal.getsignal(signal.SIGINT) is before


def test_sigint_from_outside(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "lm_gym", "train", "ppo", "--out", str(out), "--total-tokens", "1000000", *SMALL]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        for _ in range(1200):
            if (out / "metrics.jsonl").is_file() or process.poll() is not None:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    step = read_jsonl(out / "metrics.jsonl")[-1]["step"]
    assert f"stopped after update {step}" in errors
    assert "Traceback" not in errors
    assert json.loads((out / "checkpoints" / f"step-{step}" / "state.json").read_text())["updates"] == step
    assert (out / "report.html").is_file()


def test_reward_model_that_raises_ends_the_run_with_its_last_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = reward_file(
        tmp_path,
        "    global calls; calls += 1\n    if calls > 2: raise OSError('no paper left')\n    return [0.5] * 8",
    )
    out = tmp_path / "run"
    assert train(out, "--reward", judge, "--save-every", "1", tokens=1000) == 1
    error = capsys.readouterr().err
    assert "raised OSError: no paper left" in error
    assert "completion:" in error
    assert f"last checkpoint: {out / 'checkpoints' / 'step-2'}" in error
    assert PPO.load(out, gymnasium.make("LMAlign-v0", max_new_tokens=6)).updates == 2


# ---- evaluation prompts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("tiny", "tiny:reviews:test"),
        ("tiny:questions", "tiny:questions:test"),
        ("tiny:questions:train", "tiny:questions:test"),
        ("tiny:questions:test", None),
        ("my.jsonl", None),
        ("org/name:train", None),
    ],
)
def test_default_source_of_evaluation_prompts(prompts: str, expected: str | None) -> None:
    assert training._eval_source(parse_train("ppo", ["--prompts", prompts])) == expected


def test_file_of_prompts_is_split_and_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.txt"
    path.write_text("\n".join(f"The soup number {i} was" for i in range(20)))
    assert train(tmp_path / "run", "--prompts", str(path), tokens=1) == 0
    assert "the last 2 different prompts of" in " ".join(capsys.readouterr().out.split())
    pairs = read_jsonl(tmp_path / "run" / "samples_before_after.jsonl")
    assert {pair["prompt"] for pair in pairs} == {"The soup number 18 was", "The soup number 19 was"}
    assert train(tmp_path / "same", "--prompts", str(path), "--eval-prompts", str(path), tokens=1) == 0
    assert "the evaluation is on training prompts" in capsys.readouterr().err


# ---- the other commands ----------------------------------------------------------------------------------------------


def test_agent_of_another_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    @dataclasses.dataclass
    class Config(PPOConfig):
        patience: int = 2
        """Mine."""

    class Mine(PPO):
        """An agent of mine."""

        config_class = Config
        name = "mine"

    class Point:
        name, value = "mine", "my_package:Mine"

        def load(self) -> Any:
            return Mine

    monkeypatch.setattr(options, "entry_points", lambda group: [Point()])
    assert options.agent_names() == ["mine"]
    args = ["train", "mine", "--out", str(tmp_path / "run"), "--total-tokens", "1", "--patience", "4", *SMALL]
    assert main(args) == 0
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["agent"]["patience"] == 4
    monkeypatch.setattr(Point, "load", lambda self: dict)
    with pytest.raises(ValueError, match="expected a subclass of lm_gym.agent.LMAgent"):
        parse_train("mine", [])


AGENT_FILE = '''
from dataclasses import dataclass

from lm_gym.agents.reinforce import REINFORCE, REINFORCEConfig


@dataclass
class MyConfig(REINFORCEConfig):
    """Mine."""

    patience: int = 2
    """Mine."""


class MyAgent(REINFORCE):
    """An agent of mine."""

    config_class, name = MyConfig, "my-agent"
'''


def test_agent_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It trains, is sampled from and resumed by the same name, and its folder is named by its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(AGENT_FILE)
    spelled = "py:./mine.py:MyAgent"
    small = [flag for flag in SMALL if flag not in ("--epochs", "1", "--threads")]
    assert main(["train", spelled, "--total-tokens", "1", "--patience", "4", *small]) == 0
    [run] = (tmp_path / "runs").iterdir()
    assert run.name.endswith("-my-agent")
    config = yaml.safe_load((run / "config.yaml").read_text())["agent"]
    assert (config["name"], config["patience"]) == (spelled, 4)
    assert main(["sample", "--model", str(run), "--prompt", "A film", "--max-new-tokens", "2"]) == 0
    assert main(["train", spelled, "--resume", "--out", str(run), "--total-tokens", "100"]) == 0
    capsys.readouterr()
    for wrong, said in (
        ("py:./mine.py:MyAgnt", "has no 'MyAgnt'. Did you mean 'MyAgent'?"),
        ("py:./none.py:MyAgent", "there is no file"),
        ("py:./mine.py:MyConfig", "expected a subclass of lm_gym.agent.LMAgent"),
        ("py:./mine.py", "expected py:module:attribute or py:./file.py:attribute"),
    ):
        assert main(["train", wrong]) == 2
        assert said in capsys.readouterr().err


def test_help_is_plain_and_begins_with_what_matters(capsys: pytest.CaptureFixture[str]) -> None:
    for name in options.agent_names():
        with pytest.raises(SystemExit):
            main(["train", name, "--help"])
        said = capsys.readouterr().out
        assert not re.search(r":\w+:`|``|see the module", said), name
        main_options = re.split(r"\n(?:╭|\+-)", said)[0]
        names = re.findall(r"^  ([a-z-]+)  ", main_options, re.MULTILINE)
        assert len(names) == 10 and all(re.search(f"--{option}[ ,]", said) for option in names), name


def test_sample_prints_texts_with_rewards(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["sample", "-p", "The food was", "The cake was", "-n", "3", "--reward", "vader", "--max-new-tokens", "8"]
    assert main(args) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert [line for line in lines if not line.startswith("  ")] == ["The food was", "The cake was"]
    assert all(-1 <= float(line.split()[0]) <= 1 for line in lines if line.startswith("  "))
    assert sum(line.startswith("  ") for line in lines) == 6
    assert main(args) == 0
    assert capsys.readouterr().out == text  # seeded
    assert main(["sample", "--greedy", "-p", "The food was"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_sample_takes_a_run_or_its_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # so large a step that the trained policy writes something else
    assert train(tmp_path / "run", "--learning-rate", "0.05", "--lr-schedule", "constant") == 0
    capsys.readouterr()
    texts = []
    for model in ("tiny", str(tmp_path / "run"), str(next((tmp_path / "run" / "checkpoints").iterdir()))):
        assert main(["sample", "-m", model, "-p", "The food was"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[1] == texts[2] != texts[0]


def test_ls_names_everything_that_is_registered(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(ENVIRONMENTS) == {name for name in gymnasium.registry if name.startswith("LMAlign")}
    assert main(["ls", "rewards"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"vader", "length", "tiny-sentiment", "hf:<org/name"} <= set(names)
    assert not {"hf", "http"} & set(names)
    assert main(["ls"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n{name}\n" in f"\n{text}" for name in ("environments", "agents", "rewards", "prompts", "models"))
    assert all(len(line.split(maxsplit=1)) == 2 for line in text.splitlines() if line.startswith("  "))


def test_help_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from lm_gym.cli import main\n"
        "try: main([])\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.rstrip().endswith("0 False")
    assert "doctor" in done.stdout


def test_deep_nesting_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    deep = tmp_path / "deep.yaml"
    deep.write_text("a: " + "[" * 3000 + "]" * 3000)
    for args in (["train", "ppo", "--config", str(deep)], ["train", "ppo", "--reward", f"combine:{deep}"]):
        assert main(args) == 2
        [line] = capfd.readouterr().err.splitlines()
        assert "nested too deeply" in line
