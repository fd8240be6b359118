"""Preference data: every format of TRL, what is refused, and token ids."""

import json

import datasets
import pytest
from small_models import tokenizer

from lm_gym.preferences import (
    Feedback,
    Preference,
    Ranking,
    load_feedback,
    load_preferences,
    load_rankings,
    tokenize,
)

USER = {"role": "user", "content": "What colour is the sky?"}
BLUE = {"role": "assistant", "content": "Blue."}
GREEN = {"role": "assistant", "content": "Green."}
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
STANDARD = [
    {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
    {"chosen": "The sky is blue.", "rejected": "The sky is bleak."},  # no word is cut in two
]
CHAT = [
    {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]},
    {"chosen": [USER, BLUE], "rejected": [USER, GREEN]},
]


@pytest.mark.parametrize(("row", "rest"), [(STANDARD[0], " green."), (STANDARD[1], " bleak.")])
def test_texts_with_and_without_a_prompt(row, rest):
    assert load_preferences([row]) == [Preference("The sky is", " blue.", rest)]


@pytest.mark.parametrize("row", CHAT)
def test_conversations_with_and_without_a_prompt(row):
    assert load_preferences([row]) == [Preference([USER], [BLUE], [GREEN])]


ASKED = [{"role": "system", "content": "Be brief."}, USER]
WHOLE = [
    # UltraFeedback-binarized and others: the prompt's text beside whole conversations
    {"prompt": USER["content"], "chosen": [USER, BLUE], "rejected": [USER, GREEN], "score_chosen": 8.0},
    {"prompt": "another text", "chosen": [*ASKED, BLUE], "rejected": [*ASKED, GREEN]},
    {"prompt": "x", "chosen": [USER, BLUE, USER, GREEN], "rejected": [USER, BLUE, USER, BLUE]},
    # one ends where the other goes on
    {"prompt": "x", "chosen": [USER, BLUE], "rejected": [USER, BLUE, USER, GREEN]},
    {"chosen": [USER, BLUE, USER, GREEN], "rejected": [USER, BLUE]},
]


@pytest.mark.parametrize("row", WHOLE)
def test_whole_conversations_are_split_as_trl_splits_them(row):
    from trl.data_utils import maybe_extract_prompt

    [found] = load_preferences([row])
    assert {name: getattr(found, name) for name in ("prompt", "chosen", "rejected")} == maybe_extract_prompt(dict(row))
    assert found.columns == {k: v for k, v in row.items() if k == "score_chosen"}


def test_a_text_that_the_other_begins_with_loses_no_letter():
    """TRL gives the completions "e" and "e and grey." here."""
    [found] = load_preferences([{"chosen": "The sky is blue", "rejected": "The sky is blue and grey."}])
    assert (found.prompt, found.chosen, found.rejected) == ("The sky is", " blue", " blue and grey.")


def test_a_prompt_text_beside_answers_alone_says_what_to_do():
    with pytest.raises(ValueError, match="do not begin with the same message and then differ; give the prompt as mess"):
        load_preferences([{"prompt": "What?", "chosen": [BLUE], "rejected": [GREEN]}])


def test_an_implicit_prompt_may_end_in_a_line():
    [found] = load_preferences([{"chosen": "Q: why?\nA lot.", "rejected": "Q: why?\nBecause."}])
    assert (found.prompt, found.chosen, found.rejected) == ("Q: why?\n", "A lot.", "Because.")


def test_labels_margins_annotators_and_other_columns():
    row = STANDARD[0] | {"label": 0.5, "margin": 2, "annotator": 7, "gold_chosen": 0.25}
    [found] = load_preferences([row])
    assert (found.label, found.margin, found.annotator) == (0.5, 2.0, "7")
    assert found.columns == {"gold_chosen": 0.25}
    assert load_preferences([found]) == [found]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "dataset", "folder"])
def test_every_source_gives_the_same_pairs(tmp_path, kind):
    rows = [STANDARD[0] | {"label": 0.25, "margin": 1.5, "annotator": "a"}]
    expected = [Preference("The sky is", " blue.", " green.", label=0.25, margin=1.5, annotator="a")]
    dataset = datasets.Dataset.from_list(rows)
    path = tmp_path / f"pairs.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "csv":
        dataset.to_csv(str(path))
    elif kind == "parquet":
        dataset.to_parquet(str(path))
    elif kind == "folder":
        dataset.save_to_disk(str(path))
    found = load_preferences(dataset if kind == "dataset" else str(path))
    assert found == expected


def test_bad_rows_are_named():
    rows = [
        STANDARD[0],
        {"prompt": "a", "chosen": "b"},
        {"prompt": "a", "chosen": "b", "rejected": "b"},
        {"prompt": "a", "chosen": "b", "rejected": [GREEN]},
        {"prompt": "a", "chosen": "b", "rejected": "c", "label": 2},
        {"chosen": "x", "rejected": "y"},
        {"prompt": "", "chosen": "b", "rejected": "c"},
        {"prompt": "a", "chosen": "b", "rejected": "c", "margin": "wide"},
    ]
    with pytest.raises(ValueError, match="7 of 8 rows") as caught:
        load_preferences(rows)
    message = str(caught.value)
    assert "row 1 has no 'rejected'" in message
    assert "row 2 has the same text as chosen and as rejected" in message
    assert "row 3 mixes texts and conversations" in message
    assert "row 4 has the label 2; expected P(chosen is better), 0 to 1" in message
    assert "row 5 has no column 'prompt'" in message
    assert "and 2 more" in message


@pytest.mark.parametrize(
    ("source", "message"),
    [([], "has no rows"), (["text"], "expected named columns"), ("nothing.jsonl", "there is no file"), (7, "of type")],
)
def test_what_is_no_source_says_so(source, message):
    with pytest.raises((ValueError, TypeError), match=message):
        load_preferences(source)


def test_feedback():
    rows = [{"prompt": "a", "completion": "b", "label": good} for good in (True, "False", 1.0)]
    assert [f.good for f in load_feedback(rows)] == [True, False, True]
    assert load_feedback([{"prompt": [USER], "completion": [BLUE], "label": True, "kind": "x"}]) == [
        Feedback([USER], [BLUE], True, columns={"kind": "x"})
    ]
    with pytest.raises(ValueError, match=r"row 0 has the label 0.5; expected true \(good\) or false"):
        load_feedback([{"prompt": "a", "completion": "b", "label": 0.5}])


def test_rankings():
    rows = [
        {"prompt": "a", "completions": ["x", "y", "z"]},
        {"prompt": "a", "completions": ["z", "x", "y"], "ranks": [3, 1, 2], "annotator": "eve"},
    ]
    assert load_rankings(rows) == [Ranking("a", ("x", "y", "z")), Ranking("a", ("x", "y", "z"), annotator="eve")]
    with pytest.raises(ValueError, match="expected 2 different numbers"):
        load_rankings([{"prompt": "a", "completions": ["x", "y"], "ranks": [1, 1]}])
    with pytest.raises(ValueError, match="at least two"):
        load_rankings([{"prompt": "a", "completions": ["x"]}])


def test_tokens_of_texts():
    tok = tokenizer()
    prompt, chosen, rejected = tokenize(Preference("ab", " c", "d"), tok)
    assert tok.decode(prompt + chosen) == "ab c<eos>"
    assert tok.decode(prompt + rejected) == "abd<eos>"
    assert tokenize(Preference("ab", "", "d"), tok)[1] == [tok.eos_token_id]


def test_tokens_of_conversations_are_what_the_template_writes_up_to_its_end_of_text():
    tok = tokenizer()
    tok.chat_template = TEMPLATE
    prompt, chosen, rejected = tokenize(Preference([USER], [BLUE], [GREEN]), tok)
    assert tok.decode(prompt) == "[user]What colour is the sky?<eos>\n[assistant]"
    assert (tok.decode(chosen), tok.decode(rejected)) == ("Blue.<eos>", "Green.<eos>")


def test_a_completion_that_goes_on_with_the_prompts_last_message():
    tok = tokenizer()
    tok.chat_template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    start = {"role": "assistant", "content": "It is"}
    rest = [{"role": "assistant", "content": " blue"}], [{"role": "assistant", "content": " red"}]
    prompt, chosen, _ = tokenize(Preference([USER, start], *rest), tok)
    assert tok.decode(prompt + chosen) == "[user]What colour is the sky?[assistant]It is blue<eos>"


def test_a_template_that_changes_its_mind_is_refused():
    tok = tokenizer()
    tok.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match="writes the prompt otherwise once an answer follows"):
        tokenize(Preference([USER], [BLUE], [GREEN]), tok)


def test_a_transcript_ends_its_prompt_where_the_reply_begins():
    """HH's form: both replies begin with "I ca", which belongs to them."""
    start = "\n\nHuman: hi\n\nAssistant: so\n\nHuman: why?\n\nAssistant:"
    [found] = load_preferences([{"chosen": start + " I can say.", "rejected": start + " I cannot."}])
    assert (found.prompt, found.chosen, found.rejected) == (start, " I can say.", " I cannot.")


def test_conversations_that_repeat_their_prompt():
    [pair] = load_preferences([{"prompt": [USER], "chosen": [USER, BLUE], "rejected": [USER, GREEN]}])
    assert pair == Preference([USER], [BLUE], [GREEN])
    [one] = load_feedback([{"prompt": [USER], "completion": [USER, BLUE], "label": True}])
    assert one == Feedback([USER], [BLUE], True)
    [ranking] = load_rankings([{"prompt": [USER], "completions": [[USER, BLUE], [USER, GREEN]]}])
    assert ranking.completions == ([BLUE], [GREEN])
    # once is no repetition where one of them does not begin so
    tok = tokenizer()
    tok.chat_template = TEMPLATE
    [odd] = load_preferences([{"prompt": [USER], "chosen": [USER, BLUE], "rejected": [GREEN]}])
    with pytest.raises(ValueError, match="begins with a message of the role 'user'"):
        tokenize(odd, tok)
