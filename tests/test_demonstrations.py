"""Demonstrations: every format, which tokens are imitated (worked out by hand), and rows that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from small_models import LETTERS, tokenizer

from lm_gym.demonstrations import Demonstration, load_demonstrations

A, B, C, D = 3, 4, 5, 6  # letters of the small tokenizer; 2 is EOS, 11 the space
EOS, SPACE = 2, 11
CHAT = (
    "{% for m in messages %}{{ 'a' if m['role'] == 'user' else 'b' }}{{ m['content'] }}{{ eos_token }}{{ 'h' }}"
    "{% endfor %}{% if add_generation_prompt %}b{% endif %}"
)
"""a<user's text><eos>h, b<assistant's text><eos>h: an answer ends in EOS, and the h is the template's."""
H = 10


def tok(template: str | None = None) -> Any:
    found = tokenizer(LETTERS)
    found.chat_template = template
    return found


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def one(row: Any, template: str | None = None, **how: Any) -> tuple[list[int], str]:
    """Ids, and a string with 1 where a token is imitated."""
    (found,) = load_demonstrations([row], tok(template), **how)
    return list(found.token_ids), "".join("01"[flag] for flag in found.imitated)


def test_the_letters_are_what_the_tests_take_them_for() -> None:
    assert tok()("abcdh ", add_special_tokens=False)["input_ids"] == [A, B, C, D, H, SPACE]


def test_a_completion_is_imitated_with_its_eos_and_the_prompt_is_not() -> None:
    assert one({"prompt": "ab", "completion": " cd"}) == ([A, B, SPACE, C, D, EOS], "001111")


def test_a_text_is_imitated_whole() -> None:
    assert one({"text": "abc"}) == ([A, B, C, EOS], "1111")


def test_every_turn_of_the_assistant_is_imitated_and_nothing_of_the_others() -> None:
    """aab<eos>h b|c<eos>|h ad<eos>h b|cc<eos>|: both answers with their EOS, neither the template's b nor its h."""
    ids, flags = one({"messages": [user("ab"), says("c"), user("d"), says("cc")]}, CHAT)
    assert ids == [A, A, B, EOS, H, B, C, EOS, H, A, D, EOS, H, B, C, C, EOS]
    assert flags == "00000011000000111"


def test_a_prompt_of_messages_keeps_its_own_answers_out() -> None:
    """The prompt holds an answer, which is context; the completion has two turns with a question between them."""
    prompt, completion = [user("a"), says("b"), user("c")], [says("d"), user("a"), says("dd")]
    ids, flags = one({"prompt": prompt, "completion": completion}, CHAT)
    assert ids == [A, A, EOS, H, B, B, EOS, H, A, C, EOS, H, B, D, EOS, H, A, A, EOS, H, B, D, D, EOS]
    assert flags == "000000000000011000000111"


def test_a_completion_goes_on_with_a_message_that_the_prompt_began() -> None:
    ids, flags = one({"prompt": [user("a"), says("c")], "completion": [says("d")]}, CHAT)
    assert (ids, flags) == ([A, A, EOS, H, B, C, D, EOS], "00000011")


def test_a_template_that_ends_no_turn() -> None:
    """The last answer gets the EOS that a policy would end it with; turns before it have none to imitate."""
    plain = "{% for m in messages %}{{ 'a' if m['role'] == 'user' else 'b' }}{{ m['content'] }}{% endfor %}"
    plain += "{% if add_generation_prompt %}b{% endif %}"
    ids, flags = one({"messages": [user("c"), says("d"), user("c"), says("dd")]}, plain)
    assert (ids, flags) == ([A, C, B, D, A, C, B, D, D, EOS], "0001000111")


def test_the_templates_own_arguments_reach_it() -> None:
    template = "{{ prefix }}" + CHAT
    row = {"messages": [user("a"), says("c")], "chat_template_kwargs": {"prefix": "dd"}}
    assert one(row, template) == ([D, D, A, A, EOS, H, B, C, EOS], "000000011")


@pytest.mark.parametrize("kind", ["dataset", "jsonl", "json", "csv", "parquet", "folder"])
def test_sources(kind: str, tmp_path: Path) -> None:
    rows = [{"prompt": "ab", "completion": " cd"}, {"prompt": "a", "completion": "b"}]
    data, path = Dataset.from_list(rows), tmp_path / f"data.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "csv":
        data.to_csv(path)
    elif kind == "parquet":
        data.to_parquet(path)
    elif kind == "folder":
        data.save_to_disk(path)
    found = load_demonstrations(data if kind == "dataset" else str(path), tok())
    assert found == [
        Demonstration((A, B, SPACE, C, D, EOS), (False, False, True, True, True, True)),
        Demonstration((A, B, EOS), (False, True, True)),
    ]


def test_ready_made_demonstrations_need_no_tokenizer() -> None:
    made = Demonstration((1, 2, 3), (False, False, True))
    assert load_demonstrations([made], None) == [made]
    with pytest.raises(ValueError, match="row 0 is text, and the model has no tokenizer: give a list of Demonstration"):
        load_demonstrations([{"text": "abc"}], None)


@pytest.mark.parametrize(
    ("ids", "flags"), [((1, 2), (True,)), ((1, 2), (True, False)), ((1,), (True,)), ((), ())], ids=str
)
def test_a_demonstration_without_anything_to_predict_is_refused(ids: Any, flags: Any) -> None:
    with pytest.raises(ValueError, match="expected a flag for each token, and one behind the first"):
        Demonstration(ids, flags)


REWRITES = "{{ 'c' * (messages | length) }}" + CHAT


@pytest.mark.parametrize(
    ("row", "template", "words"),
    [
        ({"prompt": "a"}, None, "has the columns prompt; expected prompt and completion, messages, or text"),
        ({"prompt": "a", "completion": ""}, None, "has a completion that is empty"),
        ({"prompt": "", "completion": "a"}, None, "has a prompt that is empty"),
        ({"prompt": "a", "completion": 3}, None, "has a completion that is int 3"),
        ({"prompt": "a", "completion": [says("b")]}, CHAT, "of which one is a text and one a list of messages"),
        ({"text": "  "}, None, "has the text '  '; expected one that is not empty"),
        ({"text": ["a"]}, None, "has a text that has the message 'a'"),
        ({"messages": []}, CHAT, "has a messages that is empty"),
        ({"messages": [user("a")]}, CHAT, "expected a turn of the assistant with something before it"),
        ({"messages": [says("a")]}, CHAT, "expected a turn of the assistant with something before it"),
        ({"messages": [user("a"), says("b")]}, None, "the tokenizer has no chat template"),
        ({"messages": [user("a"), says("b")]}, "{{ raise_exception('no') }}", "is refused by the chat template: no"),
        ({"messages": [user("a"), says("b")]}, REWRITES, "writes the prompt otherwise once an answer follows"),
        (["a", "b"], None, "is of type list, expected named columns"),
    ],
)
def test_broken_rows_are_named_with_what_is_wrong(row: Any, template: str | None, words: str) -> None:
    fine = {"text": "abc"}
    with pytest.raises(ValueError, match="1 of 3 rows of the demonstrations cannot be used: row 1 ") as caught:
        load_demonstrations([fine, row, fine], tok(template))
    assert words in str(caught.value) and "To do: repair or drop them" in str(caught.value)


def test_long_ones_and_empty_sources_are_refused() -> None:
    rows = [{"text": "abc"}, {"text": "abcdef"}]
    assert len(load_demonstrations(rows, tok(), max_tokens=7)) == 2
    with pytest.raises(
        ValueError,
        match=r"1 of 2 rows of the demonstrations are too long: row 1 has 7 tokens \(at most 6\). To do: shorten",
    ):
        load_demonstrations(rows, tok(), max_tokens=6)
    with pytest.raises(ValueError, match="has no rows"):
        load_demonstrations([], tok())
