"""The table of published data layouts: columns as they are published, and what is read from them.

A layout is told by its columns. Each of its cells reads one thing from a row: the prompt, the answers, and what was
said of the answers, as one score an answer (higher is better). `lm_gym.layout_rows` makes rows in TRL's columns of
that; docs/preferences.md has the table in words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lm_gym.layout_cells import (
    Cell,
    answered,
    asked,
    choice,
    elements,
    first_is_better,
    first_turn,
    flags,
    good,
    higher,
    last_answer,
    nested,
    nothing,
    others,
    parted,
    post,
    question,
    ranks,
    replies,
    shared,
    signed,
    spoken,
    task,
    text,
    texts,
)


@dataclass(frozen=True)
class Layout:
    """How a published data set is laid out."""

    name: str
    prompt: Cell
    """A text, or messages."""
    answers: Cell
    """A list of texts or of lists of messages; behind messages a text is what the assistant says."""
    scores: Cell
    """One number an answer, higher is better; of `feedback` one that is above 0 if the answer is good."""
    gives: Literal["pairs", "feedback", "demonstrations"]
    margin: bool = False
    """The difference of two scores says by how much an answer is better: a margin."""
    together: bool = False
    """The answers to a prompt are in rows of their own."""
    encoded: bool = False
    """Its column `prompt` is JSON, and no prompt as it stands."""
    without: tuple[str, ...] = ()
    """Columns of a layout that it would otherwise be taken for."""
    details: Cell | None = None
    """A mapping an answer, of what else is known of it."""

    @property
    def columns(self) -> tuple[str, ...]:
        """By which it is told."""
        return tuple(dict.fromkeys((*self.prompt.columns, *self.answers.columns, *self.scores.columns)))


BOTH_BAD = ("tie", "tie (bothbad)", "tie (both bad)", "both_bad", "bothbad")

LAYOUTS = (
    Layout("Alpaca", task("instruction", "input"), texts("output"), nothing(), "demonstrations"),
    Layout("Dolly", task("instruction", "context"), texts("response"), nothing(), "demonstrations"),
    Layout("ShareGPT", asked("conversations"), last_answer("conversations"), nothing(), "demonstrations"),
    Layout("KTO of LLaMA-Factory", asked("conversations"), last_answer("conversations"), good("kto_tag"), "feedback"),
    Layout("KTO with messages", asked("messages"), last_answer("messages"), good("kto_tag"), "feedback"),
    Layout("KTO with messages and label", asked("messages"), last_answer("messages"), good("label"), "feedback"),
    Layout("KTO in Alpaca's columns", task("instruction", "input"), texts("output"), good("kto_tag"), "feedback"),
    Layout("ShareGPT pairs", spoken("conversations"), replies("chosen", "rejected"), first_is_better(), "pairs"),
    Layout("Alpaca pairs", task("instruction", "input"), texts("chosen", "rejected"), first_is_better(), "pairs"),
    Layout("Orca-DPO", question("question"), texts("chosen", "rejected"), first_is_better(), "pairs"),
    Layout(
        "Orca-DPO of Argilla",
        question("input"),
        texts("chosen", "rejected"),
        first_is_better(),
        "pairs",
        without=("instruction",),
    ),
    Layout(
        "OpenAI preferences",
        nested("input", "messages"),
        replies("preferred_output", "non_preferred_output"),
        first_is_better(),
        "pairs",
    ),
    Layout("SHP", text("history"), texts("human_ref_A", "human_ref_B"), choice("labels", "1", "0"), "pairs"),
    Layout(
        "WebGPT comparisons",
        text("question.full_text"),
        texts("answer_0", "answer_1"),
        higher("score_0", "score_1"),
        "pairs",
    ),
    Layout(
        "TL;DR comparisons",
        post("info"),
        texts("summaries.0.text", "summaries.1.text"),
        choice("choice", "0", "1"),
        "pairs",
    ),
    Layout("HelpSteer", text("prompt"), texts("response"), higher("helpfulness"), "pairs", margin=True, together=True),
    Layout(
        "HelpSteer2 preferences",
        text("prompt"),
        texts("response_1", "response_2"),
        signed("preference_strength"),
        "pairs",
        margin=True,
    ),
    Layout(
        "HelpSteer3",
        spoken("context"),
        texts("response1", "response2"),
        signed("overall_preference"),
        "pairs",
        margin=True,
    ),
    Layout(
        "PKU-SafeRLHF",
        text("prompt"),
        texts("response_0", "response_1"),
        choice("better_response_id", "0", "1"),
        "pairs",
    ),
    Layout(
        "Nectar",
        text("prompt"),
        elements("answers", "answer"),
        ranks("answers", "rank"),
        "pairs",
        details=others("answers", "answer"),
    ),
    Layout(
        "Chatbot Arena",
        shared("conversation_a", "conversation_b"),
        parted("conversation_a", "conversation_b"),
        choice("winner", "model_a", "model_b", ties=BOTH_BAD),
        "pairs",
    ),
    Layout(
        "Chatbot Arena, JSON",
        first_turn("prompt"),
        answered("prompt", "response_a", "response_b"),
        flags("winner_model_a", "winner_model_b", tie="winner_tie"),
        "pairs",
        encoded=True,
    ),
)
