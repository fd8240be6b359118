"""lm_gym.prompts: every source gives the same rows, and a row that cannot be used is named."""

import copy
import json
import pickle

import pytest
from chat_tokenizers import judge_of
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lm_gym.demonstrations import load_demonstrations
from lm_gym.preferences import Preference, tokenize
from lm_gym.prompts import Prompt, load_prompts
from lm_gym.rewards import RESERVED_COLUMNS

WORDS = "<pad> <s> </s> <unk> <user> <bot> <tools> once upon a time there was . hi hello".split()
IDS = {word: index for index, word in enumerate(WORDS)}
TEMPLATE = (
    "<s> {% if tools %}<tools> {{ tools[0]['function']['name'] }} {% endif %}{% for m in messages %}"
    "{{ '<user>' if m['role'] == 'user' else '<bot>' }} {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<bot>{% endif %}"
)


def make_tokenizer(*, bos=True, eos=False, template=None):
    inner = Tokenizer(models.WordLevel(IDS, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    single = f"{'<s> ' if bos else ''}$A{' </s>' if eos else ''}"
    inner.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 1), ("</s>", 2)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def chat_tokenizer():
    return make_tokenizer(template=TEMPLATE)


def ids(text):
    return tuple(IDS[word] for word in text.split())


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


# Rows.


def test_texts(tokenizer):
    prompts = load_prompts(["once upon", "hello there"], tokenizer)
    assert prompts == [Prompt(0, "once upon", ids("<s> once upon")), Prompt(1, "hello there", ids("<s> hello there"))]
    assert prompts[0].for_reward == "once upon"
    assert prompts[0].completion_for_reward(" a time") == " a time"


def test_columns_travel_and_missing_ones_are_none(tokenizer):
    rows = [{"prompt": "once", "grade": 3}, {"prompt": "upon", "kind": "x"}, "hi"]
    columns = [prompt.columns for prompt in load_prompts(rows, tokenizer)]
    assert columns == [{"grade": 3, "kind": None}, {"grade": None, "kind": "x"}, {"grade": None, "kind": None}]
    assert [list(row) for row in columns] == [["grade", "kind"]] * 3


def test_columns_of_trl_formats_travel(tokenizer):
    row = {"prompt": "once", "completion": "upon", "chosen": "a", "rejected": "b", "label": True}
    (prompt,) = load_prompts([row], tokenizer)
    assert prompt.columns == {"completion": "upon", "chosen": "a", "rejected": "b", "label": True}


@pytest.mark.parametrize("name", RESERVED_COLUMNS)
def test_columns_named_like_the_keywords_of_a_reward_model_are_refused(tokenizer, name):
    with pytest.raises(ValueError, match=f"prompt columns \\['{name}'\\]"):
        load_prompts([{"prompt": "once", name: 1}], tokenizer)


def test_prompts_pickle_copy_hash_and_do_not_change(tokenizer, chat_tokenizer):
    rows = [{"prompt": "once", "grade": 3}, {"prompt": [{"role": "user", "content": "hi"}]}]
    for prompt in load_prompts(rows, chat_tokenizer):
        assert pickle.loads(pickle.dumps(prompt)) == prompt
        assert copy.deepcopy(prompt) == prompt
        assert hash(prompt) == hash(copy.deepcopy(prompt))
        with pytest.raises(AttributeError):
            prompt.text = "other"


# Tokens.


def test_an_end_of_text_token_is_stripped():
    assert load_prompts(["once upon"], make_tokenizer(eos=True))[0].token_ids == ids("<s> once upon")
    assert load_prompts(["once </s>"], make_tokenizer())[0].token_ids == ids("<s> once")


def test_a_text_that_begins_with_bos_gets_no_second_one():
    """As a chat template or another program writes prompts; one that a text has twice by itself stays."""
    with_bos, without = make_tokenizer(), make_tokenizer(bos=False)
    for text in ("<s> once upon", "once upon"):
        assert load_prompts([text], with_bos)[0].token_ids == ids("<s> once upon")
    assert load_prompts(["<s> <s> hi"], with_bos)[0].token_ids == ids("<s> <s> hi")
    assert load_prompts(["<s> <s> hi", "hi"], without)[0].token_ids == ids("<s> <s> hi")
    assert load_prompts(["<s> hi"], make_tokenizer(eos=True))[0].token_ids == ids("<s> hi")


def test_no_text_that_is_trained_on_or_judged_has_two_bos():
    tokenizer = make_tokenizer()
    [row] = load_demonstrations([{"prompt": "<s> once", "completion": " upon"}], tokenizer)
    assert row.token_ids == ids("<s> once upon </s>")
    assert load_demonstrations([{"text": "<s> once upon"}], tokenizer)[0].token_ids == ids("<s> once upon </s>")
    assert tokenize(Preference("<s> once", " upon", " hi"), tokenizer)[0] == list(ids("<s> once"))
    judge = judge_of(tokenizer)
    assert judge.tokens("<s> once", " upon") == judge.tokens("once", " upon") == list(ids("<s> once upon"))


def test_one_token_for_beginning_and_end():
    tokenizer = make_tokenizer(bos=False)
    tokenizer.bos_token = tokenizer.eos_token
    assert load_prompts(["</s>", "hi </s>", "</s> hi"], tokenizer) == [
        Prompt(0, "</s>", ids("</s>")),
        Prompt(1, "hi </s>", ids("hi")),
        Prompt(2, "</s> hi", ids("</s> hi")),
    ]


def test_max_tokens_names_the_rows(tokenizer):
    rows = ["hi"] + ["once upon a time"] * 7
    assert len(load_prompts(rows, tokenizer, max_tokens=5)) == 8
    with pytest.raises(ValueError, match=r"7 of 8 prompts .*: row 1 has 5 tokens; row 2 .*; row 5 .*, and 2 more"):
        load_prompts(rows, tokenizer, max_tokens=4)
    with pytest.raises(ValueError, match="max_tokens is 0"):
        load_prompts(rows, tokenizer, max_tokens=0)


# Conversations.


def test_conversations_go_through_the_chat_template(chat_tokenizer):
    messages = [{"role": "user", "content": "hi there"}]
    for source in ([messages], [{"prompt": messages, "grade": 1}]):
        (prompt,) = load_prompts(source, chat_tokenizer)
        assert prompt.text == "<s> <user> hi there <bot>"
        assert prompt.token_ids == ids("<s> <user> hi there <bot>")  # one <s>: the tokenizer adds none of its own
        assert prompt.for_reward == messages
        assert prompt.completion_for_reward("hello") == [{"role": "assistant", "content": "hello"}]


def test_a_started_answer_is_continued(chat_tokenizer):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "once upon"}]
    (prompt,) = load_prompts([messages], chat_tokenizer)
    assert prompt.token_ids == ids("<s> <user> hi <bot> once upon")
    assert prompt.for_reward == messages[:1]
    assert prompt.completion_for_reward(" a time") == [{"role": "assistant", "content": "once upon a time"}]


def test_tools_go_to_the_template(chat_tokenizer):
    row = {
        "prompt": [{"role": "user", "content": "hi"}],
        "tools": [{"type": "function", "function": {"name": "hello"}}],
    }
    (prompt,) = load_prompts([row], chat_tokenizer)
    assert prompt.token_ids == ids("<s> <tools> hello <user> hi <bot>")
    assert prompt.columns == {"tools": row["tools"]}


def test_conversations_and_texts_in_one_source(chat_tokenizer):
    prompts = load_prompts(["hi", [{"role": "user", "content": "hi"}]], chat_tokenizer)
    assert [prompt.token_ids for prompt in prompts] == [ids("<s> hi"), ids("<s> <user> hi <bot>")]


def test_a_conversation_without_a_chat_template(tokenizer):
    with pytest.raises(ValueError, match="row 1 is a conversation, and the tokenizer has no chat template"):
        load_prompts(["hi", [{"role": "user", "content": "hi"}]], tokenizer)


def test_what_the_template_refuses_is_named():
    template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match="row 0 is refused by the chat template: roles must alternate"):
        load_prompts([[{"role": "user", "content": "hi"}]], make_tokenizer(template=template))


# Files.


def test_jsonl(tokenizer, tmp_path):
    text = '{"prompt": "once upon", "grade": 3}\r\n\n{"prompt": "a\\u2028time\u2028", "grade": null}\n"hi"\n'
    path = write(tmp_path, "p.jsonl", "\ufeff" + text)
    prompts = load_prompts(path, tokenizer)
    assert [(prompt.id, prompt.text, prompt.columns) for prompt in prompts] == [
        (0, "once upon", {"grade": 3}),
        (1, "a\u2028time\u2028", {"grade": None}),
        (2, "hi", {"grade": None}),
    ]


def test_json_csv_and_txt_give_the_same(tokenizer, tmp_path):
    rows = [{"prompt": "once upon", "kind": "a,b"}, {"prompt": "a\n\ntime", "kind": "x"}]
    expected = load_prompts(rows, tokenizer)
    assert load_prompts(write(tmp_path, "p.json", json.dumps(rows)), tokenizer) == expected
    text = 'prompt,kind\r\nonce upon,"a,b"\r\n"a\n\ntime",x\r\n'
    assert load_prompts(write(tmp_path, "p.csv", text), tokenizer) == expected
    lines = load_prompts(write(tmp_path, "p.txt", "once upon\n\na time \n"), tokenizer)
    assert [prompt.text for prompt in lines] == ["once upon", "a time "]


def test_a_path_object_and_a_home_folder(tokenizer, tmp_path, monkeypatch):
    write(tmp_path, "p.txt", "hi\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_prompts(tmp_path / "p.txt", tokenizer) == load_prompts("~/p.txt", tokenizer)


BAD_FILES = [
    ("p.jsonl", '{"prompt": "hi"}\n\n{"prompt": hi}\n', r"p.jsonl, line 3, is not JSON: .* at column 12"),
    (
        "p.jsonl",
        '{"prompt": "hi"}\n{"promt": "hi"}\n',
        r"p.jsonl, line 2, has no column 'prompt', only 'promt'. Rename",
    ),
    ("p.jsonl", '{"prompt": "hi"}\n{"prompt": 3}\n', "p.jsonl, line 2, is int 3"),
    ("p.jsonl", '{"prompt": "hi"}\n{"prompt": null}\n', "p.jsonl, line 2, is NoneType"),
    ("p.jsonl", '{"prompt": "hi"}\n{"prompt": "\\ud800"}\n', "p.jsonl, line 2, has characters that are no Unicode"),
    ("p.jsonl", b'{"prompt": "hi"}\n{"prompt": "caf\xe9"}\n', r"line 2, has the byte 0xe9 at column 16, which is no"),
    ("p.txt", b"hi\ncaf\xe9\n", r"line 2, has the byte 0xe9 at column 4, which is not UTF-8"),
    ("p.csv", b"prompt\nhi\ncaf\xe9\n", r"line 3, has the byte 0xe9 at column 4, which is not UTF-8"),
    ("p.json", b'["hi",\n"caf\xe9"]', r"line 2, has the byte 0xe9 at column 5, which is not UTF-8"),
    ("p.json", '{"prompt": "hi"}', "holds a dict; expected a list of rows"),
    ("p.json", '["hi"\n"hi"]', "line 2: not JSON: .*expected a list of rows, or an object a line"),
    ("p.json", '{"prompt": "hi"}\n{"prompt": ', "p.json, line 2, is not JSON"),
    ("p.json", '["hi", {"x": 1}]', "p.json, row 1 has no column 'prompt'"),
    ("p.csv", "prompt,k\nhi,1\nonce, upon,2\n", "p.csv, line 3, has another number of fields"),
    ("p.csv", "prompt,k\nhi\n", "p.csv, line 2, has another number of fields"),
    ("p.csv", "text,k\nhi,1\n", "p.csv, line 2, has no column 'prompt', only 'text', 'k'. Rename 'text' to 'prompt'"),
    ("p.csv", 'prompt\n"hi\n', "not CSV"),
    ("p.tsv", 'prompt\tk\n"hi" she said\t1\n', "not TSV: .*; a field that begins with a quotation mark ends"),
    ("p.xml.gz", "x", r"ends in '.xml.gz'; expected .jsonl"),
    ("p.txt", "", "has no rows"),
    ("p.txt", "\n \n", "has no rows"),
    ("p.csv", "prompt\n", "has no rows"),
    ("p.parquet", "x", "is no Parquet file"),
    ("p.jsonl.gz", "x", "cannot be read as gzip"),
    ("p.tsv", "prompt\tk\nhi\n", "p.tsv, line 2, has another number of fields"),
    ("p.xlsx", "x", r"expected .jsonl, .json, .csv, .tsv, .txt \(each also .gz\) or .parquet: save it as one of these"),
    ("p.jsonl", "[" * 100_000, "nested too deep"),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD_FILES, ids=[str(case[1])[:40] for case in BAD_FILES])
def test_a_bad_file_is_named_by_its_line(tokenizer, tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        load_prompts(write(tmp_path, name, text), tokenizer)


# Datasets.


@pytest.fixture(scope="module")
def dataset():
    import datasets

    return datasets.Dataset.from_dict({"prompt": ["once upon", "hi"], "grade": [1, 2]})


def test_datasets(tokenizer, dataset, tmp_path):
    expected = load_prompts([{"prompt": "once upon", "grade": 1}, {"prompt": "hi", "grade": 2}], tokenizer)
    assert load_prompts(dataset, tokenizer) == expected
    dataset.save_to_disk(str(tmp_path / "saved"))
    assert load_prompts(str(tmp_path / "saved"), tokenizer) == expected


def test_datasets_that_cannot_be_read(tokenizer, dataset, tmp_path):
    import datasets

    with pytest.raises(TypeError, match="has the splits 'train'; give one of them"):
        load_prompts(datasets.DatasetDict(train=dataset), tokenizer)
    with pytest.raises(TypeError, match="streamed"):
        load_prompts(dataset.to_iterable_dataset(), tokenizer)
    with pytest.raises(ValueError, match="no column 'prompt', only 'question', 'grade'. Rename 'question'"):
        load_prompts(dataset.rename_column("prompt", "question"), tokenizer)
    with pytest.raises(ValueError, match="has no rows"):
        load_prompts(dataset.select([]), tokenizer)
    with pytest.raises(ValueError, match="no state.json"):
        load_prompts(str(tmp_path), tokenizer)


def test_hub_ids(tokenizer, dataset, monkeypatch):
    import datasets

    calls = []

    def load_dataset(name, config, split):
        calls.append((name, config, split))
        return dataset

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for name in ("org/name", "org/name:test", "org/name:main:test", "org/name:train[:100]", "o/n:main:train[5:10]"):
        assert len(load_prompts(name, tokenizer)) == 2
    assert calls == [
        ("org/name", None, "train"),
        ("org/name", None, "test"),
        ("org/name", "main", "test"),
        ("org/name", None, "train[:100]"),
        ("o/n", "main", "train[5:10]"),
    ]


def test_a_hub_id_that_does_not_load(tokenizer):
    with pytest.raises(ValueError, match="'nobody/nothing' is no file here, and as a hub id it cannot be loaded"):
        load_prompts("nobody/nothing", tokenizer)


# Names of the package.


def test_the_package_has_prompts_of_its_own(tokenizer):
    train, test = load_prompts("tiny:reviews", tokenizer), load_prompts("tiny:reviews:test", tokenizer)
    assert load_prompts("tiny:reviews:train", tokenizer) == train
    assert not {prompt.text for prompt in train} & {prompt.text for prompt in test}
    kinds = {prompt.columns["kind"] for prompt in load_prompts("tiny:all", tokenizer)}
    assert len(kinds) == 3


# Errors.

BAD_SOURCES = [
    ("tiny:review", r"Did you mean 'tiny:reviews'\?"),
    ("tiny:reviews:dev", r"Did you mean 'tiny:reviews'\? .*tiny:all:test"),
    ("tiny", "there is no prompt set 'tiny'"),
    ("reviews", r"Did you mean 'tiny:reviews'\?"),
    ("Once upon a time", r"for a single prompt give a list: \['Once upon a time'\]"),
    ("nowhere.jsonl", "there is no file nowhere.jsonl"),
    ("org/name:a:b:c", "expected org/name, org/name:split"),
    ([], "has no rows"),
    (["hi", "", "  "], "2 of 3 prompts cannot be used: row 1 is empty; row 2 is empty"),
    (["hi", None], "row 1 is NoneType None"),
    (["hi", b"hi"], "row 1 is bytes"),
    ([{"text": "hi"}], "row 0 has no column 'prompt', only 'text'. Rename 'text'"),
    ([{"instruction": "hi", "input": "x"}], "Join 'instruction' and 'input' in a column 'prompt'"),
    ([{"input": {"text": "hi"}}], "Give the text to be continued in a column 'prompt'"),
    ([{"chosen": "a", "rejected": "b"}], "an implicit prompt.*trl.extract_prompt"),
    ([{"messages": []}], "whole conversations"),
    ([{}], "row 0 has no column 'prompt', only no columns"),
    ([{"role": "user", "content": "hi"}], "one list of messages"),
    ([[{"role": "user"}]], "row 0 has the message"),
    ([["hi"]], "row 0 has the message 'hi'"),
    ([[]], "row 0 is empty"),
    ([[{"role": "user", "content": ""}]], "row 0 is empty"),
    ([[{"role": "assistant", "content": None}]], "has the message"),
]


@pytest.mark.parametrize(("source", "message"), BAD_SOURCES, ids=[str(case[0])[:40] for case in BAD_SOURCES])
def test_a_bad_source_says_what_to_do(chat_tokenizer, source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_prompts(source, chat_tokenizer)


@pytest.mark.parametrize(
    ("source", "message"), [(3, "is of type int"), ({"train": []}, "mapping with the keys 'train'")]
)
def test_other_types_are_refused(tokenizer, source, message):
    with pytest.raises(TypeError, match=message):
        load_prompts(source, tokenizer)
