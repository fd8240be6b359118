"""The pipeline itself: stage after stage, each skipped when its result is already there for the same inputs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm_gym.folders import locked
from lm_gym.pipeline.config import STAGES, Pipeline
from lm_gym.pipeline.context import Context, Stopped
from lm_gym.pipeline.evaluation import EVALUATION
from lm_gym.pipeline.stage import RECORD, Record, check_there, kept, key_of, make
from lm_gym.pipeline.stages import TRAINING, Stage
from lm_gym.runinfo import plain, run_info, write_config

CONFIG = "pipeline.yaml"
ALL = (*TRAINING, EVALUATION)


def run_pipeline(
    config: Pipeline,
    out: str | Path,
    *,
    until: str | None = None,
    start: str | None = None,
    say: Callable[[str], None] = print,
    stop: Callable[[], bool] = lambda: False,
    progress: bool = False,
) -> dict[str, Record]:
    """Run the stages, and return what they left.

    Args:
        out: the pipeline's folder. Results there are used where their inputs are the same, else made again.
        until: the last stage to run. start: the first, which is made again with all that follow; the results of the
            earlier ones must be there.
        say: takes lines about what happens. stop: asked after every update; True ends it after a checkpoint.
        progress: draw the progress of training.

    Raises:
        ValueError: a stage that does not exist, `start` behind `until`, an earlier result that is missing or was made
            from other inputs, a folder with something else in it. Stopped: `stop` said so. FolderInUse: another
            process works there.
    """
    first = 0 if start is None else _place("start", start)
    last = len(STAGES) - 1 if until is None else _place("until", until)
    if first > last:
        raise ValueError(f"expected to start with a stage before the last one, got start={start!r} and until={until!r}")
    for what, source in config.sources().items():  # hours before the stage that reads it
        check_there(what, source)
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"out expected a folder, and {out} is a file")
    ctx = Context(config, out, say=say, stop=stop, progress=progress)
    with locked(out):
        _check_folder(out)
        earlier = _earlier(ctx, first)
        write_config(out / CONFIG, plain(_written(config)) | {"run": run_info(seed=config.seed)})
        for name in STAGES[:first]:
            say(f"{name}: as it is")
        ctx.records |= earlier
        for place, stage in enumerate(ALL[first : last + 1], first):
            ctx.records[stage.name] = _run(ctx, stage, again=start is not None)
            if stop() and place < last:
                raise Stopped
    return ctx.records


def _place(name: str, stage: str) -> int:
    if stage not in STAGES:
        raise ValueError(f"{name} expected one of {', '.join(STAGES)}, got {stage!r}")
    return STAGES.index(stage)


def _check_folder(out: Path) -> None:
    """Refuse a folder in which something else has the name of a stage."""
    for name in STAGES:
        if (out / name).exists() and not (out / name / RECORD).is_file():
            raise ValueError(f"{out / name} holds something that no pipeline made: choose another --out")


def _earlier(ctx: Context, first: int) -> dict[str, Record]:
    """The results of the stages before the first one to run.

    Raises:
        ValueError: one is missing, or was made from other inputs.
    """
    for stage in ALL[:first]:
        found = kept(ctx.out, stage.name, key_of(stage.inputs(ctx)))
        if isinstance(found, str):
            raise ValueError(
                f"to start with {ALL[first].name} expected the result of {stage.name} in {ctx.out}, but {found}: start "
                f"with {stage.name}, or leave --from out"
            )
        ctx.records[stage.name] = found
    return dict(ctx.records)


def _run(ctx: Context, stage: Stage, *, again: bool) -> Record:
    inputs = stage.inputs(ctx)
    found = kept(ctx.out, stage.name, key_of(inputs))
    if isinstance(found, Record) and not again:
        ctx.say(f"{stage.name}: done before ({found.cpu_seconds:.0f} CPU seconds)")
        return found
    there = (ctx.out / stage.name / RECORD).is_file()
    why = f" (again: {found if isinstance(found, str) else 'asked for'})" if there else ""
    ctx.say(f"{stage.name}: starts{why}")
    started = time.perf_counter()
    record = make(ctx.out, stage.name, inputs, stage.products, lambda place: stage.work(ctx, place))
    ctx.say(f"{stage.name}: {record.cpu_seconds:.0f} CPU seconds, {time.perf_counter() - started:.0f} s")
    return record


def _written(config: Pipeline) -> dict[str, Any]:
    """The configuration as `--config` reads it: sections flat, agents by name."""
    found = {name: value for name, value in vars(config).items() if not hasattr(value, "__dataclass_fields__")}
    sft, rl = vars(config.sft), vars(config.rl)
    found["sft"] = {n: v for n, v in sft.items() if n != "agent"} | config.sft.agent
    found["preferences"] = vars(config.preferences) | {"annotators": vars(config.preferences.annotators)}
    taken = ("model", "seed", "device")
    trained = {n: v for n, v in vars(config.reward_model.config).items() if n not in taken}
    found["reward_model"] = {"start": config.reward_model.start} | trained
    options = {n: v for n, v in rl.items() if n not in ("agent", "agent_class")}
    found["rl"] = {"agent": config.rl.agent_class.name} | options | config.rl.agent
    found["evaluation"] = dict(vars(config.evaluation))
    return found
