"""Conversations through chat templates: names of roles, content in every form, and nothing that vanishes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from chat_tokenizers import GEMMA, QWEN3, ZEPHYR, judge_of, says, user, with_template

from lm_gym.chat import in_one_form, lost, template_options, written
from lm_gym.demonstrations import load_demonstrations
from lm_gym.preferences import load_feedback, load_preferences, load_rankings
from lm_gym.prompts import load_prompts

NAMED = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<user>{{ m['content'] }}"
    "{% elif m['role'] == 'assistant' %}<model>{{ m['content'] }}{% elif m['role'] == 'ipython' %}[{{ m['content'] }}]"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<model>{% endif %}"
)
"""Writes the roles that it names, and passes over others without a word, as many published templates do."""


def prompt_of(messages: list[Any], template: str = NAMED, **columns: Any) -> str:
    (found,) = load_prompts([{"prompt": messages, **columns}], with_template(template))
    return found.text


@pytest.mark.parametrize("role", ["human", "prompter", "User", "Human", " user "])
def test_other_names_of_the_user_are_the_user(role: str) -> None:
    assert prompt_of([{"role": role, "content": "hi"}]) == "<user>hi<model>"


@pytest.mark.parametrize("role", ["gpt", "bot", "Assistant", "model", "chatgpt"])
def test_other_names_of_the_assistant_are_the_assistant(role: str) -> None:
    assert prompt_of([user("hi"), {"role": role, "content": "yes"}, user("so")]) == "<user>hi<model>yes<user>so<model>"
    assert prompt_of([user("hi"), {"role": role, "content": "yes"}]) == "<user>hi<model>yes"  # a begun answer
    rows = [{"messages": [user("hi"), {"role": role, "content": "yes"}]}]
    assert load_demonstrations(rows, with_template(NAMED)) == load_demonstrations(
        [{"messages": [user("hi"), says("yes")]}], with_template(NAMED)
    )


def test_roles_have_one_name_in_every_kind_of_data() -> None:
    question, answer, other = {"role": "human", "content": "hi"}, {"role": "gpt", "content": "yes"}, says("no")
    [pair] = load_preferences([{"prompt": [question], "chosen": [answer], "rejected": [other]}])
    assert (pair.prompt, pair.chosen) == ([user("hi")], [says("yes")])
    assert load_preferences([{"chosen": [question, answer], "rejected": [user("hi"), other]}]) == [pair]
    [one] = load_feedback([{"prompt": [question], "completion": [answer], "label": True}])
    assert (one.prompt, one.completion) == ([user("hi")], [says("yes")])
    [three] = load_rankings([{"prompt": [question], "completions": [[answer], [other]]}])
    assert three.completions == ([says("yes")], [says("no")])


@pytest.mark.parametrize("role", ["customer", "narrator", "USER2"])
@pytest.mark.parametrize("template", [NAMED, ZEPHYR], ids=["passes over", "writes any"])
def test_an_unknown_role_is_named(role: str, template: str) -> None:
    messages = [{"role": role, "content": "hi"}, user("so")]
    with pytest.raises(ValueError, match=f"row 0 has message 0 with the role '{role}'; expected one of system"):
        prompt_of(messages, template)
    with pytest.raises(ValueError, match=f"row 0 has message 0 with the role '{role}'"):
        load_demonstrations([{"messages": [*messages, says("yes")]}], with_template(template))


def test_a_role_that_the_template_names_is_taken() -> None:
    assert prompt_of([user("hi"), {"role": "ipython", "content": "so"}]) == "<user>hi[so]<model>"


def test_a_message_that_the_template_leaves_out_is_named() -> None:
    with pytest.raises(ValueError, match=r"leaves out what message 0 \(system\) says: 'be good' is not in the text"):
        prompt_of([{"role": "system", "content": "be good"}, user("hi")])
    with pytest.raises(ValueError, match=r"leaves out what message 1 \(tool\) says"):
        prompt_of([user("hi"), {"role": "tool", "content": "4"}])
    first = "{{ messages[0]['content'] }}"
    with pytest.raises(ValueError, match=r"leaves out what message 1 \(user\) says"):
        prompt_of([user("good"), user("good")], first)  # the same words twice are not there once


def test_a_message_is_missed_though_its_words_are_in_another_one() -> None:
    with pytest.raises(ValueError, match=r"leaves out what message 0 \(system\) says: 'so'"):
        prompt_of([{"role": "system", "content": "so"}, user("is it so")])
    assert prompt_of([user("so"), user("is it so")]) == "<user>so<user>is it so<model>"


def test_a_template_that_cuts_a_text_gets_no_list_of_parts_to_write_out() -> None:
    """A list of one part, cut to its first four, is the whole of it, as Python writes it."""
    for cut in ("m['content'][:4]", "(m['content'] if m['content'] is not string else m['content'][:4]) | tojson"):
        with pytest.raises(ValueError, match=r"leaves out what message 0 \(user\) says: 'good day'"):
            prompt_of([user("good day")], "{% for m in messages %}{{ " + cut + " }}{% endfor %}")
    with pytest.raises(ValueError, match="row 0 has message 0 with content that is no text"):
        prompt_of([{"role": "user", "content": {"a": "so"}}])


def test_a_judges_template_is_held_to_the_same() -> None:
    judge = judge_of(with_template(NAMED))
    human = {"role": "human", "content": "hi"}
    assert judge.tokens([human], [says("yes")]) == judge.tokens([user("hi")], [says("yes")])
    with pytest.raises(ValueError, match="message 0 with the role 'customer'"):
        judge.tokens([{"role": "customer", "content": "hi"}], [says("yes")])


def test_what_a_template_trims_moves_and_escapes_is_there() -> None:
    text = 'say "<think>why</think>" {"a": "b\\n"}'
    messages = [user("  so  \n\n so "), {"role": "assistant", "content": "<think>so</think>\nyes"}, user('a "b"')]
    assert lost(messages, '[so so] yes "a \\"b\\""') is None
    assert lost(messages, "[so so] yes") == (2, 'a "b"')
    assert lost([user(text)], json.dumps(text, ensure_ascii=False)) is None
    assert lost([messages[1]], "yes", reasoning=True) == (
        0,
        "<think>so</think>\nyes",
    )  # where the reasoning must be there too


def test_content_in_parts_is_its_text() -> None:
    parts = [{"type": "text", "text": "good "}, {"type": "text", "text": "day"}]
    asked = {"role": "user", "content": parts}
    assert prompt_of([asked]) == "<user>good day<model>"
    answer = {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}
    tok = with_template(GEMMA)
    rows = [{"messages": [asked, answer]}, {"messages": [user("good day"), says("yes")]}]
    assert len(set(load_demonstrations(rows, tok))) == 1
    picture = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hi"}]}
    with pytest.raises(ValueError, match="row 0 has message 0 with content that is no text"):
        prompt_of([picture])


def test_a_template_that_reads_parts_only_gets_them() -> None:
    for text in ("p['text']", "p.text | upper | lower"):
        template = "{% for m in messages %}{% for p in m['content'] %}{{ " + text + " }}{% endfor %}{% endfor %}"
        assert prompt_of([user("good day")], template) == "good day"
    strict = "{% for m in messages %}{{ m['content'][0].text | length }}{{ m['content'][0].text }}{% endfor %}"
    assert prompt_of([user("good day")], strict) == "8good day"  # refused for a text, whose letters have no length


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOLS = (
    "{% if tools %}{{ tools[0]['function']['name'] }}:{% endif %}{% for m in messages %}"
    "{% if m.tool_calls %}<model>{% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments | tojson }}"
    "{% endfor %}</s>{% elif m['role'] == 'tool' %}[{{ m['content'] | tojson }}]"
    "{% else %}{{ '<user>' if m['role'] == 'user' else '<model>' }}{{ m['content'] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<model>{% endif %}"
)


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}], ids=["none", "null", "empty"])
def test_calls_of_tools_need_no_content(content: Any) -> None:
    call = {"role": "assistant", "tool_calls": [CALL], **content}
    talk = [user("hi"), call, {"role": "tool", "content": '"4"\n'}, says("so")]
    tools = [{"type": "function", "function": {"name": "add"}}]
    tok = with_template(TOOLS)
    for given in (tools, json.dumps(tools)):
        [found] = load_demonstrations([{"messages": talk, "tools": given}], tok)
        assert tok.decode(found.token_ids).replace(" ", "") == (
            'add:<user>hi</s><model>add{"a":1}</s>["\\"4\\"\\n"]<model>so</s>'
        )
        imitated = [t for t, flag in zip(found.token_ids, found.imitated, strict=True) if flag]
        assert tok.decode(imitated).replace(" ", "") == 'add{"a":1}</s>so</s>'
    assert prompt_of(talk[:3], TOOLS, tools=json.dumps(tools)).startswith("add:<user>hi")
    with pytest.raises(ValueError, match=r"leaves out what message 1 \(assistant\) says: 'add' is not in the text"):
        load_demonstrations([{"messages": talk}], with_template(ZEPHYR))
    with pytest.raises(ValueError, match="ends in an assistant's message that is no text alone"):
        prompt_of(talk[:2], TOOLS)


def test_tools_that_the_template_leaves_out_are_named() -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    with pytest.raises(ValueError, match="row 0 goes through a chat template that leaves out the tool 'add'"):
        prompt_of([user("hi")], tools=tools)
    with pytest.raises(ValueError, match="leaves out the tool 'add'"):
        load_demonstrations([{"messages": [user("hi"), says("so")], "tools": [{"name": "add"}]}], with_template(GEMMA))


@pytest.mark.parametrize("value", ["not json", '{"a": 1}', "3"])
def test_tools_that_are_no_list_are_named(value: str) -> None:
    with pytest.raises(ValueError, match="row 0 has tools"):
        prompt_of([user("hi")], TOOLS, tools=value)


def test_options_come_as_objects_or_json() -> None:
    assert template_options({"tools": "", "chat_template_kwargs": '{"x": 1}', "other": 2}) == {"x": 1}
    assert template_options({"tools": None, "chat_template_kwargs": {"x": 1}}) == {"x": 1}


@pytest.mark.parametrize("message", [{"role": "user"}, {"role": "user", "content": None}, {"content": "a"}, "hi"])
def test_what_is_no_message_is_refused(message: Any) -> None:
    with pytest.raises(ValueError, match="row 0 has"):
        load_prompts([[message, user("hi")]], with_template(NAMED))


def test_one_form_leaves_what_it_is_given_alone() -> None:
    given = [{"role": "gpt", "content": None, "tool_calls": [CALL]}]
    assert in_one_form(given) == [{"role": "assistant", "content": "", "tool_calls": [CALL]}]
    assert given == [{"role": "gpt", "content": None, "tool_calls": [CALL]}]
    assert in_one_form(in_one_form(given)) == in_one_form(given)


def test_reasoning_that_a_template_moves_is_no_loss() -> None:
    talk = [user("hi"), says("<think>so</think>yes"), user("so")]
    assert "so</think>" not in written(talk, with_template(QWEN3), ending="prompt")
