"""Preference agents: runs that are compared to the bit, and data in the formats that users have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import exact_runs
import gymnasium as gym
import torch
from ppo_runs import environment, problem

TEMPLATE = (
    "{% for m in messages %}{{ 'a ' if m['role'] == 'user' else 'b ' }}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}b {% endif %}"
)
PAIRS = [{"prompt": p, "chosen": " aa", "rejected": r} for p in ("abc", "bad", "head") for r in (" hg", " f", "")]
CHAT_PAIRS = [
    {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "chosen": [{"role": "assistant", "content": "aa"}],
        "rejected": [{"role": "assistant", "content": "hg" + "f" * i}],
    }
    for i, row in enumerate(PAIRS[:4])
]
FEEDBACK = [{"prompt": p, "completion": t, "label": t == " aa"} for p in ("abc", "bad", "head") for t in (" aa", " hg")]


def small_env(**options: Any) -> Any:
    """A random model of two layers with a tokenizer and a chat template."""
    mdp = problem(**options)
    mdp.reference.tokenizer.chat_template = TEMPLATE
    return environment(mdp)


def weights(agent: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in agent.params.values()])


def assert_same_seed_same_numbers(kind: Any, make: Any = lambda: gym.make("LMAlignExact-v0"), **config: Any) -> None:
    """Bit for bit, whatever the global stream does; other numbers from another seed."""

    def run(seed: int) -> tuple[list[dict[str, float]], torch.Tensor]:
        torch.manual_seed(torch.seed())
        agent = kind(make(), seed=seed, **{"batch_size": 16, **config})
        return exact_runs.learn(agent, 150), weights(agent)

    (logs, table), (again, same), (other, _) = run(0), run(0), run(1)
    assert logs == again and torch.equal(table, same) and logs != other


def assert_goes_on_after_loading(
    kind: Any,
    folder: Path,
    make: Any = lambda: gym.make("LMAlignExact-v0"),
    again: dict[str, Any] | None = None,
    **config: Any,
) -> None:
    """Stopped and taken up again from its checkpoint, a run ends where an unbroken one does, to the bit."""
    config = {"batch_size": 16, **config}
    whole, broken = kind(make(), **config), kind(make(), **config)
    logs = exact_runs.learn(whole, 250)
    broken.learn(250, out=folder, callback=lambda agent, _: agent.updates < 2)
    taken = kind.load(folder, make(), **(again or {}))
    assert taken.updates == 2 and taken.config == broken.config and len(logs) > 2
    assert exact_runs.learn(taken, 250, resume=True) == logs[2:]
    assert torch.equal(weights(taken), weights(whole))
    assert taken.evaluate(n=8) == whole.evaluate(n=8)
