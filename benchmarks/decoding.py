"""How fast does the engine decode? CPU seconds beside a plain loop over preallocated tensors, and beside ``generate``.

    python benchmarks/decoding.py                             # 1, 8, 32, 128 rows
    python benchmarks/decoding.py --rows 8 --new-tokens 1008  # long texts
    python benchmarks/decoding.py --vocab 50000 --json out.json

Every case writes the same work: N texts of 16 + 32 tokens, sampled from the whole vocabulary, on a GPT-2 of 4 x 256
(3.7 M parameters, vocabulary 2,000, random weights), one thread. The engine records log-probs, values and hidden
states, as PPO's does, and keeps texts from ending early (``min_new_tokens``). The cases take turns, each round in
another order; a ratio is the median over rounds of the ratio within a round.

- plain loop: GPT-2 written out over preallocated keys and values (plain.py), with a value head and log-probs.
- generate: ``transformers`` generate, which records neither.
- engine: :class:`lm_gym.decoding.Engine`.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections.abc import Callable
from typing import Any

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 128])
parser.add_argument("--rounds", type=int, default=7)
parser.add_argument("--repeats", type=int, default=0, help="calls a round and case; 0: as many as 16 rows make")
parser.add_argument("--vocab", type=int, default=2000)
parser.add_argument("--prompt-length", type=int, default=16)
parser.add_argument("--new-tokens", type=int, default=32)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--no-generate", action="store_true", help="leave out generate")
parser.add_argument("--json")


def cases(lm: Any, n: int, args: Any) -> dict[str, Callable[[], Any]]:
    import torch
    from plain import decode

    from lm_gym.decoding import Engine, GenerationParams

    t = args.new_tokens
    ids = torch.randint(2, lm.vocab_size, (n, args.prompt_length), generator=torch.Generator().manual_seed(0))
    head = torch.nn.Linear(lm.hidden_size, 1)
    engine = Engine(lm, value_head=lambda hidden: head(hidden).squeeze(-1), keep_hidden=True)
    params, prompts = GenerationParams(max_new_tokens=t, min_new_tokens=t), ids.tolist()

    def generate() -> None:
        how = {"max_new_tokens": t, "min_new_tokens": t, "do_sample": True, "top_k": 0, "top_p": 1.0, "pad_token_id": 0}
        lm.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **how)

    out: dict[str, Callable[[], Any]] = {
        "plain loop": lambda: decode(lm.model, ids, t, head),
        "engine": lambda: engine.generate(prompts, params),
    }
    return out if args.no_generate else {**out, "generate": generate}


def agrees(lm: Any, args: Any) -> float:
    """The largest difference between the plain loop's log-probs and those of one pass over its texts."""
    import torch
    from plain import decode

    ids = torch.randint(2, lm.vocab_size, (2, args.prompt_length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        text, logprobs, _ = decode(lm.model, ids, args.new_tokens, torch.nn.Linear(lm.hidden_size, 1))
        logits = lm.model(input_ids=text).logits[:, args.prompt_length - 1 : -1]
        want = torch.log_softmax(logits, -1).gather(-1, text[:, args.prompt_length :, None]).squeeze(-1)
    return float((want - logprobs).abs().max())


def main() -> None:
    args = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS=str(args.threads), HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    warnings.filterwarnings("ignore")
    import torch
    import transformers
    from stepping import build, table, take_turns

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    longest = args.prompt_length + args.new_tokens
    lm = build("gpt2", args.vocab, max(256, longest)).freeze()
    error = agrees(lm, args)
    assert error < 1e-3, error
    result: dict[str, Any] = {"vocab": lm.vocab_size, "tokens": [args.prompt_length, args.new_tokens], "rows": {}}
    for n in args.rows:
        seconds = take_turns(cases(lm, n, args), args.rounds, args.repeats or max(1, 16 // n))
        print(f"\n{n} rows" + " " * 8 + "tokens/CPU s   of the plain loop [min, max]")
        result["rows"][n] = table(seconds, n * args.new_tokens, "plain loop")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump(result, f, indent=1)


if __name__ == "__main__":
    main()
