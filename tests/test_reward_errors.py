"""However a reward model misbehaves, it is a RewardModelError that names it and the prompt; and no score is made up."""

import asyncio
import itertools
import pickle
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from judges import score
from ppo_runs import environment, ppo, problem

from lm_gym.cli import main
from lm_gym.env import LMAlignEnv
from lm_gym.reward_models import Cached, Ensemble, Minimum, Normalised
from lm_gym.rewards import (
    RewardModelError,
    load_reward_model,
    load_reward_state,
    prepare_reward_model,
    reward_model_hash,
    reward_model_name,
    reward_state,
    update_reward_model,
)
from lm_gym.vector_env import LMAlignVectorEnv


class Own(BaseException):
    pass


class Unsayable(Exception):
    def __str__(self):
        raise Own("no words")


class Awkward:
    """Raises wherever it is looked at."""

    def __float__(self):
        raise Own("float")

    def __repr__(self):
        raise Own("repr")


class AwkwardList:
    def __init__(self, where):
        self.where = where

    def __len__(self):
        if self.where == "len":
            raise Own("len")
        return 2

    def __iter__(self):
        if self.where == "iter":
            raise SystemExit(0)
        return iter([1.0])


def generator(completions):
    yield 1.0
    raise ValueError("in the middle")


async def cancelled(completions):
    raise asyncio.CancelledError


async def no_list():
    yield 1.0


async def leaves(completions):
    raise SystemExit(0)


def raising(error):
    def judge(completions):
        raise error

    return judge


def giving(values):
    def judge(completions):
        return values

    return judge


RAISED = {
    "SystemExit: 0": raising(SystemExit(0)),
    "Own: mine": raising(Own("mine")),
    "Unsayable": raising(Unsayable()),
    "CancelledError": cancelled,
    "SystemExit: 0 ": leaves,
    "ValueError: in the middle": generator,
    "StopIteration: 5": raising(StopIteration(5)),
    "RewardModelError: row": raising(RewardModelError("row", row=99)),
    "SystemExit: 0  ": giving(AwkwardList("iter")),
}
"""What the message says was raised (with blanks, to tell the keys apart), and the judge."""


@pytest.mark.parametrize("what", RAISED)
def test_whatever_a_judge_raises_names_it_and_the_prompt(what):
    with pytest.raises(RewardModelError, match=f"raised {what.strip()}") as caught:
        score(RAISED[what])
    assert caught.value.row == 0  # halving finds the first completion that raises
    assert reward_model_name(RAISED[what]) in str(caught.value) and "prompt: 'prompt 0'" in str(caught.value)


def test_an_exit_is_caught_inside_a_running_loop_too():
    async def notebook():
        return score(leaves)

    with pytest.raises(RewardModelError, match="SystemExit"):
        asyncio.run(notebook())


@pytest.mark.parametrize("passing", [KeyboardInterrupt, GeneratorExit])
def test_ctrl_c_and_the_end_of_a_generator_pass(passing):
    with pytest.raises(passing):
        score(raising(passing()))


class Frame:
    """As a data frame: iterating gives the names of its columns, and not its numbers."""

    def __init__(self, *rows):
        self.rows = rows

    def __iter__(self):
        return iter(range(len(self.rows[0])))

    def __array__(self, dtype=None, copy=None):
        return np.array(self.rows, dtype=dtype)


NO_SCORES = {
    "a frame of one row": (Frame([5.0, 6.0]), "returned 1 scores for 2", None),
    "raw bytes": (np.array([b"1", b"2"], dtype="V1"), "expected a finite number", 0),
    "10**400": ([10**400, 1], "expected a finite number", 0),
    "10**5000": ([1, 10**5000], "a value of type int whose repr raises ValueError", 1),
    "meta": (torch.zeros(2, device="meta"), "a tensor .torch.strided on meta. that cannot be read", None),
    "an element on meta": ([1.0, torch.zeros((), device="meta")], "that cannot be read", 1),
    "sparse": (torch.zeros(2).to_sparse(), "a tensor .torch.sparse_coo on cpu. that cannot be read", None),
    "__float__": ([1.0, Awkward()], "a value of type Awkward whose repr raises Own .its __float__ raised Own", 1),
    "__repr__": (Awkward(), "a value of type Awkward whose repr raises Own, expected a sequence of 2", None),
    "one of two": (AwkwardList(""), "returned 1 scores for 2", None),
    "without end": (itertools.count(), "more than 2 scores for 2", None),
    "float32": ([0.0, -3.5e38], "beyond the range of float32", 1),
    "float32, whole": ([0.0, 10**39], "beyond the range of float32", 1),
    "a set": ({1.0, 2.0}, "expected a sequence", None),
    "a frozenset": (frozenset({1.0, 2.0}), "expected a sequence", None),
    "keys": ({1.0: 0, 2.0: 0}.keys(), "expected a sequence", None),
    "a dict": ({0: 1.0, 1: 2.0}, "expected a sequence", None),
    "bytes": (bytearray(b"ab"), "expected a sequence", None),
    "complex": ([1.0, 2 + 0j], "expected a finite number", 1),
    "a complex array": (np.array([1, 2], dtype=np.complex64), "expected a finite number", 0),
    "a complex tensor": (torch.tensor([1 + 0j, 2]), "expected a finite number", 0),
    "times": (np.array([1, 2], dtype="m8[s]"), "expected a finite number", 0),
    "masked": (np.ma.array([1.0, 2.0], mask=[False, True]), "expected a finite number", 1),
    "two columns": ([[1.0, 2.0], [3.0, 4.0]], "expected a finite number", 0),
    "an async generator": (no_list(), "expected a sequence", None),
}


@pytest.mark.parametrize("kind", NO_SCORES)
def test_what_is_no_score_is_never_taken_for_one(kind):
    values, message, row = NO_SCORES[kind]
    with pytest.raises(RewardModelError, match=message) as caught:
        score(giving(values))
    assert caught.value.row == row and "giving.<locals>.judge" in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        [[1.0], [2.0]],
        ((1.0,), [2]),
        [torch.tensor([1.0], requires_grad=True), np.array([2.0])],
        np.array([1, 2], dtype=object),
        [Decimal(1), Fraction(2)],
        {"a": 1.0, "b": 2.0}.values(),
        map(float, "12"),
        Frame([1.0], [2.0]),
    ],
    ids=["lists", "tuples", "arrays", "objects", "exact", "view", "map", "frame"],
)
def test_numbers_in_any_order_keeping_container(values):
    assert score(giving(values)).scores.tolist() == [1, 2]


def test_a_column_may_say_that_it_does_not_apply():
    assert np.isnan(score(giving([[None], [2.0]]), allow_none=True).scores).tolist() == [True, False]


def test_the_largest_float32_is_a_score():
    largest = float(np.finfo(np.float32).max)
    assert score(giving([largest, -largest])).scores.tolist() == [largest, -largest]


def test_no_message_carries_escape_sequences():
    with pytest.raises(RewardModelError) as caught:
        score(raising(ValueError("\x1b]0;X\x07\u202e")), completions=["\x1b[31m", "b"])
    assert str(caught.value).isprintable() or set(str(caught.value)) - {"\n"} == {
        c for c in str(caught.value) if c.isprintable()
    }


def test_a_metric_has_a_printable_name():
    def judge(completions, log_metric):
        log_metric("a\x1b[31m", 1.0)
        return [0.0, 0.0]

    with pytest.raises(RewardModelError, match="expected a name in printable characters"):
        score(judge)


# Wherever judges are called.


def leave(completions):
    raise SystemExit(0)


@pytest.mark.parametrize(
    "around",
    [Cached, Minimum, Ensemble, lambda judge: Normalised(judge[0], mean=0.0, std=1.0)],
    ids=["cached", "minimum", "ensemble", "normalised"],
)
def test_inside_of_others(around):
    inside = leave if around is Cached else [leave, leave] if around is Ensemble else [leave]
    with pytest.raises(RewardModelError, match=r":leave raised SystemExit"):
        score(around(inside))


@pytest.mark.parametrize("kind", ["env", "vector"])
def test_in_environments(kind):
    mdp = problem(reward_model=leave, max_new_tokens=2)
    env = LMAlignEnv(mdp=mdp) if kind == "env" else LMAlignVectorEnv(2, mdp=mdp)
    env.reset(seed=0)
    last = np.array([0] * 2) if kind == "vector" else 0
    env.step(last + 3)
    with pytest.raises(RewardModelError, match=r":leave raised SystemExit"):
        env.step(last + 3)
    env.close()


def test_an_exit_inside_a_judge_is_no_success_of_the_command_line(tmp_path, capsys):
    (tmp_path / "quits.py").write_text("import sys\ndef judge(completions):\n    sys.exit(0)\n")
    command = "train reinforce --total-tokens 30 --max-new-tokens 2 --eval-texts 0 --reward-model".split()
    assert main([*command, f"py:{tmp_path}/quits.py:judge", "--out", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert "quits.py:judge" in error and "raised SystemExit: 0" in error and "prompt: " in error


@pytest.mark.parametrize(("scale", "options"), [(1e20, {}), (1e37, {}), (1e20, {"normalize_scores": 16})])
def test_scores_whose_squares_are_beyond_float32_name_the_judge(scale, options):
    """They are finite, and so was the loss not: it named a token, and a weight before its first step."""

    def huge(completions):
        return [scale * (1 + len(text)) for text in completions]

    mdp = problem(reward_model=huge, max_new_tokens=4, kl_coef=0.0)
    agent = ppo(environment(mdp), batch_size=8, minibatch_size=8, **options)
    if options:
        agent.learn(20)  # a scale of its own makes them small
        assert np.isfinite(agent.last.metrics["loss/policy_avg"])
        return
    with pytest.raises(RewardModelError, match=r"huge gave .*float32 cannot add up the squares[\s\S]*prompt: "):
        agent.learn(20)


# Names, hashes, state, factories.


class Raises:
    """Each of its methods raises what it is made with."""

    def __init__(self, error):
        self.error = error

    def _raise(self, *_):
        raise self.error

    name = property(_raise)
    fingerprint = update = prepare = state_dict = load_state_dict = _raise

    def __call__(self, completions):
        return [0.0] * len(completions)


@pytest.mark.parametrize("error", [SystemExit(0), KeyError("x"), ValueError("x"), Own("x")], ids=repr)
def test_state_functions_and_hashes(error):
    judge = Raises(error)
    assert reward_model_name(judge).endswith(":Raises")  # whose property `name` raises
    for call in (
        lambda: reward_model_hash(judge),
        lambda: update_reward_model(judge, {}),
        lambda: prepare_reward_model(judge, None),
        lambda: reward_state(judge),
        lambda: load_reward_state(judge, {"a": 1}),
    ):
        with pytest.raises(RewardModelError, match=f"Raises.* raised {type(error).__name__}"):
            call()


@pytest.mark.parametrize(
    "text",
    [
        "raise SystemExit(0)",
        "x = 1 / 0",
        "def judge(:",
        "class judge:\n    def __init__(self): raise SystemExit(0)",
        "def judge(size: int = 1): raise KeyError(size)",
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, text):
    (tmp_path / "broken.py").write_text(text)
    spec = f"py:{tmp_path}/broken.py:judge"
    with pytest.raises(RewardModelError, match="broken.py:judge' raised ") as caught:
        load_reward_model(spec)
    assert isinstance(caught.value, ValueError)  # exit code 2 from the command line


def test_an_error_crosses_processes():
    error = RewardModelError("message", row=3)
    error.located = True
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.row, again.located) == ("message", 3, True)


@pytest.mark.parametrize("values", [{1, 2}, {"a": 1, "b": 2}, "ab", None, itertools.count()], ids=repr)
def test_what_has_no_order_or_no_end_is_no_column(values):
    with pytest.raises(RewardModelError, match="log_extra.'x', values. of |NoneType"):
        score(lambda completions, log_extra: log_extra("x", values))


def test_a_long_message_is_cut():
    with pytest.raises(RewardModelError) as caught:
        score(raising(ValueError("x" * 10**6)))
    assert len(str(caught.value)) < 3000
