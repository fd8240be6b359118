"""A model as the other side of the red team."""

import pytest
from small_models import small_lm

from lm_gym.annotate.redteam import model_writer
from lm_gym.annotate.store import StoreError


def test_a_model_answers_twice_and_differently() -> None:
    writer = model_writer(small_lm(), max_new_tokens=8, seed=1)
    first, second = writer("ab")
    assert isinstance(first, str) and isinstance(second, str) and first != second
    assert model_writer(small_lm(), max_new_tokens=8, seed=1)("ab") == (first, second)


def test_a_prompt_that_does_not_fit_is_refused() -> None:
    lm = small_lm()
    with pytest.raises(StoreError, match="the model cannot take this"):
        model_writer(lm, max_new_tokens=8)("a" * 5000)
    with pytest.raises(StoreError, match="chat template"):
        model_writer(lm, max_new_tokens=8)([{"role": "user", "content": "a"}])
    with pytest.raises(ValueError, match="max_new_tokens expected fewer"):
        model_writer(lm, max_new_tokens=10**6)
