"""OASST trees: every two ranked replies to the same message are a pair, its conversation the prompt."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm_gym.annotate.store import Pair

ROLES = {"prompter": "user", "assistant": "assistant"}
Message = Mapping[str, Any]
Where = tuple[str, Message]


def is_tree(row: Message) -> bool:
    """Whether a row is a tree of OASST's export."""
    prompt = row.get("prompt")
    return isinstance(prompt, Mapping) and "replies" in prompt


def is_message(row: Message) -> bool:
    """Whether a row is one message of a flat export, such as the hub's OpenAssistant/oasst1."""
    return "message_id" in row and "parent_id" in row and "text" in row and "role" in row


def trees_of(rows: Sequence[Where]) -> tuple[list[Where], list[tuple[str, str]]]:
    """Trees from flat messages, and the messages whose parent is missing."""
    nodes = {row["message_id"]: dict(row, replies=[]) for _, row in rows}
    trees: list[Where] = []
    lost: list[tuple[str, str]] = []
    for where, row in rows:
        parent = row["parent_id"]
        if parent is None:
            trees.append((where, {"message_tree_id": row["message_id"], "prompt": nodes[row["message_id"]]}))
        elif parent in nodes:
            nodes[parent]["replies"].append(nodes[row["message_id"]])
        else:
            lost.append((where, f"answers the message {parent!r}, which is not in the data"))
    return trees, lost


def tree_pairs(tree: Message) -> Iterator[Pair]:
    """Pairs of replies with different ranks (0 is best), the better one first.

    Raises:
        ValueError: a message without a text or with a role that OASST does not have.
    """
    stack: list[tuple[list[dict[str, str]], Message]] = [([], tree["prompt"])]
    while stack:
        before, node = stack.pop()
        if node.get("role") not in ROLES or not isinstance(node.get("text"), str):
            raise ValueError(f"has a message {node.get('message_id')!r} without a text, or of no role that OASST has")
        here = [*before, {"role": ROLES[node["role"]], "content": node["text"]}]
        replies = list(node.get("replies") or [])
        stack += [(here, reply) for reply in reversed(replies)]
        ranked = [r for r in replies if r.get("rank") is not None and r.get("role") == "assistant"]
        ranked.sort(key=lambda reply: reply["rank"])
        for better, worse in itertools.combinations(ranked, 2):
            if better["rank"] == worse["rank"]:
                continue
            a, b = ([{"role": "assistant", "content": reply["text"]}] for reply in (better, worse))
            columns = {"message_id": node.get("message_id"), "ranks": [better["rank"], worse["rank"]]}
            yield Pair(here, a, b, columns, gold=-2)
