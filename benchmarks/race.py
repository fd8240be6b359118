"""Tokens and CPU seconds that an agent needs for reward .6 on the lexicon task of ../shared/bench, beside TRL.

    python benchmarks/race.py --agents grpo rloo ppo --seeds 3
    python benchmarks/race.py --agents grpo --set learning_rate=1e-3 epochs=4 --trl grpo:1e-3

The model (GPT-2 4x128), prompts and reward are those of ../shared/bench/tiny.py, KL coefficient .02, texts of 32
tokens that cannot end earlier. An agent has arrived when the mean reward of 256 fresh samples was at least .6 after two
updates in a row; these samples cost neither tokens nor seconds. CPU seconds leave out imports and loading, for both
sides. Of TRL they are its iterations' median times their number (its script reports no sum), and it has arrived when
two batches of 32 texts that it trains on have reached .6.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parents[2] / "shared" / "bench"
AIM, FRESH = 0.6, 256
SMALL = {"batch_size": 16, "minibatch_size": 4, "learning_rate": 1e-3, "lr_schedule": "constant"}
PAIRS = {"batch_size": 16, "learning_rate": 1e-3, "lr_schedule": "constant"}
BEST: dict[str, dict[str, Any]] = {
    "ppo": SMALL,
    "nlpo": SMALL,
    "a2c": SMALL,
    "reinforce": SMALL,
    "raft": SMALL,
    "grpo": {**SMALL, "epochs": 4},
    "dr-grpo": {**SMALL, "epochs": 4},
    "reinforce++": {**SMALL, "epochs": 4},
    "rloo": {**SMALL, "epochs": 4, "clip_range": 0.2},
    "online-dpo": PAIRS,
    "dpo": PAIRS,
    "kto": PAIRS,
}
"""Configurations for this task, beside the defaults: few texts an update and many steps on them, as the aim is near."""


def assets(folder: Path) -> dict[str, Any]:
    """The task's model, tokenizer and prompts, made once."""
    sys.path.insert(0, str(BENCH))
    import tiny  # ../shared/bench

    tiny.make_assets(str(folder), hidden=128)
    return dict(tiny.load_meta(str(folder)))


def lexicon_agent(folder: Path, meta: Mapping[str, Any], name: str, config: Mapping[str, Any], seed: int) -> Any:
    """An agent on the lexicon task; ``agent.mdp.reward_model`` is the lexicon."""
    import gymnasium as gym
    import numpy as np
    import torch

    import lm_gym  # noqa: F401  (registers the environments)
    from lm_gym.cli.options import load_agent
    from lm_gym.mdp import AlignmentMDP

    torch.set_num_threads(1)
    weight = np.zeros(meta["vocab"] + 8)
    weight[meta["pos"]], weight[meta["neg"]] = 1.0, -1.0

    def lexicon(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [float(np.clip(weight[ids].sum() / 8.0, -1.0, 1.0)) for ids in completion_ids]

    mdp = AlignmentMDP(
        model=str(folder / "policy"),
        tokenizer=str(folder),
        prompts=list(meta["prompts"]),
        reward_model=lexicon,
        max_new_tokens=32,
        min_new_tokens=32,
        kl_coef=0.02,
    )
    return load_agent(name)(gym.make("LMAlign-v0", mdp=mdp), seed=seed, **config)


def race(
    folder: Path, meta: Mapping[str, Any], name: str, config: Mapping[str, Any], seed: int, most: int
) -> dict[str, Any]:
    """Train one agent until it has arrived, or for ``most`` tokens."""
    import numpy as np

    from lm_gym.decoding import Engine

    agent = lexicon_agent(folder, meta, name, config, seed)
    mdp, lexicon = agent.mdp, agent.mdp.reward_model
    fresh = Engine(agent.policy.lm, seed=10_000 + seed)
    prompts = [p.token_ids for p in mdp.prompts[:FRESH]]
    measured, aside = [], 0.0
    started = time.process_time()

    def look(agent: Any, _: dict[str, float]) -> bool:
        nonlocal aside
        began = time.process_time()
        texts = fresh.generate(prompts, mdp.generation_params)
        measured.append(float(np.mean(lexicon(completion_ids=[t.tokens for t in texts]))))
        aside += time.process_time() - began
        return not (len(measured) > 1 and min(measured[-2:]) >= AIM)

    agent.learn(most, callback=look)
    arrived = len(measured) > 1 and min(measured[-2:]) >= AIM
    return {
        "agent": name,
        "seed": seed,
        "tokens": agent.tokens if arrived else None,
        "cpu": time.process_time() - started - aside,
        "rewards": [round(r, 3) for r in measured],
    }


def trl(folder: Path, algo: str, rate: str, seed: int) -> dict[str, Any]:
    """One run of ../shared/bench/trl_baseline.py with the TRL that is installed."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "trl.json"
        command = [sys.executable, str(BENCH / "trl_baseline.py"), "--algo", algo, "--reward", "lexicon", "--lr", rate]
        command += ["--seed", str(seed), "--iters", "40", "--threshold", str(AIM), "--kl", ".02", "--threads", "1"]
        subprocess.run(
            [*command, "--assets", str(folder), "--json", str(out), "--warmup", "0"], check=True, capture_output=True
        )
        found = json.loads(out.read_text())
    iterations = found["iters_to_threshold"]
    cpu = found["iter_cpu"]["median"] * iterations if iterations else None
    return {"agent": f"trl {algo} {rate}", "seed": seed, "tokens": found["tokens_to_threshold"], "cpu": cpu}


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """What each needed, and ratios to TRL's median of the same minutes."""
    names = list(dict.fromkeys(r["agent"] for r in rows))
    base = [r for r in rows if r["agent"].startswith("trl") and r["tokens"]]
    for name in names:
        good = [r for r in rows if r["agent"] == name and r["tokens"]]
        if not good:
            print(f"{name:16s} did not arrive")
            continue
        tokens, cpu = [r["tokens"] for r in good], [r["cpu"] for r in good]
        line = f"{name:16s} tokens {tokens}, median {statistics.median(tokens):.0f}; CPU s {[round(c, 1) for c in cpu]}"
        if base and not name.startswith("trl"):
            line += (
                f"; of TRL's: {statistics.median(tokens) / statistics.median(r['tokens'] for r in base):.2f} of the "
                f"tokens, {statistics.median(cpu) / statistics.median(r['cpu'] for r in base):.2f} of the seconds"
            )
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", nargs="+", default=["grpo", "rloo", "ppo"])
    parser.add_argument("--set", nargs="*", default=[], help="fields of every agent's configuration, key=value")
    parser.add_argument("--trl", nargs="*", default=[], help="algorithm:learning rate, such as grpo:1e-3")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--most", type=int, default=60_000, help="tokens after which an agent has not arrived")
    parser.add_argument("--assets", type=Path, default=Path(tempfile.gettempdir()) / "lm_gym_race")
    args = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    given = {key: ast.literal_eval(value) for key, value in (pair.split("=", 1) for pair in args.set)}
    meta, rows = assets(args.assets), []
    for seed in range(args.seeds):
        for algo, rate in (pair.split(":") for pair in args.trl):
            rows.append(trl(args.assets, algo, rate, seed))
            print(rows[-1], flush=True)
        for name in args.agents:
            rows.append(race(args.assets, meta, name, BEST.get(name, {}) | given, seed, args.most))
            print(rows[-1], flush=True)
    show(rows)


if __name__ == "__main__":
    main()
