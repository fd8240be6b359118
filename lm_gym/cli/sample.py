"""`lm-gym sample`: texts of a model or of a run's policy, with rewards if asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_gym.cli.errors import Failed
from lm_gym.cli.options import load_agent
from lm_gym.run_folder import config_of
from lm_gym.runinfo import read_config

if TYPE_CHECKING:
    from lm_gym.cli.commands import Sample
    from lm_gym.models import CausalLM
    from lm_gym.prompts import Prompt

PROMPTS_SHOWN = 4
MOST_TEXTS = 10_000


def sample(options: Sample) -> int:
    """Draw and print texts.

    Raises:
        ValueError: a model, prompt, reward model or number that cannot be used.
        Failed: the reward model raised, or returned what is no score.
    """
    from rich.console import Console
    from rich.text import Text

    from lm_gym.decoding import Engine, GenerationParams
    from lm_gym.rewards import load_reward_model
    from lm_gym.terminal import printable

    if not 1 <= options.n <= MOST_TEXTS:
        raise ValueError(f"n expected 1 to {MOST_TEXTS} texts, got {options.n}")
    if options.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens expected at least 1, got {options.max_new_tokens}")
    if options.temperature <= 0:
        raise ValueError(f"temperature expected above 0, got {options.temperature}; --greedy takes the likeliest token")
    reward_model = None if options.reward is None else load_reward_model(options.reward)
    lm = load_policy(options.model, device=options.device, dtype=options.dtype)
    prompts = _prompts(options, lm)
    n = 1 if options.greedy else options.n
    engine = Engine(lm, seed=options.seed)
    params = GenerationParams(
        max_new_tokens=options.max_new_tokens,
        stop=options.stop,
        temperature=options.temperature,
        greedy=options.greedy,
        rows=256,
    )
    records = [p for p in prompts for _ in range(n)]
    completions = engine.generate([p.token_ids for p in records], params)
    texts = [lm.decode(c.tokens) for c in completions]
    scores = None if reward_model is None else _scores(reward_model, records, texts, [c.tokens for c in completions])
    console = Console(highlight=False)
    for at, (record, text) in enumerate(zip(records, texts, strict=True)):
        if at % n == 0:
            console.print(Text(printable(record.text), style="bold"))
        line = Text("  ")
        if scores is not None:
            line.append(f"{scores[at]:+.3f}  ", style="cyan")
        body = printable(text).strip("\n").replace("\n", "\n  ")
        console.print(line.append(body if scores is None else body.lstrip(" ")), soft_wrap=True)
    return 0


def load_policy(model: str, *, device: str = "cpu", dtype: str = "float32") -> CausalLM:
    """A model by name, or the trained policy of a run's folder or of one of its checkpoints."""
    from lm_gym.loading import load_model

    folder = Path(model)
    if (folder / "checkpoints").is_dir() or (folder / "state.json").is_file():
        policy: CausalLM = load_run(folder, device=device, dtype=dtype).policy.lm
        return policy
    return load_model(model, device=device, dtype=dtype)


def load_run(folder: Path, *, device: str = "cpu", dtype: str = "float32") -> Any:
    """The agent of a run or of one of its checkpoints, on a problem that can draw texts and cannot judge them.

    Raises:
        ValueError: the folder is not of `lm-gym train`.
    """
    import gymnasium

    mdp, name = problem_of_run(folder, device=device, dtype=dtype)
    return load_agent(name).load(folder, gymnasium.make("LMAlign-v0", mdp=mdp))


def problem_of_run(folder: Path, *, device: str = "cpu", dtype: str = "float32") -> tuple[Any, str]:
    """The problem of a run as config.yaml says, with neither its prompts nor its reward model, and its agent's name."""
    from lm_gym.mdp import AlignmentMDP
    from lm_gym.prompts import Prompt

    run = folder if (folder / "checkpoints").is_dir() else folder.resolve().parent.parent
    path = config_of(run)
    if path is None:
        raise ValueError(f"model {str(folder)!r} expected a run's folder with config.yaml, got none in {run}")
    config = read_config(path)
    agent = config.get("agent")
    if not isinstance(agent, dict) or "name" not in agent or "model" not in config:
        raise ValueError(f"{path} names no agent and model: it is not of `lm-gym train`")
    mdp = AlignmentMDP(
        model=config["model"],
        reference=config.get("reference"),
        tokenizer=config.get("tokenizer"),
        # neither these nor the reward model are used, only the policy is taken out; any id will do for any vocabulary
        prompts=[Prompt(id=0, text="-", token_ids=(0,))],
        reward_model=lambda completions: [0.0] * len(completions),
        max_new_tokens=config.get("max_new_tokens", 1),
        min_new_tokens=config.get("min_new_tokens", 0),
        temperature=config.get("temperature", 1.0),
        stop=config.get("stop") or (),
        device=device,
        dtype=dtype,
    )
    return mdp, agent["name"]


def _prompts(options: Sample, lm: CausalLM) -> list[Prompt]:
    from lm_gym.positions import because
    from lm_gym.prompts import load_prompts

    if options.prompt and options.prompts is not None:
        raise ValueError("--prompt and --prompts are two ways of saying the same; give one of them")
    source: Any = list(options.prompt) or options.prompts or "tiny:reviews:test"
    room = lm.max_positions - options.max_new_tokens
    if room < 1:
        raise ValueError(
            f"max_new_tokens expected fewer than the model's limit of {lm.max_positions} tokens{because(room)}, "
            f"got {options.max_new_tokens}"
        )
    found = load_prompts(source, lm.tokenizer, max_tokens=room)
    return found if options.prompt else found[:PROMPTS_SHOWN]


def _scores(reward_model: Any, records: list[Prompt], texts: list[str], ids: list[list[int]]) -> list[float]:
    from lm_gym.rewards import RewardModelError, score_texts

    keys = dict.fromkeys(key for p in records for key in p.columns)
    try:
        result = score_texts(
            reward_model,
            prompts=[p.for_reward for p in records],
            completions=[p.completion_for_reward(t) for p, t in zip(records, texts, strict=True)],
            completion_ids=ids,
            columns={key: [p.columns.get(key) for p in records] for key in keys},
        )
    except RewardModelError as error:
        raise Failed(str(error)) from error
    return [float(score) for score in result.scores]
