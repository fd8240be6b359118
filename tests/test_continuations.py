"""Answers behind their prompts: the tokens that a policy would write, beside those of the template's whole text."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_tokenizers import (
    BOS,
    EOS,
    EOT,
    GEMMA,
    LLAMA2,
    MODEL,
    NEMOTRON,
    PHI3,
    QWEN3,
    R1,
    ZEPHYR,
    says,
    user,
    with_template,
)
from jinja2.exceptions import UndefinedError
from small_models import llama, tokenizer

from lm_gym.agents import DPO, KTO, PPO, SFT
from lm_gym.demonstrations import load_demonstrations
from lm_gym.env import LMAlignEnv
from lm_gym.judged_pairs import scores_of
from lm_gym.models import TransformersLM
from lm_gym.preferences import Preference, tokenize

ENDS = (EOS, EOT)


def right(tok: Any, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    """Prompt and answer by transformers alone: the whole conversation's tokens, less the prompt's, up to an end."""
    start = tok(tok.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True))["input_ids"]
    whole = tok(tok.apply_chat_template(messages, tokenize=False))["input_ids"]
    assert whole[: len(start)] == start
    rest = whole[len(start) :]
    return start, rest[: min(rest.index(end) for end in ENDS if end in rest) + 1]


def shown(tok: Any, text: Any) -> str:
    """Tokens of a demonstration, a star before each that is imitated."""
    tokens = tok.convert_ids_to_tokens(list(text.token_ids))
    return " ".join("*" * flag + token for token, flag in zip(tokens, text.imitated, strict=True))


@pytest.mark.parametrize("kind", ["legacy", "first"])
@pytest.mark.parametrize("template", [LLAMA2, ZEPHYR, GEMMA, PHI3], ids=["llama2", "zephyr", "gemma", "phi3"])
def test_an_answer_is_what_the_whole_text_has_behind_the_prompt(template: str, kind: str) -> None:
    tok = with_template(template, kind)
    questions = [user("hi")], [user("hi"), says("yes"), user("so")]
    for question in questions:
        pair = Preference(question, [says("good day")], [says("bad day")])
        prompt, chosen, rejected = tokenize(pair, tok, eos_ids=ENDS)
        assert (prompt, chosen) == right(tok, [*question, says("good day")])
        assert (prompt, rejected) == right(tok, [*question, says("bad day")])
        [found] = load_demonstrations([{"prompt": question, "completion": [says("good day")]}], tok, eos_ids=ENDS)
        assert list(found.token_ids) == prompt + chosen
        assert list(found.imitated) == [False] * len(prompt) + [True] * len(chosen)


@pytest.mark.parametrize("kind", ["legacy", "first"])
@pytest.mark.parametrize("template", [LLAMA2, ZEPHYR, GEMMA, PHI3], ids=["llama2", "zephyr", "gemma", "phi3"])
def test_a_conversation_of_several_turns_is_one_text_as_the_template_writes_it(template: str, kind: str) -> None:
    tok = with_template(template, kind)
    talk = [user("hi"), says("good day"), user("so"), says("no")]
    [found] = load_demonstrations([{"messages": talk}], tok, eos_ids=ENDS)
    start, last = right(tok, talk)
    assert list(found.token_ids) == start + last  # the later question as the template has it, too
    before, first = right(tok, talk[:2])
    wanted = [False] * len(before) + [True] * len(first) + [False] * (len(start) - len(before) - len(first))
    assert list(found.imitated) == wanted + [True] * len(last)


def test_the_words_of_an_answer_by_hand() -> None:
    """Llama-2's shape: no lone space before the answer. Gemma's: nothing behind <eot>."""
    pair = Preference([user("hi")], [says("good day")], [says("bad")])
    tok = with_template(LLAMA2)
    assert tok.convert_ids_to_tokens(tokenize(pair, tok)[1]) == ["▁good", "▁day", "</s>"]
    tok = with_template(ZEPHYR, "first")
    assert tok.convert_ids_to_tokens(tokenize(pair, tok)[1]) == ["good", "▁day", "</s>"]
    tok = with_template(GEMMA)
    assert tok.convert_ids_to_tokens(tokenize(pair, tok, eos_ids=ENDS)[1]) == ["▁good", "▁day", "<eot>"]
    # without the model's own ends only the tokenizer's is known, and it is appended
    assert tok.convert_ids_to_tokens(tokenize(pair, tok)[1]) == ["▁good", "▁day", "<eot>", "▁", "\n", "</s>"]


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"prompt": "hi", "completion": " good<eot> \n</s>"}, "▁hi *▁good *<eot>"),
        ({"prompt": "hi", "completion": " good</s>"}, "▁hi *▁good *</s>"),
        ({"prompt": "hi", "completion": " good"}, "▁hi *▁good *</s>"),
        ({"text": "hi good<eot> </s>"}, "*▁hi *▁good *<eot>"),
        ({"text": "<user> hi<eot><model> good<eot>\n"}, "*<user> *▁ *▁hi *<eot> *<model> *▁ *▁good *<eot>"),
        ({"text": "hi good"}, "*▁hi *▁good *</s>"),
    ],
    ids=["two ends", "an end", "no end", "text", "a templated text", "text without an end"],
)
def test_plain_texts_end_at_their_first_end_too(row: dict[str, str], wanted: str) -> None:
    tok = with_template(GEMMA)
    [found] = load_demonstrations([row], tok, eos_ids=ENDS)
    assert shown(tok, found) == wanted


def test_where_the_prompts_tokens_are_no_beginning_the_answer_is_the_middle_of_a_text() -> None:
    """A prompt that ends in a space: the whole text has ▁good, and a policy behind the lone ▁ writes "good"."""
    tok = with_template("{% for m in messages %}[{{ m['content'] }} {% endfor %}")
    pair = Preference([user("hi")], [says("x")], [says("y")])
    row = {"prompt": "hi ", "completion": "good"}
    with pytest.warns(UserWarning, match="1 of 1 rows of the demonstrations have a prompt and an answer whose tokens"):
        [found] = load_demonstrations([row], tok)
    assert shown(tok, found) == "▁hi ▁ *good *</s>"
    tok.chat_template = (
        "{% for m in messages %}{{ m['content'] + ' ' if m['role'] == 'user' else m['content'] }}{% endfor %}"
    )
    pair = Preference([user("hi")], [says("good")], [says("bad")])
    prompt, chosen, _ = tokenize(pair, tok)
    assert tok.convert_ids_to_tokens(prompt + chosen) == ["▁hi", "▁", "good", "</s>"]


def test_turns_that_the_template_writes_otherwise_later_are_texts_of_their_own() -> None:
    tok = with_template(QWEN3)
    talk = [user("hi"), says("<think>so</think>good"), user("so"), says("yes")]
    with pytest.warns(UserWarning, match="1 of 2 rows of the demonstrations are conversations whose earlier turns"):
        first, second, _ = load_demonstrations([{"messages": talk}, {"text": "hi"}], tok, eos_ids=ENDS)
    assert shown(tok, first) == "<user> ▁hi <eot> ▁ \n <model> *<think> *▁so *</think> *▁good *<eot>"
    assert shown(tok, second) == (
        "<user> ▁hi <eot> ▁ \n <model> ▁good <eot> ▁ \n <user> ▁so <eot> ▁ \n <model> *<think> *</think> *▁yes *<eot>"
    )


def test_a_marker_that_opens_the_reasoning() -> None:
    """R1's shape: answers without reasoning stand behind the marker less its <think>; with it, behind the whole."""
    tok, question = with_template(R1), [user("hi")]

    def tokens(chosen: str, rejected: str) -> list[str]:
        ids = tokenize(Preference(question, [says(chosen)], [says(rejected)]), tok)
        return [" ".join(tok.convert_ids_to_tokens(part)) for part in ids]

    assert tokens("good", "bad") == ["<s> <user> ▁hi <model>", "▁good </s>", "▁bad </s>"]
    opened = "<s> <user> ▁hi <model> <think> ▁ \n"
    reasons = [opened, "so </think> ▁good </s>", "no </think> ▁good </s>"]
    assert tokens("<think>\nso</think>good", "<think>\nno</think>good") == reasons
    assert tokens("so</think>good", "no</think>good") == reasons  # as the policy itself writes it
    one = tokens("<think>\nso</think>good", "bad")
    assert one == ["<s> <user> ▁hi <model>", "<think> ▁ \n so </think> ▁good </s>", "▁bad </s>"]
    begun = Preference([*question, says("<think>so")], [says("</think>good")], [says("</think>bad")])
    prompt, chosen, _ = (tok.convert_ids_to_tokens(ids) for ids in tokenize(begun, tok))
    assert " ".join(prompt) == "<s> <user> ▁hi <model> <think> ▁so"
    assert " ".join(chosen) == "</think> ▁good </s>"
    rows = [{"prompt": question, "completion": [says(said)]} for said in ("good", "<think>\nso</think>good")]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_demonstrations(rows, tok)
    said = " ".join(str(w.message) for w in caught)
    assert len(caught) == 2 and "their prompts are taken without it" in said and "would leave out" in said


def test_a_marker_that_ends_otherwise_than_the_answer_begins() -> None:
    """Nemotron's shape: the answer without reasoning closes it at once, behind <think> and no line break."""
    tok = with_template(NEMOTRON)
    pair = Preference([user("hi")], [says("good")], [says("bad")])
    prompt, chosen, _ = (tok.convert_ids_to_tokens(ids) for ids in tokenize(pair, tok, eos_ids=ENDS))
    assert prompt == ["<user>", "▁hi", "<eot>", "▁", "\n", "<model>", "<think>"]
    assert chosen == ["</think>", "▁good", "<eot>"]
    pair = Preference([user("hi")], [says("<think>\nso</think>good")], [says("<think>\nno</think>bad")])
    prompt, chosen, _ = (tok.convert_ids_to_tokens(ids) for ids in tokenize(pair, tok, eos_ids=ENDS))
    assert prompt == ["<user>", "▁hi", "<eot>", "▁", "\n", "<model>", "<think>", "▁", "\n"]
    assert chosen == ["so", "</think>", "▁good", "<eot>"]


def test_answers_of_several_turns_end_with_their_first() -> None:
    tok = with_template(GEMMA)
    pair = Preference([user("hi")], [says("good"), user("so"), says("no")], [says("bad")])
    assert tok.convert_ids_to_tokens(tokenize(pair, tok, eos_ids=ENDS)[1]) == ["▁good", "<eot>"]
    # turns that both begin with belong to the prompt
    shared = [says("yes"), user("so")]
    pair = Preference([user("hi")], [*shared, says("good")], [*shared, says("bad")])
    plain = Preference([user("hi"), *shared], [says("good")], [says("bad")])
    assert tokenize(pair, tok, eos_ids=ENDS) == tokenize(plain, tok, eos_ids=ENDS)
    same = Preference([user("hi")], [says("good"), user("so"), says("no")], [says("good")])
    with pytest.raises(ValueError, match="the same up to where they end"):
        tokenize(same, tok, eos_ids=ENDS)
    with pytest.raises(ValueError, match="begins with a message of the role 'user'"):
        tokenize(Preference([user("hi")], [user("so"), says("no")], [says("good")]), tok)


def test_judges_of_token_ids_get_those_of_an_answer_behind_its_prompt() -> None:
    """Tokens of the middle of a text: no space before the first word."""
    seen: list[Any] = []

    def judge(completion_ids: Any, **_: Any) -> list[float]:
        seen.extend(completion_ids)
        return [0.0] * len(completion_ids)

    tok = with_template(ZEPHYR)
    scores_of(judge, [("hi", "good so", {}), ([user("hi")], [says("x")], {})], tok)
    assert [tok.convert_ids_to_tokens(ids) for ids in seen] == [["good", "▁so"], ["x"]]


def problem(template: str) -> tuple[Any, Any]:
    """An environment on a random model with two ends and a tokenizer of SentencePiece's kind; the model alone."""
    tok = with_template(template)
    model = llama(len(tok), scale=0.3)
    model.generation_config.eos_token_id = [EOS, EOT]
    lm = TransformersLM(model, tok, "sp")
    return LMAlignEnv(model=lm, prompts=["hi"], reward_model=lambda completions, **_: [0.0] * len(completions)), model


@pytest.mark.parametrize("template", [LLAMA2, GEMMA], ids=["llama2", "gemma"])
def test_what_dpo_kto_and_sft_learn_from_by_a_plain_forward(template: str) -> None:
    """logps/chosen and sft/loss beside log-softmax of the model's logits on the template's own text."""
    env, model = problem(template)
    tok = env.mdp.reference.tokenizer
    question, good, bad = [user("hi")], says("good day"), says("bad")

    def logprob(answer: dict[str, str]) -> tuple[float, int]:
        start, rest = right(tok, [*question, answer])
        with torch.no_grad():
            logp = model(torch.tensor([start + rest])).logits[0].log_softmax(-1)
        return sum(float(logp[len(start) - 1 + i, token]) for i, token in enumerate(rest)), len(rest)

    (chosen, length), (rejected, _) = logprob(good), logprob(bad)
    pairs = [{"prompt": question, "chosen": [good], "rejected": [bad]}]
    found = DPO(env, pairs=pairs, batch_size=2).one_update().metrics
    assert (found["logps/chosen"], found["logps/rejected"]) == pytest.approx((chosen, rejected), abs=1e-4)
    rows = [{"prompt": question, "completion": [a], "label": a is good} for a in (good, bad)]
    found = KTO(env, feedback=rows, batch_size=2).one_update().metrics
    assert (found["logps/chosen"], found["logps/rejected"]) == pytest.approx((chosen, rejected), abs=1e-4)
    agent = SFT(env, data=[{"messages": [*question, good]}], batch_size=1, eval_every=10**9)
    agent.updates = 1
    assert agent.one_update().metrics["sft/loss"] == pytest.approx(-chosen / length, abs=1e-5)
    beside = PPO(env, batch_size=2, minibatch_size=2, ptx_coef=1.0, ptx_data=[{"messages": [*question, good]}]).ptx
    assert beside is not None and beside(1)["loss/ptx_avg"] == pytest.approx(-chosen / length, abs=1e-5)


def test_the_constants_are_what_the_tests_take_them_for() -> None:
    tok = with_template(LLAMA2)
    assert tok("<s></s><eot><model>", add_special_tokens=False)["input_ids"] == [BOS, EOS, EOT, MODEL]


@pytest.mark.slow
def test_published_templates() -> None:
    """Those that TRL brings along: the answer is whole and ends, and stands as the template writes it."""
    folder = Path(str(pytest.importorskip("trl").__path__[0])) / "chat_templates"
    paths = [path for path in sorted(folder.glob("*.jinja")) if "training" not in path.stem]
    question, answer, other = [user("Why?")], says("So it is."), says("No.")
    held = 0
    for path in paths:
        tok = tokenizer()
        tok.chat_template = path.read_text(encoding="utf-8")
        known = r"<\|(?:im_end|eot_id|end|return|END_OF_TURN_TOKEN)\|>|<(?:end_of_turn|turn\|)>"
        ends = re.findall(known, tok.chat_template)
        tok.add_special_tokens({"extra_special_tokens": sorted(set(ends))})
        eos_ids = [tok.eos_token_id, *tok.convert_tokens_to_ids(sorted(set(ends)))]
        prompt, chosen, _ = tokenize(Preference(question, [answer], [other]), tok, eos_ids=eos_ids)
        assert chosen[-1] in eos_ids and not set(chosen[:-1]) & set(eos_ids), path.stem
        assert "Why?" in tok.decode(prompt) and "So it is." in tok.decode(chosen), path.stem
        try:
            written = tok.apply_chat_template([*question, answer], tokenize=False)
        except UndefinedError:
            continue  # of a model that also sees, and reads a list of parts alone
        if "Why?" not in written:
            continue
        whole = tok(written)["input_ids"]
        text = prompt + chosen[:-1]
        assert whole[: len(text)] == text, path.stem
        held += 1
        talk = [*question, answer, user("And?"), says("Yes.")]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            texts = load_demonstrations([{"messages": talk}], tok, eos_ids=eos_ids)
        imitated = "".join(
            tok.decode([i for i, flag in zip(t.token_ids, t.imitated, strict=True) if flag]) for t in texts
        )
        assert "So it is." in imitated and "Yes." in imitated, path.stem
        assert "Why?" not in imitated and "And?" not in imitated, path.stem
    assert held >= 35
