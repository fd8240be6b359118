"""What a comparison has done: a folder of JSONL files, a line added as soon as a run has ended.

| file | a line is |
|---|---|
| `settings.json` | (one object) what all results of the folder have in common |
| `problems.jsonl` | a `Problem`: J of the reference, J*, the frontier |
| `reference.jsonl` | an environment's evaluation prompts, with the scores of the reference's texts |
| `trials.jsonl` | a trial of tuning: configuration and J, or the number that blew up |
| `rows.jsonl` | a final run, a `Row` |
| `failures.jsonl` | a run that broke off, and its error; such runs are tried again |
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lm_gym
from lm_gym.compare.rows import Problem, Row, read_rows, row_line
from lm_gym.compare.settings import Job, Settings
from lm_gym.run_files import append, read_jsonl
from lm_gym.runinfo import git_revision, write_atomically

Group = tuple[str, str, float]


class Ledger:
    """The folder of a comparison.

    Attributes:
        problems: (env, kl_coef) -> Problem. reference: env -> prompt -> scores. trials: (agent, env, kl_coef) ->
            trial -> what was found. rows: (agent, env, kl_coef, seed) -> Row. revisions: of the
            code, of every call so far.

    Raises:
        ValueError: the folder was made with other settings.
    """

    revisions: list[str]

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._agree(settings)
        self.problems: dict[tuple[str, float], Problem] = {}
        self.reference: dict[str, dict[str, tuple[float, ...]]] = {}
        self.trials: dict[Group, dict[int, dict[str, Any]]] = {}
        self.rows: dict[tuple[str, str, float, int], Row] = {}
        for record in self._read("problems.jsonl"):
            problem = Problem(**{**record, "frontier": tuple(map(tuple, record["frontier"]))})
            self.problems[problem.env, problem.kl_coef] = problem
        for record in self._read("reference.jsonl"):
            self.reference[record["env"]] = {text: tuple(scores) for text, scores in record["scores"].items()}
        for record in self._read("trials.jsonl"):
            group = (record["agent"], record["env"], record["kl_coef"])
            self.trials.setdefault(group, {})[record["trial"]] = record
        self._whole_lines("rows.jsonl")
        if (folder / "rows.jsonl").exists():
            for row in read_rows(folder / "rows.jsonl"):
                self.rows[row.agent, row.env, row.kl_coef, row.seed] = row

    def _agree(self, settings: Settings) -> None:
        """Refuse settings that would mix what cannot be compared; remember those of agents that are new here."""
        path = self.folder / "settings.json"
        code = git_revision(Path(lm_gym.__file__).parent) or f"version {lm_gym.__version__}"
        self.revisions = []
        now: dict[str, Any] = {**settings.binding, "fixed": {name: {} for name in settings.agents}}
        now["fixed"] |= {name: dict(fields) for name, fields in settings.fixed.items()}
        if path.exists():
            then = json.loads(path.read_text(encoding="utf-8"))
            told = [
                f"{key}={then.get(key)!r} and not {now[key]!r}" for key in settings.binding if then.get(key) != now[key]
            ]
            for name, fields in now["fixed"].items():
                if then["fixed"].get(name, fields) != fields:
                    told.append(f"{name} with {then['fixed'][name] or 'no field set'} and not {fields or 'none'}")
            if told:
                raise ValueError(
                    f"{self.folder} holds results of {', '.join(told)}: give these settings again, or another folder "
                    "(--results)"
                )
            now["fixed"] = then["fixed"] | now["fixed"]
            self.revisions = then.get("revisions", [])
        if code not in self.revisions:
            self.revisions.append(code)
        now["revisions"] = self.revisions
        write_atomically(path, json.dumps(now, indent=1) + "\n")

    def let_go(self) -> None:
        """A call that broke off before it found anything binds nobody: the corrected one goes on in its folder."""
        path = self.folder / "settings.json"
        found = {agent for agent, *_ in [*self.trials, *self.rows]}
        if not (found or self.problems or self.reference):
            path.unlink(missing_ok=True)
            return
        now = json.loads(path.read_text(encoding="utf-8"))
        now["fixed"] = {name: fields for name, fields in now["fixed"].items() if name in found}
        write_atomically(path, json.dumps(now, indent=1) + "\n")

    def add_problem(self, problem: Problem) -> None:
        self._append("problems.jsonl", dataclasses.asdict(problem))
        self.problems[problem.env, problem.kl_coef] = problem

    def add_reference(self, env: str, scores: Mapping[str, tuple[float, ...]]) -> None:
        self._append("reference.jsonl", {"env": env, "scores": scores})
        self.reference[env] = dict(scores)

    def add_trial(self, job: Job, config: Mapping[str, Any], j: float | None, error: str | None = None) -> None:
        """``config``: the fields that final runs are given if this trial wins; j None: it diverged."""
        agent, env, kl_coef = job.group
        found: dict[str, Any] = {"agent": agent, "env": env, "kl_coef": kl_coef, "trial": job.trial, "seed": job.seed}
        found |= {"config": dict(config), "j": j, "error": error}
        self._append("trials.jsonl", found)
        self.trials.setdefault(job.group, {})[found["trial"]] = found

    def add_row(self, row: Row) -> None:
        self._write("rows.jsonl", row_line(row))
        self.rows[row.agent, row.env, row.kl_coef, row.seed] = row

    def add_failure(self, what: str, error: str) -> None:
        self._append("failures.jsonl", {"run": what, "error": error})

    def winner(self, group: Group) -> dict[str, Any] | None:
        """The configuration of the trial with the highest J; None where all diverged."""
        good = [t for t in self.trials.get(group, {}).values() if t["j"] is not None]
        return dict(max(good, key=lambda t: (t["j"], -t["trial"]))["config"]) if good else None

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        self._write(name, json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")

    def _write(self, name: str, line: str) -> None:
        append(self.folder / name, line)

    def _read(self, name: str) -> list[dict[str, Any]]:
        self._whole_lines(name)
        path = self.folder / name
        return read_jsonl(path) if path.exists() else []

    def _whole_lines(self, name: str) -> None:
        """Cut off a line that a kill left unfinished: its run is made again."""
        path = self.folder / name
        if path.exists():
            found = path.read_bytes()
            whole = found.rfind(b"\n") + 1
            if whole != len(found):
                os.truncate(path, whole)
