"""`lm-gym train`: from options to a run's folder with metrics, checkpoints, texts before and after, and a report."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from lm_gym.cli.errors import TERMINATED, Failed, Interrupt, Refused, code_of, one_line, refusing, say
from lm_gym.cli.options import NOT_IN_FILES, TrainOptions
from lm_gym.folders import FolderInUse, locked
from lm_gym.run_folder import newest_step, saved_steps, used
from lm_gym.runinfo import plain

ASKED = "this update is finished and saved first"


def train(options: TrainOptions, *, preset: str | None = None) -> int:
    """Train, evaluate, report. Returns the exit code: 0, or that of the signal which stopped it.

    Args:
        preset: a name for ``run.preset`` in config.yaml, which tells a run of this command from a user's own; with one
            the configuration is not printed.

    Raises:
        Refused: an option that the user can put right. Failed: a reward model that raised, numbers that blew up.
    """
    with contextlib.ExitStack() as stack:
        with refusing():
            out = stack.enter_context(run_folder(options))
            agent, held_out, where = make_agent(options, out)
            agent.named = options.agent_name
        return _train(options, out, agent, held_out, where, preset)


def _train(options: TrainOptions, out: Path, agent: Any, held_out: list[Any], where: str, preset: str | None) -> int:
    from lm_gym.rewards import RewardModelError

    config = resolved(options, held_out=where)
    provenance: dict[str, Any] = agent.run_info()
    if preset is not None:
        provenance["preset"] = preset
    else:
        print_config(config | {"agent": {"name": options.agent_name, **plain(options.agent)}}, out)
    guard = make_guard(options, agent, held_out)
    stopped = _learn(agent, options, out, config | {"run": provenance}, guard)
    last = out / "checkpoints" / f"step-{agent.updates}"
    if stopped:
        say(f"stopped after update {agent.updates}, {agent.tokens} tokens; saved {last}")
    try:
        if stopped == TERMINATED:  # whoever sent it kills soon
            say("the evaluation is left out")
        elif options.run.eval_texts:
            _evaluate(agent, options, out, held_out, where)
    except KeyboardInterrupt as stop:
        say("the evaluation is left out")
        stopped = code_of(stop)
    except RewardModelError as error:
        raise Failed(f"{error}\nthe evaluation is left out; last checkpoint: {last}") from error
    from lm_gym.report import write_report

    print(f"report      {write_report(out)}")
    print(f"checkpoint  {last}")
    if stopped:
        print(f"go on with  lm-gym train {options.agent_name} --resume --out {out}")
    print(f'try it with lm-gym sample --model {out} --prompt "..."')
    return stopped


@contextlib.contextmanager
def run_folder(options: TrainOptions) -> Iterator[Path]:
    """The run's folder under its lock: as asked for, or a new one named by date and time."""
    if options.run.out is None:
        with _new_folder(f"{datetime.now():%Y%m%d-%H%M%S}-{options.agent_class.name}") as out:
            yield out
        return
    out = Path(options.run.out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out expected a folder, and {out} is a file")
    with locked(out):
        if (there := used(out)) and not options.run.resume:
            raise ValueError(
                f"{out} already holds a run ({', '.join(there)}): choose another --out, or go on with it by --resume"
            )
        yield out


@contextlib.contextmanager
def _new_folder(name: str) -> Iterator[Path]:
    """A folder in runs that nobody has; with a number behind its name where two start in one second."""
    for n in itertools.count(1):
        out = Path("runs") / (name if n == 1 else f"{name}-{n}")
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(out))
            except FolderInUse:
                continue
            if not used(out):
                yield out
                return


def make_agent(options: TrainOptions, out: Path) -> tuple[Any, list[Any], str]:
    """The agent on its problem, the prompts held out for the evaluation, and what these are, in words."""
    import gymnasium
    import torch

    from lm_gym.checkpoints import numbered
    from lm_gym.held_out import split_prompts
    from lm_gym.loading import load_model
    from lm_gym.mdp import AlignmentMDP
    from lm_gym.prompts import load_prompts

    run, problem = options.run, options.problem
    _check_run(options)
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    given = problem.model if problem.reference is None else problem.reference
    lm = load_model(
        given,
        tokenizer=problem.tokenizer,
        device=problem.device,
        dtype=problem.dtype,
        what="model" if problem.reference is None else "reference",
    )
    room = lm.max_positions - problem.max_new_tokens
    limit = room if problem.max_prompt_tokens is None else min(room, problem.max_prompt_tokens)

    def prompts_of(source: str) -> list[Any]:
        return load_prompts(source, lm.tokenizer, max_tokens=max(1, limit))

    source, found = _eval_source(options), prompts_of(problem.prompts)
    train_prompts, held_out = split_prompts(found, None if source is None else prompts_of(source))
    where = source or f"the last {len(held_out)} different prompts of {problem.prompts}, which are not trained on"
    if len(train_prompts) == len(found) and {p.text for p in held_out} & {p.text for p in found}:
        say("note: every prompt is also one to evaluate on, so the evaluation is on training prompts")
        where = "training prompts"
    elif source is not None and len(train_prompts) < len(found):
        say(f"note: {len(found) - len(train_prompts)} of {len(found)} prompts are in {source} too: not trained on")
    arguments = dataclasses.asdict(problem) | {"prompts": train_prompts}
    arguments["model" if problem.reference is None else "reference"] = lm
    if run.watch is not None:
        from lm_gym.reward_models.watched import Watched

        arguments["reward_model"] = Watched(problem.reward_model, run.watch)
    env = gymnasium.make("LMAlign-v0", mdp=AlignmentMDP(**arguments))
    fields = dataclasses.asdict(options.agent)
    if not run.resume:
        return options.agent_class(env, **fields), held_out, where
    if not numbered(out):
        say(f"note: {out} was stopped before its first checkpoint: it begins again")
        return options.agent_class(env, **fields), held_out, where
    agent = options.agent_class.load(out, env, **fields)
    agent.kl_coef = agent.kl_coef if _adapted(agent) else problem.kl_coef
    return agent, held_out, where


def make_guard(options: TrainOptions, agent: Any, held_out: list[Any]) -> Any:
    """The guard that the options ask for, on prompts that are not trained on; None without one."""
    from lm_gym.guard import Guard

    run = options.run
    if not run.guard_every:
        if run.guard_kl is not None:
            raise Refused("guard_kl has no effect without guard_every, the updates between two looks at the policy")
        return None
    if not agent.trains:
        raise Refused(f"guard_every has no effect on {options.agent_name}, which trains nothing")
    with refusing():
        return Guard(run.guard_every, held_out, run.guard_prompts, run.guard_kl)


def _adapted(agent: Any) -> bool:
    """Whether the coefficient is steered while training, so that the checkpoint's is the one in force."""
    return getattr(agent.config, "kl_target", None) is not None


def _check_run(options: TrainOptions) -> None:
    run = options.run
    for name, value, low in (
        ("total_tokens", run.total_tokens, 1),
        ("eval_texts", run.eval_texts, 0),
        ("save_every", run.save_every, 1),
        ("keep_checkpoints", run.keep_checkpoints, 1),
        ("guard_every", run.guard_every, 0),
        ("threads", run.threads, 1),
    ):
        if value is not None and value < low:
            raise ValueError(f"{name} expected at least {low}, got {value}")
    from lm_gym.tracking import TRACKERS

    for tracker in run.trackers:
        if tracker not in TRACKERS:
            raise ValueError(f"trackers expected some of {', '.join(TRACKERS)}, got {tracker!r}")


def _eval_source(options: TrainOptions) -> str | None:
    """The source of evaluation prompts; None: a part of the training source."""
    if options.run.eval_prompts is not None:
        return options.run.eval_prompts
    parts = options.problem.prompts.split(":")
    if parts[0] == "tiny" and parts[2:] in ([], ["train"]):
        return ":".join([parts[0], *(parts[1:2] or ["reviews"]), "test"])
    return None


def resolved(options: TrainOptions, *, held_out: str) -> dict[str, Any]:
    """What config.yaml holds beside the sections `agent` and `run`; --config takes it back."""
    run = {k: v for k, v in dataclasses.asdict(options.run).items() if k not in NOT_IN_FILES}
    run["eval_prompts"] = _eval_source(options)
    config: dict[str, Any] = plain(dataclasses.asdict(options.problem) | run)
    return config


def print_config(config: Mapping[str, Any], out: Path) -> None:
    """The resolved configuration, as it goes into config.yaml."""
    import yaml

    print(f"# {out / 'config.yaml'}")
    print(yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True, width=120), flush=True)


def _learn(agent: Any, options: TrainOptions, out: Path, config: Mapping[str, Any], guard: Any) -> int:
    """Train until done or told to stop; the exit code of the signal that did, or 0."""
    from lm_gym.outside_trackers import OutsideTrackerError
    from lm_gym.rewards import RewardModelError

    run = options.run
    if run.resume and agent.tokens >= run.total_tokens:
        raise Refused(
            f"{out} has its {agent.tokens} tokens already: raise --total-tokens (now {run.total_tokens}) to go on"
        )
    before = agent.updates
    with Interrupt(ASKED) as interrupt:
        try:
            agent.learn(
                run.total_tokens,
                out=out,
                trackers=run.trackers,
                progress=True,
                save_every=run.save_every,
                keep_checkpoints=run.keep_checkpoints,
                resume=run.resume,
                guard=guard,
                run_config=config,
                callback=lambda _agent, _metrics: not interrupt.asked,
            )
        except (RewardModelError, FloatingPointError, OSError) as error:
            words = one_line(error) if isinstance(error, OSError) else str(error)
            raise Failed("\n".join([words, *_kept(out)])) from error
        except ImportError as error:  # a tracker without its extra
            raise Refused(str(error)) from error
        except OutsideTrackerError as error:
            if agent.updates > before:
                raise Failed("\n".join([str(error), *_kept(out)])) from error
            raise Refused(str(error)) from error
        except ValueError as error:
            if agent.updates > before:
                raise
            raise Refused(one_line(error)) from error  # a guard that cannot begin, a file of the run that is damaged
        except KeyboardInterrupt as stop:
            raise type(stop)(*_kept(out)) from None
    return interrupt.code


def _kept(out: Path) -> list[str]:
    """What is left of a run that broke off, in a line; none where no update was made."""
    if saved := saved_steps(out):
        newest = out / "checkpoints" / f"step-{saved[-1]}"
        return [f"last checkpoint: {newest} (go on from it with --resume --out {out})"]
    if newest_step(out) is None:
        return []
    return [f"no checkpoint was saved yet in {out} (--save-every says how often that happens)"]


def _evaluate(agent: Any, options: TrainOptions, out: Path, held_out: list[Any], where: str) -> None:
    from lm_gym.cli.evaluate import (
        EVAL_SEED,
        before_training,
        pair_rows,
        print_evaluation,
        print_findings,
        stands_out,
        write_pairs,
    )
    from lm_gym.held_out import spread
    from lm_gym.report import write_findings

    prompts = spread(held_out, options.run.eval_texts)
    before = before_training(agent, prompts)
    after = agent.evaluate_on(prompts, EVAL_SEED)
    rows = pair_rows(before, after)
    write_pairs(out / "samples_before_after.jsonl", rows)
    print_evaluation(before, after, rows, what=where)
    found = stands_out(agent, before, after)
    write_findings(out, found)
    print_findings(found)
