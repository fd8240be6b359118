"""How do time and memory of one PPO iteration grow? CPU seconds and peak memory beside a floor, along four axes: length
of texts, texts in a batch, vocabulary, size of the model.

    python benchmarks/growth.py                 # measures what docs/results/growth.jsonl lacks; draws; 5 CPU minutes
    python benchmarks/growth.py --draw          # only the figure and the tables, from what was measured
    python benchmarks/growth.py --quick         # two tiny points an axis, into a temporary folder
    python benchmarks/growth.py --device cuda   # into docs/results/growth-cuda.jsonl

An iteration decodes, scores and updates (1 epoch of 4 minibatches): GPT-2 of random weights, a classifier of its size
as the judge, float32, one thread. The floor is plain_ppo.py. Texts have a fixed number of tokens: the EOS logit is -30
in every state.

Every point and tool is a process of its own, forked after the imports. Ours and the floor take turns; the first turn of
each warms up. Peak memory is the high-water mark of resident memory since the models were made, less what was resident
then: what an iteration adds (cache, rollout, activations, gradients, Adam's moments). Linux only (/proc/self). On a GPU
seconds are the clock's, and memory is what PyTorch took there.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import growth_figure
from growth_figure import PARTS, TOOLS
from timing import Clock, seconds, unit

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
MINIBATCHES, PROMPT, POSITIONS, EOS = 4, 16, 1040, 1
TURNS, SECONDS = (2, 9), 3.0  # turns of a point: enough for so many CPU seconds, within these bounds
DOCS = Path(__file__).resolve().parents[1] / "docs"


@dataclass(frozen=True)
class Point:
    """Texts of 16 + ``tokens`` tokens on a GPT-2 of ``layers`` x ``width``."""

    texts: int = 8
    tokens: int = 32
    vocab: int = 2000
    layers: int = 4
    width: int = 128


MODELS = [(2, 64), (4, 128), (4, 256), (6, 384), (9, 512), (19, 768)]  # .3 to 137 M parameters
AXES: dict[str, list[Point]] = {
    "tokens": [Point(tokens=n) for n in (32, 64, 128, 256, 512, 1024)],
    "texts": [Point(texts=n) for n in (8, 16, 32, 64, 128, 256, 512)],
    "vocab": [Point(texts=32, vocab=n) for n in (500, 2000, 8000, 20_000, 50_000)],
    "params": [Point(layers=layers, width=width) for layers, width in MODELS],
}
QUICK: dict[str, list[Point]] = {
    "tokens": [Point(tokens=n, width=64) for n in (8, 16)],
    "texts": [Point(texts=n, tokens=8, width=64) for n in (4, 8)],
    "vocab": [Point(vocab=n, tokens=8, width=64) for n in (100, 200)],
    "params": [Point(layers=n, tokens=8, width=64) for n in (1, 2)],
}
WARM = Point(texts=4, tokens=8, layers=1, width=64)


def models(point: Point, device: str) -> tuple[Any, Any]:
    """A policy of random weights that never ends a text, and a judge of its size."""
    import torch
    from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

    torch.manual_seed(0)
    drop = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    ids = {"pad_token_id": 0, "bos_token_id": EOS, "eos_token_id": EOS, "num_labels": 1}
    shape = {"n_embd": point.width, "n_layer": point.layers, "n_head": max(2, point.width // 64)}
    config = GPT2Config(vocab_size=point.vocab, n_positions=POSITIONS, **shape, **drop, **ids)
    lm, judge = GPT2LMHeadModel(config).eval(), GPT2ForSequenceClassification(config).eval()
    with torch.no_grad():  # the first component of the last hidden state is 1, and EOS looks at nothing else
        norm, embedding = lm.transformer.ln_f, lm.transformer.wte.weight
        norm.weight[0], norm.bias[0] = 0.0, 1.0
        embedding[EOS], embedding[EOS, 0] = 0.0, -30.0
    return lm.to(device), judge.to(device)


def prompts(point: Point) -> Any:
    """(B, 16) ids."""
    import torch

    return torch.randint(3, point.vocab, (point.texts, PROMPT), generator=torch.Generator().manual_seed(0))


def ours(point: Point, device: str) -> Callable[[], dict[str, float]]:
    """One iteration of lm_gym's PPO, a call: seconds of its parts."""
    import gymnasium as gym
    import torch
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    import lm_gym  # noqa: F401  (registers the environments)
    from lm_gym.agents import PPO
    from lm_gym.reward_models import Classifier

    words = ["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(3, point.vocab))]
    raw = Tokenizer(kinds.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token=words[0], eos_token=words[1], unk_token="<unk>")
    lm, classifier = models(point, device)
    judge = Classifier(classifier, tokenizer=tokenizer)

    @torch.inference_mode()
    def scores(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        ids = [p + c for p, c in zip(tokenizer(prompts)["input_ids"], completion_ids, strict=True)]
        chunks = [ids[i : i + judge.batch_size] for i in range(0, len(ids), judge.batch_size)]
        return torch.cat([judge.logits(chunk).squeeze(-1) for chunk in chunks]).tolist()

    env = gym.make(
        "LMAlign-v0",
        model=lm,
        tokenizer=tokenizer,
        prompts=[tokenizer.decode(row) for row in prompts(point).tolist()],
        reward_model=scores,
        max_new_tokens=point.tokens,
        kl_coef=0.05,
    )
    size = {"batch_size": point.texts, "minibatch_size": point.texts // MINIBATCHES}
    agent = PPO(env, seed=0, epochs=1, learning_rate=1e-5, lr_schedule="constant", critic="shared", **size)
    decode, update = Clock(device), Clock(device)
    counts = int(device == "cpu")  # of wall and CPU seconds
    agent.engine.generate = decode.around(agent.engine.generate)
    agent.update = update.around(agent.update)

    def iteration() -> dict[str, float]:
        before, started = agent.tokens, seconds(device)
        agent.learn(1)  # the update that passes one token is the last
        whole = seconds(device) - started
        if agent.tokens - before != point.texts * point.tokens:
            raise SystemExit(f"{point} expected texts of a fixed length, got {agent.tokens - before} tokens in all")
        parts = {"decode": decode.take()[counts], "update": update.take()[counts]}
        return parts | {"score": whole - sum(parts.values())}

    return iteration


def floor(point: Point, device: str) -> Callable[[], dict[str, float]]:
    """One iteration of the floor, a call: seconds of its parts."""
    from plain_ppo import ppo_iteration

    return ppo_iteration(*models(point, device), prompts(point).to(device), point.tokens, minibatches=MINIBATCHES)


MAKE = {"ours": ours, "floor": floor}


def memory(device: str, *, peak: bool = False) -> float:
    """MiB in use now, or at most since the last :func:`forget_peak`: of this process, or on its GPU."""
    if device != "cpu":
        import torch

        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2**20
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM" if peak else "VmRSS")) / 1024


def forget_peak(device: str) -> None:
    if device != "cpu":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def serve(tool: str, point: Point, device: str, pipe: Any) -> None:
    """The process of a point and tool: an iteration whenever it is asked for one."""
    warnings.filterwarnings("ignore")
    MAKE[tool](WARM, device)()  # what torch sets up on first use is no part of an iteration
    forget_peak(device)
    imported = memory(device)
    iteration = MAKE[tool](point, device)
    forget_peak(device)
    built = memory(device)
    pipe.send(built - imported)
    while pipe.recv():
        pipe.send((iteration(), memory(device, peak=True) - built))


def measure(axis: str, point: Point, device: str, turns: tuple[int, int]) -> list[dict[str, Any]]:
    """A row for each tool, measured in turns."""
    import torch

    fork = multiprocessing.get_context("fork")
    pipes, processes = {}, []
    for tool in TOOLS:
        pipes[tool], end = fork.Pipe()
        processes.append(fork.Process(target=serve, args=(tool, point, device, end), daemon=True))
        processes[-1].start()
        end.close()
    try:
        built = {tool: pipe.recv() for tool, pipe in pipes.items()}
        found: dict[str, list[Any]] = {tool: [] for tool in TOOLS}
        spent = 0.0
        while len(found["ours"]) <= turns[0] or (spent < SECONDS and len(found["ours"]) <= turns[1]):
            for tool, pipe in pipes.items():
                pipe.send(True)
                found[tool].append(pipe.recv())
                spent += sum(found[tool][-1][0].values())
        for pipe in pipes.values():
            pipe.send(False)
    except EOFError as e:
        raise SystemExit(f"{axis} at {point}: a process ended before its answer; its error is above") from e
    finally:
        for process in processes:
            process.join(5)
            process.kill()
    width = point.width
    params = width * (point.vocab + POSITIONS + 2) + point.layers * width * (12 * width + 13)
    rows = []
    for tool, answers in found.items():
        row = {"axis": axis, "tool": tool, **asdict(point), "params": params, "torch": torch.__version__}
        row["device"] = device
        row |= {part: [round(seconds[part], 4) for seconds, _ in answers[1:]] for part in PARTS}
        row |= {"peak_mb": round(answers[-1][1], 1), "models_mb": round(built[tool], 1)}
        rows.append(row | {"load": round(os.getloadavg()[0], 2)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two tiny points an axis, into a temporary folder")
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES), help="which to measure")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--results", type=Path, help="default: docs/results/growth.jsonl")
    parser.add_argument("--figure", type=Path, help="default: docs/img/growth.svg; .pdf, .png")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="growth")) if args.quick else None
    name = "growth" if args.device == "cpu" else f"growth-{args.device}"
    args.results = args.results or (folder or DOCS / "results") / f"{name}.jsonl"
    args.figure = args.figure or (folder or DOCS / "img") / f"{name}.svg"
    rows = [json.loads(line) for line in args.results.read_text().splitlines()] if args.results.exists() else []
    done = {(row["axis"], *(row[key] for key in asdict(Point()))) for row in rows}
    if not args.draw:
        import torch
        import transformers

        torch.set_num_threads(1)
        transformers.logging.set_verbosity_error()
        # loads everything, once; a backward pass here would leave threads, which forks lack, as they would lack a GPU
        for make in MAKE.values():
            make(WARM, "cpu")
        for axis in args.axes:
            for point in (QUICK if args.quick else AXES)[axis]:
                if (axis, *asdict(point).values()) in done:
                    continue
                found = measure(axis, point, args.device, (1, 1) if args.quick else TURNS)
                with args.results.open("a") as f:
                    f.writelines(json.dumps(row) + "\n" for row in found)
                rows += found
                for row in found:
                    spent = f"{sum(statistics.median(row[part]) for part in PARTS):8.3f} {unit(args.device)}"
                    print(f"{axis} {row[axis]:>10} {row['tool']:6s} {spent} {row['peak_mb']:8.1f} MB", flush=True)
    print(growth_figure.table(rows))
    growth_figure.draw(rows, args.figure)
    print(f"\n{args.results}\n{args.figure}")


if __name__ == "__main__":
    main()
