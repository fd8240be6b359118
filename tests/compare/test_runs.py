"""A run of a comparison: what it is measured on, what it costs, and where tuning looks."""

import dataclasses
from itertools import combinations
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from lm_gym import exact
from lm_gym.cli.options import agent_names, load_agent
from lm_gym.compare import demonstrations, measuring, problems, tuning
from lm_gym.compare.rows import Row, row_line
from lm_gym.compare.settings import Job, Settings
from lm_gym.compare.training import Trained, train
from lm_gym.prompts import Prompt

WORKED, LONG, SAMPLED = "LMAlignExact-v0", "LMAlignExactLong-v0", "LMAlign-v0"
KNOWN_AGENTS = [name for name in agent_names() if name in {*tuning.CHOICES, "reference"}]


def ran(agent: str, env: str = WORKED, tokens: int = 600, kl_coef: float = 0.5, **more: Any) -> Trained:
    options = {"eval_texts": 16, "points": 3, "seed": 0} | more
    return train(Job(agent, load_agent(agent), env, kl_coef, total_tokens=tokens, **options))


def reference_of(env: str, kl_coefs: tuple[float, ...], eval_texts: int) -> problems.Found:
    jobs = problems.problem_jobs(env, kl_coefs, eval_texts)
    return problems.put_together(jobs, [problems.measure_reference(job) for job in jobs])


# ---- prompts and the reference -----------------------------------------------------------------------------------


def test_tuning_training_and_evaluation_have_no_prompt_in_common() -> None:
    prompts = [Prompt(i, f"text {i % 900}", (1,)) for i in range(1000)]
    parts = problems.split(prompts)
    texts = [{p.text for p in part} for part in vars(parts).values()]
    assert sum(map(len, texts)) == len(set().union(*texts)) == 900
    assert len(texts[0] | texts[1]) / 900 == pytest.approx(0.25, abs=0.05)
    assert len(texts[3]) / len(texts[2] | texts[3]) == pytest.approx(0.25, abs=0.05)
    assert [{p.text for p in part} for part in vars(problems.split(prompts[::-1])).values()] == texts
    assert {p.text for p in problems.split(prompts[500:]).evaluation} <= texts[3]
    with pytest.raises(ValueError, match="expected prompts enough.*got 3"):
        problems.split(prompts[:3])


def test_a_sampled_run_trains_on_its_part_alone() -> None:
    final, trial = (problems.place(SAMPLED, 0.1, tuning=tuning) for tuning in (False, True))
    sets = [{p.text for p in ps} for place in (final, trial) for ps in (place.env.unwrapped.mdp.prompts, place.prompts)]
    assert all(not a & b for a, b in combinations(sets, 2))
    assert len(set().union(*sets)) == 1024 and final.env.unwrapped.mdp.kl_coef == 0.1


def test_best_of_n_without_bias() -> None:
    """The mean of the highest over all subsets of n of the m scores."""
    scores = np.random.default_rng(0).normal(size=(3, 6)).round(1)  # with ties
    for n in (1, 2, 5, 6):
        brute = np.mean([max(row[list(at)]) for row in scores for at in combinations(range(6), n)])
        assert problems.best_of_n_reward(scores, n) == pytest.approx(brute)


def test_exact_problems() -> None:
    """DESIGN.md: J_ref .7685, J* 1.552850; π* at β = .5 has KL 1.403992 and E[R] 2.254846."""
    [found] = reference_of(WORKED, (0.5,), 16).problems
    assert (found.j_ref, found.j_star, found.exact) == (pytest.approx(0.7685), pytest.approx(1.552850, abs=1e-6), True)
    kl, reward = np.array(found.frontier).T
    assert (np.diff(kl) >= 0).all() and (np.diff(reward) >= -1e-12).all() and kl[0] == 0
    assert np.interp(1.403992, kl, reward) == pytest.approx(2.254846, abs=0.01)
    language = exact.ExactLanguage()
    for n in (2, 4, 16, 64):
        best = exact.best_of_n(language, n)
        assert best.reward <= np.interp(best.kl, kl, reward) + 0.01


def test_sampled_problems() -> None:
    found = reference_of(SAMPLED, (0.05, 0.2), 4)
    assert [p.kl_coef for p in found.problems] == [0.05, 0.2] and found.reference is not None
    scores = np.array(list(found.reference.values()))
    assert scores.shape == (4, 64)
    kl, reward = np.array(found.problems[0].frontier).T
    assert kl[0] == 0 and kl[-1] == pytest.approx(np.log(64) - 63 / 64)
    assert reward[0] == pytest.approx(scores.mean()) == pytest.approx(found.problems[0].j_ref)
    assert reward[-1] == pytest.approx(scores.max(1).mean()) and (np.diff(reward) > 0).all()


def test_the_references_texts_do_not_depend_on_how_they_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once, and two and three prompts by different processes; rounding may turn a draw, but hardly ever."""
    monkeypatch.setattr(problems, "TEXTS_A_PROMPT", 8)
    place = problems.place(SAMPLED, 0.05, tuning=False)
    mdp, prompts = place.env.unwrapped.mdp, place.prompts[:5]
    whole = problems.reference_scores(mdp, prompts)
    parts = [problems.reference_scores(mdp, prompts[a:b], passed_over=a) for a, b in ((0, 2), (2, 5))]
    assert (np.concatenate(parts) == whole).mean() > 0.97 and len(np.unique(whole)) > 20
    monkeypatch.setattr(problems, "PROMPTS_A_JOB", 16)
    jobs = problems.problem_jobs(SAMPLED, (0.05,), 256)
    assert [job.prompts for job in jobs] == [(first, min(16, 198 - first)) for first in range(0, 198, 16)]


def test_win_rates() -> None:
    prompts = [Prompt(0, "a", (1,)), Prompt(1, "b", (1,))]
    reference = {"a": (0.0, 1.0, 1.0, 2.0), "b": (5.0, 5.0, 5.0, 5.0)}
    assert problems.win_rate(prompts, [1.0, 6.0], reference) == pytest.approx((0.25 + 0.25 + 1) / 2)
    assert problems.win_rate(prompts, [1.0 + 1e-9, 5.0], reference) == 0.5


def test_exact_win_rate() -> None:
    """Over all pairs of texts of the worked example, the best policy against the reference."""
    language = exact.ExactLanguage()
    best = exact.optimal_policy(language)
    r = language.texts.reward
    p, q = exact.text_probs(language, best), exact.text_probs(language, exact.reference_policy(language))
    brute = sum(p[i] * q[j] * (0.5 + 0.5 * np.sign(r[i] - r[j])) for i in range(len(r)) for j in range(len(r)))
    ours, ref = ([c for _, c in exact.score_distribution(language, x)] for x in (best, None))
    assert measuring.exact_win_rate(ours, ref) == pytest.approx(brute)


# ---- runs --------------------------------------------------------------------------------------------------------


def without_time(row: Row) -> Row:
    return dataclasses.replace(row, cpu_seconds=None)


def test_a_run_on_an_exact_language() -> None:
    row = ran("rloo").row
    assert (row.agent, row.env, row.seed, row.source) == ("rloo", WORKED, 0, "lm-gym") and 570 <= row.tokens <= 630
    assert row.reward_calls == 4 * (row.prompts or 0) > 0 == row.offline_pairs
    assert row.curve is not None and row.curve[0] == (0, pytest.approx(0.7685)) and len(row.curve) <= 4
    assert row.curve[-1] == (row.tokens, row.j) and row.j > row.curve[0][1]
    assert row.win_rate is not None and 0.5 < row.win_rate < 1 and 0 < (row.cpu_seconds or 0) < 60
    assert without_time(ran("rloo").row) == without_time(row) != without_time(ran("rloo", seed=1).row)
    row_line(row)


@pytest.mark.parametrize("agent", ["ppo", "rloo", "grpo", "reinforce++", "raft", "online-dpo", "dpo", "kto", "sft"])
def test_every_agent_has_as_many_tokens_as_the_others(agent: str) -> None:
    """1,000 is no whole number of anybody's updates, and 2.6 of those of 144 texts; groups stay whole."""
    row = ran(agent, tokens=1000, config={"batch_size": 144}).row
    assert abs(row.tokens - 1000) <= 40
    assert row.curve is not None and row.curve[-1] == (row.tokens, row.j)


@pytest.mark.parametrize("agent", ["ppo", "grpo", "kto", "sft"])
def test_a_first_update_beyond_the_tokens_is_shorter_too(agent: str) -> None:
    """A text has 2.5 tokens, and an update 32 texts or 128 where there is room for them."""
    row = ran(agent, tokens=70, config={"batch_size": 144}).row
    assert abs(row.tokens - 70) <= 12 and (row.curve or ())[-1] == (row.tokens, row.j)
    least = ran("grpo", tokens=1).row
    assert least.reward_calls == 8, "one group at least"


def test_sft_has_drawn_no_more_than_its_share() -> None:
    """16 of 19 parts, within half a prompt's 16 texts, as long as the reference's."""
    mdp = problems.place(SAMPLED, 0.05, tuning=True).env.unwrapped.mdp
    found = demonstrations.best_of_the_reference(mdp, 5000, 0)
    assert found.tokens == pytest.approx(5000 * 16 / 19, abs=0.5 * 16 * 22 + 60)
    assert found.prompts == len(found.texts) == found.reward_calls / 16


def test_how_often_it_is_measured_changes_nothing_else() -> None:
    rows = [ran("ppo", points=points, eval_texts=texts).row for points, texts in ((1, 16), (6, 64))]
    few, often = (dataclasses.replace(without_time(r), curve=None, distinct_2=None) for r in rows)
    assert few == often and [len(r.curve or ()) for r in rows] == [2, 3]  # an update of PPO is 128 texts


@pytest.mark.parametrize(("agent", "texts"), [("dpo", 2), ("kto", 1)])
def test_agents_that_draw_their_own_examples(agent: str, texts: int) -> None:
    row = ran(agent).row
    assert row.offline_pairs == (row.reward_calls or 0) // texts > 0 and 570 <= row.tokens <= 630


def test_sft_is_given_texts_of_the_optimum() -> None:
    row = ran("sft", tokens=3000).row
    assert (row.prompts, row.reward_calls) == (0, 0) and row.offline_pairs == 1001
    assert row.j > 1.0 and row.config == {"data": "1001 texts of the optimum"}


@pytest.mark.parametrize("env", [WORKED, LONG])
def test_best_of_n_is_exact(env: str) -> None:
    row = ran("best-of-n", env).row
    found = exact.best_of_n(gym.make(env).unwrapped.language, 16)  # type: ignore[attr-defined]
    assert (row.reward, row.kl) == (pytest.approx(found.reward), pytest.approx(found.kl))
    assert (row.tokens, row.curve, row.reward_calls, row.cpu_seconds) == (0, None, 0, 0.0)
    assert row.win_rate is not None and row.win_rate > 0.9 and row.length is not None


def test_a_trial_with_another_step_size() -> None:
    done = ran("grpo", trial=3, step_factor=2.0, config={"group_size": 4})
    assert done.config == {"group_size": 4, "learning_rate": 0.06} == done.row.config  # 2 · 1.5 · .02


def test_a_run_on_a_sampled_environment() -> None:
    reference = reference_of(SAMPLED, (0.05,), 4).reference
    more: dict[str, Any] = {"kl_coef": 0.05, "eval_texts": 4, "reference": reference}
    row = ran("rloo", SAMPLED, 50, config={"batch_size": 16, "minibatch_size": None}, **more).row
    assert (row.prompts, row.reward_calls, row.offline_pairs) == (1, 4, 0)  # a group; evaluating costs nothing
    assert row.win_rate is not None and row.win_rate * 4 * 64 * 2 == pytest.approx(round(row.win_rate * 4 * 64 * 2))
    sft = ran("sft", SAMPLED, 1500, **more).row
    drawn = (sft.prompts or 0) * demonstrations.BEST_OF
    assert sft.reward_calls == drawn > 0 and sft.offline_pairs == sft.prompts
    assert sft.curve is not None and sft.curve[1][1] == sft.curve[0][1] and abs(sft.tokens - 1500) <= 75
    assert sft.curve[1][0] == pytest.approx(1500 * 16 / 19, abs=0.5 * 16 * 22 + 60)


# ---- tuning ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KNOWN_AGENTS)
def test_every_trial_is_an_agent(name: str) -> None:
    """The default first, then draws within the bounds, of which every one can be made."""
    kind, env = load_agent(name), gym.make(WORKED)
    found = tuning.trials(name, kind, {}, 12)
    assert found == tuning.trials(name, kind, {}, 20)[:12]
    if name == "reference":
        assert found == []
        return
    assert found[0] == ({}, 1.0)
    assert len({str(trial) for trial in found}) == len(found) == (8 if name == "best-of-n" else 12)
    data = {} if name != "sft" else {"data": demonstrations.of_the_optimum(exact.ExactLanguage(), 4, 0).texts}
    for config, factor in found:
        assert 0.25 <= factor <= 4
        kind(env, **config, **data)


def test_what_the_user_sets_stays() -> None:
    kind = load_agent("ppo")
    found = tuning.trials("ppo", kind, {"batch_size": 32, "learning_rate": 0.1}, 20)
    assert all(c["batch_size"] == 32 and c["learning_rate"] == 0.1 and f == 1.0 for c, f in found)
    assert {c.get("minibatch_size") for c, _ in found} == {None, 16, 32}  # 64 would not fit
    assert tuning.trials("best-of-n", load_agent("best-of-n"), {"n": 4}, 20) == []


def test_settings_that_mean_nothing() -> None:
    ok: dict[str, Any] = {"problems": {WORKED: (0.5,)}, "agents": {"ppo": load_agent("ppo")}}
    with pytest.raises(ValueError, match="seeds expected at least 1 and at most 10,000, got 0"):
        Settings(**ok, seeds=0)
    with pytest.raises(ValueError, match="'rloo' is set, which is not compared: ppo"):
        Settings(**ok, fixed={"rloo": {"group_size": 2}})
