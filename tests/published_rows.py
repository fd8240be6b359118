"""Rows in published layouts, written for the tests: a few of each, with what they say."""

from __future__ import annotations

import json
from typing import Any

ASK = {"role": "user", "content": "Name a colour."}


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def turn(speaker: str, text: str) -> dict[str, str]:
    return {"from": speaker, "value": text}


Pair = tuple[Any, Any, Any, float, float | None, int]
"""Prompt, chosen, rejected, label, margin, and the known answer on the annotation page."""

PAIRS: dict[str, tuple[list[dict[str, Any]], list[Pair]]] = {
    "SHP": (
        [
            {"post_id": "a", "domain": "d", "upvote_ratio": 0.9, "history": "How to bake?", "score_A": 5, "score_B": 9}
            | {"human_ref_A": "Cold.", "human_ref_B": "Hot.", "labels": 0, "score_ratio": 1.8},
            {"history": "How to fly?", "human_ref_A": "Up.", "human_ref_B": "Down.", "labels": 1, "score_ratio": 2.0},
        ],
        [("How to bake?", "Hot.", "Cold.", 1.0, None, -2), ("How to fly?", "Up.", "Down.", 1.0, None, -2)],
    ),
    "WebGPT comparisons": (
        [
            {"question": {"dataset": "d", "id": str(i), "full_text": f"Why {i}?"}}
            | {"quotes_0": {"title": [], "extract": []}, "quotes_1": {"title": [], "extract": []}}
            | {"answer_0": "So [1].", "answer_1": "Thus.", "score_0": score, "score_1": -score}
            for i, score in enumerate([0.5, -1.0, 0.0])
        ],
        [
            ("Why 0?", "So [1].", "Thus.", 1.0, None, -2),
            ("Why 1?", "Thus.", "So [1].", 1.0, None, -2),
            ("Why 2?", "So [1].", "Thus.", 0.5, None, 0),
        ],
    ),
    "TL;DR comparisons": (
        [
            {
                "info": {
                    "id": "x",
                    "post": "It rained.",
                    "title": "Rain",
                    "subreddit": "diy",
                    "site": None,
                    "article": None,
                }
            }
            | {"summaries": [{"text": " Wet.", "policy": "p", "note": None}, {"text": " Dry.", "policy": "q"}]}
            | {"choice": 1, "worker": "w", "batch": "batch3", "split": "train", "extra": {"confidence": 3}},
            {"info": {"id": "y", "post": None, "title": "Sun", "subreddit": None, "article": "It shone."}}
            | {"summaries": [{"text": " Hot."}, {"text": " Cold."}], "choice": 0, "worker": "w", "batch": "cnndm0"},
        ],
        [
            ("SUBREDDIT: r/diy\n\nTITLE: Rain\n\nPOST: It rained.\n\nTL;DR:", " Dry.", " Wet.", 1.0, None, -2),
            ("TITLE: Sun\n\nIt shone.\n\nTL;DR:", " Hot.", " Cold.", 1.0, None, -2),
        ],
    ),
    "HelpSteer": (
        [
            {"prompt": prompt, "response": answer, "helpfulness": h, "correctness": 3, "coherence": 4, "complexity": 1}
            | {"verbosity": 2}
            for prompt, answer, h in [
                ("Say a", "a1", 1),
                ("Say a", "a2", 4),
                ("Say b", "b1", 2),
                ("Say c", "c1", 3),
                ("Say c", "c2", 3),
                ("Say a", "a3", 1),
            ]
        ],
        [
            ("Say a", "a2", "a1", 1.0, 3.0, -3),
            ("Say a", "a1", "a3", 0.5, 0.0, 0),
            ("Say a", "a2", "a3", 1.0, 3.0, -3),
            ("Say c", "c1", "c2", 0.5, 0.0, 0),
        ],
    ),
    "HelpSteer2 preferences": (
        [
            {"split": "train", "prompt": f"Do {s}", "response_1": "one", "response_2": "two", "preference_strength": s}
            | {"preference_statement": None, "preference_elaboration": None}
            for s in (-3, 1, 0)
        ],
        [
            ("Do -3", "one", "two", 1.0, 3.0, -3),
            ("Do 1", "two", "one", 1.0, 1.0, -1),
            ("Do 0", "one", "two", 0.5, 0.0, 0),
        ],
    ),
    "HelpSteer3": (
        [
            {"domain": "general", "language": "english", "context": [ASK, *said("Red."), ASK], "response1": "Blue."}
            | {
                "response2": "Red.",
                "overall_preference": -2,
                "individual_preference": [{"score": -2, "reasoning": "r"}],
            }
        ],
        [([ASK, *said("Red."), ASK], said("Blue."), said("Red."), 1.0, 2.0, -2)],
    ),
    "PKU-SafeRLHF": (
        [
            {"prompt": "How?", "response_0": "No.", "response_1": "Yes.", "is_response_0_safe": True}
            | {"is_response_1_safe": False, "better_response_id": 1, "safer_response_id": 0}
        ],
        [("How?", "Yes.", "No.", 1.0, None, -2)],
    ),
    "Nectar": (
        [
            {"prompt": "\n\nHuman: Hi\n\nAssistant: ", "turns": 1, "num_responses": 3, "source": ["s"]}
            | {
                "answers": [
                    {"answer": a, "model": f"m{a}", "rank": float(r)} for a, r in (("x", 2), ("y", 1), ("z", 3))
                ]
            }
            | {"good_natured": True}
        ],
        [
            ("\n\nHuman: Hi\n\nAssistant: ", "y", "x", 1.0, None, -2),
            ("\n\nHuman: Hi\n\nAssistant: ", "x", "z", 1.0, None, -2),
            ("\n\nHuman: Hi\n\nAssistant: ", "y", "z", 1.0, None, -2),
        ],
    ),
    "Chatbot Arena": (
        [
            {"question_id": str(i), "model_a": "m", "model_b": "n", "winner": winner, "judge": "j", "turn": 1}
            | {"conversation_a": [ASK, *said("Red.")], "conversation_b": [ASK, *said(f"Mud {i}.")], "turn": 1}
            for i, winner in enumerate(["model_b", "tie (bothbad)"])
        ],
        [([ASK], said("Mud 0."), said("Red."), 1.0, None, -2), ([ASK], said("Red."), said("Mud 1."), 0.5, None, 0)],
    ),
    "Chatbot Arena, JSON": (
        [
            {"id": 1, "model_a": "m", "model_b": "n", "prompt": json.dumps(["Name a colour.", "Name a colour."])}
            | {"response_a": '["Red.", "Blue."]', "response_b": '["Mud.", null]'}
            | {"winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}
        ],
        [([ASK], [*said("Red."), ASK, *said("Blue.")], [*said("Mud."), ASK, *said("")], 1.0, None, -2)],
    ),
    "Orca-DPO": (
        [
            {"system": "Be brief.", "question": "Name a colour.", "chosen": "Red.", "rejected": "Redness."},
            {"system": "", "question": "Name a colour.", "chosen": "Red.", "rejected": "Redness."},
        ],
        [
            ([{"role": "system", "content": "Be brief."}, ASK], said("Red."), said("Redness."), 1.0, None, -2),
            ([ASK], said("Red."), said("Redness."), 1.0, None, -2),
        ],
    ),
    "Orca-DPO of Argilla": (
        [{"system": "", "input": "Name a colour.", "chosen": "Red.", "rejected": "Mud.", "rating": [9.0, 7.0]}],
        [([ASK], said("Red."), said("Mud."), 1.0, None, -2)],
    ),
    "Alpaca pairs": (
        [{"instruction": "Translate:", "input": "rouge", "chosen": "the red", "rejected": "the mud"}],
        [("Translate:\nrouge", "the red", "the mud", 1.0, None, -2)],
    ),
    "ShareGPT pairs": (
        [
            {"conversations": [turn("human", "Name a colour.")], "chosen": turn("gpt", "Red."), "system": ""}
            | {"rejected": turn("gpt", "Mud.")}
        ],
        [([ASK], said("Red."), said("Mud."), 1.0, None, -2)],
    ),
    "OpenAI preferences": (
        [
            {"input": {"messages": [ASK], "tools": [], "parallel_tool_calls": True}}
            | {"preferred_output": said("Red."), "non_preferred_output": said("Mud.")}
        ],
        [([ASK], said("Red."), said("Mud."), 1.0, None, -2)],
    ),
}

DEMONSTRATIONS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "Alpaca": (
        [
            {"instruction": "Translate:", "input": "rouge", "output": "red", "text": "Below is an instruction"},
            {"instruction": "Say hi", "input": "", "output": "hi"},
        ],
        [{"prompt": "Translate:\nrouge", "completion": "red"}, {"prompt": "Say hi", "completion": "hi"}],
    ),
    "Alpaca with history": (
        [{"instruction": "more", "input": "", "output": "blue", "system": "Be.", "history": [["one", "red"]]}],
        [
            {
                "messages": [{"role": "system", "content": "Be."}, {"role": "user", "content": "one"}, *said("red")]
                + [{"role": "user", "content": "more"}, *said("blue")]
            }
        ],
    ),
    "Dolly": (
        [{"instruction": "Sum up", "context": "It rained.", "response": "Wet.", "category": "summarization"}],
        [{"prompt": "Sum up\nIt rained.", "completion": "Wet."}],
    ),
    "ShareGPT": (
        [
            {"id": "i", "conversations": [turn("human", "a"), turn("gpt", "b"), turn("human", "c"), turn("gpt", "d")]},
            {"conversations": [turn("system", "s"), turn("user", "a"), turn("chatgpt", "b")]},
        ],
        [
            {"messages": [{"role": "user", "content": "a"}, *said("b"), {"role": "user", "content": "c"}, *said("d")]},
            {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, *said("b")]},
        ],
    ),
}

KTO: dict[str, list[dict[str, Any]]] = {
    "KTO of LLaMA-Factory": [
        {"conversations": [turn("human", "Name a colour."), turn("gpt", a)], "kto_tag": good}
        for a, good in (("Red.", True), ("Mud.", False))
    ],
    "KTO with messages": [{"messages": [ASK, *said(a)], "kto_tag": g} for a, g in (("Red.", True), ("Mud.", False))],
    "KTO with messages and label": [
        {"messages": [ASK, *said(a)], "label": g} for a, g in (("Red.", True), ("Mud.", False))
    ],
    "KTO in Alpaca's columns": [
        {"instruction": "Name a colour.", "input": "", "output": a, "kto_tag": g}
        for a, g in (("Red.", "true"), ("Mud.", "false"))
    ],
}
"""Two rows each: "Red." is good, "Mud." is not."""
