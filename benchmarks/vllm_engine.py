"""vLLM beside the built-in engine: tokens a CPU second, what pushing weights costs, how far the log-probs are apart.

    make test-vllm                                              # makes .venv-vllm
    TORCHDYNAMO_DISABLE=1 .venv-vllm/bin/python benchmarks/vllm_engine.py [--json out.json]

Both decode the same prompts of 16 tokens to the same length, one thread, taking turns; a ratio is the median over
rounds of the ratio within a round. "recorded" is what an agent asks for: values and hidden states too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from typing import Any

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--rows", type=int, nargs="+", default=[8, 32])
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--models", nargs="+", default=["tiny", "gpt2"])
parser.add_argument("--new-tokens", type=int, default=64)
parser.add_argument("--json")


def measure(model: str, rows: list[int], rounds: int, length: int) -> dict[str, Any]:
    import torch
    from stepping import build

    from lm_gym.decoding import Completion, Engine, GenerationParams
    from lm_gym.forward import pad_texts, response_hidden, token_logprobs
    from lm_gym.models import TransformersLM
    from lm_gym.vllm_engine import VLLMEngine

    lm = build(model, 2000)
    assert isinstance(lm, TransformersLM)
    lm.freeze()
    torch.manual_seed(0)
    prompts = torch.randint(3, lm.vocab_size, (max(rows), 16)).tolist()
    recorded = {"value_head": lambda h: h.sum(-1), "keep_hidden": True}
    started = time.process_time()
    vllm = VLLMEngine(lm, rows=max(rows), max_model_len=16 + length, prefix_caching=False)
    out: dict[str, Any] = {"start_seconds": time.process_time() - started, "rows": {}}
    engines = {
        "builtin": Engine(lm),
        "vllm": vllm,
        "builtin, recorded": Engine(lm, **recorded),  # type: ignore[arg-type]
        "vllm, recorded": VLLMEngine(lm, rows=max(rows), max_model_len=16 + length, prefix_caching=False, **recorded),  # type: ignore[arg-type]
    }

    def far(c: Completion) -> torch.Tensor:
        ids, seen, _ = pad_texts([c.prompt_ids], [c.tokens], lm.pad_id)
        with torch.no_grad():
            logits = lm.head(response_hidden(lm, ids, seen, len(c.tokens))[0])
        no_eos = torch.tensor(lm.eos_ids)
        logits[:, no_eos] = -torch.inf  # min_new_tokens is the whole length
        assert c.logprobs is not None
        return (token_logprobs(torch.log_softmax(logits, -1), torch.tensor(c.tokens)) - c.logprobs).abs()

    how = GenerationParams(max_new_tokens=length, min_new_tokens=length)
    for n in rows:
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        for turn in range(rounds + 1):
            for name, engine in engines.items():
                before = time.process_time()
                done = engine.generate(prompts[:n], how)
                if turn:  # the first warms up
                    seconds[name].append(time.process_time() - before)
                elif name == "vllm":
                    off = torch.cat([far(c) for c in done])
        out["rows"][n] = {name: n * length / statistics.median(x) for name, x in seconds.items()}
        out["rows"][n] |= {
            "ratio": statistics.median(b / v for b, v in zip(seconds["builtin"], seconds["vllm"])),
            "ratio, recorded": statistics.median(
                b / v for b, v in zip(seconds["builtin, recorded"], seconds["vllm, recorded"])
            ),
            "logprob_error_max": float(off.max()),
            "logprob_error_mean": float(off.mean()),
        }
    pushes = []
    for version in range(10):
        before = time.process_time()
        vllm.update_weights(lm, version)
        pushes.append(time.process_time() - before)
    return out | {"update_seconds": statistics.median(pushes), "parameters": sum(p.numel() for p in lm.parameters())}


def main() -> None:
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    torch.set_num_threads(1)
    result = {m: measure(m, options.rows, options.rounds, options.new_tokens) for m in options.models}
    for model, found in result.items():
        print(
            f"{model}: {found['parameters']:,} parameters, start {found['start_seconds']:.1f} s, "
            f"update_weights {found['update_seconds']:.3f} s"
        )
        for n, row in found["rows"].items():
            print(f"  {n} rows: " + ", ".join(f"{name} {x:.4g}" for name, x in row.items()))
    if options.json:
        with open(options.json, "w") as f:
            json.dump(result, f, indent=1)


if __name__ == "__main__":
    main()
