"""The states and texts of exact languages, and their errors."""

import subprocess
import sys

import numpy as np
import pytest
from exact import brute

from lm_gym.exact import ENDED, ExactLanguage, worked_reward


def test_the_worked_example_has_forty_texts() -> None:
    texts = ExactLanguage().texts
    listed = brute.all_texts(4, 3)
    ref = brute.reference(listed)
    found = {tuple(texts.ids(i)): i for i in range(len(texts))}
    assert len(texts) == 40
    assert sorted(found) == listed
    for y, i in found.items():
        assert texts.reward[i] == brute.score(y) == worked_reward(list(y))
        assert np.exp(texts.ref_logprob[i]) == pytest.approx(brute.prob(y, ref), rel=1e-12)
        assert texts.length[i] == len(y)


@pytest.mark.parametrize("states", ["prefixes", "steps"])
def test_the_state_table(states: str) -> None:
    language = ExactLanguage(horizon=4, states=states, start_rows=[[0.1, 0.4, 0.3, 0.2], [0.7, 0.1, 0.1, 0.1]])
    table = language.table()
    assert table.n_states == 2 * (40 if states == "prefixes" else 1 + 3 * 3)
    assert table.next_state.shape == table.ref_probs.shape == (table.n_states, 4)
    np.testing.assert_allclose(table.ref_probs.sum(axis=1), 1.0)
    np.testing.assert_array_equal(table.start_states, [0, 1])
    np.testing.assert_allclose(table.ref_probs[1], [0.7, 0.1, 0.1, 0.1])
    state, action = np.nonzero(table.next_state != ENDED)
    following = table.next_state[state, action]
    assert (following > state).all()
    np.testing.assert_array_equal(table.depth[following], table.depth[state] + 1)
    np.testing.assert_array_equal(table.prompt[following], table.prompt[state])
    np.testing.assert_array_equal(table.last_token[following], action)
    np.testing.assert_allclose(table.ref_probs[following], language.transitions[action])
    np.testing.assert_array_equal(table.ends, (np.arange(4) == 0) | (table.depth == 3)[:, None])
    assert [level.start for level in table.levels()] == list(table.level_offsets[:-1])
    assert language.state([1, 3], prompt=1) == table.next_state[table.next_state[1, 1], 3]
    with pytest.raises(ValueError, match="read-only"):
        table.next_state[0, 0] = 0


def test_prefix_and_state_are_inverse() -> None:
    language = ExactLanguage(horizon=4, start_rows=[[0.1, 0.4, 0.3, 0.2], [0.7, 0.1, 0.1, 0.1]])
    for s in range(language.table().n_states):
        assert language.state(language.prefix(s), int(language.table().prompt[s])) == s
    with pytest.raises(ValueError, match="has ended"):
        language.state([1, 0, 2])
    with pytest.raises(ValueError, match="token ids are 0..3, got 7 at position 1"):
        language.state([1, 7])
    with pytest.raises(ValueError, match=r"prompt must be in 0\.\.1"):
        language.state([], prompt=2)


def test_score_table_knows_the_score() -> None:
    language = ExactLanguage(horizon=4, states="steps")
    table, base = language.score_table()
    assert table.pays_at_end
    np.testing.assert_array_equal(table.ends, language.table().ends[base])
    prefixes = ExactLanguage(horizon=4, states="prefixes")
    for i, y in enumerate(prefixes.texts.tokens):
        state = 0
        ids = y[: prefixes.texts.length[i]]
        for a in ids[:-1]:
            state = table.next_state[state, a]
        assert table.step_reward[state, ids[-1]] == prefixes.texts.reward[i]


def test_states_are_chosen_by_size() -> None:
    assert ExactLanguage().states == "prefixes"
    assert ExactLanguage(horizon=48).states == "steps"
    assert ExactLanguage(states="steps").table().n_states == 7
    assert ExactLanguage(horizon=8, max_sequences=9841).states == "prefixes"
    assert ExactLanguage(horizon=8, max_sequences=9840).states == "steps"


def test_rewards_as_text_as_list_and_as_table() -> None:
    spec = "py:lm_gym.exact.language:worked_reward"
    rows = [brute.ROWS[0], brute.ROWS[1]]
    language = ExactLanguage(brute.ROWS, token_reward=[spec, len], start_rows=rows)
    assert language.reward([3, 3, 0]) == 3.0
    assert language.reward([3, 3, 0], prompt=1) == 3
    assert language.reward([2, 0], prompt=1) == 2
    table = ExactLanguage(token_table=[[1, 0, -0.5, 1], [0, 10, 0, 0]], start_rows=rows)
    assert table.reward([1, 2, 0]) == 0.5
    assert table.reward([1, 2, 0], prompt=1) == 10


def raises_in_reward(tokens: list[int]) -> float:
    return float("nan") if tokens == [1, 2, 0] else 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"transitions": [[0.5, 0.5], [0.5, 0.4]], "token_table": [0, 1]}, r"row 1 must sum to 1, it sums to 0\.9"),
        ({"transitions": [[1.5, -0.5], [0.5, 0.5]], "token_table": [0, 1]}, "row 0 must be probabilities"),
        ({"transitions": [[0.5, 0.5]], "token_table": [0, 1]}, r"must be \(V, V\).*got shape \(1, 2\)"),
        ({"transitions": [0.5, 0.5], "token_table": [0, 1]}, "two dimensions"),
        ({"transitions": [[0.5, 0.5], [0.5, 0.5]]}, "exactly one of token_reward.*got neither"),
        ({"token_reward": worked_reward, "token_table": [1, 0, 0, 0]}, "exactly one of token_reward.*got both"),
        ({"token_table": [1, 0, 0]}, r"token_table must be finite, of shape \(4,\)"),
        ({"token_table": [1, 0, 0, float("inf")]}, "token_table must be finite"),
        ({"horizon": 0}, "horizon must be a whole number"),
        ({"horizon": 2.5}, "horizon must be a whole number"),
        ({"kl_coef": -1}, "kl_coef must be a finite number"),
        ({"start_rows": [[0.5, 0.5]]}, r"start_rows must be \(P, 4\)"),
        ({"token_reward": lambda y: "good"}, "must return a number"),
        ({"token_reward": raises_in_reward}, r"must be finite, got nan on \[1, 2, 0\] \(prompt 0\)"),
        ({"token_reward": "worked_reward"}, "'py:module:attribute'"),
        ({"token_reward": "py:lm_gym.exact:nothing"}, "cannot be loaded"),
        ({"token_reward": [len, len]}, "a list of 1"),
        ({"token_reward": len, "horizon": 12}, "has 797161 texts.*token_table"),
        ({"horizon": 12, "states": "prefixes"}, "has 797161 texts"),
        ({"token_reward": len, "states": "steps"}, "needs a token_table"),
        ({"states": "step"}, "did you mean 'steps'"),
    ],
)
def test_errors_say_what_was_expected(arguments: dict, message: str) -> None:
    if "token_reward" in arguments and "transitions" not in arguments:
        arguments = {"transitions": brute.ROWS, **arguments}
    with pytest.raises(ValueError, match=message):
        ExactLanguage(**arguments).table()


def test_import_is_light() -> None:
    code = "import sys, lm_gym.exact; print([m for m in ('torch', 'scipy', 'transformers') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
