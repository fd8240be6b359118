"""The reference's pass over whole texts against each text alone through the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import small_lm, small_mdp

from lm_gym import reference_pass
from lm_gym.decoding import Engine
from lm_gym.models import Below

POLICY = small_lm("gpt2", seed=1).freeze()


def logits(lm: Any, prompt: Any, tokens: list[int]) -> torch.Tensor:
    """(T, V) before each of the tokens, float64."""
    with torch.no_grad():
        out = lm.causal_lm()(input_ids=torch.tensor([[*prompt, *tokens]]), use_cache=False).logits[0]
    return out[len(prompt) - 1 : -1].double()


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "min_new_tokens": 3}, {"top_k": 4}])
@pytest.mark.parametrize("rows", [64, 5])
def test_exact_kl_and_entropy_are_sums_over_the_vocabulary(
    options: dict[str, Any], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_pass, "head_rows", lambda vocab_size: rows)
    monkeypatch.setattr(reference_pass, "SCORING_TOKENS", 40)
    mdp = small_mdp(small_lm("gpt2"), **options)
    engine = Engine(POLICY, guide=mdp.reference, keep_hidden=True, seed=0)
    done = engine.generate([p.token_ids for p in mdp.prompts], mdp.generation_params)
    assert len({len(c.tokens) for c in done}) > 1
    ids, tokens = [c.prompt_ids for c in done], [c.tokens for c in done]
    found = reference_pass.reference_pass(mdp, ids, tokens, policy=POLICY, drawn=done)
    assert found.exact_kl is not None and found.entropy is not None and found.hidden is None
    for i, c in enumerate(done):
        t = len(c.tokens)
        ref = (logits(mdp.reference, c.prompt_ids, c.tokens) / mdp.temperature).log_softmax(-1)
        own = logits(POLICY, c.prompt_ids, c.tokens) / mdp.temperature
        if c.allowed is not None:
            own = own.masked_fill(torch.ones_like(own).scatter(1, c.allowed, 0.0).bool(), -torch.inf)
        own[: mdp.min_new_tokens, list(mdp.reference.eos_ids)] = -torch.inf
        own = own.log_softmax(-1)
        p = own.exp()
        kl = (p * (own - ref).nan_to_num(neginf=0.0)).sum(-1)
        entropy = -(p * own.nan_to_num(neginf=0.0)).sum(-1)
        chosen = ref[torch.arange(t), torch.tensor(c.tokens)]
        for table, expected in ((found.logprobs, chosen), (found.exact_kl, kl), (found.entropy, entropy)):
            torch.testing.assert_close(table[i, :t].double(), expected, atol=2e-5, rtol=1e-5)
            assert not table[i, t:].any()


def test_a_policys_texts_without_its_hidden_states_are_refused() -> None:
    mdp = small_mdp()
    done = Engine(mdp.reference, seed=0).generate([p.token_ids for p in mdp.prompts], mdp.generation_params)
    for c, prompt in zip(done, mdp.prompts, strict=True):
        c.prompt = prompt
    with pytest.raises(ValueError, match="expected completions with the policy's hidden states, got one without"):
        mdp.score(done, policy=mdp.reference)


@pytest.mark.parametrize("kind", ["llama", "gqa", "gpt2"])
def test_a_pass_that_begins_above_blocks_that_decoding_ran(kind: str) -> None:
    mdp = small_mdp(small_lm(kind))
    engine = Engine(mdp.reference, keep_below=1, seed=0)
    done = engine.generate([p.token_ids for p in mdp.prompts], mdp.generation_params)
    ids, tokens = [c.prompt_ids for c in done], [c.tokens for c in done]
    below = [Below(1, c.below) for c in done if c.below is not None]
    assert [len(b.states) for b in below] == [len(i) + len(t) - 1 for i, t in zip(ids, tokens, strict=True)]
    plain = reference_pass.reference_pass(mdp, ids, tokens, hidden=True)
    above = reference_pass.reference_pass(mdp, ids, tokens, hidden=True, below=below)
    torch.testing.assert_close(above.logprobs, plain.logprobs, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(above.hidden, plain.hidden, atol=2e-5, rtol=1e-5)
