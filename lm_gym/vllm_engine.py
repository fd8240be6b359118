"""Decoding by vLLM (Kwon et al. 2023, arXiv:2309.06180) under the contract of the built-in engine.

vLLM keeps a copy of the weights, so they are pushed after every update. It gives tokens and their log-probs in the
distribution that they were drawn from; values and hidden states it does not give: where they are asked for, one pass
of our own model over the finished texts makes them. docs/vllm.md says what it costs and what is refused.
"""

from __future__ import annotations

import tempfile
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lm_gym.decoding import Completion, GenerationParams, finish_reason, restrict
from lm_gym.forward import by_length, pad_texts, response_hidden, token_logprobs
from lm_gym.loading import load_model, quiet, resolve_dtype
from lm_gym.models import CausalLM, TransformersLM
from lm_gym.positions import because
from lm_gym.reference_pass import SCORING_TOKENS
from lm_gym.vllm_process import import_vllm, open_llm, process_as_it_was, release
from lm_gym.vllm_weights import checksum, named_weights, save

LEAST_TEMPERATURE = 0.01
"""vLLM raises smaller ones to this without a word that a caller sees."""


@dataclass
class _Text:
    """What a request has written so far."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reason: str | None = None


class VLLMEngine:
    """A decoding engine, :class:`~lm_gym.decoding.DecodingEngine`, around ``vllm.LLM`` in this process.

    Args:
        lm: a ``transformers`` policy, or what :func:`~lm_gym.loading.load_model` loads (then in ``dtype``).
        value_head: hidden (n, d) to values (n,). keep_hidden: whether completions carry the hidden states. Either
            costs one pass of ``lm`` over the finished texts.
        seed: of the generator that every request's own seed is drawn from.
        dtype: what vLLM computes in; None: the policy's. max_model_len: longest prompt and completion in tokens; None:
            the model's.
        rows: how many texts decode together at most. prefix_caching: prompts that begin alike are computed once.
        gpu_memory_utilization: share of a GPU's memory for weights and cache. kv_cache_gib: GiB of cache instead; None:
            what that share leaves on a GPU, 1 on a CPU. enforce_eager: no CUDA graphs and no compilation.

    Raises:
        ImportError: vLLM is not installed. ValueError: a model or an option that it cannot decode.
    """

    guide: CausalLM | None = None
    """None: vLLM cannot restrict choices by another model."""

    def __init__(
        self,
        lm: CausalLM | str | Path,
        *,
        value_head: Callable[[torch.Tensor], torch.Tensor] | None = None,
        keep_hidden: bool = False,
        seed: int = 0,
        dtype: Any = None,
        max_model_len: int | None = None,
        rows: int = 256,
        prefix_caching: bool = True,
        gpu_memory_utilization: float = 0.5,
        kv_cache_gib: float | None = None,
        enforce_eager: bool = True,
    ) -> None:
        if not isinstance(lm, CausalLM):
            lm = load_model(lm, dtype=dtype or "float32").freeze()
        if not isinstance(lm, TransformersLM):
            raise ValueError(f"VLLMEngine expected a transformers model, got {type(lm).__name__}: use engine='builtin'")
        self.lm, self.value_head, self.keep_hidden = lm, value_head, keep_hidden
        self.max_model_len = min(lm.max_positions, max_model_len or lm.max_positions)
        self.version, self._requests, self._pushed = 0, 0, checksum(lm)
        self.generator = torch.Generator().manual_seed(seed)
        self.vllm = import_vllm()
        self.llm: Any = None
        self._finalizer: weakref.finalize[..., VLLMEngine] | None = None
        cpu = not torch.cuda.is_available()
        gib = 1.0 if kv_cache_gib is None and cpu else kv_cache_gib
        with tempfile.TemporaryDirectory(prefix="lm-gym-vllm-") as folder, process_as_it_was(), quiet():
            self.shapes = save(lm, Path(folder))
            try:
                self.llm, key = open_llm(
                    self.vllm,
                    model=folder,
                    skip_tokenizer_init=True,
                    dtype=lm.dtype if dtype is None else resolve_dtype(dtype),
                    max_model_len=int(self.max_model_len),
                    max_num_seqs=rows,
                    enable_prefix_caching=prefix_caching,
                    gpu_memory_utilization=gpu_memory_utilization,
                    kv_cache_memory_bytes=None if gib is None else int(gib * 2**30),
                    enforce_eager=enforce_eager,
                    logprobs_mode="processed_logprobs",
                    generation_config="vllm",
                    use_tqdm_on_load=False,
                    seed=0,
                )
                self._finalizer = weakref.finalize(self, release, key)
                self._decode([[lm.eos_ids[0]]], GenerationParams(1), [0])  # what its kernels lack shows only here
            except (ValueError, NotImplementedError, RuntimeError) as e:
                self.close()
                raise ValueError(
                    f"vLLM {self.vllm.__version__} does not load {lm.name!r} ({type(lm.causal_lm()).__name__}): "
                    f"{str(e).strip() or type(e).__name__}; use engine='builtin', or see docs/vllm.md"
                ) from e

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "an engine of vLLM is a process with its own memory and cannot be copied or pickled: save the agent and "
            "load it (agent.save, load), or make it with engine='builtin'"
        )

    def update_weights(self, lm: CausalLM, version: int) -> None:
        """Decode with these weights from now on: they are copied into vLLM, and its cache of prompts is emptied.

        Raises:
            ValueError: another architecture than the engine was made with.
        """
        if not isinstance(lm, TransformersLM):
            raise ValueError(f"update_weights expected a transformers model, got {type(lm).__name__}")
        weights = named_weights(lm)
        shapes = {key: tuple(value.shape) for key, value in weights.items()}
        if shapes != self.shapes:
            odd = sorted(str(key) for key, _ in set(shapes.items()) ^ set(self.shapes.items()))[:3]
            raise ValueError(f"update_weights expected the weights of {self.lm.name!r}, got others: {odd}")
        with process_as_it_was():
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights.items())})
            if not self.llm.reset_prefix_cache():
                raise RuntimeError("update_weights expected no text to be under way: vLLM kept its cache of prompts")
        self.lm, self.version, self._pushed = lm, version, checksum(lm)

    def generate(self, prompts: Sequence[Sequence[int]], params: GenerationParams) -> list[Completion]:
        """Completions in the order of ``prompts`` (lists of ids), as the built-in engine gives them.

        Raises:
            ValueError: an empty prompt, one that is too long, or an option that vLLM cannot honour.
        """
        if not prompts:
            return []
        self._check(prompts, params)
        seeds = torch.randint(2**62, (len(prompts),), generator=self.generator).tolist()
        with process_as_it_was():
            texts = self._decode(prompts, params, seeds)
        out = [
            Completion(
                prompt_ids=prompt,
                tokens=text.tokens,
                finish_reason=str(text.reason),
                logprobs=torch.tensor(text.logprobs, device=self.lm.device),
                weight_versions=[self.version] * len(text.tokens),
            )
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        # greedy has no temperature in vLLM, and the log-probs that it gives are then those of temperature 1
        scaled = params.greedy and params.temperature != 1.0
        if scaled or self.keep_hidden or self.value_head is not None:
            self._look_again(out, params if scaled else None)
        return out

    def close(self) -> None:
        """Give back vLLM's memory, as soon as no other engine of this process is open."""
        self.llm = None
        if self._finalizer is not None:
            self._finalizer()

    def _check(self, prompts: Sequence[Sequence[int]], params: GenerationParams) -> None:
        if self.llm is None:
            raise ValueError("generate expected an open engine, got one after close()")
        if params.top_k is not None or params.top_p is not None:
            raise ValueError(
                "vLLM expected no top_k and no top_p: here they choose among the likeliest tokens of another model "
                "(the reference, or NLPO's lagged copy), which vLLM cannot; use engine='builtin'"
            )
        if not params.greedy and params.temperature < LEAST_TEMPERATURE:
            raise ValueError(f"vLLM expected a temperature of at least {LEAST_TEMPERATURE}, got {params.temperature}")
        lengths = [len(p) for p in prompts]
        if 0 in lengths:
            raise ValueError(f"prompt {lengths.index(0)} is empty: give it at least one token")
        if max(lengths) + params.max_new_tokens > self.max_model_len:
            raise ValueError(
                f"vLLM expected at most max_model_len={self.max_model_len} tokens a text{because(self.max_model_len)}, "
                f"got a prompt of {max(lengths)} and max_new_tokens={params.max_new_tokens}"
            )

    def _decode(self, prompts: Sequence[Sequence[int]], params: GenerationParams, seeds: Sequence[int]) -> list[_Text]:
        """Every text token by token: our own rule ends it, since vLLM's stop strings do not count before min_tokens."""
        engine, texts = self.llm.llm_engine, [_Text() for _ in prompts]
        waiting, running = deque(range(len(prompts))), dict[str, int]()
        rows = params.rows or len(prompts)
        try:
            while waiting or running:
                while waiting and len(running) < rows:
                    i = waiting.popleft()
                    name = f"lm-gym-{self._requests}"
                    self._requests += 1
                    engine.add_request(name, {"prompt_token_ids": list(prompts[i])}, self._sampling(params, seeds[i]))
                    running[name] = i
                for output in engine.step():
                    at = running.get(output.request_id)
                    if at is None:
                        continue  # computed ahead for a text that a stop string has ended
                    self._write(texts[at], output.outputs[0], params)
                    if texts[at].reason is None and output.finished:
                        raise RuntimeError(f"vLLM ended text {at} by itself: {output.outputs[0].finish_reason}")
                    if texts[at].reason is not None:
                        del running[output.request_id]
                        if not output.finished:
                            engine.abort_request([output.request_id])
        finally:
            if running:  # an error or an interrupt: the next call must not find these texts under way
                engine.abort_request(list(running))
        return texts

    def _sampling(self, params: GenerationParams, seed: int) -> Any:
        return self.vllm.SamplingParams(
            temperature=0.0 if params.greedy else params.temperature,
            max_tokens=params.max_new_tokens,
            min_tokens=min(params.min_new_tokens, params.max_new_tokens),
            stop_token_ids=list(self.lm.eos_ids),
            ignore_eos=True,  # the ids above are all of them
            seed=seed,
            logprobs=0,  # of the chosen token alone
            detokenize=False,
            output_kind=self.vllm.sampling_params.RequestOutputKind.DELTA,
        )

    def _write(self, text: _Text, new: Any, params: GenerationParams) -> None:
        for token, found in zip(new.token_ids, new.logprobs, strict=True):
            text.tokens.append(int(token))
            text.logprobs.append(found[token].logprob)
            text.reason = finish_reason(
                text.tokens,
                eos_ids=self.lm.eos_ids,
                max_new_tokens=params.max_new_tokens,
                min_new_tokens=params.min_new_tokens,
                stop=params.stop,
                decode=self.lm.decode,
            )
            if text.reason is not None:
                return

    @torch.no_grad()
    def _look_again(self, completions: Sequence[Completion], params: GenerationParams | None) -> None:
        """What vLLM does not give, from one pass of our own model; with ``params`` also the log-probs under them."""
        lm = self.lm
        if checksum(lm) != self._pushed:
            raise ValueError(
                "generate expected the weights that vLLM has, but the policy was changed after the last "
                "update_weights(lm, version): values and hidden states would be of other weights than the text"
            )
        for batch in by_length([len(c.prompt_ids) + len(c.tokens) for c in completions], SCORING_TOKENS):
            some = [completions[i] for i in batch]
            ids, seen, mask = pad_texts([c.prompt_ids for c in some], [c.tokens for c in some], lm.pad_id)
            hidden = response_hidden(lm, ids.to(lm.device), seen.to(lm.device), mask.shape[1])
            for c, h in zip(some, hidden, strict=True):
                h = h[: len(c.tokens)]
                c.hidden = h.float() if self.keep_hidden else None
                c.values = self.value_head(h).float() if self.value_head is not None else None
                if params is not None:
                    no_eos = torch.arange(len(h), device=lm.device) < params.min_new_tokens
                    logits = restrict(lm.head(h) / params.temperature, no_eos=no_eos, eos_ids=lm.eos_ids)
                    chosen = torch.tensor(c.tokens, device=lm.device)
                    c.logprobs = token_logprobs(torch.log_softmax(logits, -1), chosen)
