"""Policy, value head and critics: what is trained, what is shared, what one pass gives."""

import pytest
import torch
from ppo_runs import problem

from lm_gym.policy import Policy, lower_layers


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids = torch.tensor([[0, 0, 3, 4, 5, 6], [3, 9, 4, 4, 5, 2]])
    return ids, torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]), torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "options",
    [{}, {"critic": "separate"}, {"lora_rank": 2}, {"frozen_layers": 1}, {"frozen_layers": 1, "frozen_head": True}],
    ids=str,
)
def test_it_starts_as_the_model_with_values_of_0(kind: str, options: dict) -> None:
    mdp = problem(kind, temperature=0.7)
    policy = Policy(mdp, **{"critic": "shared", **options})
    with torch.no_grad():
        hidden, values = policy.at_tokens(*batch())
        logits = mdp.logits(policy.lm, hidden).view(2, 3, -1)
        for row, start in ((0, 2), (1, 0)):
            want = mdp.reference.model(input_ids=batch()[0][row : row + 1, start:]).logits[0, -4:-1] / 0.7
            torch.testing.assert_close(logits[row], want, atol=1e-4, rtol=1e-4)
    assert values is not None and values.shape == (6,) and not values.any()
    assert not policy.training and not any(p.requires_grad for p in mdp.reference.parameters())
    assert set(policy.trainable()) <= {k for k, _ in policy.named_parameters()}


def test_a_policy_without_critic_has_no_values() -> None:
    assert Policy(problem(), critic="none").at_tokens(*batch())[1] is None


def test_a_separate_critic_trains_no_policy_weight() -> None:
    policy = Policy(problem(), critic="separate")
    torch.nn.init.normal_(policy.critic.head.weight)
    policy.at_tokens(*batch())[1].sum().backward()
    assert all(p.grad is None for p in policy.lm.parameters())
    assert any(p.grad is not None and p.grad.any() for p in policy.critic.lm.parameters())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])  # GPT-2's head is tied to its embeddings
def test_the_head_above_frozen_layers_is_the_policys_own(kind: str) -> None:
    mdp = problem(kind)
    before = mdp.reference.fingerprint()
    policy = Policy(mdp, frozen_layers=1)
    head = policy.lm.model.get_output_embeddings().weight
    assert head is policy.trainable()["lm.model.lm_head.weight"]
    assert policy.lm.model.get_input_embeddings().weight is mdp.reference.model.get_input_embeddings().weight
    assert not policy.lm.model.config.tie_word_embeddings
    with torch.no_grad():
        head.add_(1.0)
    assert mdp.reference.fingerprint() == before
    assert mdp.reference.model.config.tie_word_embeddings == (kind == "gpt2")
    whole = Policy(mdp, frozen_layers=1, frozen_head=True)
    assert whole.lm.model.get_output_embeddings().weight is mdp.reference.model.get_output_embeddings().weight
    assert not any("head" in name for name in whole.trainable())


def test_layers_are_counted() -> None:
    mdp = problem()
    assert len(lower_layers(mdp.reference, 2)) > len(lower_layers(mdp.reference, 1))
    with pytest.raises(ValueError, match="got 3 for a model with 2 layers"):
        Policy(mdp, frozen_layers=3)
    with pytest.raises(ValueError, match="expected one of the two"):
        Policy(mdp, frozen_layers=1, lora_rank=2)
