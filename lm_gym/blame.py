"""Blame: where a number cannot be right, training stops, and a dump says at which token of which text.

What stops it:

- a NaN or an infinity among the log-probs, values, rewards or scores of a rollout, in a loss, or in a gradient;
- a log-prob above 0;
- an exact KL of a state below 0 by more than ``KL_ROUNDING``;
- an exploding ratio: log π − log π_old of a token above ``RATIO_LIMIT`` in any minibatch;
- log-probs of decoding that teacher forcing does not give again: more than ``MISMATCH`` times ``ratio_tolerance`` apart
  before the first step of an update. (Above ``ratio_tolerance`` it is a warning.)

The dump is a checkpoint folder, ``<run>/blame/update-N``: ``state.json`` names the text, the token, the mask, both
log-probs and the versions of the weights; ``policy.safetensors`` has the weights at that moment and
``batch.safetensors`` the batch. :mod:`lm_gym.replay` runs that batch again (``lm-gym replay <dump>``).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lm_gym import checkpoints
from lm_gym.agent_config import plain_config
from lm_gym.rollout import Rollout

if TYPE_CHECKING:
    from lm_gym.agent import LMAgent
    from lm_gym.policy_gradient import Minibatch

RATIO_LIMIT = 20.0
"""Nats: a token 5e8 times as likely as when it was drawn. No step that a clip or a sane step size allows comes near."""
MISMATCH = 10.0
KL_ROUNDING = 1e-3
"""Nats: what float32 makes of a KL of 0 over a vocabulary of 150,000 stays below 1e-4."""
KIND = "blame"
FIELDS = ("logprobs", "ref_logprobs", "values", "rewards")
HIDDEN = ("hidden", "ref_hidden", "below")
"""Kept for the text at fault alone: they are most of a batch's bytes, and a replay makes them again."""


class Suspect(FloatingPointError):
    """A number that cannot be right, with the texts of the batch and the token at fault.

    Attributes:
        part: the batch, or None where no batch is known. row, place: which text of it, and which token; None where no
            single one is at fault.
        now: (n,) what the policy said of the batch's n response tokens when it was found, or None.
        ours: it contradicts what must hold whatever the step size is, so that no guard goes on after it.
    """

    def __init__(
        self,
        reason: str,
        part: Rollout | None = None,
        row: int | None = None,
        place: int | None = None,
        now: torch.Tensor | None = None,
        *,
        ours: bool = False,
    ) -> None:
        super().__init__(reason)
        self.ours = ours
        self.reason, self.part, self.row, self.place, self.now = reason, part, row, place, now


def check_rollout(rollout: Rollout) -> None:
    """Refuse a rollout with a number that cannot be right.

    Raises:
        Suspect: names it.
    """
    mask = rollout.response_mask
    for name in FIELDS:
        x = getattr(rollout, name)
        if x is None:
            continue
        bad = mask & ~torch.isfinite(x)
        if name in ("logprobs", "ref_logprobs"):
            bad |= mask & (x > 1e-3)
        if bad.any():
            row, place = bad.nonzero()[0].tolist()
            expected = "finite and at most 0" if "logprobs" in name else "finite"
            only = rollout.select(torch.tensor([row]))
            number = float(x[row, place])
            raise Suspect(f"{name} expected {expected}, got {number}", only, 0, place, ours=number > 0)


def check_kl(rollout: Rollout, kls: torch.Tensor) -> None:
    """Refuse exact KLs (B, T) of states below 0.

    Raises:
        Suspect: names the state.
    """
    bad = rollout.response_mask & ~(kls >= -KL_ROUNDING)
    if bad.any():
        row, place = bad.nonzero()[0].tolist()
        reason = f"the exact KL of a state expected at least 0, got {float(kls[row, place])}"
        raise Suspect(reason, rollout.select(torch.tensor([row])), 0, place, ours=not bool(kls.isnan().any()))


def check_minibatch(batch: Minibatch, numbers: Mapping[str, float], *, mismatch: float | None) -> None:
    """Look at a minibatch's ratios and at what it logs, before its step is taken.

    Args:
        numbers: what it logs. mismatch: |log ratio| that is an error, in the first minibatch of an update.

    Raises:
        Suspect: names the token.
    """
    error = numbers["val/first_ratio_error"]
    if mismatch is not None and error > mismatch:
        reason = f"the log-prob of decoding expected within {mismatch:g} of that of teacher forcing"
        raise _at(batch, reason, worst=abs, ours=True)
    if not error <= RATIO_LIMIT:  # cheap: in nearly every minibatch there is nothing to look for
        log_ratio = (batch.logprobs - batch.old_logprobs).detach()
        if not bool((log_ratio <= RATIO_LIMIT).all()):
            raise _at(batch, f"the ratio to the policy that drew it expected below e^{RATIO_LIMIT:g}")
    broken = [key for key, number in numbers.items() if not math.isfinite(number)]
    if broken:
        raise _at(batch, f"{broken[0]} of a minibatch expected finite, got {numbers[broken[0]]}")


def check_texts(logprobs: torch.Tensor, part: Rollout) -> None:
    """Refuse log-probs of whole texts (B,) that are not finite.

    Raises:
        Suspect: names the text.
    """
    bad = ~torch.isfinite(logprobs)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise Suspect(f"the log-prob of a text expected finite, got {float(logprobs[row])}", part, row)


def check_gradient(norm: float, part: Rollout | None) -> None:
    """Refuse a gradient that is not finite, before it reaches the weights.

    Raises:
        Suspect: with the minibatch; no single token is at fault.
    """
    if not math.isfinite(norm):
        raise Suspect(f"the norm of the gradient expected finite, got {norm}", part)


def _at(batch: Minibatch, reason: str, worst: Any = lambda x: x, *, ours: bool = False) -> Suspect:
    now = batch.logprobs.detach()
    distance = torch.nan_to_num(worst(now - batch.old_logprobs), nan=math.inf, posinf=math.inf)
    row, place = batch.mask.nonzero()[int(distance.argmax())].tolist()
    return Suspect(reason, batch.part, row, place, now.cpu(), ours=ours)


def describe(agent: LMAgent, error: Suspect) -> dict[str, Any]:
    """What is known of the token at fault, as plain data."""
    part = error.part
    assert part is not None
    lm, row, place = agent.policy.lm, error.row, error.place
    found: dict[str, Any] = {
        "reason": error.reason,
        "drawn_with": f"the weights after update {agent.engine.version}",
        "now_with": f"the weights after update {agent.updates} and {_steps(agent)} optimizer steps in all",
    }
    if row is None:
        return found
    prompts, responses = part.token_lists()
    found |= {
        "prompt": lm.decode([i for i in prompts[row] if i < lm.vocab_size]),
        "text": lm.decode(responses[row]),
        "prompt_ids": prompts[row],
        "tokens": responses[row],
        "row": row,
        "mask": part.response_mask[row].int().tolist(),
    }
    if place is None:
        return found
    token = responses[row][place]
    own = part.response_mask[: row + 1].sum(-1)
    flat = int(own[:-1].sum()) + place
    found |= {
        "place": place,
        "token": token,
        "token_text": lm.decode([token]),
        "logprob_drawn": _number(part.logprobs, row, place),
        "logprob_now": None if error.now is None else _plain(float(error.now[flat])),
        "ref_logprob": _number(part.ref_logprobs, row, place),
        "reward": _number(part.rewards, row, place),
        "value": _number(part.values, row, place),
    }
    return {key: value for key, value in found.items() if value is not None}


def _number(x: torch.Tensor | None, row: int, place: int) -> float | str | None:
    return None if x is None else _plain(float(x[row, place]))


def _plain(x: float) -> float | str:
    """A number as JSON has it: "nan", "inf" and "-inf" are words there."""
    return x if math.isfinite(x) else str(x)


def _steps(agent: LMAgent) -> int:
    return max((int(s["step"]) for s in agent.optimizer.state.values()), default=0)


def explain(agent: LMAgent, error: Suspect) -> str:
    """The error in words: what, at which token of which text."""
    head = f"update {agent.updates + 1} stopped: {error.reason}"
    if error.part is None:
        return head
    found = describe(agent, error)
    if "row" not in found:
        return f"{head}, in a minibatch of {len(error.part)} texts"
    if "place" not in found:
        return f"{head}, of {found['text']!r:.200} after the prompt {found['prompt']!r:.120}"
    now = f", {found['logprob_now']} now ({found['now_with']})" if "logprob_now" in found else ""
    token = f"Token {found['place']} ({found['token']}, {found['token_text']!r}) of {found['text']!r:.200}"
    drawn = f"log-prob {found['logprob_drawn']} when it was drawn ({found['drawn_with']})"
    return f"{head}. {token} after the prompt {found['prompt']!r:.120}: {drawn}{now}"


def dump(agent: LMAgent, error: Suspect, out: str | Path) -> Path:
    """Write the dump of an error that has a batch into a run's folder; its place."""
    part = error.part
    assert part is not None
    folder = Path(out) / "blame" / f"update-{agent.updates + 1}"
    batch = {
        f.name: getattr(part, f.name)
        for f in dataclasses.fields(part)
        if isinstance(getattr(part, f.name), torch.Tensor) and (f.name not in HIDDEN or len(part) == 1)
    }
    groups = {"policy": agent.optimizer.values(), "batch": batch}
    if error.now is not None:
        groups["now"] = {"logprobs": error.now}
    state = {
        "kind": KIND,
        "agent": agent.name,
        "config": plain_config(agent.config),
        "updates": agent.updates,
        "reference": agent.mdp.reference.fingerprint(),
        "token": describe(agent, error),
        "texts": part.texts,
        "replay": f"lm-gym replay {folder}",
    }
    return checkpoints.save(folder, groups, state)


def answer(agent: LMAgent, error: Suspect, out: str | Path | None) -> str:
    """What ``learn`` does about an error: a dump where there is a folder, and the guard's rollback where there is one.

    Returns:
        what the guard did.

    Raises:
        Suspect: there is no guard, or it is no accident of training that smaller steps would help.
    """
    words = explain(agent, error)
    if out is not None and error.part is not None:
        try:
            words += f". Dump: lm-gym replay {dump(agent, error, out)}"
        except OSError as e:  # a full disk must not hide what went wrong
            words += f". There is no dump: {e}"
    if agent.watch is not None and not error.ours:
        return agent.watch.roll_back(words)
    advice = "" if error.ours else ". Lower learning_rate, or look at the samples of the updates before"
    said = Suspect(f"{words}{advice}", error.part, error.row, error.place, error.now, ours=error.ours)
    raise said from error
