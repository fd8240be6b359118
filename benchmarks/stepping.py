"""How fast does the environment step? Tokens a second, beside ``transformers`` generate, in one run.

    python benchmarks/stepping.py                      # 1, 8, 32, 128 rows
    python benchmarks/stepping.py --rows 32 --json out.json
    python benchmarks/stepping.py --vocab 50000 --no-uncached
    python benchmarks/stepping.py --device cuda --dtype bfloat16 --layers 12 --hidden 768 --no-uncached

Every case writes the same work: N texts of 16 + 32 tokens, sampled from the whole vocabulary, on a GPT-2 of 4 x 256
(3.7 M parameters, vocabulary 2,000, random weights), one thread. The cases take turns, so that other programs on the
machine disturb them alike; a ratio is the median over rounds of the ratio of CPU seconds (on a GPU: of the clock's)
within a round.

- generate: ``transformers`` generate, the policy alone.
- plain loop: GPT-2 written out over preallocated tensors (plain.py), policy and separate reference both decoded; what
  two decodes cost. For other models than ``gpt2`` a loop over DynamicCache.
- env + CachedLM: ``gym.make_vec`` stepped by a cached policy; the environment scores with its own reference.
- env, hidden: ``hidden`` observations; the policy is a head on the reference's hidden state, one forward serves both.
- env without cache: the same environment and driver, both running the whole prefix at every step.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections.abc import Callable
from typing import Any

from timing import table, take_turns, unit

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 128])
parser.add_argument("--rounds", type=int, default=7)
parser.add_argument("--repeats", type=int, default=0, help="calls a round and case; 0: as many as 16 rows make")
parser.add_argument("--model", choices=["gpt2", "llama", "tiny"], default="gpt2")
parser.add_argument("--vocab", type=int, default=2000)
parser.add_argument("--prompt-length", type=int, default=16)
parser.add_argument("--new-tokens", type=int, default=32)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--layers", type=int, default=4)
parser.add_argument("--hidden", type=int, default=256)
parser.add_argument("--device", default="cpu")
parser.add_argument("--dtype", default="float32")
parser.add_argument("--no-uncached", action="store_true", help="leave out the environment without cache (slow)")
parser.add_argument("--json")

P, T = 16, 32


def build(kind: str, vocab: int, positions: int = 256, layers: int = 4, hidden: int = 256) -> Any:
    """A model of random weights with a tokenizer that only decodes: speed does not depend on what it says."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    from lm_gym.loading import load_model
    from lm_gym.models import TransformersLM

    if kind == "tiny":
        return load_model("tiny")
    torch.manual_seed(0)
    ids: dict[str, Any] = {"eos_token_id": 1, "bos_token_id": 1, "pad_token_id": 0}
    heads = max(4, hidden // 64)
    model: Any
    if kind == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=vocab, n_positions=positions, n_embd=hidden, n_layer=layers, n_head=heads, **ids)
        )
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocab,
                hidden_size=hidden,
                intermediate_size=hidden * 11 // 4,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                max_position_embeddings=positions,
                **ids,
            )
        )
    return TransformersLM(model, _Decoder(), kind)


class _Decoder:
    """The part of a tokenizer that an environment needs."""

    eos_token_id, pad_token_id = 1, 0

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [2]}

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(map(str, ids))


def judge(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [float(len(ids)) for ids in completion_ids]


def uncached(lm: Any) -> Any:
    """The model with rows that run the whole prefix at every step, as environments without a cache do."""
    import copy

    import torch

    from lm_gym.rows import Rows

    class WholePrefix(Rows):
        def __init__(self, n: int) -> None:
            self.n, self.texts = n, [[0]] * n

        def insert(self, rows: Any, prompts: Any) -> Any:
            for i, prompt in zip(rows, prompts, strict=True):
                self.texts[i] = list(prompt)
            return self._forward()[list(rows)]

        def step(self, tokens: Any) -> Any:
            self.texts = [[*text, int(t)] for text, t in zip(self.texts, tokens, strict=True)]
            return self._forward()

        @torch.no_grad()
        def _forward(self) -> Any:
            width = max(map(len, self.texts))
            ids = torch.tensor([[0] * (width - len(t)) + t for t in self.texts], device=lm.device)
            mask = torch.tensor([[0] * (width - len(t)) + [1] * len(t) for t in self.texts], device=lm.device)
            return lm.trunk(ids, mask)[:, -1]

        def park(self, rows: Any) -> None:
            for i in rows:
                self.texts[i] = [0]

    slow = copy.copy(lm)
    slow.rows = lambda n, capacity: WholePrefix(n)
    return slow


def cases(lm: Any, n: int, with_uncached: bool) -> dict[str, Callable[[], None]]:
    import gymnasium as gym
    import torch
    from plain import decode_both
    from transformers import DynamicCache

    import lm_gym
    from lm_gym.cached_lm import masked
    from lm_gym.mdp import AlignmentMDP
    from lm_gym.prompts import Prompt
    from lm_gym.sampling import sample

    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(2, lm.vocab_size, (n, P), generator=draw).to(lm.device)
    # so many that two rows seldom draw the same, which the environment would compute once
    many = torch.randint(2, lm.vocab_size, (64 * n, P), generator=draw).tolist()
    prompts = [Prompt(i, str(i), tuple(row)) for i, row in enumerate(many)]
    model = lm.model

    def make(view: str = "tokens", reference: Any = lm) -> Any:
        mdp = AlignmentMDP(
            model=reference, prompts=prompts, reward_model=judge, max_new_tokens=T, min_new_tokens=T, kl_coef=0.05
        )
        return gym.make_vec("LMAlign-v0", num_envs=n, mdp=mdp, observation_mode=view, kl_mode="reference")

    @torch.no_grad()
    def generate() -> None:
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=T,
            min_new_tokens=T,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            pad_token_id=0,
        )

    @torch.no_grad()
    def plain_loop() -> None:
        if lm.name == "gpt2":
            decode_both(model, model, ids, T)
            return
        caches = [DynamicCache(config=model.config), DynamicCache(config=model.config)]
        now = ids
        for _ in range(T):
            logits, ref = (
                model(input_ids=now, past_key_values=c, use_cache=True, logits_to_keep=1).logits[:, -1].float()
                for c in caches
            )
            now = torch.multinomial(torch.log_softmax(logits, -1).exp(), 1)
            torch.log_softmax(ref, -1).gather(-1, now)

    def stepped(envs: Any, actor: Any) -> Callable[[], None]:
        obs, info = envs.reset(seed=0)

        def run() -> None:
            nonlocal obs, info  # the last step of a text has begun the next one
            for _ in range(T):
                actions, _, _ = actor.act(obs, action_mask=info["action_mask"])
                obs, _, _, _, info = envs.step(actions)

        return run

    shared = make("hidden")
    head, sampler = lm.head, torch.Generator().manual_seed(1)
    seen, info = shared.reset(seed=0)

    @torch.no_grad()
    def hidden() -> None:
        nonlocal seen, info
        for _ in range(T):
            states = torch.as_tensor(seen).to(lm.device, lm.dtype)
            logp = torch.log_softmax(masked(head(states), info["action_mask"]), -1)
            drawn = sample(logp, torch.rand(n, generator=sampler).to(lm.device))
            seen, _, _, _, info = shared.step(drawn.cpu().numpy())

    out = {
        "generate": generate,
        "plain loop": plain_loop,
        "env + CachedLM": stepped(make(), lm_gym.CachedLM(lm)),
        "env, hidden": hidden,
    }
    if with_uncached:
        slow = uncached(lm)
        out["env without cache"] = stepped(make(reference=slow), lm_gym.CachedLM(slow))
    return out


def main() -> None:
    global P, T
    args = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS=str(args.threads), HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    P, T = args.prompt_length, args.new_tokens
    warnings.filterwarnings("ignore")
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    lm = build(args.model, args.vocab, layers=args.layers, hidden=args.hidden).freeze()
    lm.to(args.device, getattr(torch, args.dtype))
    result: dict[str, Any] = {"model": args.model, "vocab": lm.vocab_size, "tokens": [P, T], "rows": {}}
    result |= {key: getattr(args, key) for key in ("device", "dtype", "layers", "hidden")}
    for n in args.rows:
        repeats = args.repeats or max(1, 16 // n)
        spent = take_turns(cases(lm, n, not args.no_uncached), args.rounds, repeats, args.device)
        print(f"\n{n} rows" + " " * 14 + f"tokens/{unit(args.device)}   of generate [min, max]   of the plain loop")
        rows = table(spent, n * T, "generate", "plain loop")
        if not args.no_uncached:
            gain = rows["env + CachedLM"]["of_generate"] / rows["env without cache"]["of_generate"]
            print(f"  env + CachedLM is {gain:.1f} times the environment without cache")
        result["rows"][n] = rows
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump(result, f, indent=1)


if __name__ == "__main__":
    main()
