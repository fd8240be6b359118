"""docs/own_agent.md as a user follows it: its file, its entry point, `lm-gym train my-agent`, and going on with it."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lm_gym.run_files import read_jsonl

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "own_agent.md").read_text()
SMALL = ["--batch-size", "16", "--max-new-tokens", "8", "--eval-texts", "4", "--threads", "1"]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The page's file and, as pip would write them, its project's name and entry points."""
    code, _ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (toml,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    project = configparser.ConfigParser()
    project.read_string(toml)
    name, version = (project["project"][key].strip('"') for key in ("name", "version"))
    folder = tmp_path / "site"
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (folder / "my_agents.py").write_text(code)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    group = 'project.entry-points."lm_gym.agents"'
    points = "".join(f"{key} = {target.strip(chr(34))}\n" for key, target in project[group].items())
    (info / "entry_points.txt").write_text(f"[lm_gym.agents]\n{points}")
    return folder


def run(package: Path, *arguments: str) -> str:
    env = os.environ | {"PYTHONPATH": str(package), "PYTHONWARNINGS": "error::UserWarning"}
    done = subprocess.run(
        [sys.executable, *arguments], env=env, cwd=package.parent, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_it_trains_by_its_name_and_goes_on(package: Path) -> None:
    """One process: it is listed, trains with its own flag, and taken up again goes on with the baseline it had."""
    script = (
        "import sys\nfrom lm_gym.cli import main\n"
        "assert main(['ls', 'agents']) == 0\n"
        f"flags = {SMALL!r}\n"
        "go = ['train', 'my-agent', '--out', 'run', '--total-tokens']\n"
        "assert main([*go, '300', '--decay', '0.8', *flags]) == 0\n"
        "assert main([*go, '600', '--resume']) == 0\n"
    )
    printed = run(package, "-c", script)
    assert re.search(r"^my-agent +REINFORCE with a moving baseline\.$", printed, re.MULTILINE)
    out = package.parent / "run"
    rows = read_jsonl(out / "metrics.jsonl")
    assert rows[-1]["tokens"] >= 600 and [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    before = rows[0]["objective/rlhf_reward"]  # the first baseline is the mean of its own returns
    for row in rows:
        before = 0.8 * before + 0.2 * row["objective/rlhf_reward"]
        assert row["custom/baseline"] == pytest.approx(before, abs=1e-4)
    assert yaml.safe_load((out / "config.yaml").read_text())["agent"]["decay"] == 0.8
    assert (out / "report.html").is_file() and (out / "checkpoints").is_dir()


def test_the_page_s_check_against_the_truth(package: Path) -> None:
    _, check = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert 0 < float(run(package, "-c", check)) < 0.1


def test_it_is_as_short_as_it_says() -> None:
    code, _ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 30


def test_contributing_agrees() -> None:
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## An agent of your own")[1].split("\n## ")[0]
    assert "docs/own_agent.md" in section and '[project.entry-points."lm_gym.agents"]' in section
