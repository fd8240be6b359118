"""The problems that runs are measured on: which prompts are whose, what the reference is worth, and the frontier."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from lm_gym.compare.rows import Problem
from lm_gym.compare.settings import REFERENCE_SEED
from lm_gym.decoding import Engine
from lm_gym.held_out import spread
from lm_gym.mdp import AlignmentMDP
from lm_gym.prompts import Prompt

TEXTS_A_PROMPT = 64
"""Of the reference: what its E[R], best-of-n's and win rates are estimated from."""
BEST_OF = (1, 2, 4, 8, 16, 32, 64)
FRONTIER_POINTS = 61
DECODED_AT_ONCE = 128
PROMPTS_A_JOB = 16
"""Of the reference's texts, so that all processes have some to draw; the texts are the same however they are split."""


@dataclass(frozen=True)
class Parts:
    """Prompts that have nothing in common: what tuning trains and is judged on, what final runs do."""

    tuning_train: list[Prompt]
    tuning_evaluation: list[Prompt]
    train: list[Prompt]
    evaluation: list[Prompt]


@dataclass(frozen=True)
class Place:
    """An environment for one run, and the prompts that measure it.

    Attributes:
        env: made with the prompts that are trained on. language: of an exact environment, else None. prompts: held out
            (on an exact language: all there are).
    """

    env: Any
    language: Any
    prompts: list[Prompt]


def split(prompts: Sequence[Prompt]) -> Parts:
    """A quarter of the prompts for tuning, the others for final runs, and of each a quarter held out of training.

    A prompt's part follows from the sha256 of its text alone, so that it is the same in every comparison.

    Raises:
        ValueError: a part is empty.
    """
    parts = Parts([], [], [], [])
    for prompt in prompts:
        digest = int(hashlib.sha256(prompt.text.encode()).hexdigest()[:8], 16)
        tuning, held_out = digest % 4 == 0, digest // 4 % 4 == 0
        if tuning:
            (parts.tuning_evaluation if held_out else parts.tuning_train).append(prompt)
        else:
            (parts.evaluation if held_out else parts.train).append(prompt)
    empty = [name for name, found in vars(parts).items() if not found]
    if empty:
        raise ValueError(
            f"a comparison expected prompts enough for tuning, training and evaluation apart (64 are), got "
            f"{len(prompts)}, which leaves {', '.join(empty)} empty"
        )
    return parts


def make_env(env_id: str, **options: Any) -> Any:
    """``gym.make``, or an error that says what a comparison can be made on.

    Raises:
        ValueError: no such environment, or none of LM Gym's.
    """
    import lm_gym  # noqa: F401  (registers the environments)

    try:
        env = gym.make(env_id, **options)
    except gym.error.Error as error:
        raise ValueError(f"{env_id}: {error}") from error
    if not isinstance(getattr(env.unwrapped, "mdp", None), AlignmentMDP):
        raise ValueError(f"compare expected an environment of LM Gym (lm-gym ls environments), got {env_id}")
    return env


def language_of(env: Any) -> Any:
    """The exact language of an environment, or None."""
    return getattr(env.unwrapped, "language", None)


def default_kl_coef(env_id: str) -> float:
    """The β of an environment, which must be fit for a comparison.

    Raises:
        ValueError: it is not.
    """
    env = make_env(env_id)
    if language_of(env) is None:
        split(env.unwrapped.mdp.prompts)
    return float(env.unwrapped.mdp.kl_coef)


def place(env_id: str, kl_coef: float, *, tuning: bool) -> Place:
    """The environment of a run: of a sampled one the prompts of its part alone."""
    env = make_env(env_id, kl_coef=kl_coef)
    mdp, language = env.unwrapped.mdp, language_of(env)
    if language is not None:
        return Place(env, language, list(mdp.prompts))
    parts = split(mdp.prompts)
    train, held_out = (parts.tuning_train, parts.tuning_evaluation) if tuning else (parts.train, parts.evaluation)
    mdp.prompts = [replace(prompt, id=i) for i, prompt in enumerate(train)]
    return Place(env, None, held_out)


@dataclass(frozen=True)
class Found:
    """The problems of one environment, and (sampled) the scores of the reference's texts of each evaluation prompt."""

    problems: list[Problem]
    reference: dict[str, tuple[float, ...]] | None


@dataclass(frozen=True)
class ProblemJob:
    """What is to be known of the reference of one environment, or a part of it, for a process of its own.

    Attributes:
        kl_coefs: the problems. prompts: of a sampled environment, how many of those that are evaluated on are passed
            over, and how many the job has; (0, 0) of an exact one.
    """

    env: str
    kl_coefs: tuple[float, ...]
    eval_texts: int
    prompts: tuple[int, int] = (0, 0)

    @property
    def group(self) -> tuple[str, str]:
        """What takes equally long."""
        return "the reference", self.env

    def __str__(self) -> str:
        first, count = self.prompts
        return f"the reference on {self.env}" + (f", prompts {first + 1} to {first + count}" if count else "")


def problem_jobs(env_id: str, kl_coefs: tuple[float, ...], eval_texts: int) -> list[ProblemJob]:
    """All that is to be known of one environment's reference: texts of a few prompts each, or an exact language."""
    here = place(env_id, kl_coefs[0], tuning=False)
    if here.language is not None:
        return [ProblemJob(env_id, kl_coefs, eval_texts)]
    count = len(_measured_on(here, eval_texts))
    parts = [(first, min(PROMPTS_A_JOB, count - first)) for first in range(0, count, PROMPTS_A_JOB)]
    return [ProblemJob(env_id, kl_coefs, eval_texts, part) for part in parts]


def measure_reference(job: ProblemJob) -> list[Problem] | dict[str, np.ndarray]:
    """The problems of an exact language; else prompt -> (64,) scores of texts of the reference."""
    here = place(job.env, job.kl_coefs[0], tuning=False)
    if here.language is not None:
        return [_exact(job.env, here.language, beta) for beta in job.kl_coefs]
    first, count = job.prompts
    chosen = _measured_on(here, job.eval_texts)[first : first + count]
    scores = reference_scores(here.env.unwrapped.mdp, chosen, passed_over=first)
    return {p.text: row for p, row in zip(chosen, scores, strict=True)}


def put_together(jobs: Sequence[ProblemJob], results: Sequence[list[Problem] | dict[str, np.ndarray]]) -> Found:
    """What all jobs of one environment found: J of the reference, J*, and the frontier (sampled: best-of-n's)."""
    parts = [found for found in results if isinstance(found, dict)]
    if not parts:
        return Found([problem for found in results if isinstance(found, list) for problem in found], None)
    by_prompt = {text: row for part in parts for text, row in part.items()}
    scores = np.array(list(by_prompt.values()))
    frontier = tuple((bound(n), best_of_n_reward(scores, n)) for n in BEST_OF)
    problems = [Problem(jobs[0].env, beta, float(scores.mean()), None, frontier, False) for beta in jobs[0].kl_coefs]
    return Found(problems, {text: tuple(np.round(row, 6).tolist()) for text, row in by_prompt.items()})


def _measured_on(here: Place, eval_texts: int) -> list[Prompt]:
    """The different prompts among those that a policy is measured on."""
    return list({p.text: p for p in spread(here.prompts, eval_texts)}.values())


def _exact(env_id: str, language: Any, beta: float) -> Problem:
    from lm_gym import exact

    reference = exact.evaluate(language, exact.reference_policy(language), beta)
    scores = np.concatenate([values for values, _ in exact.score_distribution(language)])
    width = float(np.ptp(scores)) or 1.0
    points = {(0.0, reference.reward)}
    for price in np.geomspace(1e-3, 1e2, FRONTIER_POINTS) * width:
        found = exact.evaluate(language, exact.optimal_policy(language, float(price)), beta)
        points.add((found.kl, found.reward))
    return Problem(env_id, beta, reference.objective, exact.optimum(language, beta), tuple(sorted(points)), True)


def reference_scores(mdp: AlignmentMDP, prompts: Sequence[Prompt], *, passed_over: int = 0) -> np.ndarray:
    """(P, 64) scores of texts of the reference, over its whole vocabulary.

    Args:
        passed_over: prompts that stand before these and are somebody else's, whose draws are left out.
    """
    asked = [p for p in prompts for _ in range(TEXTS_A_PROMPT)]
    params = replace(mdp.generation_params, top_k=None, rows=DECODED_AT_ONCE)
    engine = Engine(mdp.reference, seed=REFERENCE_SEED)
    torch.rand(passed_over * TEXTS_A_PROMPT * params.max_new_tokens, generator=engine.generator)
    drawn = engine.generate([p.token_ids for p in asked], params)
    scores, *_ = mdp.judge(asked, [c.tokens for c in drawn], [c.finish_reason for c in drawn])
    return np.asarray(scores.reshape(len(prompts), TEXTS_A_PROMPT))


def best_of_n_reward(scores: np.ndarray, n: int) -> float:
    """E[R] of best-of-n without bias, from m ≥ n scores a prompt (P, m): Σ_i C(i−1, n−1)/C(m, n)·R_(i), R ascending."""
    m = scores.shape[1]
    weights = np.array([math.comb(i, n - 1) / math.comb(m, n) for i in range(m)])
    return float((np.sort(scores, axis=1) @ weights).mean())


def bound(n: int) -> float:
    """log n − (n − 1)/n, nats: an upper bound of best-of-n's KL (Beirami et al. 2024, arXiv:2401.01879)."""
    return math.log(n) - (n - 1) / n


def win_rate(prompts: Sequence[Prompt], scores: Sequence[float], reference: Mapping[str, Sequence[float]]) -> float:
    """P(R > R of a reference text of the same prompt), ties one half: each text against all of its prompt's."""
    rates = []
    for prompt, score in zip(prompts, scores, strict=True):
        others = np.asarray(reference[prompt.text])
        mine = round(score, 6)
        rates.append(float((others < mine).mean() + 0.5 * (others == mine).mean()))
    return float(np.mean(rates))
