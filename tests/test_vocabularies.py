"""Model, reference and critic mean the same by an id; ids that a model has no embedding for are named where they come
in; logits are changed behind the head as the config says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from model_classes import TABLE, TOKENIZER
from small_models import LETTERS, letter_reward, llama, small_env, tokenizer
from transformers import LlamaConfig, LlamaForSequenceClassification

from lm_gym.agents import DPO, PPO, SFT
from lm_gym.loading import load_model
from lm_gym.logit_scaling import LogitScaling
from lm_gym.models import TransformersLM, different_tokens
from lm_gym.preferences import Preference
from lm_gym.reward_models import train_reward_model
from lm_gym.reward_models.classifier import Classifier
from lm_gym.reward_models.scalar_model import scalar_model


def folder(path: Path, letters: str, seed: int = 0) -> Path:
    """A saved model with a tokenizer of some letters."""
    tok = tokenizer(letters)
    llama(len(tok), seed=seed).save_pretrained(path)
    tok.save_pretrained(path)
    return path


def test_a_model_and_a_reference_of_other_vocabularies(tmp_path: Path) -> None:
    """Twelve tokens each, and one letter differs; the policy of an agent is looked at too."""
    a, b = folder(tmp_path / "a", LETTERS), folder(tmp_path / "b", LETTERS.replace("h", "i"), seed=1)
    words = "model and reference expected one vocabulary, got two: id 10 is 'h' in the model's tokenizer and 'i' in"
    for model in (str(a), load_model(a)):
        with pytest.raises(ValueError, match=words):
            small_env(model=model, reference=str(b))
    with pytest.raises(ValueError, match=words):  # one tokenizer for both fits only one
        small_env(model=str(a), reference=str(b), tokenizer=str(a))
    policy: Any = load_model(a)
    live = policy.model
    with pytest.raises(ValueError, match=words):
        small_env(model=live, reference=load_model(b))
    same = small_env(model=str(a), reference=str(folder(tmp_path / "c", LETTERS, seed=1)))
    PPO(same, batch_size=8, minibatch_size=4)
    live.name_or_path = ""  # nothing says where its tokenizer is
    late = small_env(model=live, reference=load_model(b))
    late.unwrapped.mdp._model = policy  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=words):
        PPO(late, batch_size=8, minibatch_size=4)


def test_texts_of_every_policy_end_where_the_problem_says(tmp_path: Path) -> None:
    """The model ends its turns with a letter, too; the reference does not, and so neither view of the problem."""
    model: Any = load_model(folder(tmp_path / "a", LETTERS))
    model.model.generation_config.eos_token_id = [2, 3]
    model.model.save_pretrained(tmp_path / "a")
    assert load_model(tmp_path / "a").eos_ids == (2, 3)
    env = small_env(model=str(tmp_path / "a"), reference=str(folder(tmp_path / "b", LETTERS, seed=1)))
    with pytest.warns(UserWarning, match=r"texts end where the reference's do, at the ids \[2\]: \[3\], which end"):
        agent = PPO(env, batch_size=32, minibatch_size=16)
    rollout = agent.complete(["abc"] * 32)
    assert any(3 in c.tokens[:-1] for c in rollout)
    assert all(env.unwrapped.mdp.finish_reason(c.tokens) == c.finish_reason for c in rollout)  # type: ignore[attr-defined]


def test_tokens_that_one_tokenizer_has_beyond_the_other_are_no_difference() -> None:
    a, b = tokenizer(LETTERS), tokenizer(LETTERS)
    b.add_tokens(["<tool>"])
    assert different_tokens(a, b) is None and different_tokens(a, None) is None
    assert different_tokens(a, tokenizer("abcdefghij Ġ")) == (11, "Ġ", "i")


def test_a_critic_of_another_vocabulary(tmp_path: Path) -> None:
    pairs = [Preference("ab", "c", "d"), Preference("ab", "e", "f")]
    for name, letters in (("right", LETTERS), ("other", LETTERS.replace("h", "i"))):
        base = folder(tmp_path / f"{name}-base", letters)
        train_reward_model(pairs, model=str(base), held_out=0, epochs=1).save(tmp_path / name)
    env = small_env(model=str(tmp_path / "right-base"))
    PPO(env, batch_size=8, minibatch_size=4, critic=str(tmp_path / "right"))
    with pytest.raises(ValueError, match="expected the policy's vocabulary, got another: id 10 is 'i' in its"):
        PPO(env, batch_size=8, minibatch_size=4, critic=str(tmp_path / "other"))


def grown() -> TransformersLM:
    """A model whose tokenizer has got a token that it was not resized for."""
    tok = tokenizer(LETTERS)
    lm = TransformersLM(llama(len(tok)), tok, "grown")
    tok.add_tokens(["<tool>"])
    return lm


NO_EMBEDDING = r"has the token '<tool>' of id 12, and model 'grown' embeds 12, ids 0 to 11.*resize_token_embeddings"


def test_ids_without_an_embedding_are_named_where_they_come_in() -> None:
    with pytest.raises(ValueError, match=f"prompt 1 {NO_EMBEDDING}"):
        small_env(model=grown(), prompts=["a", "b<tool>"])
    env = small_env(model=grown(), max_prompt_tokens=8)
    for bad in (lambda: env.reset(options={"prompt": "<tool>"}), lambda: PPO(env).generate("<tool>")):
        with pytest.raises(ValueError, match=f"prompt 0 {NO_EMBEDDING}"):
            bad()
    pairs = [{"prompt": "a", "chosen": "b", "rejected": c} for c in ("c", "<tool>")]
    with pytest.raises(ValueError, match=f"pairs: row 1 {NO_EMBEDDING}"):
        DPO(env, pairs=pairs, batch_size=2)
    data = [{"prompt": "a", "completion": "<tool>"}]
    with pytest.raises(ValueError, match=f"demonstration 0 {NO_EMBEDDING}"):
        SFT(env, data=data)
    with pytest.raises(ValueError, match=f"demonstration 0 {NO_EMBEDDING}"):
        PPO(env, ptx_coef=1.0, ptx_data=data)
    with pytest.raises(ValueError, match=r"comparison 0 text 1 has the token '<tool>' of id 12, and model 'bradley-t"):
        train_reward_model([Preference("a", "b", "<tool>")], model=grown(), held_out=0)
    judged = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=12, hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=1, num_labels=1
        )
    ).eval()
    with pytest.raises(ValueError, match="text 1 has the token '<tool>' of id 12, and model '.*LlamaForSeq"):
        Classifier(judged, tokenizer=grown().tokenizer)(["a", "a"], ["b", "<tool>"])


def model_of(name: str) -> Any:
    return next(row for row in TABLE if row.name == name).model()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gemma2", lambda z: 5.0 * torch.tanh(z / 5.0)),
        ("cohere", lambda z: 0.3 * z),
        ("granite", lambda z: z / 4.0),
        ("hyperclovax", lambda z: 0.3 * z),
        ("minicpm3", lambda z: z * (8 / 32)),
        ("mpt", lambda z: z),  # its logit_scale is not used
    ],
)
def test_what_is_behind_the_head(name: str, expected: Any) -> None:
    model = model_of(name)
    if name == "mpt":
        model.config.logit_scale = 0.5
    z = torch.linspace(-30, 30, 7)
    assert torch.allclose(LogitScaling(model)(z), expected(z), rtol=1e-6)
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        lm = TransformersLM(model, TOKENIZER, name)
        assert torch.allclose(lm.head(lm.trunk(ids, torch.ones_like(ids))), model(ids).logits, atol=1e-5)


def test_an_exported_policy_says_what_the_agent_said(tmp_path: Path) -> None:
    """Supervised fine-tuning of a capped model of the default initialisation, whose small logits hid the cap once."""
    torch.manual_seed(0)
    row = next(row for row in TABLE if row.name == "gemma2")
    model = row._replace(fields={"final_logit_softcapping": 5.0, "initializer_range": 0.02}).model()
    env = gym.make("LMAlign-v0", model=model, tokenizer=TOKENIZER, prompts=["a"], reward_model=letter_reward)
    agent = SFT(env, data=[{"prompt": "a", "completion": "bad"}] * 8, batch_size=8, learning_rate=0.1)
    agent.learn(200)
    [completion] = agent.complete(["a"])
    exported: Any = load_model(agent.save_pretrained(tmp_path / "out"))
    ids = [*completion.prompt_ids, *completion.tokens]
    with torch.no_grad():
        logp = exported.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    start = len(completion.prompt_ids) - 1
    found = [float(logp[start + k, token]) for k, token in enumerate(completion.tokens)]
    assert completion.logprobs.tolist() == pytest.approx(found, abs=1e-3)
    with torch.no_grad():  # the cap matters by now
        bare = exported.model.lm_head(exported.model.model(torch.tensor([ids])).last_hidden_state)[0].log_softmax(-1)
    assert abs(float(bare[start, completion.tokens[0]]) - found[0]) > 0.1


def test_reward_models_on_a_trunk_whose_logits_are_changed(tmp_path: Path) -> None:
    pairs = [Preference("ab", "c", "d"), Preference("ab", "e", "f")]
    lm = TransformersLM(model_of("gemma2"), TOKENIZER, "gemma2")
    fit = train_reward_model(pairs, model=lm, held_out=0, epochs=1)
    assert fit.judge.name == "bradley-terry:gemma2" and fit.save(tmp_path).is_dir()
    for name in ("granite", "ctrl", "xglm"):
        with pytest.raises(ValueError, match=r"ForCausalLM|LMHeadModel.*a classifier of the last token's state") as e:
            scalar_model(TransformersLM(model_of(name), TOKENIZER, name))
        assert len(str(e.value)) < 300


def test_a_trunk_that_cannot_decode_here_can_still_be_a_reward_model(tmp_path: Path) -> None:
    """GPT (2018) keeps no cache, and has a classifier."""
    model_of("openai-gpt").save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    fit = train_reward_model([Preference("ab", "c", "d")], model=str(tmp_path), held_out=0, epochs=1)
    assert len(fit.judge(["ab"], ["c"])) == 1
