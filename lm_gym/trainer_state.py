"""What reward models get as ``trainer_state``: read by attribute, as TRL's functions do, or by name, as a dict."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lm_gym.agent import LMAgent


class TrainerState(dict[str, Any]):
    """Where a run stands, under the names of ``transformers.TrainerState``: ``state.global_step`` is
    ``state["global_step"]``.

    - ``global_step``: updates that are done; ``train_batch_size``: texts an update.
    - ``max_steps``: updates that the run will have had: those done, and what is left of its tokens over the mean
      number of tokens an update (before the first update, over the most that one can have).
    - ``epoch``: share of the running ``learn`` that is done, 0 to 1, and ``num_train_epochs``: 1. The budget is in
      tokens, not in passes over the prompts.
    - ``num_input_tokens_seen``: tokens that were generated.
    - ``is_local_process_zero``, ``is_world_process_zero``: True, there is one process.
    - ``is_hyper_param_search``: False.
    """

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"trainer_state has no {name!r}; it has {', '.join(self)}")


def trainer_state(agent: LMAgent) -> TrainerState:
    """The state of an agent."""
    batch = getattr(agent.config, "batch_size", 1)
    start, total = agent._schedule
    each = agent.tokens / agent.updates if agent.updates else batch * agent.mdp.max_new_tokens
    return TrainerState(
        global_step=agent.updates,
        max_steps=agent.updates + math.ceil(max(0, start + total - agent.tokens) / max(each, 1)),
        epoch=agent.progress,
        num_train_epochs=1,
        num_input_tokens_seen=agent.tokens,
        train_batch_size=batch,
        is_local_process_zero=True,
        is_world_process_zero=True,
        is_hyper_param_search=False,
    )
