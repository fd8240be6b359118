"""Random models of two layers with tokenizers to match: what the tests of the environment run on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lm_gym.mdp import AlignmentMDP
from lm_gym.models import TransformersLM

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
LETTERS = "abcdefgh Ġ"
PROMPTS = ["abc", "a", "ab cd ef", "hag fed", "bad", "cab", "head"]


def tokenizer(alphabet: Sequence[str] | None = None, *, pad: str | None = PAD) -> PreTrainedTokenizerFast:
    """A token a byte: of all 256, or of a few letters and the space, so that random texts end often."""
    chars = sorted(pre_tokenizers.ByteLevel.alphabet()) if alphabet is None else sorted(set(alphabet) - {" "})
    vocab = {token: i for i, token in enumerate([PAD, BOS, EOS, *chars])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=EOS, bos_token=BOS, pad_token=pad or EOS)


def llama(
    vocab: int,
    *,
    seed: int = 0,
    width: int = 32,
    heads: int = 4,
    kv_heads: int = 4,
    positions: int = 128,
    scale: float = 0.3,
    **more: Any,
) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=positions,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **more,
    )
    return LlamaForCausalLM(config).eval()


def gpt2(vocab: int, *, seed: int = 0, width: int = 32, heads: int = 4, positions: int = 128) -> Any:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocab,
        n_embd=width,
        n_layer=2,
        n_head=heads,
        n_positions=positions,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    )
    return GPT2LMHeadModel(config).eval()


def small_lm(kind: str = "llama", *, seed: int = 0, alphabet: Sequence[str] | None = LETTERS) -> TransformersLM:
    """ "llama", "gqa" (grouped key/value heads) or "gpt2" behind the package's interface."""
    tok = tokenizer(alphabet)
    model = (
        gpt2(len(tok), seed=seed) if kind == "gpt2" else llama(len(tok), seed=seed, kv_heads=2 if kind == "gqa" else 4)
    )
    return TransformersLM(model, tok, kind)


def wide_lm(
    kind: str = "llama", *, seed: int = 0, pad: str | None = "<pad>", eos: Any = None, positions: int = 128
) -> TransformersLM:
    """A random model with heads of 32 dimensions, the least that vLLM takes; GPT-2's embeddings are tied too."""
    tok = tokenizer(LETTERS, pad=pad)
    if kind == "gpt2":
        model = gpt2(len(tok), seed=seed, width=64, heads=2, positions=positions)
    else:
        tied = kind.endswith("tied")
        more = {"kv_heads": 1 if tied else 2, "tie_word_embeddings": tied, "positions": positions}
        model = llama(len(tok), seed=seed, width=64, heads=2, **more)
    if eos is not None:
        model.generation_config.eos_token_id = eos
    lm = TransformersLM(model, tok, kind)
    lm.freeze()
    return lm


def letter_reward(completions: Sequence[str], **_: Any) -> list[float]:
    """A number for every text: letters weighted by their place in the alphabet, signs alternating."""
    return [sum((ord(c) % 7 - 3) * 0.1 for c in text) + 0.01 * len(text) for text in completions]


def small_mdp(lm: Any = None, **options: Any) -> AlignmentMDP:
    """A problem on a random model: eight letters, short prompts, 8 new tokens."""
    options = {"prompts": PROMPTS, "reward_model": letter_reward, "max_new_tokens": 8, "kl_coef": 0.3, **options}
    return AlignmentMDP(model=small_lm() if lm is None else lm, **options)


@dataclass
class Episode:
    """A finished text as its steps gave it."""

    prompt: str
    tokens: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    infos: list[dict[str, Any]] = field(default_factory=list)


def random_action(mask: np.ndarray, ends: np.ndarray, rng: np.random.Generator, p_end: float = 0.15) -> int:
    """One of the allowed actions; an end with probability ``p_end``, where one is allowed."""
    allowed, ending = np.flatnonzero(mask), np.flatnonzero(mask & ends)
    return int(rng.choice(ending if len(ending) and rng.random() < p_end else allowed))


def play(env: Any, episodes: int, *, seed: int = 0) -> list[Episode]:
    """Random episodes of a single environment; under kl_mode "reported" with random log-probs."""
    rng, base, done = np.random.default_rng(seed), env.unwrapped, []
    is_eos = base.stepper.is_eos.numpy()
    _, info = env.reset(seed=seed)
    while len(done) < episodes:
        episode = Episode(info["prompt"])
        ended = False
        while not ended:
            ids = info.get("action_tokens", np.arange(base.stepper.n_actions))
            action = random_action(info["action_mask"] == 1, is_eos[ids], rng)
            episode.tokens.append(int(ids[action]))
            episode.logprobs.append(-float(rng.exponential()))
            if base.kl_mode == "reported":
                base.report_logprob(episode.logprobs[-1])
            _, reward, ended, truncated, info = env.step(action)
            assert not truncated
            episode.rewards.append(float(reward))
            episode.infos.append(info)
        done.append(episode)
        if len(done) < episodes:
            _, info = env.reset()
    return done


def small_env(**options: Any) -> gym.Env[Any, Any]:
    """LMAlign-v0 on a random model."""
    arguments = {"prompts": PROMPTS, "reward_model": letter_reward, "max_new_tokens": 8, "kl_coef": 0.3, **options}
    arguments.setdefault("model", SHARED)
    return gym.make("LMAlign-v0", **arguments)


SHARED = small_lm("gqa")
"""A model that tests leave as it is."""
