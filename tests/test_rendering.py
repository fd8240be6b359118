"""What a person sees of an episode."""

import numpy as np
import pytest
from small_models import SHARED, letter_reward, small_lm, small_mdp
from small_models import small_env as make

from lm_gym.env import LMAlignEnv
from lm_gym.reference_pass import reference_pass
from lm_gym.rendering import _drawn, printable, tint

END = 2


def test_render_ansi() -> None:
    env = make(render_mode="ansi")
    env.reset(options={"prompt_id": 2})
    env.step(3)
    assert env.render() == "ab cd ef | a"
    env.step(END)
    assert env.render() == f"ab cd ef | a  [eos, score {letter_reward(['a'])[0]:+.3f}]"
    assert LMAlignEnv(mdp=small_mdp(SHARED)).render() is None


def test_render_human_tints_every_token_by_its_kl(capsys: pytest.CaptureFixture[str]) -> None:
    env = make(render_mode="human", kl_mode="reported").unwrapped
    env.reset(options={"prompt_id": 0})
    for action, logprob in ((3, -0.1), (4, -9.0), (END, -0.5)):
        env.report_logprob(logprob)
        env.step(action)
    refs = reference_pass(env.stepper.mdp, [(3, 4, 5)], [[3, 4, END]]).logprobs[0].numpy()
    np.testing.assert_allclose(env._nats, np.array([-0.1, -9.0, -0.5]) - refs, atol=1e-4)
    text = _drawn(env.stepper, env._last, env._nats)
    assert text.plain.startswith("abcab\neos, 3 tokens, score ")
    styles = [(text.plain[s.start : s.end], str(s.style)) for s in text.spans]
    assert styles[:3] == [("abc", "dim"), ("a", tint(env._nats[0])), ("b", "green")]
    assert [tint(x) for x in (-2, 0.5, 2, 4, 9)] == ["green", "default", "yellow", "dark_orange", "bold red"]
    env.close()
    assert "abcab" in capsys.readouterr().out


def test_render_human_shows_the_surprise_where_nothing_is_reported() -> None:
    lm = small_lm(alphabet=None)
    env = make(model=lm, prompts=["x"], render_mode="human").unwrapped
    env.reset(seed=0)
    for token in lm.tokenizer("é\x1b[31m")["input_ids"]:
        *_, info = env.step(token)
        assert env._nats[-1] == -info["ref_logprob"]
    # one piece for the two bytes of é, and nothing that steers the terminal
    assert _drawn(env.stepper, env._last, env._nats).plain == "xé·[31m" and printable("a\tb\n\x9bc") == "a\tb\n·c"
    env.close()
