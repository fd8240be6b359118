"""LMAlign-v0: the three ways to pay KL, and log-probs that are reported."""

import numpy as np
import pytest
import torch
from small_models import play
from small_models import small_env as make

import lm_gym
from lm_gym.env import LMAlignEnv


def test_reporting_log_probs() -> None:
    env = make(kl_mode="reported")
    env.reset(seed=0)
    base = env.unwrapped
    assert isinstance(base, LMAlignEnv)
    with pytest.raises(ValueError, match=r"report_logprob\(x\) before every step, got a step without"):
        env.step(3)
    for bad, message in [
        (0.1, "at most 0, got 0.1"),
        (float("nan"), "at most 0, got nan"),
        (-float("inf"), "finite log-probs of at most 0, got -inf"),
        ([-1.0, -2.0], "expected 1 log-probs, got 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            base.report_logprob(bad)
    base.report_logprob(torch.tensor(-1.25))
    with pytest.raises(ValueError, match="one report before each step, got a second one"):
        base.report_logprob(-1.0)
    _, reward, _, _, info = env.step(3)
    assert reward == info["reward/kl_penalty"] == pytest.approx(-0.3 * (-1.25 - info["ref_logprob"]), abs=1e-9)
    base.report_logprob(1e-9)  # rounding
    env.step(3)
    with pytest.raises(ValueError, match="a step without"):
        env.step(3)


def test_a_refused_step_takes_its_report_with_it() -> None:
    env = make(kl_mode="reported")
    env.reset(seed=0)
    env.unwrapped.report_logprob(-1.0)
    with pytest.raises(ValueError, match="action expected 0 to 11, got 99"):
        env.unwrapped.step(99)
    env.unwrapped.report_logprob(-2.0)
    *_, info = env.step(3)
    assert info["reward/kl_penalty"] == pytest.approx(0.3 * (2.0 + info["ref_logprob"]))


def test_reporting_belongs_to_its_mode() -> None:
    env = make()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="expected kl_mode='reported', got an environment with kl_mode='reference'"):
        env.unwrapped.report_logprob(-1.0)
    env.unwrapped.use_reported_kl(0.7)
    assert (env.unwrapped.kl_mode, env.unwrapped.kl_coef) == ("reported", 0.7)
    env.reset()
    env.unwrapped.report_logprob(-1.0)
    *_, info = env.step(3)
    assert info["reward/kl_penalty"] == pytest.approx(0.7 * (1.0 + info["ref_logprob"]))


def test_the_modes_and_the_shaping_that_completes_the_first() -> None:
    """Shaping the default mode's rewards gives the reported mode's, token for token."""
    runs = {mode: play(make(kl_mode=mode), 4, seed=1) for mode in ("reference", "reported", "none")}
    for a, b, c in zip(*runs.values(), strict=True):
        assert a.tokens == b.tokens == c.tokens
        shaped = lm_gym.kl.shape(np.array(a.rewards), np.array(a.logprobs), 0.3)
        np.testing.assert_allclose(shaped, b.rewards, atol=1e-9)
        assert c.rewards[:-1] == [0.0] * (len(c.tokens) - 1) and c.rewards[-1] == c.infos[-1]["score"]
        assert all(info["reward/kl_penalty"] == 0.0 for info in c.infos)
