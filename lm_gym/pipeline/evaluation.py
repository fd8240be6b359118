"""The last stage: base, fine-tuned model, best-of-n and the trained policy on prompts that nothing was trained on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from lm_gym.agents.best_of_n import BestOfN
from lm_gym.decoding import Engine
from lm_gym.evaluation import Drawn, measure
from lm_gym.held_out import spread
from lm_gym.models import CausalLM
from lm_gym.pipeline.context import Context
from lm_gym.pipeline.report import write_page
from lm_gym.pipeline.stage import Workplace
from lm_gym.pipeline.stages import Stage, general
from lm_gym.reward_measures import distinct, mean_of
from lm_gym.runinfo import write_atomically

EVAL_SEED = 12_345
"""Of the draws: the same in every run, so that runs differ by their policies alone."""
POLICIES = ("base", "sft", "best-of-n", "rl")
TEXTS, RESULTS, PAGE = "texts.jsonl", "results.json", "report.html"
DECODED_AT_ONCE = 256


def inputs(ctx: Context) -> dict[str, Any]:
    """Everything: the page shows all stages."""
    made = {name: record.key for name, record in ctx.records.items()}
    return general(ctx.config) | {
        "evaluation": dataclasses.asdict(ctx.config.evaluation),
        "stages": made,
        "products": {name: record.products for name, record in ctx.records.items()},
    }


def evaluation(ctx: Context, place: Workplace) -> dict[str, Any]:
    """Draw, judge, compare, write the page; numbers: what `results.json` holds of the policies."""
    held_out = ctx.prompts[1]
    prompts = spread(held_out, min(ctx.config.evaluation.texts, len(held_out)))
    sft = ctx.policy("sft")
    env = ctx.environment(sft, prompts, ctx.learned_reward, kl_coef=ctx.config.rl.kl_coef)
    mdp = env.unwrapped.mdp

    def texts_of(lm: CausalLM) -> Drawn:
        engine = Engine(lm, guide=mdp.reference, seed=EVAL_SEED, keep_hidden=True)
        params = dataclasses.replace(mdp.generation_params, rows=DECODED_AT_ONCE)
        completions = engine.generate([p.token_ids for p in prompts], params)
        for completion, prompt in zip(completions, prompts, strict=True):
            completion.prompt = prompt
        return measure(mdp, lm, completions)

    best = BestOfN(env, n=ctx.config.evaluation.best_of_n, seed=ctx.config.seed)
    drawn = {"base": texts_of(ctx.base), "sft": texts_of(sft)}
    drawn["best-of-n"] = best.evaluate_on(prompts, EVAL_SEED)
    drawn["rl"] = texts_of(ctx.policy("rl"))
    tokenizer = sft.tokenizer
    gold = {}
    for name, found in drawn.items():
        ids = tokenizer(found.texts, add_special_tokens=False)["input_ids"]
        gold[name] = ctx.gold_scores(found.prompts, found.texts, ids)
    names = [p.text for p in prompts]
    results = {
        "prompts": len(prompts),
        "best_of_n": {"n": best.config.n, "tokens": best.drawn_tokens},
        "policies": {name: summary(drawn[name], gold[name], names) for name in POLICIES},
        "wins": {a: {b: duel(gold[a], gold[b], names) for b in POLICIES if a != b} for a in POLICIES},
    }
    rows = [
        {
            "prompt": prompt.text,
            **{
                name: {
                    "text": drawn[name].texts[i],
                    "gold": float(gold[name][i]),
                    "reward": drawn[name].scores[i],
                    "kl": None if name == "best-of-n" else drawn[name].kls[i],
                    "length": drawn[name].lengths[i],
                }
                for name in POLICIES
            },
        }
        for i, prompt in enumerate(prompts)
    ]
    write_atomically(place.folder / TEXTS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    write_atomically(place.folder / RESULTS, json.dumps(results, indent=1, allow_nan=False) + "\n")
    place.account()
    write_page(ctx, place.folder / PAGE, results, rows, place.cpu_seconds)
    return results


def summary(drawn: Drawn, gold: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Means with 95% intervals over prompts, KL to the fine-tuned model, length, variety, and how the scores agree.

    Returns:
        gold, reward: [mean, low, high]; gold_std, reward_std; kl in nats a text (of best-of-n the bound), with its
        standard error kl_sem (None for the bound); length in tokens; ended (share); distinct_2; different (share of
        texts that no other is equal to); correlation of gold and reward over the texts, None where one is constant.
    """
    scores = np.array(drawn.scores)
    varies = bool(np.ptp(gold) > 0 and np.ptp(scores) > 0)
    known = "objective/kl_k1" in drawn.metrics
    return {
        "gold": list(mean_of(gold, names)),
        "gold_std": float(gold.std()),
        "reward": list(mean_of(scores, names)),
        "reward_std": float(scores.std()),
        "kl": drawn.metrics["objective/kl"],
        "kl_sem": float(np.std(drawn.kls, ddof=1) / np.sqrt(len(drawn.kls))) if known else None,
        "length": float(np.mean(drawn.lengths)),
        "ended": drawn.metrics["length/ended_share"],
        "distinct_2": distinct(drawn.texts, 2),
        "different": len(set(drawn.texts)) / len(drawn.texts),
        "correlation": float(np.corrcoef(gold, scores)[0, 1]) if varies else None,
    }


def duel(ours: np.ndarray, theirs: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Prompts won, tied and lost by gold score, and the win rate, a tie counted half, with its 95% interval."""
    signs = np.sign(ours - theirs)
    return {
        "won": int((signs > 0).sum()),
        "tied": int((signs == 0).sum()),
        "lost": int((signs < 0).sum()),
        "rate": list(mean_of(0.5 + 0.5 * signs, names)),
    }


EVALUATION = Stage("evaluation", inputs, (TEXTS, RESULTS, PAGE), evaluation)
