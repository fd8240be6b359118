"""`lm-gym compare`: agents beside each other, with equal tuning, fresh seeds, tables and figures."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
import yaml

from lm_gym.cli.config_file import checked
from lm_gym.cli.errors import refusing, say
from lm_gym.cli.options import load_agent
from lm_gym.terminal import printable

SET_ELSEWHERE = ("seed", "kl_coef")
"""Fields of an agent that the comparison has options of its own for."""


@dataclasses.dataclass
class Call:
    """Train agents on the same problems, tune them equally, and say which is how good: see docs/compare.md."""

    env: str = "LMAlignExact-v0"
    """Environments, A,B."""
    agents: str = "ppo,rloo,grpo"
    """Agents of `lm-gym ls agents`, or of a file, py:./my_agents.py:MyAgent; with commas between them."""
    seeds: int = 10
    """Final runs of each agent on each problem: seeds 0, 1, …"""
    kl_coef: str | None = None
    """Values of β, .05,.1,.2; None: each environment's own."""
    total_tokens: int = 100_000
    """Tokens of every run, and of every trial."""
    tune_trials: int = 0
    """Trials of an agent on each problem, on other seeds and prompts than the final runs; 0: default configurations."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import"), tyro.conf.UseAppendAction] = ()
    """A JSONL file of rows, or a folder of them, to show beside (docs/compare.md has its form): a,b or given again."""
    out: str = "compare.pdf"
    """The figures, .pdf, .svg or .png; table and CSV stand beside it."""
    results: str = "runs/compare"
    """The folder of what is done: the same call goes on there."""
    processes: int = 2
    """Runs at a time, each in a process with one thread."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """agent.field=value: held fast, in trials too; given again for others, or several after commas."""
    eval_texts: int = 256
    """Fresh texts that measure a policy (of an exact language distinct-2 alone)."""
    points: int = 12
    """Measurements along a run, for its curve; the last is at its end."""
    debug: bool = False
    """Show the traceback of an error."""


def compare(args: Sequence[str]) -> int:
    """Parse, run, print. Returns the exit code: 0, or 1 where a run broke off.

    Raises:
        Refused: what the user can put right.
    """
    call = tyro.cli(
        Call,
        prog="lm-gym compare",
        description="Agents on the same problems, tuned equally, on fresh seeds.",
        args=list(args),
    )
    with refusing():
        from lm_gym.compare import output
        from lm_gym.compare.pool import warm_up

        out, folder = Path(call.out), Path(call.results)
        output.check(out)
        warm_up()  # its imports take as long as ours, beside which they run
        settings = _settings(call)
        foreign = _foreign(call, settings)
        from lm_gym.compare.run import compare as run

        try:
            done = run(settings, folder, lambda line: print(printable(line), flush=True))
        except KeyboardInterrupt as stop:  # or SIGTERM
            raise type(stop)(f"what has ended is in {folder}; the same command goes on from there") from None
    for message, who in done.warnings.items():
        say(f"warning: {message} ({who})")
    from lm_gym.compare.results import UNEQUAL

    known = {(problem.env, problem.kl_coef) for problem in done.problems}
    beside = [row for row in foreign if (row.env, row.kl_coef) in known]
    if len(beside) < len(foreign):
        say(f"warning: {len(foreign) - len(beside)} of {len(foreign)} imported rows are of other problems: left out")
    if done.rows or beside:
        with refusing():
            print(printable(output.write([*done.rows, *beside], done.problems, out)))
    print(_said(call, settings, done))
    off = [row for row in done.rows if row.tokens and abs(row.tokens / settings.total_tokens - 1) > UNEQUAL]
    if off:
        worst = max(off, key=lambda row: abs(row.tokens - settings.total_tokens))
        say(
            f"warning: {len(off)} of {len(done.rows)} runs have more than {UNEQUAL:.0%} more or fewer tokens than the "
            f"{settings.total_tokens:,} asked for, most of all {worst.agent} on {worst.env}, seed {worst.seed}: "
            f"{worst.tokens:,}. An update is whole groups of texts: give --total-tokens several updates, or the agent "
            "a smaller batch (--set agent.batch_size=...)"
        )
    for title, lines in (("trials that diverged", done.diverged), ("runs that broke off", done.failures)):
        if lines:
            say("\n  ".join([f"{title}, {len(lines)}:", *lines]))
    return 1 if done.failures else 0


def _settings(call: Call) -> Any:
    """What the call asks for, with every name looked up."""
    from lm_gym.compare.problems import default_kl_coef
    from lm_gym.compare.settings import Settings

    agents = _agents(call.agents)
    defaults = {env: default_kl_coef(env) for env in _names("--env", call.env)}
    betas = None if call.kl_coef is None else tuple(_number(x) for x in _names("--kl-coef", call.kl_coef))
    return Settings(
        problems={env: (default,) if betas is None else betas for env, default in defaults.items()},
        agents=agents,
        seeds=call.seeds,
        total_tokens=call.total_tokens,
        tune_trials=call.tune_trials,
        fixed=_fixed(call.set, agents),
        eval_texts=call.eval_texts,
        points=call.points,
        processes=call.processes,
    )


def _agents(given: str) -> dict[str, Any]:
    """Name -> class; an agent of a file has the name that its class says, in tables and behind ``--set``."""
    found: dict[str, Any] = {}
    for spelled in _names("--agents", given):
        kind = load_agent(spelled)
        name = kind.name if spelled.startswith("py:") else spelled
        if name in found:
            raise ValueError(f"--agents names two agents {name!r}: give the class {kind.__name__} another `name`")
        found[name] = kind
    return found


def _names(flag: str, given: str) -> list[str]:
    """What stands between commas, each once."""
    names = [name.strip() for name in given.split(",")]
    twice = [name for name in names if names.count(name) > 1]
    if "" in names or twice:
        raise ValueError(f"{flag} expected names with commas between them, each once, got {given!r}")
    return names


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"--kl-coef expected numbers with commas between them, got {text!r}") from None
    if not 0 <= value < float("inf"):
        raise ValueError(f"--kl-coef expected at least 0, got {text}")
    return value


def _fixed(given: Sequence[str], agents: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """agent -> field -> value of `--set agent.field=value`."""
    found: dict[str, dict[str, Any]] = {}
    for item in (part for text in given for part in text.split(",")):
        left, equals, value = item.partition("=")
        agent, dot, name = left.strip().partition(".")
        if not equals or not dot:
            raise ValueError(f"--set expected agent.field=value, got {item!r}")
        if agent not in agents:
            raise ValueError(f"--set {item}: {agent!r} is not among --agents {','.join(agents)}")
        kind = agents[agent].config_class
        hints = typing.get_type_hints(kind)
        known = [f.name for f in dataclasses.fields(kind) if f.name not in SET_ELSEWHERE]
        name = name.replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
            raise ValueError(f"--set {item}: {agent} has no field {name!r}; {hint}")
        found.setdefault(agent, {})[name] = checked(f"--set {left}", yaml.safe_load(value), hints[name])
    return found


def _foreign(call: Call, settings: Any) -> list[Any]:
    """The imported rows. An agent that is also compared here gets the file's name behind its own."""
    from lm_gym.compare import foreign
    from lm_gym.compare.rows import check_distinct

    rows = []
    for path in (Path(part) for text in call.imports for part in text.split(",")):
        for row in foreign.read(path):
            clash = row.agent in settings.agents
            rows.append(dataclasses.replace(row, agent=f"{row.agent} ({path.name})") if clash else row)
    check_distinct(rows)
    return rows


def _said(call: Call, settings: Any, done: Any) -> str:
    """What the numbers rest on, and where they are."""
    tokens = [row.tokens for row in done.rows if row.tokens]
    trained = f"{min(tokens):,} to {max(tokens):,} tokens" if tokens else "nothing"
    seeds = f"seeds 0 to {settings.seeds - 1}" if settings.seeds > 1 else "seed 0"
    lines = [f"Trained on {trained} a run ({settings.total_tokens:,} asked for); {seeds}; the last checkpoint."]
    if settings.tune_trials:
        counts: dict[str, int] = {}
        for (agent, _, _), count in done.tuned.items():
            counts[agent] = max(count, counts.get(agent, 0))
        untuned = [name for name in settings.agents if name not in counts]
        fewer = [f"{name} {count}" for name, count in counts.items() if count < settings.tune_trials]
        lines.append(
            f"Tuned by {settings.tune_trials} trials of about {settings.total_tokens:,} tokens for each agent on each "
            "problem, with seeds from 10,000 on and, where there are many prompts, others than the final runs have"
            + (f"; fewer: {', '.join(fewer)}" if fewer else "")
            + (f"; nothing to tune: {', '.join(untuned)}" if untuned else "")
            + "."
        )
    else:
        lines.append("Default configurations: nothing was tuned.")
    several = " (several: a difference may be the code's)" if len(done.revisions) > 1 else ""
    lines.append(f"Made by lm_gym at {', '.join(done.revisions)}{several}.")
    lines.append(f"Runs, trials, problems and failures: {call.results}. Figures, tables and CSV: beside {call.out}.")
    return "\n".join(lines)
