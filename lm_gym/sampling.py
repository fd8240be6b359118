"""What is drawn, and from what: sampling without a sort, and what ``top_k``, ``top_p`` and no early end leave."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def sample(logprobs: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Draw by inverting the cumulative distribution: ids (n,) from log-probs (n, V) and uniforms (n,) in [0, 1).

    One pass over the vocabulary and no sort; an id of probability 0 is never drawn.
    """
    cdf = logprobs.exp().cumsum_(-1)
    total = cdf[:, -1]
    # rounding may bring u·total to the total itself, behind every id: a hair below it is the last id that has mass
    target = torch.minimum(uniform.to(cdf) * total, total.nextafter(total.new_zeros(())))
    # right=True finds the first id whose cumulative mass exceeds the target, so ids of zero mass are passed over
    ids = torch.searchsorted(cdf, target[:, None], right=True).squeeze(-1)
    return ids.clamp_(max=cdf.shape[-1] - 1)  # NaN has no place: the guard finds it in the update, not an index error


def top_k_ids(ref_logits: torch.Tensor, k: int, eos_ids: Sequence[int]) -> torch.Tensor:
    """The k likeliest ids of the reference, EOS always among them, ordered by id: (n, V) to (n, k).

    Where no EOS id is among the k likeliest, the likeliest EOS takes the place of the least likely of them.
    """
    ids = ref_logits.topk(k, dim=-1).indices
    eos = torch.tensor(list(eos_ids), device=ids.device)
    best = eos[ref_logits[:, eos].argmax(-1)]
    missing = ~torch.isin(ids, eos).any(-1)
    ids[missing, -1] = best[missing]
    return ids.sort(-1).values


def top_p_ids(logits: torch.Tensor, p: float) -> torch.Tensor:
    """The likeliest ids that have at least the mass p together, the smallest such set: (n, V) to (n, k).

    Holtzman et al. 2020, arXiv:1904.09751. Of equals the lower id comes first; p = 1 is every id above −inf. k is the
    largest set's size; in smaller sets the likeliest id fills up.
    """
    ranked, ids = logits.sort(dim=-1, descending=True, stable=True)
    probs = torch.softmax(ranked, -1)
    before = probs.cumsum(-1) - probs  # the mass of the likelier ones
    # rounding brings ``before`` to 1 in front of a long tail, which p = 1 would cut off
    keep = (ranked > -torch.inf) & (True if p >= 1 else before < p)
    keep[..., 0] = True
    most = int(keep.sum(-1).max())
    return torch.where(keep, ids, ids[..., :1])[..., :most]


def restrict(
    logits: torch.Tensor,
    *,
    allowed: torch.Tensor | None = None,
    no_eos: torch.Tensor | None = None,
    eos_ids: Sequence[int] = (),
) -> torch.Tensor:
    """Logits with −inf where nothing may be chosen, so that their softmax is π over what may.

    Args:
        logits: (..., V). allowed: (..., k) ids that may be chosen, or None for all.
        no_eos: (...) bool, where a text may not end yet. eos_ids: the ids that end it.
    """
    if allowed is not None:
        keep = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device).scatter_(-1, allowed, True)
        logits = logits.masked_fill(~keep, -torch.inf)
    if no_eos is not None and bool(no_eos.any()):
        ends = torch.tensor(list(eos_ids), device=logits.device)
        without = logits.index_select(-1, ends).masked_fill(no_eos[..., None], -torch.inf)
        logits = logits.index_copy(-1, ends, without)
    return logits
