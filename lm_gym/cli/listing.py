"""`lm-gym ls`: what there is by name, a line each."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from lm_gym.cli.help_text import first_line

ENVIRONMENTS = {
    "LMAlign-v0": "write a text token by token; a reward model judges the end, and KL to the reference is paid",
    "LMAlignTopK-v0": "the same, choosing among the reference's 32 likeliest tokens",
    "LMAlignExact-v0": "a language of 40 sequences, whose best policy is computed exactly",
    "LMAlignExactLong-v0": "the same language at horizon 48, exact by dynamic programming",
    "LMAlignExactScales-v0": "two prompts, the second's reward ten times the first's, exact",
    "LMAlignExactRare-v0": "a best text that the reference writes once in a thousand times, exact",
}
"""gym.make(id): a test holds the ids to those that are registered."""

PROMPTS = {
    "tiny:reviews": "openings of reviews, to be continued (the default; :test behind it for the other split)",
    "tiny:questions": "questions, to be answered",
    "tiny:requests": "requests, some of them unsafe",
    "tiny:all": "the three one after the other",
    "<file>": ".jsonl, .json, .csv, .tsv (also .gz) or .parquet with a column `prompt`, or .txt with a prompt a line",
    "<org/name[:split]>": "a dataset of the hub with a column `prompt`",
}

MODELS = {
    "tiny": "the language model inside this package: knows reviews, questions and requests (the default)",
    "<folder>": "config.json, weights and tokenizer of a transformers causal LM",
    "<org/name>": "a causal LM of the hub",
    "<file.gguf>": "a GGUF file, in float32 once loaded",
}

MORE_REWARDS = {
    "hf:<org/name or folder>": "a transformers sequence classifier: hf:org/model?label=POSITIVE&output=logit",
    "http://<host/path>": "a reward model behind HTTP",
    "combine:<file.yaml>": "reward models put together: sum, min, product, constrained, ensemble, cached, ...",
    "py:<module or file>:<name>": "a function or class of your own: py:./my_reward.py:score",
}


def ls(what: str) -> int:
    """Print one list, or all under headings."""
    lists = {
        "environments": lambda: ENVIRONMENTS,
        "agents": lambda: registered("lm_gym.agents"),
        "rewards": lambda: registered("lm_gym.reward_models", without=("hf", "http", "combine")) | MORE_REWARDS,
        "prompts": lambda: PROMPTS,
        "models": lambda: MODELS,
    }
    chosen = list(lists) if what == "all" else [what]
    for at, name in enumerate(chosen):
        if what == "all":
            print(f"{'' if at == 0 else chr(10)}{name}")
        rows = lists[name]()
        width = max((len(key) for key in rows), default=0)
        for key, line in rows.items():
            print(f"{'  ' if what == 'all' else ''}{key:<{width}}  {line}")
    return 0


def registered(group: str, *, without: tuple[str, ...] = ()) -> dict[str, str]:
    """Name -> first line of the docstring, of every entry point of a group; what cannot be loaded says why."""
    found = {point.name: point for point in entry_points(group=group) if point.name not in without}
    return {name: _described(found[name]) for name in sorted(found)}


def _described(point: EntryPoint) -> str:
    try:
        target = point.load()
    except Exception as error:  # another package's entry point may break in any way
        return f"cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())}"
    return first_line(target)
