"""The stages that train: fine-tuning, preferences, the reward model, reinforcement learning.

Each has its inputs (what its result depends on), its products, and the work.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lm_gym import checkpoints
from lm_gym.agent import LMAgent
from lm_gym.agents.sft import SFT
from lm_gym.demonstrations import load_demonstrations
from lm_gym.guard import Guard
from lm_gym.held_out import split_prompts
from lm_gym.judged_pairs import judge_pairs
from lm_gym.layout_rows import DEMONSTRATIONS, layout_rows
from lm_gym.pipeline.config import Pipeline
from lm_gym.pipeline.context import JUDGE, POLICY, Context, Stopped
from lm_gym.pipeline.demonstrations import from_the_world
from lm_gym.pipeline.stage import Workplace, identity
from lm_gym.preference_data import draw_pairs, label_pairs, write_preferences
from lm_gym.preferences import Preference, load_preferences
from lm_gym.prompt_sources import read_items
from lm_gym.prompts import kind_problem
from lm_gym.report import write_report
from lm_gym.reward_eval import evaluate
from lm_gym.reward_models.bradley_terry import train_reward_model
from lm_gym.reward_models.watched import Watched
from lm_gym.reward_page import write_page
from lm_gym.rewards import load_reward_model, plain_text
from lm_gym.run_files import read_jsonl
from lm_gym.runinfo import write_atomically
from lm_gym.supervised import held_out as held_out_loss

RUN = "run"
"""The folder of a training run in a stage's folder."""
SFT_EVAL_EVERY = 16
"""Updates between looks at the held-out demonstrations."""
FEW_HELD_OUT = 0.2
"""Share of the demonstrations that is held out where all are taken and there are not as many as were asked for."""
KEPT = 2
"""Checkpoints while a stage trains."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage: what its result depends on, which files it is, and how it is made."""

    name: str
    inputs: Callable[[Context], dict[str, Any]]
    products: tuple[str, ...]
    work: Callable[[Context, Workplace], dict[str, Any]]


def general(config: Pipeline) -> dict[str, Any]:
    """What every stage depends on."""
    return {
        "model": identity(config.model),
        "prompts": [identity(config.prompts), identity(config.eval_source)],
        "gold": identity(config.gold_name),
        "max_new_tokens": config.max_new_tokens,
        "temperature": config.temperature,
        "seed": config.seed,
    }


# ---- supervised fine-tuning ------------------------------------------------------------------------------------------


def sft_inputs(ctx: Context) -> dict[str, Any]:
    section = dataclasses.asdict(ctx.config.sft) | {"demonstrations": identity(ctx.config.sft.demonstrations)}
    return general(ctx.config) | {"sft": _what_counts(section)}


def sft(ctx: Context, place: Workplace) -> dict[str, Any]:
    """Fine-tune the base model; numbers: demonstrations, tokens, held-out loss before and after."""
    config, files = ctx.config.sft, {}
    for name, part in zip(("train", "held_out"), demonstration_rows(ctx), strict=True):
        lines = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in part)
        write_atomically(place.folder / f"{name}.jsonl", lines)
        files[name] = str(place.folder / f"{name}.jsonl") if part else None
    fields = {"data": files["train"], "eval_data": files["held_out"], "eval_every": SFT_EVAL_EVERY}
    env = ctx.environment(ctx.base, ctx.prompts[0], ctx.gold)
    # the rows that the agent takes, by the same options
    options: dict[str, Any] = {name: config.agent[name] for name in ("unusable", "too_long") if name in config.agent}
    options |= {"eos_ids": ctx.base.eos_ids, "max_tokens": config.agent.get("max_length") or ctx.base.max_positions}
    found = load_demonstrations(files["train"], ctx.base.tokenizer, **options)
    tokens = sum(sum(d.imitated[1:]) for d in found)
    fields |= {"seed": ctx.config.seed, **config.agent}
    agent = _learned(ctx, place, SFT, env, fields, round(config.epochs * tokens), config.save_every)
    _finish(agent, place)
    numbers = {"demonstrations": len(found), "epochs": config.epochs, "tokens": agent.tokens}
    if files["held_out"] is not None:
        held_out = load_demonstrations(files["held_out"], ctx.base.tokenizer, **options)
        before = next(row["eval/loss"] for row in metrics_of(place.folder) if "eval/loss" in row)
        numbers |= {"loss_before": before, "loss_after": held_out_loss(agent.policy.lm, agent.mdp, held_out).loss}
    return numbers


def demonstration_rows(ctx: Context) -> list[list[dict[str, Any]]]:
    """Rows to train on and rows held out: the world's, or those of a file whose prompts are not evaluated on.

    Raises:
        ValueError: none, or rows that are none.
    """
    config, kind = ctx.config.sft, ctx.config.tiny_kind
    if config.demonstrations is None:
        assert kind is not None
        parts = (config.count, "train"), (config.held_out, "test")
        return [from_the_world(kind, count, ctx.config.seed, split) for count, split in parts]
    evaluated = {p.text for p in ctx.prompts[1]} | {plain_text(p.for_reward) for p in ctx.prompts[1]}
    items, unread = layout_rows(DEMONSTRATIONS, read_items(config.demonstrations, what=DEMONSTRATIONS))
    unread += [(where, "has no named columns") for where, row in items if not isinstance(row, Mapping)]
    if unread:
        what = f"{len(unread)} of the demonstrations in {config.demonstrations} cannot be used: {' '.join(unread[0])}"
        if config.agent.get("unusable") != "drop":
            raise ValueError(f"{what} (sft.unusable=drop leaves them out)")
        ctx.say(f"  {what}: left out")
    given = [dict(row) for _, row in items if isinstance(row, Mapping)]
    kept = [row for row in given if plain_text(_asked(row)) not in evaluated]
    if len(kept) < len(given):
        ctx.say(f"  {len(given) - len(kept)} of {len(given)} demonstrations have evaluation prompts: left out")
    if not kept:
        raise ValueError(f"sft expected demonstrations, and of those in {config.demonstrations} none is left")
    held_out = config.held_out
    if len(kept) < (config.count or 1) + held_out:  # all of them, in the same proportion
        share = held_out / (config.count + held_out) if config.count else FEW_HELD_OUT
        held_out = 0 if not held_out else min(len(kept) - 1, max(1, round(share * len(kept))))
        ctx.say(
            f"  sft.count={config.count} and sft.held_out={config.held_out}, and there are {len(kept)} demonstrations: "
            f"{len(kept) - held_out} are trained on, {held_out} held out"
        )
    first = len(kept) - held_out
    return [kept[:first][: config.count or None], kept[first:]]


def _asked(row: Mapping[str, Any]) -> Any:
    """What a demonstration answers: its prompt, or what is said before the assistant's last turn."""
    asked = row.get("prompt") or row.get("messages") or ""
    if kind_problem(asked):
        return ""  # named when it is read
    if not row.get("prompt") and not isinstance(asked, str):
        turns = [k for k, said in enumerate(asked) if said["role"] == "assistant"]
        return asked[: turns[-1] if turns else len(asked)]
    return asked


# ---- preferences -----------------------------------------------------------------------------------------------------


def preference_inputs(ctx: Context) -> dict[str, Any]:
    section = dataclasses.asdict(ctx.config.preferences)
    section |= {name: identity(section[name]) for name in ("data", "test_data", "judge")}
    if section["unusable"] == "error":
        del section["unusable"]  # as it was before there was a choice: results stay
    if section["data"] is not None:  # nothing is drawn from the model
        return {"preferences": section}
    return general(ctx.config) | {"preferences": section, "policy": ctx.records["sft"].products[POLICY]}


def preferences(ctx: Context, place: Workplace) -> dict[str, Any]:
    """Pairs of the fine-tuned model, labelled; numbers: labels, tokens of the texts, agreement with the score."""
    config = ctx.config.preferences
    if config.data is not None and config.test_data is not None:
        train, test = (load_preferences(data, unusable=config.unusable) for data in (config.data, config.test_data))
        leaked = {repr(p.prompt) for p in train} & {repr(p.prompt) for p in test}
        if leaked:
            raise ValueError(
                f"preferences.test_data expected other prompts than preferences.data, {len(leaked)} are in both, such "
                f"as {min(leaked):.80}"
            )
        ours = {plain_text(p.for_reward) for p in ctx.prompts[1]}
        kept = [p for p in train if plain_text(p.prompt) not in ours]
        if len(kept) < len(train):
            ctx.say(f"  {len(train) - len(kept)} of {len(train)} pairs have evaluation prompts: left out")
        train, tokens = kept, 0
    else:
        judge = ctx.gold if config.judge is None else load_reward_model(config.judge)
        lm, parts, tokens = ctx.policy("sft"), [], 0
        for part, (prompts, count) in enumerate(zip(ctx.prompts, (config.pairs, config.test_pairs), strict=True)):
            seed = 2 * ctx.config.seed + part
            pairs = draw_pairs(
                lm,
                prompts,
                judge,
                count,
                max_new_tokens=ctx.config.max_new_tokens,
                temperature=ctx.config.temperature,
                seed=seed,
            )
            texts = [text for pair in pairs for text in pair.texts]
            tokens += sum(map(len, lm.tokenizer(texts, add_special_tokens=False)["input_ids"]))
            parts.append(label_pairs(pairs, config.annotators, seed=seed))
        train, test = parts
    write_preferences(place.folder / "train.jsonl", train)
    write_preferences(place.folder / "test.jsonl", test)
    return {"labels": len(train), "test_labels": len(test), "tokens": tokens, "agreement": _agreement(train)}


def _agreement(data: list[Preference]) -> float | None:
    """Share of the answers that the score agrees with; None: it is not known, or all are ties."""
    decided = [p for p in data if p.label != 0.5]
    if not decided or not all("gold_chosen" in p.columns for p in decided):
        return None
    differences = [(p.columns["gold_chosen"] - p.columns["gold_rejected"]) * (p.label - 0.5) for p in decided]
    return sum((d > 0) + 0.5 * (d == 0) for d in differences) / len(decided)


# ---- the reward model ------------------------------------------------------------------------------------------------


def reward_model_inputs(ctx: Context) -> dict[str, Any]:
    config = ctx.config.reward_model
    start = {"sft": lambda: ctx.records["sft"].products[POLICY], "base": lambda: identity(ctx.config.model)}
    return {
        "reward_model": dataclasses.asdict(config.config) | {"model": None, "seed": ctx.config.seed, "device": None},
        "start": start[config.start]() if config.start in start else identity(config.start),
        "pairs": ctx.records["preferences"].products,
    }


def reward_model(ctx: Context, place: Workplace) -> dict[str, Any]:
    """Train on the labels, measure on held-out ones; numbers: accuracy, ceiling and gap with intervals, calibration."""
    folder, config = ctx.out / "preferences", ctx.config.reward_model
    train, test = (load_preferences(str(folder / name)) for name in ("train.jsonl", "test.jsonl"))
    model = {"sft": str(ctx.out / "sft" / POLICY), "base": ctx.config.model}.get(config.start, config.start)
    options: dict[str, Any] = {"model": model, "seed": ctx.config.seed, "device": ctx.config.device}
    fit = train_reward_model(train, config.config, **options, log=lambda row: ctx.say(_look(row)))
    fit.save(place.folder / JUDGE)
    judged = judge_pairs(test, [fit.judge])
    results = evaluate(judged, train=train)
    write_page(place.folder, results, judged, title="The learned reward on held-out pairs")
    return {
        "accuracy": results["accuracy"],
        "ece": results["calibration"]["ece"],
        "gain": results["calibration"]["gain"],
        "epoch": fit.history[fit.best]["epoch"],
    }


def _look(row: Mapping[str, float]) -> str:
    held_out = f", held-out loss {row['loss']:.4f}, accuracy {row['accuracy']:.1%}" if "loss" in row else ""
    return f"  epoch {row['epoch']:.2f}: loss {row['train_loss']:.4f}{held_out}"


# ---- reinforcement learning ------------------------------------------------------------------------------------------


def rl_inputs(ctx: Context) -> dict[str, Any]:
    section = dataclasses.asdict(ctx.config.rl) | {"agent_class": ctx.config.rl.agent_class.name}
    given = {name: identity(v) if isinstance(v, str) else v for name, v in ctx.config.rl.agent.items()}
    return general(ctx.config) | {
        "rl": _what_counts(section) | {"agent": given},
        "policy": ctx.records["sft"].products[POLICY],
        "reward_model": ctx.records["reward-model"].products[JUDGE],
    }


def rl(ctx: Context, place: Workplace) -> dict[str, Any]:
    """Train the fine-tuned model against the learned reward; numbers: updates, texts and tokens drawn."""
    config = ctx.config.rl
    reward = Watched(ctx.learned_reward, ctx.gold, "gold")
    prompts, guard = ctx.prompts[0], None
    if config.guard_every:  # the evaluation prompts choose nothing
        prompts, looked_at = split_prompts(prompts, None)
        guard = Guard(config.guard_every, looked_at, config.guard_prompts, config.guard_kl)
    env = ctx.environment(ctx.policy("sft"), prompts, reward, kl_coef=config.kl_coef)
    fields = {"seed": ctx.config.seed} | config.agent
    agent = _learned(ctx, place, config.agent_class, env, fields, config.total_tokens, config.save_every, guard)
    _finish(agent, place)
    return {"agent": agent.name, "updates": agent.updates, "texts": agent.episodes, "tokens": agent.tokens}


# ---- what both kinds of training share -------------------------------------------------------------------------------


def _what_counts(section: dict[str, Any]) -> dict[str, Any]:
    """A section without what its result does not depend on."""
    idle = set() if section.get("guard_every") else {"guard_every", "guard_prompts", "guard_kl"}
    return {name: value for name, value in section.items() if name not in {"save_every", *idle}}


def _learned(
    ctx: Context,
    place: Workplace,
    kind: type[LMAgent],
    env: Any,
    fields: dict[str, Any],
    total: int,
    save_every: int,
    guard: Guard | None = None,
) -> LMAgent:
    """A trained agent, going on from the newest checkpoint of a process that was stopped.

    Raises:
        Stopped: it was asked to.
    """
    run = place.folder / RUN
    begun = _begun(run)
    agent = kind.load(run, env, **fields) if begun else kind(env, **fields)
    if begun:
        ctx.say(f"  goes on after update {agent.updates}, {agent.tokens} tokens")

    def after_update(agent: LMAgent, metrics: dict[str, float]) -> bool:
        if "eval/loss" in metrics:
            ctx.say(f"  update {agent.updates}, {agent.tokens} tokens: held-out loss {metrics['eval/loss']:.4f}")
        if agent.updates % save_every == 0:
            place.account()
        return not ctx.stop()

    if agent.progress < 1.0 or not begun:
        agent.learn(
            total,
            out=run,
            progress=ctx.progress and kind is not SFT,  # most of its updates draw no text to show
            save_every=save_every,
            keep_checkpoints=KEPT,
            resume=begun,
            guard=guard,
            callback=after_update,
        )
    if ctx.stop() and agent.progress < 1.0:
        place.account()
        raise Stopped
    return agent


def _begun(run: Path) -> bool:
    """Whether there is a checkpoint to go on from; what was logged before the first one is removed."""
    try:
        checkpoints.latest(run)
    except ValueError:
        shutil.rmtree(run, ignore_errors=True)
        return False
    return True


def _finish(agent: LMAgent, place: Workplace) -> None:
    """The policy as a folder that any tool loads, the run's own report, and checkpoints removed."""
    agent.save_pretrained(place.folder / POLICY, run=place.folder / RUN)
    write_report(place.folder / RUN)
    place.spare.append(place.folder / RUN / "checkpoints")  # the policy is saved, and nothing goes on from them


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """What a stage's training logged, a row an update."""
    return read_jsonl(folder / RUN / "metrics.jsonl")


TRAINING = (
    Stage("sft", sft_inputs, (POLICY,), sft),
    Stage("preferences", preference_inputs, ("train.jsonl", "test.jsonl"), preferences),
    Stage("reward-model", reward_model_inputs, (JUDGE,), reward_model),
    Stage("rl", rl_inputs, (POLICY, f"{RUN}/metrics.jsonl"), rl),
)
