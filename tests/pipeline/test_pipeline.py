"""`lm-gym pipeline` on tiny in small: what it leaves, what it does again and what not, and how it goes on."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pipeline_runs import made, write

from lm_gym import tiny
from lm_gym.cli import main
from lm_gym.cli.pipeline import parse
from lm_gym.held_out import split_prompts
from lm_gym.pipeline import STAGES, Pipeline, run_pipeline
from lm_gym.pipeline.config import SFTStage
from lm_gym.pipeline.context import Context, Stopped
from lm_gym.pipeline.stage import Workplace, digest
from lm_gym.pipeline.stages import demonstration_rows, rl
from lm_gym.run_files import read_jsonl


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pipeline, which tests copy before they touch it."""
    out = tmp_path_factory.mktemp("pipeline")
    assert main(["pipeline", "--config", write(out.parent / "mini.yaml"), "--out", str(out)]) == 0
    return out


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def again(out: Path, *flags: str, config: str | None = None) -> int:
    return main(["pipeline", "--config", config or str(out / "pipeline.yaml"), "--out", str(out), *flags])


def test_every_stage_leaves_its_result_and_the_page_shows_all(whole: Path) -> None:
    stages = made(whole)
    assert set(stages) == set(STAGES)
    assert all(stage["cpu_seconds"] > 0 for stage in stages.values())
    assert stages["sft"]["numbers"]["demonstrations"] == 16
    assert len(read_jsonl(whole / "preferences" / "train.jsonl")) == 16
    page = (whole / "evaluation" / "report.html").read_text()
    for heading in ("Four policies", "Who wins", "Over-optimisation", "The reward model", "What each stage cost"):
        assert heading in page
    assert "http" not in page.replace("http-equiv", "")  # one file, no network
    assert "<script" not in page
    rows = read_jsonl(whole / "evaluation" / "texts.jsonl")
    assert len(rows) == 8 and {"base", "sft", "best-of-n", "rl"} < set(rows[0])
    assert not any(path.name.startswith(".") for path in whole.iterdir())


def test_no_stage_sees_an_evaluation_prompt(whole: Path) -> None:
    evaluated = {p["prompt"] for p in read_jsonl(whole / "evaluation" / "texts.jsonl")}
    tested = {p["prompt"] for p in tiny.prompts("reviews", "test")}
    assert evaluated <= tested
    for name in ("sft/train.jsonl", "preferences/train.jsonl"):
        assert not {row["prompt"] for row in read_jsonl(whole / name)} & tested
    assert {row["prompt"] for row in read_jsonl(whole / "preferences" / "test.jsonl")} <= tested


def test_the_results_are_what_the_texts_say(whole: Path) -> None:
    rows = read_jsonl(whole / "evaluation" / "texts.jsonl")
    results = json.loads((whole / "evaluation" / "results.json").read_text())
    ours, theirs = ([row[name]["gold"] for row in rows] for name in ("rl", "sft"))
    assert results["policies"]["rl"]["gold"][0] == pytest.approx(sum(ours) / 8)
    duel = results["wins"]["rl"]["sft"]
    won, tied = sum(a > b for a, b in zip(ours, theirs)), sum(a == b for a, b in zip(ours, theirs))
    assert (duel["won"], duel["tied"], duel["lost"]) == (won, tied, 8 - won - tied)
    assert duel["rate"][0] == pytest.approx((won + tied / 2) / 8)
    assert results["policies"]["sft"]["kl"] == pytest.approx(0, abs=1e-5)
    best, drawn = (results["policies"][name]["reward"][0] for name in ("best-of-n", "sft"))
    assert best > drawn  # the better of two by the learned reward


def test_what_is_there_is_used_again(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = made(copy)
    assert again(copy) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if "starts" in line] == []
    assert made(copy) == before


def test_a_change_makes_its_stage_again_and_what_follows(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = made(copy)
    assert again(copy, "--rl.kl-coef", "0.7") == 0
    out = capsys.readouterr().out
    assert "reward-model: done before" in out
    assert "rl: starts (again: its inputs have changed)" in out
    after = made(copy)
    changed = {name for name in STAGES if before[name] != after[name]}
    assert changed == {"rl", "evaluation"}
    assert "kl_coef: 0.7" in (copy / "pipeline.yaml").read_text()


def test_a_damaged_result_is_made_again_to_the_same_bytes(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = made(copy)
    with open(copy / "preferences" / "train.jsonl", "a") as file:
        file.write("\n")
    assert again(copy, "--until", "reward-model") == 0
    out = capsys.readouterr().out
    assert "preferences: starts (again:" in out and "is not as it was made" in out
    assert "reward-model: done before" in out  # its inputs are the same bytes again
    assert made(copy)["preferences"]["products"] == before["preferences"]["products"]


def test_until_and_from(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, config = tmp_path / "part", str(copy / "pipeline.yaml")
    assert again(out, "--until", "preferences", config=config) == 0
    assert set(made(out)) == {"sft", "preferences"}
    assert again(out, "--from", "rl", config=config) == 2
    assert "expected the result of reward-model" in capsys.readouterr().err
    assert again(out, "--from", "rl", "--until", "sft", config=config) == 2
    before = made(copy)
    assert again(copy, "--from", "rl") == 0
    said = capsys.readouterr().out
    assert "reward-model: as it is" in said and "rl: starts (again: asked for)" in said
    assert made(copy)["rl"]["products"]["policy"] == before["rl"]["products"]["policy"]  # the same seed
    assert again(copy, "--from", "rl", "--sft.epochs", "2") == 2
    assert "its inputs have changed" in capsys.readouterr().err


@pytest.mark.parametrize("stage", [pytest.param("sft", marks=pytest.mark.slow), "rl"])
def test_it_goes_on_after_a_kill_in_the_middle(whole: Path, tmp_path: Path, stage: str) -> None:
    """A process that is killed while a stage trains; the next call ends with the policy of one that never was."""
    out = tmp_path / "killed"
    if stage == "rl":
        shutil.copytree(whole, out)
        shutil.rmtree(out / "rl")
        shutil.rmtree(out / "evaluation")
    command = [sys.executable, "-m", "lm_gym", "pipeline", "--config", str(whole / "pipeline.yaml"), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = out / f".{stage}.writing" / "run" / "metrics.jsonl"
    limit = time.monotonic() + 240
    while time.monotonic() < limit and process.poll() is None:
        if log.is_file() and len(log.read_text().splitlines()) >= 2:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert stage not in made(out)
    assert main([*command[3:], "--until", stage]) == 0
    expected = made(whole)[stage]["products"]["policy"]
    assert made(out)[stage]["products"]["policy"] == expected
    metrics = read_jsonl(out / stage / "run" / "metrics.jsonl")
    assert [row["step"] for row in metrics] == list(range(1, len(metrics) + 1))
    assert not (out / f".{stage}.writing").exists()


def test_it_stops_when_asked_and_goes_on(copy: Path) -> None:
    """What Ctrl-C does: the running update ends, and the next call takes up from its checkpoint."""
    expected = made(copy)["rl"]["products"]["policy"]
    shutil.rmtree(copy / "rl")
    log = copy / ".rl.writing" / "run" / "metrics.jsonl"
    _, config = parse(["--config", str(copy / "pipeline.yaml")])
    with pytest.raises(Stopped):
        run_pipeline(config, copy, say=lambda _: None, stop=log.exists)
    assert len(log.read_text().splitlines()) == 1 and "rl" not in made(copy)
    said: list[str] = []
    run_pipeline(config, copy, until="rl", say=said.append)
    assert any("goes on after update 1" in line for line in said)
    assert made(copy)["rl"]["products"]["policy"] == expected


def test_gold_is_beside_the_learned_reward_and_moves_nothing(whole: Path, tmp_path: Path) -> None:
    metrics = read_jsonl(whole / "rl" / "run" / "metrics.jsonl")
    assert all("reward/gold" in row for row in metrics)
    out = Path(shutil.copytree(whole, tmp_path / "other"))
    # Another gold that no earlier stage looked at would change their inputs, so the stage is called by itself.
    _, config = parse(["--config", str(out / "pipeline.yaml"), "--gold", "vader"])
    context = Context(config, out, say=lambda _: None, stop=lambda: False, progress=False)
    (tmp_path / "aside").mkdir()
    rl(context, Workplace(tmp_path / "aside"))
    assert digest(tmp_path / "aside" / "policy") == made(whole)["rl"]["products"]["policy"]


def test_the_guard_looks_at_training_prompts_that_are_not_trained_on(copy: Path) -> None:
    said: list[str] = []
    flags = ["--config", str(copy / "pipeline.yaml"), "--rl.guard-every", "1", "--rl.guard-prompts", "8"]
    _, config = parse([*flags, "--rl.guard-kl", "1e-6"])
    evaluation = {p.text for p in Context(config, copy, say=said.append, stop=lambda: False, progress=False).prompts[1]}
    run_pipeline(config, copy, until="rl", say=said.append)
    rows = read_jsonl(copy / "rl" / "run" / "metrics.jsonl")
    assert rows[0]["guard/kl"] > 1e-6 and rows[0]["guard/rollbacks"] == 1  # every policy is too far: taken back
    looked_at = split_prompts(Context(config, copy, say=print, stop=lambda: False, progress=False).prompts[0], None)[1]
    assert not evaluation & {p.text for p in looked_at}
    trained_on = {row["prompt"] for row in read_jsonl(copy / "rl" / "run" / "samples.jsonl")}
    assert trained_on and not trained_on & {p.text for p in looked_at}


def test_what_is_not_asked_for_changes_no_stage(whole: Path) -> None:
    inputs = json.loads((whole / "rl" / "stage.json").read_text())["inputs"]["rl"]
    assert not [name for name in inputs if name.startswith("guard")]
    inputs = json.loads((whole / "preferences" / "stage.json").read_text())["inputs"]["preferences"]
    assert "unusable" not in inputs


@pytest.mark.parametrize(
    ("section", "change", "said"),
    [
        ("rl", {"guard_kl": 3.0}, "rl.guard_kl has no effect without rl.guard_every"),
        ("rl", {"guard_every": 2, "guard_prompts": 4}, "guard n expected a whole number of at least 8"),
        ("rl", {"kl_cof": 0.1}, "unknown key 'kl_cof'; did you mean 'kl_coef'?"),
        ("sft", {"data": "x.jsonl"}, "unknown key 'data'"),
        ("rl", {"agent": "pppo"}, "did you mean 'ppo'?"),
        ("rl", {"agent": "best-of-n", "epochs": 1}, "unknown key"),
        ("rl", {"batch_size": 0}, "batch_size expected 1"),
        ("sft", {"count": "many"}, "count expected a whole number"),
        ("preferences", {"annotators": {"temprature": 1}}, "did you mean 'temperature'?"),
        ("preferences", {"annotators": {"temperature": -1}}, "temperature expected"),
        ("preferences", {"pairs": 0}, "pairs expected at least 1"),
        ("preferences", {"data": "pairs.jsonl"}, "data and test_data, or neither"),
        ("preferences", {"unusable": "drop"}, "preferences.unusable is of the rows of preferences.data"),
        ("evaluation", {"best_of_n": 1}, "best_of_n expected at least 2"),
        ("reward_model", {"model": "tiny"}, "unknown key 'model'"),
    ],
)
def test_bad_configurations(
    section: str, change: dict[str, object], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write(tmp_path / "bad.yaml", **{section: change})
    assert main(["pipeline", "--config", config, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine" / "rl").mkdir(parents=True)
    (tmp_path / "mine" / "rl" / "thesis.txt").write_text("precious")
    assert again(tmp_path / "mine", config=write(tmp_path / "c.yaml")) == 2
    assert "holds something that no pipeline made" in capsys.readouterr().err
    assert (tmp_path / "mine" / "rl" / "thesis.txt").read_text() == "precious"
    (tmp_path / "p.txt").write_text("one prompt\nanother prompt\n")
    flags = ["pipeline", "--prompts", str(tmp_path / "p.txt"), "--out", str(tmp_path / "o")]
    assert main(flags) == 2
    assert "give sft.demonstrations" in capsys.readouterr().err
    assert main([*flags, "--sft.demonstrations", "x.jsonl"]) == 2
    assert "give gold" in capsys.readouterr().err
    flags = ["pipeline", "--out", str(tmp_path / "o"), "--prompts", "tiny:requests"]
    for flag, source, said in (
        ("--model", "./nothing", "model: could not load './nothing', there is no such file or folder"),
        ("--eval-prompts", "x.txt", "eval_prompts: there is no file x.txt"),
        ("--preferences.judge", "hf:./nothing", "preferences.judge: could not load './nothing'"),
        ("--gold", "py:./nothing.py:f", "gold: could not load './nothing.py'"),
    ):
        assert main([*flags, flag, source]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "o").exists()  # before anything is made
    (tmp_path / "list.yaml").write_text("- 1\n")
    assert main(["pipeline", "--config", str(tmp_path / "list.yaml"), "--out", str(tmp_path / "o")]) == 2
    (tmp_path / "flat.yaml").write_text("rl: 3\n")
    assert main(["pipeline", "--config", str(tmp_path / "flat.yaml"), "--out", str(tmp_path / "o")]) == 2
    assert "rl expected a section" in capsys.readouterr().err


def test_the_example_is_the_defaults() -> None:
    example = Path(__file__).parents[2] / "examples" / "pipeline.yaml"
    assert parse(["--config", str(example)])[1] == Pipeline() == parse([])[1]


def test_files_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prompts, demonstrations and labelled pairs from files, GRPO as the agent; evaluation prompts are kept out."""
    names = [f"The {thing} was" for thing in "soup tea bed book film song show door lamp pie".split()]
    names += [name.replace("The", "Our") for name in names]
    (tmp_path / "prompts.txt").write_text("\n".join(names) + "\n")

    def rows(name: str, found: list[dict[str, str]]) -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in found))
        return str(tmp_path / name)

    shown = rows("shown.jsonl", [{"prompt": n, "completion": " very good."} for n in names])
    pairs = [{"prompt": n, "chosen": " very good.", "rejected": " bad."} for n in names[:7]]
    config = write(
        tmp_path / "own.yaml",
        sft={"demonstrations": shown, "count": 6, "held_out": 2},
        preferences={
            "data": rows("a.jsonl", pairs),
            "test_data": rows("b.jsonl", [pairs[0] | {"prompt": "My cat was"}]),
        },
        reward_model={"start": "base", "held_out": 0.0},
    )
    flags = ["--prompts", str(tmp_path / "prompts.txt"), "--gold", "vader", "--evaluation.texts", "2"]
    Path(config).write_text(Path(config).read_text().replace("agent: ppo", "agent: grpo\n  group_size: 4"))
    assert main(["pipeline", "--config", config, "--out", str(tmp_path / "out"), *flags]) == 0
    assert "2 of 20 demonstrations have evaluation prompts: left out" in capsys.readouterr().out
    stages = made(tmp_path / "out")
    assert stages["rl"]["numbers"]["agent"] == "grpo"
    assert stages["preferences"]["numbers"] == {"labels": 7, "test_labels": 1, "tokens": 0, "agreement": None}
    assert stages["reward-model"]["numbers"]["accuracy"]["gold"] is None


@pytest.mark.parametrize(
    ("asked", "parts"),
    [((512, 128), (16, 4)), ((512, 0), (20, 0)), ((0, 64), (16, 4)), ((10, 5), (10, 5)), ((0, 5), (15, 5))],
)
def test_few_demonstrations_are_all_taken(tmp_path: Path, asked: tuple[int, int], parts: tuple[int, int]) -> None:
    """In Alpaca's layout, of which one has an evaluation prompt, and judged conversations: one too, and one is bad."""
    rows: list[dict[str, Any]] = [{"instruction": "Go", "input": f"{i}", "output": "x"} for i in range(12)]
    rows += [
        {"messages": [{"role": "user", "content": f"m{i}"}, {"role": "assistant", "content": "y"}], "label": i != 0}
        for i in range(11)
    ]
    path = tmp_path / "shown.json"
    path.write_text(json.dumps(rows))
    evaluated = [SimpleNamespace(text=text, for_reward=text) for text in ("Go\n3", "m7")]
    config = SFTStage(demonstrations=str(path), count=asked[0], held_out=asked[1])
    said: list[str] = []
    ctx = SimpleNamespace(config=SimpleNamespace(sft=config, tiny_kind=None), prompts=([], evaluated), say=said.append)
    train, held_out = demonstration_rows(ctx)  # type: ignore[arg-type]
    assert (len(train), len(held_out)) == parts
    assert {"prompt": "Go\n0", "completion": "x"} in train
    assert said[0] == "  2 of 22 demonstrations have evaluation prompts: left out"
    path.write_text(json.dumps([*rows, "a text", {"conversations": [], "id": 1}]))
    with pytest.raises(
        ValueError, match="2 of the demonstrations .* cannot be used: shown.json, row 24 has conversations"
    ):
        demonstration_rows(ctx)  # type: ignore[arg-type]
    config.agent["unusable"] = "drop"
    assert demonstration_rows(ctx) == [train, held_out]  # type: ignore[arg-type]
    few = f"and there are 20 demonstrations: {parts[0]} are trained on, {parts[1]} held out"
    assert any(few in line for line in said) == (sum(asked) >= 64)
