"""How fast does the engine decode? CPU seconds beside a plain loop over preallocated tensors, and beside ``generate``.

    python benchmarks/decoding.py                             # 1, 8, 32, 128 rows
    python benchmarks/decoding.py --rows 8 --new-tokens 1008  # long texts
    python benchmarks/decoding.py --vocab 50000 --json out.json
    python benchmarks/decoding.py --device cuda --dtype bfloat16 --layers 12 --hidden 768

Every case writes the same work: N texts of 16 + 32 tokens, sampled from the whole vocabulary, on a GPT-2 of 4 x 256
(3.7 M parameters, vocabulary 2,000, random weights), one thread. The engine records log-probs, values and hidden
states, as PPO's does, and keeps texts from ending early (``min_new_tokens``). The cases take turns, each round in
another order; a ratio is the median over rounds of the ratio within a round.

- plain loop: GPT-2 written out over preallocated keys and values (plain.py), with a value head and log-probs.
- generate: ``transformers`` generate, which records neither.
- engine: :class:`lm_gym.decoding.Engine`; on a GPU also with ``cuda_graphs``.

On a GPU seconds are the clock's, and lines below a table say how near a case comes to what the machine can do: a step
reads every weight and every key and value once, and multiplies by every weight once a row; a copy and a matrix product
timed at the start say how long that takes at least. On a CPU small models stay in the cache, and nothing of that is
said.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections.abc import Callable
from typing import Any

from timing import machine, table, take_turns, unit

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 128])
parser.add_argument("--rounds", type=int, default=7)
parser.add_argument("--repeats", type=int, default=0, help="calls a round and case; 0: as many as 16 rows make")
parser.add_argument("--vocab", type=int, default=2000)
parser.add_argument("--prompt-length", type=int, default=16)
parser.add_argument("--new-tokens", type=int, default=32)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--layers", type=int, default=4)
parser.add_argument("--hidden", type=int, default=256)
parser.add_argument("--device", default="cpu")
parser.add_argument("--dtype", default="float32")
parser.add_argument("--no-generate", action="store_true", help="leave out generate")
parser.add_argument("--json")


def cases(lm: Any, n: int, args: Any) -> dict[str, Callable[[], Any]]:
    import torch
    from plain import decode

    from lm_gym.decoding import Engine, GenerationParams

    t = args.new_tokens
    ids = torch.randint(2, lm.vocab_size, (n, args.prompt_length), generator=torch.Generator().manual_seed(0))
    ids, linear = ids.to(lm.device), torch.nn.Linear(lm.hidden_size, 1).to(lm.device)
    head = lambda hidden: linear(hidden.float())
    how: dict[str, Any] = {"value_head": lambda hidden: head(hidden).squeeze(-1), "keep_hidden": True}
    engine = Engine(lm, **how)
    params, prompts = GenerationParams(max_new_tokens=t, min_new_tokens=t), ids.tolist()

    def generate() -> None:
        draws = {"do_sample": True, "top_k": 0, "top_p": 1.0, "pad_token_id": 0}
        mask = torch.ones_like(ids)
        lm.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=t, min_new_tokens=t, **draws)

    out: dict[str, Callable[[], Any]] = {
        "plain loop": lambda: decode(lm.model, ids, t, head),
        "engine": lambda: engine.generate(prompts, params),
    }
    if lm.device.type == "cuda":
        graphs = Engine(lm, cuda_graphs=True, **how)
        out["engine, CUDA graphs"] = lambda: graphs.generate(prompts, params)
    return out if args.no_generate else {**out, "generate": generate}


def agrees(lm: Any, args: Any) -> float:
    """The largest difference between the plain loop's log-probs and those of one pass over its texts."""
    import torch
    from plain import decode

    ids = torch.randint(2, lm.vocab_size, (2, args.prompt_length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        text, logprobs, _ = decode(lm.model, ids.to(lm.device), args.new_tokens, lambda hidden: hidden[:, :1])
        logits = lm.model(input_ids=text).logits[:, args.prompt_length - 1 : -1].float()
        want = torch.log_softmax(logits, -1).gather(-1, text[:, args.prompt_length :, None]).squeeze(-1)
    return float((want - logprobs).abs().max())


def limit(lm: Any, n: int, args: Any, bandwidth: float, products: float) -> float:
    """Tokens a second that n rows can make at most."""
    config, size = lm.model.config, lm.dtype.itemsize
    weights = sum(p.numel() for p in lm.model.parameters()) - lm.model.transformer.wpe.weight.numel()
    length = args.prompt_length + args.new_tokens / 2
    cache = 2 * n * length * config.n_layer * config.n_embd
    return n / max((weights + cache) * size / bandwidth, n * weights / products)


def main() -> None:
    args = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS=str(args.threads), HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    warnings.filterwarnings("ignore")
    import torch
    import transformers
    from stepping import build

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    longest = args.prompt_length + args.new_tokens
    lm = build("gpt2", args.vocab, max(256, longest), args.layers, args.hidden).freeze()
    lm.to(args.device, getattr(torch, args.dtype))
    error = agrees(lm, args)
    assert error < (1e-3 if args.dtype == "float32" else 0.5), error
    result: dict[str, Any] = {"vocab": lm.vocab_size, "tokens": [args.prompt_length, args.new_tokens], "rows": {}}
    result |= {key: getattr(args, key) for key in ("device", "dtype", "layers", "hidden")}
    if args.device != "cpu":  # on a CPU small models stay in the cache, and a copy says nothing of it
        result["machine"] = machine(args.device, lm.dtype)
    for n in args.rows:
        repeats = args.repeats or max(1, 16 // n)
        spent = take_turns(cases(lm, n, args), args.rounds, repeats, args.device)
        print(f"\n{n} rows" + " " * 8 + f"tokens/{unit(args.device)}   of the plain loop [min, max]")
        rows = table(spent, n * args.new_tokens, "plain loop")
        if "machine" in result:
            most = limit(lm, n, args, *result["machine"])
            for name, row in rows.items():
                row["of_limit"] = row["tokens_per_second"] / most
                print(f"  {name:20s} {row['of_limit']:.3f} of the machine's limit, {most:.0f} tokens/s")
        result["rows"][n] = rows
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump(result, f, indent=1)


if __name__ == "__main__":
    main()
