"""Metrics and samples of a run: CSV, JSONL, the terminal, and TensorBoard, trackio or Weights & Biases when asked."""

from __future__ import annotations

import atexit
import difflib
import json
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lm_gym.outside_trackers import OPENERS, Finish, OutsideTrackerError, Row, Send, outside
from lm_gym.run_files import append, append_csv, csv_text, read_csv, read_jsonl, step_of
from lm_gym.run_folder import CONFIG, NEXT_CONFIG, ROWS, keep_config, renew_config, used
from lm_gym.runinfo import plain, run_info, write_atomically, write_config

METRICS: dict[str, str] = {
    "objective/scores": "mean score the reward model gave a completion",
    "objective/scores_sem": "standard error of objective/scores (evaluations only)",
    "objective/j": "score minus KL coefficient times KL: the objective itself (evaluations only)",
    "objective/rlhf_reward": "mean of score plus everything paid for KL: the return the policy is trained on",
    "objective/non_score_reward": "mean per completion of what was paid for KL",
    "objective/kl": "KL(policy, reference) a completion: per-state exact KL summed over its tokens",
    "objective/kl_k1": "the same KL from the sampled tokens alone: sum of log-prob differences",
    "objective/entropy": "minus the log-prob of a completion under the policy",
    "policy/approxkl_avg": "KL between the policy before and after the update: half the mean squared log-ratio",
    "policy/clipfrac_avg": "share of tokens whose policy ratio was clipped",
    "policy/entropy_avg": "entropy of the next-token distribution, mean over tokens",
    "loss/policy_avg": "clipped surrogate loss",
    "loss/value_avg": "value loss",
    "loss/kl_avg": "KL term of the loss before its coefficient",
    "loss/ptx_avg": "loss of pretraining or SFT data mixed into PPO (PPO-ptx), before its coefficient",
    "sft/loss": "minus the mean log-prob of an imitated token: of SFT's data, or of the texts that RAFT kept",
    "sft/perplexity": "exponential of sft/loss",
    "sft/token_accuracy": "share of imitated tokens that were the likeliest",
    "nlpo/choices": "mean number of tokens that NLPO's mask let a state choose among",
    "raft/kept_return": "mean return of the texts that expert iteration kept",
    "loss/preference_avg": "loss of a pair or of a judged text (DPO, IPO, KTO)",
    "rewards/chosen": "implicit reward of chosen (good) texts: KL coefficient times log-ratio to the reference",
    "rewards/rejected": "the same of rejected (bad) texts",
    "rewards/margins": "rewards/chosen less rewards/rejected",
    "rewards/accuracies": "share of pairs whose chosen text has the higher implicit reward",
    "logps/chosen": "log-prob of a chosen (good) text under the policy",
    "logps/rejected": "log-prob of a rejected (bad) text under the policy",
    "val/ratio": "mean policy ratio of the update",
    "val/ratio_var": "variance of the mean policy ratio over minibatches",
    "val/clipfrac_avg": "share of tokens whose value loss was clipped",
    "val/explained_variance": "share of the variance of returns that the values explain",
    "val/first_ratio_error": "largest |log ratio| of the first minibatch: 0 up to rounding",
    "group/std_avg": "standard deviation of the returns of a prompt's texts, mean over prompts",
    "group/equal_share": "share of prompts whose texts all have one return: no advantage, no gradient",
    "group/overlong_avg": "mean punishment of a text for coming near the length limit",
    "group/masked_share": "share of texts that ran into the length limit and weigh nothing in the loss",
    "val/kto_reference": "z_0 of KTO: what it takes for KL(policy, reference), from mismatched prompts and texts",
    "kl_coef": "KL coefficient in force",
    "lr": "learning rate of the update",
    "grad/norm": "gradient norm before clipping",
    "guard/rollbacks": "how often so far the guard took the policy back",
    "guard/tokens": "completion tokens that the guard's evaluations generated so far; not in tokens",
    "guard/j": "score minus KL coefficient times KL of the sampled tokens, on the guard's held-out prompts",
    "guard/kl": "exact KL(policy, reference) a completion, on the guard's held-out prompts",
    "episode": "completions generated so far",
    "tokens": "completion tokens generated so far",
    "length/mean": "completion tokens a completion",
    "length/ended_share": "share of completions that ended by themselves",
    "text/distinct_1": "distinct unigrams over all unigrams",
    "text/distinct_2": "distinct bigrams over all bigrams",
    "perf/tokens_per_second": "completion tokens generated over the seconds of the whole update",
    "perf/decode_seconds": "seconds spent decoding",
    "perf/score_seconds": "seconds spent in the reference and the reward model",
    "perf/data_seconds": "seconds spent on the examples of a preference agent: drawing, scoring, reference log-probs",
    "perf/judged_per_second": "completions that the reward model judged a second",
    "perf/update_seconds": "seconds spent in gradient steps",
    "perf/elapsed_seconds": "seconds since the start of the run, added by the tracker",
}
"""Name -> one line. docs/metrics.md has formula, unit and what is healthy for each; a test holds the two together."""

OPEN_FAMILIES: tuple[str, ...] = ("custom/", "eval/", "reward/", "time/")
"""Prefixes under which any name may be logged: the user's own, evaluations, parts of a reward, further timings."""

TRACKERS: tuple[str, ...] = ("csv", "jsonl", "tensorboard", "trackio", "wandb")


class Tracker:
    """Writes what a run measures. One per run; with several processes, only rank 0 makes one.

    Files in `out_dir`: ``config.yaml`` (at once; of a run that goes on, with its first new row, so that a start that
    fails leaves the run as it was configured), ``metrics.csv`` and ``metrics.jsonl`` (a row an update, on disk when
    `log` returns), ``samples.jsonl``, ``tensorboard/``.

    Args:
        out_dir: Folder of the run, made if missing; None writes no file (the terminal and remote trackers still work).
        config: Resolved configuration. Where it has no key ``run``, `lm_gym.runinfo.run_info` fills it.
        trackers: Any of `TRACKERS`. The last three need the extra ``track``.
        terminal: True draws the live panel, False prints one plain line a log, "auto" decides by whether stdout is a
            terminal.
        total: Tokens the run will make, for progress and time left; None if unknown.
        quiet: Nothing on the terminal at all.
        resume: Continue the files already in `out_dir` instead of refusing them. Follow with `truncate_to`.
        name: Name shown and given to remote trackers; default: the folder's name.
        plain_every: Least seconds between two plain lines; the first and the last line always come.

    Raises:
        ValueError: Unknown tracker, or one that needs an `out_dir` without it.
        ImportError: A tracker's package is missing; names the extra.
        OutsideTrackerError: A tracker of others does not start.
        FileExistsError: `out_dir` already holds a run (rows or checkpoints) and `resume` is False.
    """

    def __init__(
        self,
        out_dir: str | Path | None,
        *,
        config: Mapping[str, Any],
        trackers: Sequence[str] = ("csv", "jsonl"),
        terminal: bool | Literal["auto"] = "auto",
        total: int | None = None,
        quiet: bool = False,
        resume: bool = False,
        name: str | None = None,
        plain_every: float = 0.0,
    ) -> None:
        trackers = (trackers,) if isinstance(trackers, str) else tuple(trackers)
        for tracker in trackers:
            if tracker not in TRACKERS:
                hint = _nearest(tracker, TRACKERS)
                raise ValueError(f"unknown tracker {tracker!r}{hint}; known: {', '.join(TRACKERS)}")
        self.out_dir = Path(out_dir) if out_dir is not None else None
        if self.out_dir is None and "tensorboard" in trackers:
            raise ValueError("the tensorboard tracker writes files: give out_dir, or leave it out of trackers")
        self.trackers = trackers
        self.name = name or (self.out_dir.resolve().name if self.out_dir is not None else "run")
        self.history: list[Row] = []
        """Every row logged so far, oldest first: step, tokens and the metrics."""
        self._config = dict(plain(config))
        self._resumed = resume
        self._closed = False
        if self.out_dir is not None:
            self._config.setdefault("run", run_info())
            self._open_files(self.out_dir)
        self._started = time.monotonic() - float(self.history[-1].get("perf/elapsed_seconds", 0) if self.history else 0)
        self._external: dict[str, tuple[Send, Finish]] = {}
        for tracker in filter(OPENERS.__contains__, trackers):
            with outside(tracker, "did not start"):
                self._external[tracker] = OPENERS[tracker](self.out_dir, self.name, self._config, resume)
        self._sent = False
        from lm_gym.terminal import make_display

        self._display = make_display(terminal, name=self.name, total=total, quiet=quiet, plain_every=plain_every)
        self._display.restore(self.history)
        atexit.register(self.close)  # a live panel hides the cursor: give it back when the program dies

    def log(self, metrics: Mapping[str, Any], *, step: int, tokens: int) -> None:
        """Write one row, checked as a whole before any of it is written.

        Args:
            metrics: Name -> finite number (Python, NumPy or 0-d tensor). A metric that does not apply is left out.
            step: Policy updates so far, above that of the row before.
            tokens: Completion tokens generated so far.

        Raises:
            ValueError: A name that neither `METRICS` nor an open family has, a value that is not finite, a step that
                was logged already.
            TypeError: A value that is not a single number.
            OutsideTrackerError: A tracker of others did not take the row, which is in the files.
        """
        if self._closed:
            raise RuntimeError(f"the tracker of run {self.name!r} is closed; make a new one with resume=True to go on")
        step, tokens = _count("step", step), _count("tokens", tokens)
        if self.history and step <= self.history[-1]["step"]:
            raise ValueError(
                f"step {step} does not follow step {self.history[-1]['step']}, the last one logged; each step is "
                "logged once, in order (after loading a checkpoint, call truncate_to with its step first)"
            )
        row: Row = {"step": step, "tokens": tokens}
        for name, value in metrics.items():
            number = _number(_known(name), value)
            if name in row and number != row[name]:
                raise ValueError(f"metric {name!r} is {number}, but log was called with {name}={row[name]}")
            row[name] = number
        row.setdefault("perf/elapsed_seconds", round(time.monotonic() - self._started, 3))
        if self.out_dir is not None:
            renew_config(self.out_dir)
            if "jsonl" in self.trackers:
                append(self.out_dir / "metrics.jsonl", json.dumps(row, allow_nan=False) + "\n")
            if "csv" in self.trackers:
                append_csv(self.out_dir / "metrics.csv", row)
        self.history.append(row)
        self._sent = True
        for tracker, (send, _) in self._external.items():
            with outside(tracker, "did not take a row"):
                send({key: value for key, value in row.items() if key != "step"}, step)
        self._display.log(row)

    def samples(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Append texts to samples.jsonl and show the first of them on the terminal.

        Args:
            rows: Each with ``prompt`` and ``completion`` (a string, or messages), and as far as known ``score``, ``kl``
                and ``length``; further keys are kept.
            step: The update after which the texts were drawn.

        Raises:
            ValueError: A row without prompt or completion, or with a number that is not finite.
        """
        lines = []
        for index, row in enumerate(rows):
            if missing := [key for key in ("prompt", "completion") if key not in row]:
                raise ValueError(f"sample {index} has no {' and no '.join(missing)}; its keys are {sorted(row)}")
            line = {"step": _count("step", step), **plain(row)}
            if broken := [key for key, value in line.items() if isinstance(value, float) and not math.isfinite(value)]:
                raise ValueError(f"sample {index}: {broken[0]} is {line[broken[0]]}, expected a finite number")
            lines.append(line)
        if self.out_dir is not None and lines:
            text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
            append(self.out_dir / "samples.jsonl", text)
        if lines:
            self._display.sample(lines[0])

    def note(self, message: str) -> None:
        """Say something to whoever watches the terminal, above the panel; nothing when quiet."""
        self._display.note(message)

    def truncate_to(self, step: int) -> None:
        """Forget everything logged after `step`: what a run resumed from the checkpoint of `step` will log again.

        TensorBoard hides its later events; trackio and Weights & Biases cannot take rows back, and a resumed run is a
        new run there (the same name, the same group).

        Raises:
            RuntimeError: A tracker other than the files already got rows from this object.
        """
        step = _count("step", step)
        if self._external and self._sent:
            raise RuntimeError("remote trackers cannot take rows back: call truncate_to before the first log")
        self.history = [row for row in self.history if row["step"] <= step]
        self._display.restore(self.history)
        if self.out_dir is None:
            return
        for name in ("metrics.jsonl", "samples.jsonl"):
            path = self.out_dir / name
            if path.exists():
                kept = [row for row in read_jsonl(path) if step_of(row, path) <= step]
                write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
        path = self.out_dir / "metrics.csv"
        if path.exists():
            columns, rows = read_csv(path)
            write_atomically(path, csv_text(columns, [row for row in rows if step_of(row, path) <= step]))

    def close(self) -> None:
        """Finish the display and the remote trackers. Further calls do nothing.

        A tracker of others that cannot finish (its server is away) is a warning: the run goes on, to its checkpoint.
        """
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        self._display.close()
        if self.out_dir is not None:
            (self.out_dir / NEXT_CONFIG).unlink(missing_ok=True)
        for tracker, (_, finish) in self._external.items():
            try:
                with outside(tracker, "could not finish, and may lack its last rows"):
                    finish()
            except OutsideTrackerError as error:
                warnings.warn(str(error), stacklevel=2)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_files(self, folder: Path) -> None:
        """Make the folder and config.yaml; take up or refuse the rows of an earlier run."""
        there = used(folder)
        if there and not self._resumed:
            raise FileExistsError(
                f"{folder} already holds a run ({', '.join(there)}); "
                "choose another folder, or resume=True to continue it"
            )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / NEXT_CONFIG).unlink(missing_ok=True)  # of a process that was killed before its first row
        if there:  # the resumed part may have other versions: keep what the first part ran with
            keep_config(folder)
        write_config(folder / (NEXT_CONFIG if there else CONFIG), self._config)
        files = [path for name in ROWS if (path := folder / name).is_file()]
        for file in files:  # a process that was killed may leave half a line
            text = file.read_bytes()
            if text and not text.endswith(b"\n"):
                write_atomically(file, text[: text.rfind(b"\n") + 1].decode("utf-8"))
        if folder / ROWS[0] in files:
            self.history = read_jsonl(folder / ROWS[0])
        elif folder / ROWS[1] in files:
            _, rows = read_csv(folder / ROWS[1])
            self.history = [{key: json.loads(value) for key, value in row.items() if value != ""} for row in rows]


def _known(name: str) -> str:
    if name in METRICS or name == "step":
        return name
    if any(name.startswith(family) and len(name) > len(family) for family in OPEN_FAMILIES) and name.isprintable():
        return name
    raise ValueError(
        f"unknown metric {name!r}{_nearest(name, METRICS)}; document it in METRICS (lm_gym/tracking.py) and "
        f"docs/metrics.md, or log it under one of {', '.join(OPEN_FAMILIES)}"
    )


def _number(name: str, value: Any) -> int | float:
    if hasattr(value, "item"):
        try:
            value = value.item()
        except (ValueError, RuntimeError) as error:
            raise TypeError(f"metric {name!r}: expected a single number, got shape {tuple(value.shape)}") from error
    if not isinstance(value, (int, float)):
        raise TypeError(f"metric {name!r}: expected a number, got {value!r}; leave out a metric that does not apply")
    if not math.isfinite(value):
        raise ValueError(f"metric {name!r} is {value}, expected a finite number; leave it out where it is not defined")
    return value


def _count(name: str, value: Any) -> int:
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ValueError(f"{name}: expected an integer of at least 0, got {value!r}")
    return number


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
