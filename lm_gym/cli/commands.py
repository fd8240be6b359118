"""The command line: `lm-gym demo | train <agent> | sample | export | replay | ls | serve-reward | annotate | doctor`.

Flags are made by tyro from dataclasses, so that every field has one, with its docstring as help. Exit codes: 0 done,
1 a run that broke off (or `doctor` found something broken), 2 something that the user can put right, 130 stopped by
Ctrl-C, 143 by SIGTERM.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from lm_gym.cli.demo import Demo
from lm_gym.cli.errors import Failed, Refused, code_of, one_line, plain_warnings, refusing, say, terminable
from lm_gym.cli.export import Export, Replay
from lm_gym.cli.options import agent_names, parse_train
from lm_gym.cli.preferences import Preferences
from lm_gym.cli.reward_eval import Reward
from lm_gym.cli.serve_reward import ServeReward
from lm_gym.reward_errors import RewardModelError


@dataclass
class Train:
    """Train an agent, or a reward model: `lm-gym train ppo --help` lists its options."""

    agent: tyro.conf.Positional[str]
    """The agent's name, of `lm-gym ls agents`, or reward-model."""


@dataclass
class Sample:
    """Print texts of a model, or of a run's trained policy."""

    model: Annotated[str, tyro.conf.arg(aliases=("-m",))] = "tiny"
    """tiny, a hub id, a folder, a GGUF file, or the folder of a run (its newest checkpoint)."""
    prompt: Annotated[tuple[str, ...], tyro.conf.arg(aliases=("-p",))] = ()
    """The text to continue; several may follow each other."""
    prompts: str | None = None
    """Or a prompt source, as in `lm-gym train`: its first 4 prompts. Without either, review prompts of tiny."""
    n: Annotated[int, tyro.conf.arg(aliases=("-n",))] = 4
    """Texts a prompt."""
    max_new_tokens: int = 32
    """A text ends after so many tokens."""
    temperature: float = 1.0
    """Divides the logits."""
    greedy: bool = False
    """Take the most likely token each time: one text a prompt."""
    stop: tuple[str, ...] = ()
    """Strings that end a text."""
    seed: int = 0
    """Of the draws."""
    reward: str | None = None
    """A reward model, as in `lm-gym train`: its score stands before each text."""
    device: str = "cpu"
    """cpu, cuda, or cuda:N."""
    dtype: str = "float32"
    """float32, bfloat16 or float16."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass
class Ls:
    """List what there is by name: environments, agents, rewards, prompts, models."""

    what: tyro.conf.Positional[Literal["all", "environments", "agents", "rewards", "prompts", "models"]] = "all"
    """One of the lists; default: all of them."""


@dataclass
class Annotate:
    """Preferences from people, on a page of one's own: `lm-gym annotate serve --help`."""

    what: tyro.conf.Positional[Literal["serve", "status", "export", "import", "select"]]
    """What to do; each has options of its own."""


@dataclass
class Pipeline:
    """Fine-tuning, preferences, a reward model, reinforcement learning, a report: `lm-gym pipeline --help`."""


@dataclass
class Compare:
    """Agents beside each other, tuned equally, with tables and figures: `lm-gym compare --help`."""


@dataclass
class Doctor:
    """Check this installation, and say what to do about what is broken."""


Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Sample, tyro.conf.subcommand("sample")]
    | Annotated[Ls, tyro.conf.subcommand("ls")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Replay, tyro.conf.subcommand("replay")]
    | Annotated[ServeReward, tyro.conf.subcommand("serve-reward")]
    | Annotated[Preferences, tyro.conf.subcommand("preferences")]
    | Annotated[Annotate, tyro.conf.subcommand("annotate")]
    | Annotated[Reward, tyro.conf.subcommand("reward")]
    | Annotated[Pipeline, tyro.conf.subcommand("pipeline")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. What the console script `lm-gym` calls."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    try:
        with plain_warnings(), terminable():
            return run(args)
    except Refused as error:
        if debug:
            raise
        say(f"error: {error}")
        return 2
    except (Failed, RewardModelError) as error:
        if debug:
            raise
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt as error:
        if debug:
            raise
        say("\n".join(["aborted", *filter(None, map(str, error.args))]))
        return code_of(error)
    except BrokenPipeError:  # `lm-gym ls | head`
        sys.stderr.close()
        return 1
    except OSError as error:  # a disk that is full, late in a command
        if debug:
            raise
        say(f"error: {one_line(error)}")
        return 1


def run(args: Sequence[str]) -> int:
    """Run a command, with errors as exceptions."""
    if args[:1] == ["train"] and len(args) > 1 and not args[1].startswith("-"):
        if args[1] == "reward-model":  # learns from comparisons and not from an environment: no agent
            from lm_gym.cli.reward_model import run_training

            return run_training(args[2:])
        from lm_gym.cli.train import train

        with refusing():
            options = parse_train(args[1], args[2:])
        return train(options)
    if args[:1] == ["annotate"]:
        from lm_gym.cli.annotate import annotate

        return annotate(args[1:])
    if args[:1] == ["pipeline"]:
        from lm_gym.cli.pipeline import pipeline

        return pipeline(args[1:])
    if args[:1] == ["compare"]:
        from lm_gym.cli.compare import compare

        return compare(args[1:])
    command = tyro.cli(
        Command,  # type: ignore[arg-type]
        prog="lm-gym",
        description="LM Gym: aligning a language model as a standard reinforcement-learning problem.",
        args=list(args) or ["--help"],
    )
    if isinstance(command, Demo):
        from lm_gym.cli.demo import demo

        return demo(command)
    if isinstance(command, Sample):
        from lm_gym.cli.sample import sample

        with refusing():
            return sample(command)
    if isinstance(command, Ls):
        from lm_gym.cli.listing import ls

        return ls(command.what)
    if isinstance(command, Export):
        from lm_gym.cli.export import export

        with refusing():
            return export(command)
    if isinstance(command, Replay):
        from lm_gym.cli.export import replay

        with refusing():
            return replay(command)
    if isinstance(command, ServeReward):
        from lm_gym.cli.serve_reward import serve_reward

        with refusing():
            return serve_reward(command)
    if isinstance(command, Preferences):
        from lm_gym.cli.preferences import make_preferences

        with refusing():
            return make_preferences(command)
    if isinstance(command, Reward):
        from lm_gym.cli.reward_eval import evaluate_reward

        with refusing():
            return evaluate_reward(command)
    if isinstance(command, Doctor):
        from lm_gym.cli.doctor import doctor

        return doctor()
    raise Refused(f"train expected the name of an agent, one of {', '.join(agent_names())}: lm-gym train ppo --help")
