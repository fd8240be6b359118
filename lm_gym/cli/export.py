"""`lm-gym export` and `lm-gym replay`: a run's policy as a plain model, and the batch that a run stopped at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from lm_gym.terminal import printable

TOKENS_SHOWN = 12
TABLE_WIDTH = 110


@dataclass
class Export:
    """Write a run's policy as a folder that transformers loads, with tokenizer and model card."""

    run: str
    """The folder of a run (its newest checkpoint), or one checkpoint of it."""
    out: str
    """The folder to write: a new one, or one that this command wrote before."""
    adapter: bool = False
    """LoRA as an adapter, and not merged into the weights."""
    dtype: str = "float32"
    """Of the weights that are written: float32, bfloat16 or float16."""
    push_to_hub: str | None = None
    """A repository org/name to upload the folder to (private if it is new); None: nowhere."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass
class Replay:
    """Run the batch again that a run stopped at, and show what the policy says of its tokens."""

    dump: tyro.conf.Positional[str]
    """The folder that the error named: runs/<name>/blame/update-N."""
    debug: bool = False
    """Show the traceback of an error."""


def export(options: Export) -> int:
    """Write the folder; returns 0."""
    from lm_gym.cli.sample import load_run
    from lm_gym.run_folder import config_of

    folder = Path(options.run)
    run = folder if config_of(folder) is not None else folder.resolve().parent.parent
    agent = load_run(folder, dtype=options.dtype)
    if options.adapter and not agent.config.lora_rank:
        raise ValueError(f"--adapter expected a run with LoRA, and {run} trained whole weights: leave it out")
    out = agent.save_pretrained(options.out, merge=not options.adapter, run=run, push_to_hub=options.push_to_hub)
    print(f"model       {out} (update {agent.updates}, {agent.tokens} tokens)")
    print(f"card        {out / 'README.md'}")
    if options.push_to_hub is not None:
        print(f"uploaded    https://huggingface.co/{options.push_to_hub}")
    return 0


def replay(options: Replay) -> int:
    """Print the token at fault and its neighbours as recorded and as they come out now; returns 0."""
    import gymnasium
    from rich.console import Console
    from rich.table import Table

    from lm_gym import replay as again
    from lm_gym.cli.options import load_agent
    from lm_gym.cli.sample import problem_of_run

    folder = Path(options.dump)
    _, state = again.read(folder)
    run = folder.resolve().parent.parent
    mdp, name = problem_of_run(run)
    agent = load_agent(name)(gymnasium.make("LMAlign-v0", mdp=mdp), **_config(state["config"]))
    found = again.replay(folder, agent)
    token = found.token
    console = Console(highlight=False)
    console.width = max(console.width, TABLE_WIDTH)  # a number that is cut off is no number
    console.print(printable(f"{name}, update {state['updates'] + 1}: {token['reason']}"), markup=False)
    for key in ("prompt", "text", "drawn_with", "now_with", "mask"):
        if key in token:
            console.print(f"{key:11} {printable(str(token[key]))}", markup=False)
    table = Table()
    for heading in ("token", "id", "text", "drawn", "recorded", "replayed", "reference", "KL of the state"):
        table.add_column(heading)
    own = (found.texts == token.get("row", 0)).nonzero().flatten().tolist()
    first = max(0, token.get("place", 0) - TOKENS_SHOWN // 2)
    for i in own[first : first + TOKENS_SHOWN]:
        at = int(found.places[i])
        recorded = "" if found.recorded is None else f"{float(found.recorded[i]):.6f}"
        numbers = (found.drawn[i], found.logprobs[i], found.ref_logprobs[i], found.kls[i])
        cells = [f"{float(x):.6f}" for x in numbers]
        word = repr(mdp.reference.decode([int(found.tokens[i])]))
        mark = " <" if at == token.get("place") else ""
        table.add_row(f"{at}{mark}", str(int(found.tokens[i])), word, cells[0], recorded, *cells[1:])
    console.print(table)
    if found.same is not None:
        console.print("the log-probs are those of the dump, bit for bit" if found.same else "the log-probs differ")
    return 0


def _config(config: dict[str, Any]) -> dict[str, Any]:
    from lm_gym.agent_config import refuse_live

    refuse_live(config, "replay")
    return config
