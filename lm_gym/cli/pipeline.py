"""`lm-gym pipeline`: flags and a file with a section for each stage, made from the pipeline's dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lm_gym.cli.config_file import PASSED_OVER, checked, load_mapping
from lm_gym.cli.errors import Failed, Interrupt, refusing, say
from lm_gym.cli.options import load_agent
from lm_gym.terminal import printable

StageName = Literal["sft", "preferences", "reward-model", "rl", "evaluation"]
ASKED = "this update, or this stage, is finished and saved first"
SECTIONS = ("sft", "preferences", "reward_model", "rl", "evaluation")


@dataclasses.dataclass
class Call:
    """A call of the pipeline: what no file holds."""

    out: str = "runs/pipeline"
    """The pipeline's folder; results that are there for the same inputs are used."""
    config: str | None = None
    """A YAML file with these options as keys and a section for each stage; flags win over it."""
    until: StageName | None = None
    """The last stage to run."""
    start: Annotated[StageName | None, tyro.conf.arg(name="from")] = None
    """The first stage to run: it is made again, and what follows; what comes before must be there."""
    threads: int | None = 1
    """Threads of torch; two on a busy machine wait for each other. None: as many as torch takes by itself."""
    debug: bool = False
    """Show the traceback of an error."""


def pipeline(args: Sequence[str]) -> int:
    """Parse, run, say where the report is. Returns the exit code: 0, or that of the signal which stopped it.

    Raises:
        Refused: an option or a file that the user can put right. Failed: numbers that blew up, a judge that raised.
    """
    with refusing():
        call, config = parse(args)
    import torch
    from transformers.utils import logging

    from lm_gym.pipeline.context import Stopped
    from lm_gym.pipeline.run import run_pipeline
    from lm_gym.rewards import RewardModelError

    logging.disable_progress_bar()  # a bar for each file of a small model
    if call.threads is not None:
        torch.set_num_threads(call.threads)
    out = Path(call.out)
    with Interrupt(ASKED) as interrupt, refusing():
        try:
            made = run_pipeline(
                config,
                out,
                until=call.until,
                start=call.start,
                say=lambda line: print(printable(line), flush=True),
                stop=lambda: interrupt.asked,
                progress=True,
            )
        except Stopped:
            say(f"stopped; the same command goes on: lm-gym pipeline --config {out / 'pipeline.yaml'} --out {out}")
            return interrupt.code
        except (RewardModelError, FloatingPointError) as error:
            raise Failed(
                f"{error}\nwhat was finished stays in {out}, and the same command goes on from there"
            ) from error
    if "reward-model" in made:
        print(f"judge       lm-gym train ppo --reward hf:{out / 'reward-model' / 'model'}")
    if "rl" in made:
        print(f'try it with lm-gym sample --model {out / "rl" / "policy"} --prompt "..."')
    if "evaluation" in made:
        _print(made["evaluation"].numbers)
        print(f"report      {out / 'evaluation' / 'report.html'}")
    return 0


def _print(results: Mapping[str, Any]) -> None:
    """Gold scores of the four policies, and who wins over SFT."""
    print(f"\n{'':<11} gold score (95%)           learned      KL  tokens   wins over SFT")
    for name, found in results["policies"].items():
        value, low, high = found["gold"]
        rate = "" if name == "sft" else "{:.3f} ({:.3f} to {:.3f})".format(*results["wins"][name]["sft"]["rate"])
        kl = round(found["kl"], 2) + 0.0  # never -0.00
        print(
            f"{name:<11} {value:+.3f} ({low:+.3f} to {high:+.3f})  {found['reward'][0]:+8.2f} {kl:7.2f} "
            f"{found['length']:7.1f}   {rate}"
        )


def parse(args: Sequence[str]) -> tuple[Call, Any]:
    """The call and the pipeline's configuration: flags over the file of --config, over defaults.

    Raises:
        ValueError: an unknown agent, or a file that is refused (unknown keys with the nearest known one).
    """
    path = _given(args, "--config")
    file = {} if path is None else _sections(path)
    named = _given(args, "--rl.agent") or file.get("rl", {}).get("agent") or "ppo"
    agent = load_agent(str(named))
    flags = _flags(agent)
    default = flags()
    if path is not None:
        _fill(default, file, path)
    found = tyro.cli(
        flags,
        prog="lm-gym pipeline",
        description="Fine-tuning, preferences, a reward model, reinforcement learning, and a report.",
        args=list(args),
        default=default,
    )
    call = Call(**{f.name: getattr(found, f.name) for f in dataclasses.fields(Call)})
    return call, _pipeline(found, agent)


def _given(args: Sequence[str], flag: str) -> str | None:
    """The last value of a flag, before tyro reads them all."""
    value = None
    for place, word in enumerate(args):
        if word == flag and place + 1 < len(args):
            value = args[place + 1]
        elif word.startswith(f"{flag}="):
            value = word.removeprefix(f"{flag}=")
    return value


def _flags(agent: Any) -> Any:
    """A dataclass whose sections are dataclasses: `--sft.count`, `--reward-model.epochs`, `--rl.clip-range`."""
    from lm_gym.agents.sft import SFTConfig
    from lm_gym.pipeline import config as pipeline_config
    from lm_gym.reward_models.bradley_terry import RewardModelConfig

    def section(name: str, bases: tuple[Any, ...], hidden: Sequence[str] = (), *more: Any) -> Any:
        out_of_sight = [(field, Annotated[Any, tyro.conf.Suppress], None) for field in hidden]
        made = dataclasses.make_dataclass(
            name, [*out_of_sight, *more], bases=bases, namespace={"__post_init__": lambda self: None}
        )  # checked when the stage itself is made of it
        made.__doc__ = bases[0].__doc__
        return made

    ours = pipeline_config.OURS
    name = Annotated[str, tyro.conf.arg(help="Any agent that trains, of `lm-gym ls agents`.")]
    hidden = [f for f in ours if f != "kl_coef" and f in {g.name for g in dataclasses.fields(agent.config_class)}]
    stage, rm_hidden = pipeline_config, ("config", "model", "seed", "device")
    kinds = {
        "sft": section("SFT", (stage.SFTStage, SFTConfig), ("agent", *ours)),
        "preferences": section("Preferences", (stage.PreferenceStage,)),
        "reward_model": section("RewardModel", (stage.RewardModelStage, RewardModelConfig), rm_hidden),
        "rl": section("RL", (stage.RLStage, agent.config_class), ("agent_class", *hidden), ("agent", name, agent.name)),
        "evaluation": section("Evaluation", (stage.EvaluationStage,)),
    }
    fields = [(key, kind, dataclasses.field(default_factory=kind)) for key, kind in kinds.items()]
    flags = dataclasses.make_dataclass(
        "Flags", fields, bases=(Call, pipeline_config.Pipeline), namespace={"__post_init__": lambda self: None}
    )
    flags.__doc__ = "All options."
    return flags


def _pipeline(found: Any, agent: Any) -> Any:
    """The configuration that some flags stand for; of an agent's fields, those that are not at their defaults."""
    from lm_gym.agents.sft import SFT
    from lm_gym.pipeline import config as pipeline_config

    def own(kind: Any, section: Any, **others: Any) -> Any:
        names = [f.name for f in dataclasses.fields(kind) if f.name not in others]
        return kind(**{name: getattr(section, name) for name in names}, **others)

    def changed(kind: Any, section: Any) -> dict[str, Any]:
        default = kind.config_class()
        names = [f.name for f in pipeline_config.agent_fields(kind)]
        return {n: getattr(section, n) for n in names if getattr(section, n) != getattr(default, n)}

    rm_class = type(pipeline_config.RewardModelStage().config)
    rm_fields = [f.name for f in dataclasses.fields(rm_class) if f.name not in ("model", "seed", "device")]
    rm = rm_class(**{name: getattr(found.reward_model, name) for name in rm_fields})
    return own(
        pipeline_config.Pipeline,
        found,
        sft=own(pipeline_config.SFTStage, found.sft, agent=changed(SFT, found.sft)),
        preferences=own(pipeline_config.PreferenceStage, found.preferences),
        reward_model=own(pipeline_config.RewardModelStage, found.reward_model, config=rm),
        rl=own(pipeline_config.RLStage, found.rl, agent_class=agent, agent=changed(agent, found.rl)),
        evaluation=own(pipeline_config.EvaluationStage, found.evaluation),
    )


def _sections(path: str) -> dict[str, Any]:
    """A file's keys with underscores, its sections likewise; where the configuration came from is passed over."""
    found: dict[str, Any] = {}
    for given, value in load_mapping(Path(path)).items():
        key = str(given).replace("-", "_")
        if key in PASSED_OVER and isinstance(value, dict):
            continue
        if key in found:
            raise ValueError(f"{path}: {key} is given twice")
        if key in SECTIONS:
            if not isinstance(value, dict):
                raise ValueError(f"{path}: {key} expected a section with keys of its own, got {value!r}")
            value = {str(name).replace("-", "_"): item for name, item in value.items()}
        found[key] = value
    return found


def _fill(target: Any, values: Mapping[str, Any], where: str) -> None:
    """Set the fields of a dataclass, and of those in it, from a file; unknown keys are refused."""
    hints = typing.get_type_hints(type(target), include_extras=True)
    hidden = {name for name, hint in hints.items() if tyro.conf.Suppress in typing.get_args(hint)}
    call = {f.name for f in dataclasses.fields(Call)} if isinstance(target, Call) else set()
    known = [f.name for f in dataclasses.fields(target) if f.name not in hidden | call]
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
            raise ValueError(f"{where}: unknown key {key!r}; {hint}")
        inner = getattr(target, key)
        if not dataclasses.is_dataclass(inner):
            setattr(target, key, checked(f"{where}: {key}", value, hints[key]))
        elif not isinstance(value, dict):
            raise ValueError(f"{where}: {key} expected a section with keys of its own, got {value!r}")
        elif key in SECTIONS:
            _fill(inner, value, f"{where}: {key}")
        else:  # a frozen dataclass in a section
            setattr(target, key, _replaced(inner, value, f"{where}: {key}"))


def _replaced(inner: Any, values: Mapping[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(type(inner))
    known = [f.name for f in dataclasses.fields(inner)]
    found = {}
    for given, value in values.items():
        key = str(given).replace("-", "_")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
            raise ValueError(f"{where}: unknown key {key!r}; {hint}")
        found[key] = checked(f"{where}: {key}", value, hints[key])
    return dataclasses.replace(inner, **found)
