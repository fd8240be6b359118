"""CPU seconds of one iteration of our PPO, GRPO and RLOO, on the work of ../shared/bench: 32 texts of 16 + 32 tokens on
a GPT-2 of 4x256 with a vocabulary of 2,000, 4 epochs of 4 minibatches, float32, one thread.

    python benchmarks/iteration.py --algo ppo --json out.json
    python benchmarks/iteration.py --algo ppo --set autocast=bfloat16 --set frozen_layers=2
    python benchmarks/iteration.py --device cuda --dtype bfloat16 --layers 12 --hidden 768    # 87 M random weights

Beside TRL and the floor, interleaved, and the paired ratios of it (what docs/performance.md quotes):

    cd ../shared/bench
    python run_all.py --trl-path trl112 --reps 7 --out out --extra ours-ppo "python .../iteration.py --json {json}"
    python .../iteration.py --ratios out

The JSON has the form of ../shared/bench/trl_baseline.py. As there, PPO is judged by a GPT-2 classifier, GRPO and RLOO
(8 texts a prompt) by a lexicon. ``of_limit`` is how near decoding and the update come to what the machine can do, going
by a copy and a matrix product timed in the same minute: decoding reads every weight once a step, an update multiplies
6 times by every weight for every token. On a GPU every time is taken after its queue is empty.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from timing import Clock, machine, now

os.environ.setdefault("OMP_NUM_THREADS", "1")
BENCH = Path(__file__).resolve().parents[2] / "shared" / "bench"
TEXTS, TOKENS, EPOCHS, MINIBATCHES, GROUP = 32, 32, 4, 4, 8
CONFIG: dict[str, dict[str, Any]] = {
    "ppo": {"critic": "shared"},
    "grpo": {"group_size": GROUP},
    "rloo": {"group_size": GROUP, "clip_range": 0.2},
}
AGAINST = {"ppo": "ppo", "grpo": "grpo", "rloo": "rloo"}
FLOOR = "ppo_shared_head"


def make_env(folder: str, algo: str, layers: int = 4, hidden: int = 256, **more: Any) -> tuple[Any, dict[str, Any]]:
    """The benchmark's problem for an algorithm, and what tiny.py says of it."""
    import gymnasium as gym
    import torch
    from transformers import AutoTokenizer

    import lm_gym  # noqa: F401  (registers the environments)

    sys.path.insert(0, str(BENCH))
    import tiny  # ../shared/bench

    # other shapes keep random weights, which may not end a text: to train 87 M takes a quarter of an hour
    trained = {} if (layers, hidden) == (4, 256) else {"pretrain_steps": 0}
    tiny.make_assets(folder, layers=layers, hidden=hidden, heads=max(4, hidden // 64), **trained)
    meta = tiny.load_meta(folder)

    def lexicon(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return tiny.lexicon_scores(completion_ids, meta["pos"], meta["neg"])

    def classifier() -> Callable[..., list[float]]:
        from lm_gym.reward_models import Classifier

        judge = Classifier(os.path.join(folder, "reward"), tokenizer=tokenizer, device=more.get("device", "cpu"))

        @torch.inference_mode()
        def scores(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
            ids = [p + c for p, c in zip(tokenizer(prompts)["input_ids"], completion_ids)]
            return judge.logits(ids).squeeze(-1).tolist()

        return scores

    tokenizer = AutoTokenizer.from_pretrained(folder)
    env = gym.make(
        "LMAlign-v0",
        model=os.path.join(folder, "policy"),
        tokenizer=folder,
        prompts=list(meta["prompts"]),
        reward_model=classifier() if algo == "ppo" else lexicon,
        max_new_tokens=TOKENS,
        min_new_tokens=TOKENS if trained else 0,
        kl_coef=0.05,
        **more,
    )
    return env, meta


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run ``args.iters`` iterations of an agent; medians without the first."""
    import torch

    torch.set_num_threads(args.threads)
    from lm_gym.cli.options import load_agent

    standard = (args.layers, args.hidden) == (4, 256)
    folder = args.assets if standard else f"{args.assets}_{args.layers}x{args.hidden}"
    env, meta = make_env(folder, args.algo, args.layers, args.hidden, device=args.device, dtype=args.dtype)
    fixed = {"batch_size": TEXTS, "minibatch_size": TEXTS // MINIBATCHES, "epochs": EPOCHS, "lr_schedule": "constant"}
    agent = load_agent(args.algo)(env, seed=args.seed, learning_rate=1e-5, **{**fixed, **CONFIG[args.algo], **args.set})
    if args.cuda_graphs:
        agent.engine.cuda_graphs = True
    decode, update = Clock(args.device), Clock(args.device)
    agent.engine.generate = decode.around(agent.engine.generate)
    agent.update = update.around(agent.update)
    steps, step = [0], agent.optimizer.step

    def counted(*a: Any, **k: Any) -> Any:
        steps[0] += 1
        return step(*a, **k)

    agent.optimizer.step = counted
    rows: list[dict[str, tuple[float, float]]] = []
    lengths: list[int] = []
    last: list[float] = [*now(args.device), 0]

    def look(agent: Any, _: dict[str, float]) -> bool:
        then = now(args.device)
        whole = then[0] - last[0], then[1] - last[1]
        gen, opt = decode.take(), update.take()
        rows.append({"gen": gen, "opt": opt, "score": (whole[0] - gen[0] - opt[0], whole[1] - gen[1] - opt[1])})
        lengths.append(agent.tokens - last[2])
        last[:] = [*then, agent.tokens]
        return len(rows) < args.iters

    started = tuple(last[:2])
    agent.learn(10**9, callback=look)
    if min(lengths) < 0.98 * TEXTS * TOKENS:
        raise SystemExit(f"texts expected {TOKENS} tokens each, got {min(lengths)} in a batch of {TEXTS}")
    rows = rows[args.warmup :]

    def stat(xs: Sequence[float]) -> dict[str, float]:
        return {"median": round(statistics.median(xs), 4), "min": round(min(xs), 4), "max": round(max(xs), 4)}

    out: dict[str, Any] = {"tool": "lm-gym", "algo": args.algo, "torch": torch.__version__, "device": args.device}
    out |= {
        "dtype": args.dtype,
        "cuda_graphs": args.cuda_graphs,
        "set": args.set,
        "iters": len(rows),
        "threads": args.threads,
        "params": meta["params"],
        "seed": args.seed,
    }
    out |= {"tokens_per_iter": TEXTS * TOKENS, "optimizer_steps": steps[0]}
    for j, unit in enumerate(("wall", "cpu")):
        out |= {f"{part}_{unit}": stat([r[part][j] for r in rows]) for part in ("gen", "score", "opt")}
        out[f"iter_{unit}"] = stat([sum(v[j] for v in r.values()) for r in rows])
        out[f"tok_s_{unit}"] = round(TEXTS * TOKENS / out[f"iter_{unit}"]["median"], 1)
    out["peak_rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    bandwidth, products = machine(args.device, agent.policy.lm.dtype)
    weights = sum(p.numel() for p in agent.policy.lm.parameters())
    step = max(weights * agent.policy.lm.dtype.itemsize / bandwidth, TEXTS * weights / products)
    tokens = sum(len(p.token_ids) for p in env.unwrapped.mdp.prompts[:TEXTS]) + TEXTS * TOKENS
    least = {"gen": TOKENS * step, "opt": 3 * weights * tokens * EPOCHS / products}
    out["of_limit"] = {part: round(seconds / out[f"{part}_wall"]["median"], 3) for part, seconds in least.items()}
    out |= {"weights": weights, "copy_gb_s": round(bandwidth / 1e9, 1), "products_per_s": round(products / 1e9, 1)}
    if args.device.startswith("cuda"):
        out["peak_gpu_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
        out["gpu"] = torch.cuda.get_device_name()
    out["total_wall"], out["total_cpu"] = (round(b - a, 2) for a, b in zip(started, last[:2]))
    out["loadavg"] = os.getloadavg()[0]
    return out


def ratios(folder: Path) -> None:
    """Paired ratios, run by run, of what run_all.py wrote into a folder: seconds an iteration, and peak memory."""
    runs: dict[str, dict[int, Any]] = {}
    for path in sorted(folder.glob("*.json")):
        name, rep = path.name.rsplit(".", 2)[:2]
        runs.setdefault(name, {})[int(rep)] = json.loads(path.read_text())
    floor = runs.pop("floor", {})
    ours = {n: r for n, r in runs.items() if next(iter(r.values())).get("tool") == "lm-gym"}
    for name, mine in ours.items():
        first = next(iter(mine.values()))
        algo, key = first["algo"], "iter_cpu" if first["device"] == "cpu" else "iter_wall"
        bases = {f"TRL {algo}": {i: r[key]["median"] for i, r in runs.get(AGAINST[algo], {}).items()}}
        bases["floor, shared trunk"] = {i: r["iterations"][FLOOR][key]["median"] for i, r in floor.items()}
        for what, base in bases.items():
            both = sorted(set(mine) & set(base))
            if not both:
                continue
            found = [mine[i][key]["median"] / base[i] for i in both]
            print(
                f"{name:24s} of {what:20s} median {statistics.median(found):.3f} [{min(found):.3f}, {max(found):.3f}], "
                f"{len(found)} runs; 1/{1 / statistics.median(found):.2f}"
            )
        trl = runs.get(AGAINST[algo], {})
        peaks = [statistics.median(r["peak_rss_mb"] for r in of.values()) for of in (mine, trl) if of]
        print(f"{name:24s} peak MB " + " of TRL's ".join(f"{p:.0f}" for p in peaks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", choices=list(CONFIG), default="ppo")
    parser.add_argument("--assets", default=os.path.join(tempfile.gettempdir(), "lm_bench_assets"))
    parser.add_argument("--iters", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--cuda-graphs", action="store_true", help="decode with Engine(cuda_graphs=True)")
    parser.add_argument("--set", action="append", default=[], help="a field of the agent's configuration, key=value")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--ratios", type=Path, help="only print the paired ratios of a folder of run_all.py")
    args = parser.parse_args()
    if args.ratios:
        return ratios(args.ratios)
    given = dict(pair.split("=", 1) for pair in args.set)
    words = {"True": True, "False": False, "None": None}
    args.set = {k: words[v] if v in words else v if v[0].isalpha() else ast.literal_eval(v) for k, v in given.items()}
    found = measure(args)
    print(json.dumps(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
