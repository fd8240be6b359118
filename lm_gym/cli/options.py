"""What `lm-gym train <agent>` takes: the problem's options, the agent's config fields, and those of the run itself."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

import tyro

from lm_gym.cli.config_file import read_options
from lm_gym.cli.errors import say
from lm_gym.cli.help_text import first_line, overview
from lm_gym.reward_specs import user_attribute
from lm_gym.run_folder import CONFIG, config_of
from lm_gym.runinfo import KEEP_CHECKPOINTS

AGENTS = "lm_gym.agents"
"""Entry-point group: name on the command line -> a subclass of :class:`lm_gym.agent.LMAgent`."""


@dataclasses.dataclass
class ProblemOptions:
    """The problem: what LMAlign-v0 takes. Lengths are in tokens, KL in nats."""

    model: str = "tiny"
    """What the policy starts from: tiny, a hub id, a folder, or a GGUF file."""
    reference: str | None = None
    """The model that KL is measured against; None: the model."""
    tokenizer: str | None = None
    """None: the model's own."""
    prompts: str = "tiny:reviews"
    """A .jsonl, .json, .csv, .tsv, .txt (also .gz) or .parquet file, a hub id org/name[:split], or tiny:reviews,
    tiny:questions, tiny:requests."""
    reward_model: Annotated[str, tyro.conf.arg(aliases=("--reward",))] = "vader"
    """A name that `lm-gym ls rewards` prints, py:module:attribute, hf:org/model?label=..., or http://host/score."""
    max_new_tokens: int = 32
    """A text ends after so many tokens."""
    min_new_tokens: int = 0
    """Before so many it may not end."""
    stop: tuple[str, ...] = ()
    """Strings that end a text."""
    kl_coef: float = 0.05
    """β, the price of a nat of KL in units of reward."""
    missing_eos_penalty: float = 0.0
    """Taken from the score of a text that ran into the length limit."""
    temperature: float = 1.0
    """Of policy and reference alike."""
    top_k: int | None = None
    """Choose among the reference's k likeliest tokens only; None: among all."""
    device: str = "cpu"
    """cpu, cuda, or cuda:N."""
    dtype: str = "float32"
    """float32, bfloat16 or float16."""
    max_prompt_tokens: int | None = None
    """The longest prompt allowed; None: what the model's context leaves."""


@dataclasses.dataclass
class RunOptions:
    """The run: how long, where to, and what is measured at its end."""

    total_tokens: int = 100_000
    """Tokens to train on; the update that passes them is the last."""
    out: str | None = None
    """The run's folder; None: runs/<date-time>-<agent>. One that holds a run is refused, unless it is resumed."""
    config: str | None = None
    """A YAML file with these options as keys; flags win over it. A run's own config.yaml is one."""
    resume: bool = False
    """Go on with the run in --out from its newest checkpoint, with its own configuration; flags win over that."""
    eval_prompts: str | None = None
    """Prompts to compare texts before and after on; None: the test split of a tiny:... set, or of any other source
    the last tenth. What is evaluated on is never trained on."""
    eval_texts: int = 64
    """Texts to compare before and after; 0: none."""
    watch: str | None = None
    """A second judge, as --reward takes one, beside the first in logs and report. Nothing is trained on it: where it
    does not follow, the first is exploited."""
    save_every: int | None = 50
    """Updates between checkpoints, beside the one at the end; None: only that one."""
    keep_checkpoints: int | None = KEEP_CHECKPOINTS
    """Checkpoints that stay, the newest; None: all."""
    guard_every: int = 0
    """Above 0: every so many updates the policy is evaluated on held-out prompts, and one that got worse by more than
    its noise, or holds a NaN, is taken back to the last good one with half the step size."""
    guard_prompts: int = 64
    """Texts of such an evaluation."""
    guard_kl: float | None = None
    """Nats a text: a policy further than this from the reference is taken back too; None: no limit."""
    trackers: tuple[str, ...] = ("csv", "jsonl")
    """Any of csv, jsonl, tensorboard, trackio, wandb (the last three need the extra `track`)."""
    threads: int | None = None
    """Threads of torch; None: as many as torch takes by itself."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclasses.dataclass
class TrainOptions:
    """Everything that one training run is made from."""

    agent_class: Any
    """The agent's class, and the name that it has on the command line."""
    agent_name: str
    problem: ProblemOptions
    agent: Any
    """An instance of `agent_class.config_class`; its kl_coef stays None, the problem's counts."""
    run: RunOptions


NOT_IN_FILES = ("config", "resume", "debug", "out")
"""Options of a call, not of a configuration: a file that named its own folder could be used once."""


ALIASES = {"reward": "reward_model"}
"""Short names of options in a file, as among the flags."""


def agent_names() -> list[str]:
    """The agents that `lm-gym train` knows, sorted."""
    return sorted({point.name for point in entry_points(group=AGENTS)})


def load_agent(name: str) -> Any:
    """The class of an agent by its name on the command line, or by py:module:Class or py:./file.py:Class.

    Raises:
        ValueError: no such agent (with the nearest), or what is registered under the name is none.
    """
    if name.startswith("py:"):
        return _checked_agent(name, user_attribute(name.removeprefix("py:"), name))
    found = {point.name: point for point in entry_points(group=AGENTS)}
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1)
        hint = f" did you mean {near[0]!r}?" if near else ""
        known = ", ".join(sorted(found)) or "none: is lm_gym installed? pip install -e . in its folder"
        raise ValueError(f"there is no agent {name!r};{hint} known: {known}, or py:./file.py:Class")
    return _checked_agent(f"{name} ({found[name].value})", found[name].load())


def _checked_agent(name: str, agent: Any) -> Any:
    from lm_gym.agent import LMAgent

    if not (isinstance(agent, type) and issubclass(agent, LMAgent)):
        raise ValueError(f"agent {name} expected a subclass of lm_gym.agent.LMAgent")
    if not dataclasses.is_dataclass(agent.config_class):
        raise ValueError(f"agent {name} expected a dataclass as its config_class")
    return agent


def parse_train(name: str, args: Sequence[str]) -> TrainOptions:
    """The options of ``lm-gym train <name> <args>``: flags over the file of --config or --resume, over defaults.

    Raises:
        ValueError: unknown agent, or a file that is refused.
        SystemExit: what tyro does about --help and unknown flags.
    """
    agent_class = load_agent(name)
    flags = _flags_type(agent_class)
    description = overview(f"Train with {name} ({agent_class.__name__}): {first_line(agent_class)}")

    def parse(default: Any) -> Any:
        return tyro.cli(
            flags,
            prog=f"lm-gym train {name}",
            description=description,
            args=list(args),
            default=default,
            config=(tyro.conf.OmitArgPrefixes,),
        )

    found = parse(flags())
    path = found.run.config
    if found.run.resume:
        if found.run.out is None:
            raise ValueError("--resume expected --out runs/<name>, the run to go on with")
        config = config_of(Path(found.run.out))
        if config is None:
            raise ValueError(f"--resume expected a run's folder, and {found.run.out} has no config.yaml")
        if config.name != CONFIG:
            say(f"note: {CONFIG} is not in {found.run.out}: {config.name} is taken, the newest that is kept")
        path = path or str(config)
    if path is not None:
        found = parse(_with_file(flags, path, name))
    agent = agent_class.config_class(**{f.name: getattr(found.agent, f.name) for f in dataclasses.fields(found.agent)})
    return TrainOptions(agent_class, name, found.problem, agent, found.run)


def _flags_type(agent_class: Any) -> Any:
    """A dataclass of three dataclasses, whose flags have no prefix. kl_coef is a flag once, the problem's."""
    hidden = [("kl_coef", Annotated[float | None, tyro.conf.Suppress], None)]
    agent = dataclasses.make_dataclass(f"{agent_class.__name__}Options", hidden, bases=(agent_class.config_class,))
    agent.__doc__ = f"The agent: the fields of {agent_class.config_class.__name__}."
    fields = []
    for part, kind in (("run", RunOptions), ("problem", ProblemOptions), ("agent", agent)):
        fields.append((part, kind, dataclasses.field(default_factory=kind)))
    return dataclasses.make_dataclass("Train", fields)


def _with_file(flags: Any, path: str, name: str) -> Any:
    """Defaults with a configuration file over them."""
    default = flags()
    parts = [default.run, default.problem, default.agent]
    known = {key: (part, hint) for part in parts for key, hint in typing.get_type_hints(type(part)).items()}
    known["kl_coef"] = (default.problem, float)
    for key in NOT_IN_FILES:
        del known[key]
    allowed = {key: hint for key, (_, hint) in known.items()} | dict.fromkeys(ALIASES, str)
    values = read_options(path, allowed, agent=name)
    for alias, key in ALIASES.items():
        if alias in values and key in values:
            raise ValueError(f"{path}: {alias} and {key} are the same; give one of them")
        if alias in values:
            values[key] = values.pop(alias)
    for key, value in values.items():
        setattr(known[key][0], key, value)
    return default
