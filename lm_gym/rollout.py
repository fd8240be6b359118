"""What an agent trains on: whole texts with their rewards, however they were made.

Both views of the problem end here. :meth:`Rollout.from_completions` takes texts of a decoding engine and their scores;
:meth:`Rollout.from_steps` takes what a loop over ``env.step`` has collected, so that an update costs one forward a text
and not one a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from lm_gym.decoding import Completion
from lm_gym.forward import pad_below, pad_rows, pad_texts
from lm_gym.mdp import Scored


@dataclass
class Rollout:
    """B texts; P the longest prompt, T the longest response. Everything is zero behind a text's end.

    Attributes:
        input_ids: (B, P+T) int64, prompts left-padded, responses right-padded. attention_mask: (B, P+T).
        response_mask: (B, T) bool. logprobs: (B, T) of the behaviour policy. rewards: (B, T).
        values: (B, T) or None. ref_logprobs: (B, T) or None. scores: (B,) R(x, y) or None.
        bootstrap: (B,) value of the state after a text that was cut off at the rollout's edge, else 0; or None.
        allowed: (B, T, k) ids that could be chosen, or None for all. no_eos: (B, T) bool, where EOS could not; or None.
        exact_kl, entropy: (B, T) KL(π‖π_ref) and the entropy of π in the state before each token, nats, or None.
        hidden, ref_hidden: (B, T, d) hidden states of policy and reference before each token, or None.
        below: (B, P+T−1, d) what comes out of frozen lower layers, 0 for a text's last token; or None.
        texts: B completion texts. finish_reasons: B of "eos", "stop", "length", "cut".
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    response_mask: torch.Tensor
    logprobs: torch.Tensor
    rewards: torch.Tensor
    values: torch.Tensor | None = None
    ref_logprobs: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    bootstrap: torch.Tensor | None = None
    allowed: torch.Tensor | None = None
    no_eos: torch.Tensor | None = None
    exact_kl: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
    hidden: torch.Tensor | None = None
    ref_hidden: torch.Tensor | None = None
    below: torch.Tensor | None = None
    texts: list[str] | None = None
    finish_reasons: list[str] | None = None

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])

    def __repr__(self) -> str:
        """One line: how many texts, and the shape of every tensor that is there."""
        tensors = [(f.name, getattr(self, f.name)) for f in fields(self)]
        shapes = ", ".join(f"{name}={tuple(x.shape)}" for name, x in tensors if isinstance(x, torch.Tensor))
        return f"Rollout({len(self)} texts: {shapes})"

    @property
    def tokens(self) -> torch.Tensor:
        """(B, T) response ids."""
        return self.input_ids[:, -self.response_mask.shape[1] :]

    @property
    def lengths(self) -> torch.Tensor:
        """(B,) tokens of each response."""
        return self.response_mask.sum(-1)

    def text_returns(self) -> torch.Tensor:
        """(B,) what each text earned in all: the sum of its rewards.

        Raises:
            ValueError: a wrapper cut a text off: what it would have earned is for a critic to say.
        """
        cut = (self.finish_reasons or []).count("cut")
        if cut:
            raise ValueError(
                f"whole texts expected, got {cut} of {len(self)} cut off by a wrapper: train with a critic (ppo, a2c), "
                "or make texts shorter with max_new_tokens"
            )
        return self.rewards.sum(-1)

    def token_lists(self) -> tuple[list[list[int]], list[list[int]]]:
        """The ids of every prompt and every response, without padding."""
        width = self.response_mask.shape[1]
        prompts, responses = [], []
        for ids, seen, length in zip(self.input_ids, self.attention_mask, self.lengths.tolist(), strict=True):
            prompts.append(ids[:-width][seen[:-width].bool()].tolist())
            responses.append(ids[-width:][:length].tolist())
        return prompts, responses

    def rescale_scores(self, mean: float, std: float, kl_penalty: torch.Tensor) -> None:
        """Pay (score − mean)/std beside the KL penalty (B, T); ``scores`` stay what the judge said.

        Not by a difference to what is paid already: beside a score of 1e6 float32 has lost the last token's KL, and of
        the mean what stands behind the point.
        """
        assert self.scores is not None
        self.rewards = kl_penalty.clone()
        self.rewards[torch.arange(len(self)), self.lengths - 1] += ((self.scores.double() - mean) / std).float()

    def select(self, index: torch.Tensor) -> Rollout:
        """The texts of ``index`` (b,), with the padding that all of them have cut off."""
        width, t = self.response_mask.shape[1], int(self.lengths[index].max())
        p = self.input_ids.shape[1] - width
        first = int(self.attention_mask[index].argmax(-1).min())  # no text begins before this column
        out: dict[str, Any] = {}
        for f in fields(self):
            x = getattr(self, f.name)
            if isinstance(x, torch.Tensor):
                x = x.index_select(0, index)  # a sixth of the time of x[index] for hidden states
                if f.name in ("input_ids", "attention_mask"):
                    x = x[:, first : p + t]
                elif f.name == "below":
                    x = x[:, first : p + t - 1]
                elif x.dim() >= 2:
                    x = x[:, :t]
            elif isinstance(x, list):
                x = [x[i] for i in index.tolist()]
            out[f.name] = x
        return Rollout(**out)

    @classmethod
    def from_completions(
        cls, completions: Sequence[Completion], scored: Scored, *, pad_id: int, min_new_tokens: int = 0
    ) -> Rollout:
        """Texts of a decoding engine with what the problem says of them."""
        ids, attention, mask = pad_texts([c.prompt_ids for c in completions], [c.tokens for c in completions], pad_id)
        t = mask.shape[1]
        below = [c.below for c in completions if c.below is not None]

        def padded(name: str) -> torch.Tensor | None:
            rows = [getattr(c, name) for c in completions]
            return None if any(r is None for r in rows) else pad_rows([r.cpu() for r in rows], t)

        logprobs = padded("logprobs")
        if logprobs is None:
            raise ValueError("Rollout expected completions with behaviour logprobs, got one without")
        return cls(
            input_ids=ids,
            attention_mask=attention,
            response_mask=mask,
            logprobs=logprobs,
            rewards=scored.rewards,
            values=padded("values"),
            ref_logprobs=scored.ref_logprobs,
            scores=scored.scores,
            allowed=padded("allowed"),
            no_eos=(torch.arange(t)[None] < min_new_tokens) & mask if min_new_tokens else None,
            exact_kl=scored.exact_kl,
            entropy=scored.entropy,
            hidden=padded("hidden"),
            below=pad_below(attention, below) if len(below) == len(completions) else None,
            ref_hidden=scored.ref_hidden,
            texts=scored.texts,
            finish_reasons=[c.finish_reason for c in completions],
        )

    @classmethod
    def from_steps(
        cls,
        observations: Sequence[Mapping[str, Any]],
        actions: Any,
        rewards: Any,
        terminated: Any,
        logprobs: Any,
        *,
        values: Any = None,
        truncated: Any = None,
        valid: Any = None,
        last_values: Any = None,
        tokens: Any = None,
        ref_logprobs: Any = None,
        allowed: Any = None,
        no_eos: Any = None,
        final_values: Any = None,
        pad_id: int = 0,
    ) -> Rollout:
        """Whole texts from S steps of N rows of ``gym.make_vec("LMAlign-v0")`` with ``tokens`` observations.

        Args:
            observations: S dicts, what each action saw: ``input_ids`` and ``attention_mask``, (N, L) each.
            actions, rewards, terminated, logprobs: (S, N); ``rewards`` as they shall be trained on.
            values: (S, N) of the observations. truncated: (S, N). valid: (S, N), False on steps that only reset a row.
            last_values: (N,) values of the observations after the last step: what an episode that is cut off at the
                edge of the rollout bootstraps from. final_values: (S, N) values of the states that truncated episodes
                ended in. Without them a cut episode bootstraps from 0.
            allowed: (S, N, k) the choices of ``top_k``, ``info["action_tokens"]``. tokens: (S, N) token ids of its
                actions; None: looked up in ``allowed``.
            no_eos: (S, N) bool, where a text could not end yet (``min_new_tokens``). ref_logprobs: (S, N).
            pad_id: fills the batch; always masked.

        An episode that was under way when the rollout began starts with what it had written as its prompt; one that is
        cut off has finish reason "cut".
        """
        actions = np.asarray(actions)
        s, n = actions.shape
        ids = actions if tokens is None else np.asarray(tokens)
        if tokens is None and allowed is not None:
            ids = np.take_along_axis(np.asarray(allowed), actions[..., None], -1)[..., 0]
        ended = np.asarray(terminated, dtype=bool)
        cut = np.zeros_like(ended) if truncated is None else np.asarray(truncated, dtype=bool)
        good = np.ones_like(ended) if valid is None else np.asarray(valid, dtype=bool)
        for name, x in (
            ("rewards", rewards),
            ("terminated", ended),
            ("truncated", cut),
            ("logprobs", logprobs),
            ("valid", good),
            ("tokens", ids),
            ("values", values),
            ("ref_logprobs", ref_logprobs),
            ("no_eos", no_eos),
            ("final_values", final_values),
        ):
            if x is not None and np.asarray(x).shape != (s, n):
                raise ValueError(
                    f"from_steps expected {name} of the actions' shape {(s, n)}, got {np.asarray(x).shape}"
                )
        if last_values is not None and np.asarray(last_values).shape != (n,):
            raise ValueError(f"from_steps expected last_values of shape {(n,)}, got {np.asarray(last_values).shape}")
        if len(observations) != s:
            raise ValueError(f"from_steps expected {s} observations, one a step, got {len(observations)}")
        spans: list[tuple[int, int, int, str]] = []  # row, first step, step after the last, reason
        for i in range(n):
            begin: int | None = None
            for t in range(s):
                if not good[t, i]:
                    continue
                begin = t if begin is None else begin
                if ended[t, i] or cut[t, i]:
                    spans.append((i, begin, t + 1, "end" if ended[t, i] else "cut"))
                    begin = None
            if begin is not None:
                spans.append((i, begin, s, "cut"))
        if not spans:
            raise ValueError("from_steps expected at least one valid step, got none")
        prompts, responses = [], []
        for i, a, b, _ in spans:
            seen = np.asarray(observations[a]["attention_mask"])[i].astype(bool)
            prompts.append(np.asarray(observations[a]["input_ids"])[i][seen].tolist())
            responses.append(ids[a:b, i].tolist())
        input_ids, attention, mask = pad_texts(prompts, responses, pad_id)

        def rows(x: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor | None:
            if x is None:
                return None
            whole = torch.as_tensor(np.asarray(x)).to(dtype)
            return pad_rows([whole[a:b, i] for i, a, b, _ in spans], mask.shape[1])

        bootstrap = torch.zeros(len(spans))
        for j, (i, _, b, reason) in enumerate(spans):
            if reason != "cut":
                continue
            if cut[b - 1, i]:  # the observation after it is that of the next episode
                bootstrap[j] = 0.0 if final_values is None else float(np.asarray(final_values)[b - 1, i])
            elif last_values is not None:
                bootstrap[j] = float(np.asarray(last_values)[i])
        logp, paid = rows(logprobs), rows(rewards)
        assert logp is not None and paid is not None
        return cls(
            input_ids=input_ids,
            attention_mask=attention,
            response_mask=mask,
            logprobs=logp,
            rewards=paid,
            values=rows(values),
            ref_logprobs=rows(ref_logprobs),
            bootstrap=bootstrap,
            allowed=rows(allowed, torch.long),
            no_eos=rows(no_eos, torch.bool),
            finish_reasons=[reason for *_, reason in spans],
        )
