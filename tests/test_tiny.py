"""The language model inside the package: its frozen bytes, its tokenizer, its world, and the gold scores."""

from __future__ import annotations

import hashlib
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from lm_gym import tiny
from lm_gym.tiny import gold, world
from lm_gym.tiny.document import Document
from lm_gym.tiny.ngram import KneserNey

ROOT = Path(tiny.__file__).parent
MARGIN_FEW = 0.8  # tiny's perplexity over the 5-gram model's, at most
MARGIN_SAME = 0.86  # measured: 1.660 / 1.998 = .83 (docs/tiny.md)
SCORE = {"reviews": gold.sentiment, "questions": gold.helpfulness, "requests": gold.harmlessness}


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny.tiny_path(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(tiny.tiny_path())


def gold_score(document: Document, completion: str | None = None) -> float:
    columns = document.columns()
    prompt = columns.pop("prompt")
    return SCORE[document.kind](prompt, document.completion if completion is None else completion, **columns)


def sample_documents(count: int, seed: int = 5) -> list[Document]:
    return list(world.corpus(seed, count, "test"))


# --- frozen bytes -----------------------------------------------------------------------------------------------------


def test_data_files_are_the_frozen_ones() -> None:
    files = sorted(p for folder in ("model", "prompts") for p in (ROOT / folder).iterdir())
    found = {p.relative_to(ROOT).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    assert found == tiny.SHA256


def test_prompt_files_are_what_the_world_writes(tmp_path: Path) -> None:
    world.write_prompts(tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (ROOT / "prompts" / path.name).read_bytes(), path.name


@pytest.mark.slow
def test_the_tokenizer_is_what_the_training_script_makes() -> None:
    from lm_gym.tiny.train import TrainConfig, make_tokenizer

    config = TrainConfig()
    made = make_tokenizer(config.vocab_size, config.seed)
    shipped = Tokenizer.from_file(str(tiny.tiny_path() / "tokenizer.json"))
    assert json.loads(made.to_str()) == json.loads(shipped.to_str())


# --- model and tokenizer ----------------------------------------------------------------------------------------------


def test_size_and_special_tokens(model: Any, tokenizer: Any) -> None:
    assert 1_000_000 <= sum(p.numel() for p in model.parameters()) <= 2_000_000
    assert (tiny.tiny_path() / "model.safetensors").stat().st_size <= 4_000_000
    assert len(tokenizer) == model.config.vocab_size <= 1000
    ids = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert len(set(ids)) == 3
    assert ids == (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.padding_side == "left"


def test_loads_in_under_a_fifth_of_a_second() -> None:
    AutoModelForCausalLM.from_pretrained(tiny.tiny_path())
    seconds = []
    for _ in range(5):
        start = time.process_time()
        AutoModelForCausalLM.from_pretrained(tiny.tiny_path(), dtype=torch.float32)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.2


@pytest.mark.parametrize(
    "text",
    [
        "The film was good.",
        " leading",
        "trailing ",
        "  two  spaces\n\ttab",
        "naïve café, 東京 🎬 \u200d",
        "",
        "don't ,x .",
    ],
)
def test_any_text_survives_encoding(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_a_prompt_is_a_token_prefix_of_its_text(tokenizer: Any) -> None:
    for d in sample_documents(50):
        ids = tokenizer(d.prompt).input_ids
        assert tokenizer(d.text).input_ids[: len(ids)] == ids


def test_prompts_have_the_promised_lengths(tokenizer: Any) -> None:
    for kind, longest in (("reviews", 32), ("questions", 40), ("requests", 40)):
        for split in tiny.SPLITS:
            lengths = sorted(len(tokenizer(row["prompt"]).input_ids) for row in tiny.prompts(kind, split))
            assert lengths[0] >= 5
            assert lengths[-1] <= longest
            assert lengths[len(lengths) * 9 // 10] <= 32


def five_gram_and_tiny(model: Any, train_texts: int, held_out_texts: int) -> tuple[float, float]:
    """Perplexity per token on texts with held-out prompts: of a 5-gram model of that many training texts, of tiny."""
    from lm_gym.tiny.train import encode, held_out, perplexity

    fast = Tokenizer.from_file(str(tiny.tiny_path() / "tokenizer.json"))
    texts = held_out(fast, held_out_texts)
    seen = encode(fast, [d.text for d in world.corpus(0, train_texts)])
    return KneserNey(seen, vocab_size=fast.get_vocab_size()).perplexity(texts), perplexity(model, texts)


def test_beats_a_five_gram_model_of_a_few_texts(model: Any) -> None:
    five_gram, ours = five_gram_and_tiny(model, 4000, 200)
    assert ours < five_gram * MARGIN_FEW


@pytest.mark.slow
def test_beats_a_five_gram_model_of_the_same_texts(model: Any) -> None:
    from lm_gym.tiny.train import TrainConfig

    five_gram, ours = five_gram_and_tiny(model, TrainConfig.steps * TrainConfig.batch_texts, 2000)
    assert ours < five_gram * MARGIN_SAME


def test_review_continuations_are_mixed_and_end(model: Any, tokenizer: Any) -> None:
    """VADER on sampled continuations: near neutral on average, widely spread, with room above; most of them end."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    vader = SentimentIntensityAnalyzer()
    batch = tokenizer(
        [row["prompt"] for row in tiny.prompts("reviews", "test")[:128]], padding=True, return_tensors="pt"
    )
    torch.manual_seed(0)
    out = model.generate(**batch, max_new_tokens=32, do_sample=True, top_k=0)[:, batch.input_ids.shape[1] :]
    ended = (out == tokenizer.eos_token_id).any(1).float().mean().item()
    scores = [vader.polarity_scores(t)["compound"] for t in tokenizer.batch_decode(out, skip_special_tokens=True)]
    assert 0.6 <= ended <= 0.9
    assert -0.05 <= statistics.mean(scores) <= 0.3  # 128 texts: standard error .05
    assert statistics.pstdev(scores) >= 0.4


# --- world ------------------------------------------------------------------------------------------------------------


def test_importing_tiny_and_its_world_needs_no_torch() -> None:
    code = "import sys, lm_gym.tiny, lm_gym.tiny.world, lm_gym.tiny.gold; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_world_is_the_same_under_every_hash_seed() -> None:
    code = (
        "import hashlib; from lm_gym.tiny import world; "
        "print(hashlib.sha256(repr(list(world.corpus(3, 300))).encode()).hexdigest())"
    )
    seen = set()
    for seed in ("0", "1", "99"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        seen.add(
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout
        )
    assert len(seen) == 1


def test_splits_are_disjoint_and_large_enough() -> None:
    for kind in tiny.KINDS:
        train, test = ([row["prompt"] for row in tiny.prompts(kind, split)] for split in tiny.SPLITS)
        assert len(set(train)) == len(train) == 1024
        assert len(set(test)) == len(test) == 512
        assert not set(train) & set(test)
        assert all(world.split_of(p) == "test" for p in test)
    assert all(world.split_of(d.prompt) == "train" for d in world.corpus(0, 500))
    assert len(tiny.prompts("all", "test")) == 3 * 512


def test_rows_have_the_same_columns_and_are_fresh() -> None:
    keys = ["prompt", "kind", "topic", "subject", "answer", "rivals", "unsafe"]
    assert all(list(row) == keys for row in tiny.prompts("all", "train"))
    tiny.prompts("reviews")[0]["prompt"] = "changed"
    assert tiny.prompts("reviews")[0]["prompt"] != "changed"


def test_wrong_names_say_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"reviews, questions, requests or all, got 'review'"):
        tiny.prompts("review")
    with pytest.raises(ValueError, match="'train' or 'test', got 'dev'"):
        tiny.prompts("reviews", "dev")
    with pytest.raises(ValueError, match="expected one of reviews"):
        next(world.documents("films", random.Random(0)))
    with pytest.raises(ValueError, match="'train' or 'test'"):
        next(world.documents("reviews", random.Random(0), "dev"))


def test_asking_for_more_prompts_than_there_are_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    few = sample_documents(20)
    monkeypatch.setitem(world.MAKERS, "reviews", lambda rng: rng.choice(few))
    with pytest.raises(ValueError, match=r"expected 100 different test prompts of reviews.*than 20: ask for fewer"):
        world.prompt_rows("reviews", "test", 100)


def test_texts_are_well_formed() -> None:
    for d in sample_documents(3000):
        assert d.completion.startswith(" ")
        assert d.completion[-1] in ".?!"
        assert not d.prompt.endswith(" ")
        for flaw in (
            "  ",
            "{",
            "[",
            "]",
            " .",
            " ,",
            "..",
            "theys",
            "tomatos",
            " a a",
            " a e",
            " a i",
            " a o",
            " an b",
        ):
            assert flaw not in d.text, d.text


# --- gold scores ------------------------------------------------------------------------------------------------------


def test_gold_scores_rank_the_labelled_classes() -> None:
    by_label: dict[str, list[float]] = defaultdict(list)
    for d in sample_documents(3000):
        by_label[d.label].append(gold_score(d))
    mean = {label: statistics.mean(scores) for label, scores in by_label.items()}
    assert mean["positive"] > 0.7
    assert mean["negative"] < -0.7
    assert abs(mean["mixed"]) < 0.15
    assert min(by_label["positive"]) > 0.1
    assert max(by_label["negative"]) < -0.1
    assert mean["complete"] > 0.95
    assert mean["complete"] > mean["partial"] + 0.3 > mean["rambling"] + 0.5
    assert max(mean["wrong"], mean["rambling"]) < 0.2
    assert max(mean["empty"], mean["off_topic"]) < 0.05
    assert mean["refuse_well"] > mean["refuse_rudely"] + 0.3
    assert mean["refuse_rudely"] > mean["comply"] + 0.3
    assert mean["comply"] < 0.05
    assert mean["help"] > mean["help_rudely"] + 0.3
    assert mean["help_rudely"] > mean["over_refuse"]


def test_helping_with_an_unsafe_request_is_helpful_and_harmful() -> None:
    for d in sample_documents(600):
        if d.label == "comply":
            columns = d.columns()
            assert gold.helpfulness(columns.pop("prompt"), d.completion, **columns) > 0.5
            assert gold_score(d) == 0


def test_gold_scores_stay_in_their_range_for_any_text() -> None:
    rng = random.Random(0)
    documents = sample_documents(300)
    words = " ".join(d.text for d in documents).split()
    for d in documents:
        columns = d.columns()
        prompt = columns.pop("prompt")
        for text in ("", " ", "?!", "東京 🎬", "x" * 5000, " ".join(rng.choices(words, k=rng.randrange(60)))):
            assert -1 <= gold.sentiment(prompt, text, **columns) <= 1
            assert 0 <= gold.helpfulness(prompt, text, **columns) <= 1
            assert 0 <= gold.harmlessness(prompt, text, **columns) <= 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        " great great great great great great great great",
        " wonderful superb amazing lovely brilliant perfect great",
        ".",
    ],
)
def test_hacks_of_sentiment_score_low(text: str) -> None:
    for d in sample_documents(60):
        if d.kind == "reviews":
            assert gold_score(d, text) < 0.35
            assert abs(gold_score(d, d.prompt)) < 0.1


def test_hacks_of_helpfulness_and_harmlessness_score_low() -> None:
    for d in sample_documents(400):
        if d.kind == "questions":
            assert gold_score(d, "") == 0
            assert gold_score(d, " " + d.prompt) < 0.6
            everything = " ".join([*(word for group in d.answer for word in group), *d.rivals])
            assert gold_score(d, everything) <= 0.6
            assert gold_score(d, " ".join([d.answer[0][0]] * 12)) < 0.3
        if d.kind == "requests":
            for text in ("", d.prompt, "sorry " * 12, "no " * 12):
                assert gold_score(d, text) <= 0.5
            twice = " I am sorry, but I cannot help you with that." * 6
            assert gold_score(d, twice) <= 0.3


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        (" superb.", 0.6, 0.8),
        (" not good at all.", -0.6, -0.2),
        (" not bad at all.", 0.2, 0.6),
        (" neither clever nor good.", -0.7, -0.3),
        (" very dull, but the music was superb and the ending was moving.", 0.3, 0.7),
        (" superb, but the music was awful and the ending was dull.", -0.7, -0.2),
        (" superb and moving, although the music was dull.", 0.2, 0.7),
        (" in colour.", 0.0, 0.0),
    ],
)
def test_sentiment_by_hand(text: str, low: float, high: float) -> None:
    assert low <= gold.sentiment("I watched this film and the acting was", text) <= high


def test_a_negation_in_the_prompt_reaches_the_completion() -> None:
    assert gold.sentiment("The acting was not", " good.") < 0 < gold.sentiment("The acting was", " good.")
    assert gold.sentiment("I did not go. The acting was quite", " good.") > 0


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (" Cows eat grass and they live on a farm.", 1.0),
        (" Cows eat grass.", 0.15 + 0.85 / 2),
        (" Cows eat fish and they live in a cave.", 0.15),
        (" I do not know.", 0.0),
    ],
)
def test_helpfulness_by_hand(text: str, score: float) -> None:
    columns = {"subject": ["cows", "cow"], "answer": [["grass"], ["farm"]], "rivals": ["fish", "cave"], "topic": "cows"}
    assert gold.helpfulness("What do cows eat, and where do they live?", text, **columns) == pytest.approx(score)


def test_a_missing_column_is_named() -> None:
    with pytest.raises(ValueError, match=r"helpfulness: expected the column 'answer'.*got no column"):
        gold.helpfulness("Who?", "I.")
    with pytest.raises(ValueError, match=r"harmlessness: expected the column 'unsafe'.*\['answer'\]"):
        gold.harmlessness("Who?", "I.", answer=[])


# --- n-gram model -----------------------------------------------------------------------------------------------------


def test_kneser_ney_is_a_distribution() -> None:
    rng = random.Random(0)
    texts = [[1, *rng.choices(range(3, 8), (5, 4, 3, 2, 1), k=rng.randrange(1, 9)), 2] for _ in range(60)]
    ngram = KneserNey(texts, order=3, vocab_size=9)
    for context in ([1], [1, 3], [1, 3, 4], [1, 3, 4, 5], [8, 8]):
        assert sum(ngram.prob(context, token) for token in range(9)) == pytest.approx(1.0)


def test_kneser_ney_unigram_by_hand() -> None:
    """Counts: 3 twice, 4 and 2 once, so y = 2 / (2 + 2·1), D1 = 1 - 2y·1/2 = .5 and D2 = 2 - 3y·1/1 = .5."""
    ngram = KneserNey([[1, 3, 3, 4, 2]], order=1, vocab_size=5)
    left = (0.5 * 2 + 0.5 * 1) / 4
    assert ngram.prob([], 3) == pytest.approx((2 - 0.5) / 4 + left / 5)
    assert ngram.prob([], 4) == pytest.approx((1 - 0.5) / 4 + left / 5)
    assert ngram.prob([], 0) == pytest.approx(left / 5)
    with pytest.raises(ValueError, match="at least 1"):
        KneserNey([], order=0, vocab_size=5)
