"""Where the time of a PPO iteration goes, by kind of operation: the work of iteration.py under PyTorch's profiler.

    python benchmarks/where_time_goes.py --figure docs/img/where_time_goes.svg

Once as it is, and once the plain way (the modules of transformers over padded texts, torch's own log-softmax). Each
part runs alone, both ways in turns: decoding, scoring (judge, reference, what is logged), and the update. Bars are CPU
seconds without the profiler, divided by the profiler's shares of self time.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iteration import CONFIG, EPOCHS, MINIBATCHES, TEXTS, make_env

KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear"),
    "attention": ("aten::_scaled_dot",),
    "activation": ("aten::gelu", "aten::tanh", "aten::pow", "aten::sigmoid", "aten::addcmul", "_Gelu"),
    "softmax, log-probs": ("aten::_log_softmax", "aten::exp", "aten::gather", "aten::scatter", "_ChosenLog"),
    "norms": ("aten::native_layer_norm",),
    "optimizer, clipping": ("aten::_fused_adam", "aten::linalg_vector_norm", "aten::_foreach", "Optimizer."),
    "sums, products, copies": (
        "aten::add",
        "aten::mul",
        "aten::sub",
        "aten::copy_",
        "aten::fill_",
        "aten::sum",
        "aten::cat",
    ),
}
REST = "everything else"
REPEATS = 5


Found = dict[str, dict[str, tuple[float, dict[str, float]]]]


def shares(call: Callable[[], Any]) -> dict[str, float]:
    """How the time of a call divides by kind of operation."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as seen:
        call()
    found = dict.fromkeys([*KINDS, REST], 0.0)
    for event in seen.key_averages():
        kind = next((k for k, names in KINDS.items() if event.key.startswith(names)), REST)
        found[kind] += event.self_cpu_time_total
    total = sum(found.values())
    return {k: v / total for k, v in found.items()}


def parts(folder: str) -> dict[str, Callable[[], Any]]:
    """An agent's decoding, scoring and update on the benchmark's work."""
    from lm_gym.cli.options import load_agent

    env, _ = make_env(folder, "ppo")
    fixed = {"batch_size": TEXTS, "minibatch_size": TEXTS // MINIBATCHES, "epochs": EPOCHS, "lr_schedule": "constant"}
    # one rollout is trained on again and again here: its ratios may leave 1
    agent = load_agent("ppo")(env, learning_rate=1e-9, ratio_tolerance=1.0, **{**fixed, **CONFIG["ppo"]})
    prompts = [p.token_ids for p in agent.prompts_for_update()]
    generate = agent.engine.generate
    ready = generate(prompts, agent.generation_params)
    agent.engine.generate = lambda *_: ready
    rollout, _ = agent.collect()
    return {
        "decode": lambda: generate(prompts, agent.generation_params),
        "score": agent.collect,
        "update": lambda: agent.update(rollout),
    }


def measured(ways: dict[str, Callable[[], Any]], folder: str) -> Found:
    """CPU seconds of every part (the least of some, the ways in turns), and how they divide."""
    calls = {}
    for way, context in ways.items():
        with context():
            calls[way] = parts(folder)
    found: Found = {way: {} for way in ways}
    for part in ("decode", "score", "update"):
        took: dict[str, list[float]] = {way: [] for way in ways}
        for way in [*ways] * REPEATS:
            with ways[way]():
                start = time.process_time()
                calls[way][part]()
                took[way].append(time.process_time() - start)
        for way, context in ways.items():
            with context():
                found[way][part] = min(took[way]), shares(calls[way][part])
    return found


def draw(found: Found, out: Path) -> None:
    """A bar a part and way."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "lm-gym"
    import matplotlib.pyplot as plt

    rows = [(way, part) for part in ("update", "score", "decode") for way in reversed(found)]
    axes = plt.subplots(figsize=(7.2, 3.4), layout="constrained")[1]
    left = [0.0] * len(rows)
    for kind, colour in zip([*KINDS, REST], plt.colormaps["tab10"].colors):
        width = [found[way][part][0] * found[way][part][1][kind] for way, part in rows]
        axes.barh([f"{part}, {way}" for way, part in rows], width, left=left, label=kind, color=colour)
        left = [a + b for a, b in zip(left, width)]
    axes.set(xlabel="CPU seconds of one iteration (one thread)")
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)
    plt.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", default=os.path.join(tempfile.gettempdir(), "lm_bench_assets"))
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    import torch
    from learning_curve import as_plain

    from lm_gym.host_memory import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()  # as `learn` does
    found = measured({"now": contextlib.nullcontext, "plain": as_plain}, args.assets)
    for way, by_part in found.items():
        for part, (seconds, of) in by_part.items():
            kinds = ", ".join(f"{k} {v:.0%}" for k, v in sorted(of.items(), key=lambda kv: -kv[1]) if v >= 0.01)
            print(f"{way:6s} {part:7s} {seconds:.3f} s: {kinds}", flush=True)
    if args.figure:
        draw(found, args.figure)


if __name__ == "__main__":
    main()
