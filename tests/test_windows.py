"""Sliding windows and chunks: what decodes with a cache, and whole texts in a batch, beside plain forwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from ppo_runs import environment, ppo
from small_models import LETTERS, play, small_mdp, tokenizer

from lm_gym.forward import pad_texts, response_states
from lm_gym.models import TransformersLM

WINDOW = 5
SIZES = {
    "vocab_size": 12,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SLIDES = {"sliding_window": WINDOW}
MIXED = {**SLIDES, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
GEMMA = {**MIXED, "head_dim": 8, "query_pre_attn_scalar": 8}
QWEN = {**SLIDES, "use_sliding_window": True, "max_window_layers": 1}
CHUNKS = {"attention_chunk_size": WINDOW, "layer_types": ["chunked_attention", "full_attention"], "head_dim": 8}
DECODER = {**{k: v for k, v in SIZES.items() if k != "num_key_value_heads"}, "cls_token_id": 1, "sep_token_id": 2}
NEO = {"num_layers": 2, "num_heads": 2, "attention_types": [[["local", "global"], 1]], "window_size": WINDOW}
KINDS: dict[str, dict[str, Any]] = {
    "Mistral": {**SIZES, **SLIDES},
    "Qwen2": {**SIZES, **QWEN},
    "Gemma3": {**SIZES, **GEMMA},
    "GptOss": {**SIZES, **MIXED, **EXPERTS, "head_dim": 8},
    "Llama4": {**SIZES, **CHUNKS, **EXPERTS, "intermediate_size_mlp": 24, "no_rope_layers": [1, 0]},
    "Qwen3": {**SIZES, **QWEN, "head_dim": 8},
    "Gemma2": {**SIZES, **GEMMA},
    "VaultGemma": {**SIZES, **GEMMA},
    "Cohere2": {**SIZES, **MIXED},
    "Phi3": {**SIZES, **SLIDES},
    "Starcoder2": {**SIZES, **SLIDES},
    "Exaone4": {**SIZES, **MIXED},
    "Olmo3": {**SIZES, **MIXED},
    "Mixtral": {**SIZES, **SLIDES, **EXPERTS},
    "Ministral3": {**SIZES, **SLIDES},
    "ModernBertDecoder": {**DECODER, "local_attention": 2 * WINDOW, "global_attn_every_n_layers": 2},
    "GPTNeo": {**{k: v for k, v in SIZES.items() if k[:4] != "num_"}, **NEO},
}
DEFAULT_SUITE = ("Mistral", "Qwen2", "Gemma3", "GptOss", "Llama4")
kinds = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in DEFAULT_SUITE else pytest.mark.slow) for kind in KINDS]
)


def windowed(kind: str, **changes: Any) -> TransformersLM:
    torch.manual_seed(0)
    text = "Text" if kind in ("Gemma3", "Llama4") else ""
    config = getattr(transformers, f"{kind}{text}Config")(**{**KINDS[kind], **changes})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    lm = TransformersLM(model, tokenizer(LETTERS), kind)
    lm.freeze()
    return lm


def plain(lm: TransformersLM, text: list[int]) -> torch.Tensor:
    """(length, V) log-probs of a text alone, by the model itself."""
    with torch.no_grad():
        out = lm.model(input_ids=torch.tensor([text]), use_cache=False)
    return out.logits[0].float().log_softmax(-1)  # type: ignore[no-any-return]


def some_texts() -> list[list[int]]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(3, 12, (24,), generator=draw).tolist() for _ in range(3)]


@kinds
def test_cached_rows_of_different_age_go_beyond_the_window(kind: str) -> None:
    lm, texts = windowed(kind), some_texts()
    assert lm.max_positions == 64
    want = [plain(lm, text) for text in texts]
    rows, found = lm.rows(3, 24), []

    def begin(row: int, length: int) -> None:
        hidden = rows.insert([row], [texts[row][:length]])
        found.append((row, length - 1, lm.head(hidden).log_softmax(-1)[0]))
        at[row] = length

    at: dict[int, int] = {}
    begin(0, 4)
    begin(1, 9)
    for step in range(18):
        if step == 5:
            begin(2, 2)  # shorter than the window, while the others are beyond it
        if step == 10:
            begin(1, 7)
        hidden = rows.step(torch.tensor([texts[row][at[row]] if row in at else 3 for row in range(3)]))
        for row, logp in enumerate(lm.head(hidden).log_softmax(-1)):
            if row in at:
                found.append((row, at[row], logp))
                at[row] += 1
    assert at == {0: 22, 1: 15, 2: 15}
    for row, place, logp in found:
        torch.testing.assert_close(logp, want[row][place], atol=1e-4, rtol=0)


@kinds
def test_padded_texts_see_no_further_than_their_windows(kind: str) -> None:
    lm, texts = windowed(kind), some_texts()
    prompts, responses = (
        [t[:n] for t, n in zip(texts, (4, 9, 2), strict=True)],
        [texts[0][4:], texts[1][9:20], texts[2][2:9]],
    )
    ids, seen, mask = pad_texts(prompts, responses, 0)
    logp = lm.head(response_states(lm, ids, seen, mask)).log_softmax(-1)
    want = [plain(lm, [*p, *r])[len(p) - 1 : -1] for p, r in zip(prompts, responses, strict=True)]
    torch.testing.assert_close(logp, torch.cat(want), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["Mistral", "Gemma3"])
def test_the_environment_and_a_rollout_go_beyond_the_window(kind: str) -> None:
    lm = windowed(kind)
    mdp = small_mdp(lm, max_new_tokens=16)
    episode = max(play(environment(mdp), 12, seed=2), key=lambda e: len(e.tokens))
    assert len(episode.tokens) > WINDOW
    prompt = lm.tokenizer(episode.prompt)["input_ids"]
    want = plain(lm, [*prompt, *episode.tokens])[len(prompt) - 1 : -1]
    for info, logp, token in zip(episode.infos, want, episode.tokens, strict=True):
        assert info["ref_logprob"] == pytest.approx(float(logp[token]), abs=1e-4)

    agent = ppo(environment(mdp), batch_size=16, minibatch_size=16)
    rollout, _ = agent.collect()
    assert int(rollout.lengths.max()) > WINDOW
    for row in range(16):
        n, text = int(rollout.lengths[row]), rollout.input_ids[row][rollout.attention_mask[row].bool()].tolist()
        want = plain(lm, text)[-n - 1 : -1].gather(-1, torch.tensor(text[-n:])[:, None])[:, 0]
        torch.testing.assert_close(rollout.logprobs[row, :n], want, atol=1e-4, rtol=0)
        torch.testing.assert_close(rollout.ref_logprobs[row, :n], want, atol=1e-4, rtol=0)
    assert agent.update(rollout)["val/first_ratio_error"] < 1e-4


def test_steps_are_written_out_as_long_as_no_text_is_longer_than_the_window() -> None:
    lm = windowed("Mistral")
    assert lm.rows(1, WINDOW).fast is not None  # type: ignore[attr-defined]
    assert lm.rows(1, WINDOW + 1).fast is None  # type: ignore[attr-defined]
    assert windowed("Mistral", sliding_window=None).rows(1, 64).fast is not None  # type: ignore[attr-defined]
