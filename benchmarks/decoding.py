"""How fast does the engine decode? CPU seconds beside a plain loop over preallocated tensors, and beside ``generate``.

    python benchmarks/decoding.py                             # 1, 8, 32, 128 rows
    python benchmarks/decoding.py --rows 8 --new-tokens 1008  # long texts
    python benchmarks/decoding.py --vocab 50000 --json out.json

Every case writes the same work: N texts of 16 + 32 tokens, sampled from the whole vocabulary, on a GPT-2 of 4 x 256
(3.7 M parameters, vocabulary 2,000, random weights), one thread. The engine records log-probs, values and hidden
states, as PPO's does, and keeps texts from ending early (``min_new_tokens``). The cases take turns, each round in
another order; a ratio is the median over rounds of the ratio within a round.

- plain loop: GPT-2 written out over preallocated keys and values, with a value head and log-probs: ``raw_loop`` of
  ../shared/bench/floor.py, which runs everything at import, so it is written out again here.
- generate: ``transformers`` generate, which records neither.
- engine: :class:`lm_gym.decoding.Engine`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 128])
parser.add_argument("--rounds", type=int, default=7)
parser.add_argument("--repeats", type=int, default=0, help="calls a round and case; 0: as many as 64 rows make")
parser.add_argument("--vocab", type=int, default=2000)
parser.add_argument("--prompt-length", type=int, default=16)
parser.add_argument("--new-tokens", type=int, default=32)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--no-generate", action="store_true", help="leave out generate")
parser.add_argument("--json")


def plain_loop(model: Any, ids: Any, new_tokens: int, head: Any) -> tuple[Any, Any, Any]:
    """Tokens (N, P + T), log-probs (N, T) and values (N, T) of a GPT-2, with no module, mask or cache object."""
    import torch
    import torch.nn.functional as F

    trunk, config, n = model.transformer, model.config, ids.shape[0]
    heads, width, length = config.n_head, config.n_embd, ids.shape[1] + new_tokens
    size = width // heads
    keys = torch.empty(config.n_layer, n, heads, length, size)
    stored = torch.empty_like(keys)
    wte, wpe = trunk.wte.weight, trunk.wpe.weight
    blocks = [
        (b.ln_1.weight, b.ln_1.bias, b.attn.c_attn.weight, b.attn.c_attn.bias, b.attn.c_proj.weight, b.attn.c_proj.bias)
        + (b.ln_2.weight, b.ln_2.bias, b.mlp.c_fc.weight, b.mlp.c_fc.bias, b.mlp.c_proj.weight, b.mlp.c_proj.bias)
        for b in trunk.h
    ]
    text, logprobs, values, now, at = [ids], [], [], ids, 0
    for _ in range(new_tokens):
        t = now.shape[1]
        h = (wte[now] + wpe[at : at + t]).reshape(n * t, width)
        for i, (g1, b1, wa, ba, wp, bp, g2, b2, wf, bf, wo, bo) in enumerate(blocks):
            qkv = torch.addmm(ba, F.layer_norm(h, (width,), g1, b1), wa).view(n, t, 3, heads, size)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            keys[i, :, :, at : at + t] = k
            stored[i, :, :, at : at + t] = v
            y = F.scaled_dot_product_attention(q, keys[i, :, :, : at + t], stored[i, :, :, : at + t], is_causal=t > 1)
            h = h + torch.addmm(bp, y.transpose(1, 2).reshape(n * t, width), wp)
            f = F.gelu(torch.addmm(bf, F.layer_norm(h, (width,), g2, b2), wf), approximate="tanh")
            h = h + torch.addmm(bo, f, wo)
        at += t
        last = F.layer_norm(h.view(n, t, width)[:, -1], (width,), trunk.ln_f.weight, trunk.ln_f.bias)
        values.append(head(last))
        logp = torch.log_softmax((last @ wte.T).float(), -1)
        now = torch.multinomial(logp.exp(), 1)
        text.append(now)
        logprobs.append(logp.gather(-1, now))
    return torch.cat(text, 1), torch.cat(logprobs, 1), torch.cat(values, 1)


def cases(lm: Any, n: int, args: Any) -> dict[str, Callable[[], Any]]:
    import torch

    from lm_gym.decoding import Engine, GenerationParams

    t = args.new_tokens
    ids = torch.randint(2, lm.vocab_size, (n, args.prompt_length), generator=torch.Generator().manual_seed(0))
    head = torch.nn.Linear(lm.hidden_size, 1)
    engine = Engine(lm, value_head=lambda hidden: head(hidden).squeeze(-1), keep_hidden=True)
    params, prompts = GenerationParams(max_new_tokens=t, min_new_tokens=t), ids.tolist()

    @torch.no_grad()
    def plain() -> None:
        plain_loop(lm.model, ids, t, head)

    def generate() -> None:
        how = {"max_new_tokens": t, "min_new_tokens": t, "do_sample": True, "top_k": 0, "top_p": 1.0, "pad_token_id": 0}
        lm.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **how)

    out: dict[str, Callable[[], Any]] = {"plain loop": plain, "engine": lambda: engine.generate(prompts, params)}
    return out if args.no_generate else {**out, "generate": generate}


def agrees(lm: Any, args: Any) -> float:
    """The largest difference between the plain loop's log-probs and those of one pass over its texts."""
    import torch

    ids = torch.randint(2, lm.vocab_size, (2, args.prompt_length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        text, logprobs, _ = plain_loop(lm.model, ids, args.new_tokens, torch.nn.Linear(lm.hidden_size, 1))
        logits = lm.model(input_ids=text).logits[:, args.prompt_length - 1 : -1]
        want = torch.log_softmax(logits, -1).gather(-1, text[:, args.prompt_length :, None]).squeeze(-1)
    return float((want - logprobs).abs().max())


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
    lm = build("gpt2", args.vocab, max(256, longest)).freeze()
    error = agrees(lm, args)
    assert error < 1e-3, error
    result: dict[str, Any] = {"vocab": lm.vocab_size, "tokens": [args.prompt_length, args.new_tokens], "rows": {}}
    for n in args.rows:
        work, repeats = cases(lm, n, args), args.repeats or max(1, 64 // n)
        seconds: dict[str, list[float]] = {name: [] for name in work}
        for turn in range(args.rounds + 1):
            for name in sorted(work, reverse=bool(turn % 2)):
                started = time.process_time()
                for _ in range(repeats):
                    work[name]()
                seconds[name].append((time.process_time() - started) / repeats)
        rows = {}
        print(f"\n{n} rows" + " " * 8 + "tokens/CPU s   of the plain loop [min, max]")
        for name, spent in seconds.items():
            spent = spent[1:]  # the first round warms up
            ratios = [p / s for p, s in zip(seconds["plain loop"][1:], spent, strict=True)]
            ratio, speed = statistics.median(ratios), n * args.new_tokens / statistics.median(spent)
            rows[name] = {"tokens_per_cpu_second": speed, "of_plain_loop": ratio, "ratios": ratios}
            print(f"  {name:14s} {speed:8.0f}   {ratio:5.2f} [{min(ratios):.2f}, {max(ratios):.2f}]", flush=True)
        result["rows"][n] = rows
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump(result, f, indent=1)


if __name__ == "__main__":
    main()
