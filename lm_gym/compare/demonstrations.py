"""What SFT imitates in a comparison: texts of the optimum where it is known, else the best of n of the reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lm_gym.decoding import Engine
from lm_gym.demonstrations import Demonstration
from lm_gym.exact import ExactLanguage, optimal_policy
from lm_gym.mdp import AlignmentMDP

BEST_OF = 16
PASSES = 3
"""Over the best of n: a text that cost sixteen is read three times."""
PROMPTS_AT_ONCE = 4


@dataclass(frozen=True)
class Demonstrations:
    """Texts to imitate, and what they cost.

    Attributes:
        tokens, reward_calls, prompts: that were drawn, judged, and asked for them; 0 where they were given.
        what: them in words.
    """

    texts: list[Demonstration]
    tokens: int
    reward_calls: int
    prompts: int
    what: str


def of_the_optimum(language: ExactLanguage, n: int, seed: int) -> Demonstrations:
    """n texts of π*, the prompts in turn. They are given: nobody pays for them."""
    table, policy = language.table(), optimal_policy(language)
    rng, out = np.random.default_rng(seed), []
    for i in range(n):
        prompt = i % language.n_prompts
        state, tokens = int(table.start_states[prompt]), []
        while state >= 0:
            tokens.append(int(rng.choice(language.n_tokens, p=policy[state])))
            state = int(table.next_state[state, tokens[-1]])
        out.append(_demonstration((language.n_tokens + prompt,), tokens))
    return Demonstrations(out, 0, 0, 0, f"{n} texts of the optimum")


def best_of_the_reference(mdp: AlignmentMDP, total_tokens: int, seed: int) -> Demonstrations:
    """The best of 16 texts of the reference for each prompt in a shuffled order, within a budget.

    Of ``total_tokens`` 16/19 go into drawing. What is left for imitating is three passes over what was kept, where the
    best texts are as long as the others.
    """
    rng, engine = np.random.default_rng(seed), Engine(mdp.reference, seed=seed)
    budget = total_tokens * BEST_OF / (BEST_OF + PASSES)
    out: list[Demonstration] = []
    drawn = judged = 0
    order: list[int] = []
    params = replace(mdp.generation_params, top_k=None)
    while drawn < budget:
        left = PROMPTS_AT_ONCE if not out else round((budget - drawn) * len(out) / drawn)
        if not left:
            break
        if not order:
            order = rng.permutation(len(mdp.prompts)).tolist()
        count = min(left, PROMPTS_AT_ONCE)
        now, order = order[:count], order[count:]
        asked = [mdp.prompts[i] for i in now for _ in range(BEST_OF)]
        found = engine.generate([p.token_ids for p in asked], params)
        scores, *_ = mdp.judge(asked, [c.tokens for c in found], [c.finish_reason for c in found])
        drawn, judged = drawn + sum(len(c.tokens) for c in found), judged + len(found)
        for best in scores.reshape(-1, BEST_OF).argmax(-1) + BEST_OF * np.arange(len(now)):
            out.append(_demonstration(asked[best].token_ids, found[best].tokens))
    what = f"the best of {BEST_OF} texts of the reference for {len(out)} prompts"
    return Demonstrations(out, drawn, judged, len(out), what)


def _demonstration(prompt: Any, tokens: Any) -> Demonstration:
    return Demonstration((*prompt, *tokens), (False,) * len(prompt) + (True,) * len(tokens))
