"""Signs that a judge is exploited: said where they are there, on the terminal and on the report, and not otherwise."""

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from judges import by_length, score

from lm_gym.agents import PPO, Reference
from lm_gym.cli import main
from lm_gym.cli.evaluate import stands_out
from lm_gym.report import write_findings, write_report
from lm_gym.reward_models.watched import Watched
from lm_gym.rewards import RewardModelError, reward_model_hash, reward_model_name, reward_state
from lm_gym.run_files import read_jsonl
from lm_gym.run_findings import Seen, of_a_log, run_findings

BEFORE = Seen(reward=0.125, kl=0.0, length=26.0, ended=0.91, distinct_2=0.65, error=0.04, reward_std=0.33)
HACKED = Seen(reward=0.75, kl=50.8, length=31.6, ended=0.03, distinct_2=0.41, error=0.05)
HEALTHY = Seen(reward=0.864, kl=3.7, length=25.8, ended=0.95, distinct_2=0.58, error=0.02)


def test_the_run_that_was_hacked_says_so_first() -> None:
    found = run_findings(BEFORE, HACKED)
    assert found[0].startswith(
        "The judge may be exploited (reward hacking): its score rose from 0.125 to 0.750, and 3 "
    )
    assert [line.split(":")[0] for line in found[1:]] == [
        "Far from the reference",
        "Texts no longer end",
        "The texts grew alike",
    ]
    assert "50.8 nats a text, 1.61 a token" in found[1] and "91% of them" in found[2] and "3% do now" in found[2]


def test_a_healthy_run_says_nothing() -> None:
    assert run_findings(BEFORE, HEALTHY) == []
    assert run_findings(Seen(), Seen()) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kl": 26.0 * 0.51}, "Far from the reference"),
        ({"ended": 0.60}, "Texts no longer end"),
        ({"distinct_2": 0.48}, "The texts grew alike"),
        ({"length": 40.0}, "Length: 1.5 times"),
        ({"length": 12.0}, "Length: 0.5 times"),
    ],
)
def test_one_sign_is_said_without_a_verdict(change: dict[str, float], said: str) -> None:
    [line] = run_findings(BEFORE, Seen(**{**vars(HEALTHY), **change}))
    assert line.startswith(said)


def test_signs_without_a_reward_that_rose_are_no_verdict() -> None:
    """.125 ± .04 and .21 ± .05 are no further apart than two standard errors (.128)."""
    found = run_findings(BEFORE, Seen(**{**vars(HACKED), "reward": 0.21}))
    assert len(found) == 3 and not found[0].startswith("The judge may")


def test_a_watching_judge_that_does_not_follow() -> None:
    before = Seen(**{**vars(BEFORE), "watch": 0.2, "watch_std": 0.5})
    [line] = run_findings(before, Seen(**{**vars(HEALTHY), "watch": 0.1}))
    # (.864 − .125)/.33 = 2.24 and (.1 − .2)/.5 = −.20
    assert "the judge is +2.24 standard deviations above the texts before training, the watching judge -0.20" in line
    assert run_findings(before, Seen(**{**vars(HEALTHY), "watch": 1.2})) == []  # +2.0: it follows


def test_a_log_alone_has_findings_too(tmp_path: Path) -> None:
    rows = [{"objective/scores": 0.1, "objective/kl": 0.0, "length/mean": 20.0, "length/ended_share": 0.9}] * 2
    assert of_a_log(rows) == [] == of_a_log(rows[:1])
    rows = [*rows, {"objective/scores": 0.9, "objective/kl": 30.0, "length/mean": 32.0, "length/ended_share": 0.1}]
    assert len(of_a_log(rows)) == 4  # far, endless, longer: and what they add up to


def run(folder: Path, *flags: str) -> int:
    small = "--batch-size 8 --minibatch-size 8 --epochs 1 --max-new-tokens 6 --eval-texts 8 --threads 1".split()
    return main(["train", "ppo", "--out", str(folder), "--total-tokens", "90", *small, *flags])


def test_watch_is_beside_and_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same weights with and without it, a column in the logs, a row in the table, its curve on the page."""
    assert run(tmp_path / "alone", "--reward", "length?target=3") == 0
    assert "watching judge" not in capsys.readouterr().out
    assert run(tmp_path / "watched", "--reward", "length?target=3", "--watch", "vader") == 0
    assert "watching judge" in capsys.readouterr().out
    [a, b] = [PPO.load(tmp_path / name, gym.make("LMAlign-v0", max_new_tokens=6)) for name in ("alone", "watched")]
    assert a.policy.lm.fingerprint() == b.policy.lm.fingerprint()
    rows = read_jsonl(tmp_path / "watched" / "metrics.jsonl")
    assert all("reward/watch" in row for row in rows)
    assert "Watching judge" in (tmp_path / "watched" / "report.html").read_text(encoding="utf-8")
    assert isinstance(json.loads((tmp_path / "watched" / "findings.json").read_text()), list)


def test_the_page_shows_what_stands_out(tmp_path: Path) -> None:
    assert run(tmp_path / "run", "--reward", "vader") == 0
    write_findings(tmp_path / "run", ["<Texts> no longer end"])
    page = write_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "What stands out" in page and "&lt;Texts&gt; no longer end" in page


def test_a_judge_that_cannot_score_an_empty_text_does_not_end_a_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "def vowels(completions):\n    return [c.count('a') / len(c) for c in completions]\n"
    )
    assert run(tmp_path / "run", "--reward", "py:mine.py:vowels") == 0
    said = capsys.readouterr()
    assert "was not tried: reward model mine.py:vowels raised ZeroDivisionError" in said.err
    assert (tmp_path / "run" / "report.html").is_file()


class Counts:
    """A judge with state."""

    name = "counts"

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, completions: list[str], log_extra: Any, log_metric: Any) -> list[float]:
        log_extra("chars", [len(c) for c in completions])
        log_metric("calls", 1.0)
        return [float(len(c)) for c in completions]

    def update(self, metrics: Any) -> None:
        self.seen += int(metrics["reward/calls"])

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: Any) -> None:
        self.seen = state["seen"]


def test_a_watched_judge_keeps_its_name_hash_state_and_logs() -> None:
    judge = Counts()
    both = Watched(judge, lambda completions: [1.0 for _ in completions])
    assert (reward_model_name(both), reward_model_hash(both)) == ("counts", reward_model_hash(judge))
    env = gym.make("LMAlign-v0", reward_model=both, max_new_tokens=3, kl_mode="reference")
    env.reset(seed=0)
    done = False
    while not done:
        *_, done, _, info = env.step(5)
    assert {"score/chars", "score/watch"} <= set(info) and info["score/watch"] == 1.0
    both.update({"reward/calls": 2.0})
    assert reward_state(both) == {"seen": 2} == reward_state(judge)
    assert reward_state(Watched("vader", "length?target=3")) is None


def test_a_judge_that_logs_under_the_watching_judges_name_is_refused() -> None:
    def judge(completions: list[str], log_metric: Any) -> list[float]:
        log_metric("watch", 100.0)
        return [0.0] * len(completions)

    with pytest.raises(RewardModelError, match="judge logs 'watch' itself"):
        score(Watched(judge, by_length))
    assert score(Watched(judge, by_length, name="gold")).metrics == {"watch": 100.0, "gold": 5.0}


def test_a_column_called_watch_is_not_taken_for_a_watching_judge() -> None:
    def judge(completions: list[str], log_extra: Any) -> list[float]:
        log_extra("watch", ["yes"] * len(completions))
        return [float(len(text)) for text in completions]

    agent = Reference(gym.make("LMAlign-v0", reward_model=judge, max_new_tokens=3, kl_mode="reference"))
    drawn = agent.evaluate_on(agent.mdp.prompts[:8], 0)
    assert isinstance(stands_out(agent, drawn, drawn), list)


def test_a_watching_judge_that_raises_is_named() -> None:
    def broken(completions: list[str]) -> list[float]:
        raise KeyError("no such key")

    with pytest.raises(RewardModelError, match=r"broken raised KeyError"):
        gym.make("LMAlign-v0", reward_model=Watched("vader", broken)).unwrapped.mdp.judge(
            gym.make("LMAlign-v0").unwrapped.mdp.prompts[:1], [[5, 6]], ["length"]
        )
