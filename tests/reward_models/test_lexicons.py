"""Repetition, regular expressions, target words and readability: scores worked out by hand."""

import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from judges import ask

from lm_gym.reward_models import Readability, Regex, Repetition, TargetWords
from lm_gym.rewards import load_reward_model


def scores(reward_model, *completions, ids=None):
    return ask(load_reward_model(reward_model), completions, ids=ids).scores.tolist()


# Repetition: 1 less than the share of distinct n-grams.


def test_repeated_words():
    # a b, b a, a b: two of three are distinct. The first three words are one word.
    assert scores("repetition?n=2", "a b A B", "a b c") == pytest.approx([2 / 3 - 1, 0])
    assert scores("repetition?n=1", "the The the") == pytest.approx([1 / 3 - 1])


def test_repetition_takes_three_words_unless_told():
    assert scores("repetition", "a b c a b c") == pytest.approx([3 / 4 - 1])  # abc bca cab abc


@pytest.mark.parametrize("text", ["", "one", "one two", "one two three"])
def test_too_short_to_repeat_itself(text):
    assert scores("repetition", text) == [0]


def test_repeated_tokens():
    assert scores("repetition?n=2&unit=tokens", "", "", ids=[[5, 5, 5, 5], [1, 2, 3, 4]]) == pytest.approx([-2 / 3, 0])


@given(st.lists(st.sampled_from("abc"), max_size=12), st.integers(1, 4))
@settings(max_examples=60)
@example(["a"] * 9 + ["b"], 4)
def test_saying_it_again_and_again_is_never_better(words, n):
    """Twice may be: the seam has up to n - 1 new n-grams (9 a and a b, n = 4: 2 of 7 distinct, then 5 of 17)."""
    once, twice, often = scores(Repetition(n), " ".join(words), " ".join(words * 2), " ".join(words * 40))
    assert 0 >= once >= often > -1 and 0 >= twice >= often
    grams = max(len(words) - n + 1, 0)
    assert twice <= (round((1 + once) * grams) + n - 1) / max(2 * len(words) - n + 1, 1) - 1 or grams == 0


@pytest.mark.parametrize("bad", [{"n": 0}, {"n": 1.5}, {"n": True}, {"unit": "letters"}])
def test_wrong_repetition(bad):
    with pytest.raises(ValueError, match="repetition: .* expected"):
        Repetition(**bad)


# Regular expressions.


def test_a_match_anywhere():
    assert scores(r"regex?pattern=\d+ stars", "It has 5 stars.", "It has five stars.", "") == [1, 0, 0]


def test_a_plus_sign_is_a_plus_sign_and_an_ampersand_can_be_written():
    assert scores("regex?pattern=ab+c", "abbc", "ab c") == [1, 0]
    assert scores("regex?pattern=a%26b", "a&b", "a26b") == [1, 0]


def test_several_matches():
    assert scores("regex?pattern=[!]&limit=4", "no", "one!", "a! b! c!", "!!!!!!") == [0, 0.25, 0.75, 1]


def test_the_whole_completion():
    assert scores("regex?pattern=yes|no&whole=true", " yes\n", "no", "yes no", "") == [1, 1, 0, 0]


def test_case():
    assert scores("regex?pattern=good", "GOOD") == [0]
    assert scores("regex?pattern=good&ignore_case=true", "GOOD") == [1]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"pattern": "("}, "expected a regular expression"),
        ({"pattern": "x*"}, "matches the empty text"),
        ({"pattern": ""}, "matches the empty text"),
        ({"pattern": "x", "limit": 0}, "at least 1"),
        ({"pattern": "x", "limit": 2, "whole": True}, "leave one of them out"),
    ],
)
def test_wrong_patterns(bad, message):
    with pytest.raises(ValueError, match=message):
        Regex(**bad)


# Target words.


def test_coverage_is_the_share_of_the_target_words_and_density_that_of_the_completion():
    texts = ["A good film, a GOOD film.", "Goods and films", "it's good", ""]
    assert scores("words?words=good,film,plot,it's", *texts) == [0.5, 0, 0.5, 0]
    assert scores("words?words=good,film,plot,it's&measure=density", *texts) == pytest.approx([4 / 6, 0, 1, 0])


def test_target_words_as_a_list_once_each():
    assert scores(TargetWords(["Good", "good"]), "good") == [1]


@pytest.mark.parametrize("bad", ["", "good,", "two words", ["a", 3], []])
def test_what_is_no_word(bad):
    with pytest.raises(ValueError, match=r"words: .* is no word"):
        TargetWords(bad)


def test_a_wrong_measure_of_words():
    with pytest.raises(ValueError, match="expected one of coverage, density"):
        load_reward_model("words?words=a&measure=count")


# Readability.

BEAUTIFUL = "The beautiful animal was sitting on the table."  # 8 words; 1+3+3+1+2+1+1+2 = 14 syllables


def test_reading_ease():
    ease = 206.835 - 1.015 * 8 - 84.6 * 14 / 8  # 50.665
    assert scores("readability", BEAUTIFUL) == pytest.approx([ease / 100])


def test_reading_ease_is_cut_to_a_range_and_an_empty_text_is_not_easy():
    easy = "The cat sat on the mat."  # 116.1
    hard = "Institutional internationalisation necessitates organisational responsibility."
    assert scores("readability", easy, hard, "", "...") == [1, 0, 0, 0]


def test_a_school_grade_to_aim_at():
    grade = 0.39 * 8 + 11.8 * 14 / 8 - 15.59  # 8.18
    found = scores("readability?measure=flesch_kincaid_grade&target=10", BEAUTIFUL, "")
    assert found == pytest.approx([-(10 - grade) / 10, -1])


LONG = "The old man and the dog sat on the bank by the sea and saw the boats and the birds and the sun that sank{}."
# 25 words, 25 syllables: one each. A number counts as a word of one syllable.


def grade_of(text):
    target = 1000.0  # above every grade
    return target + target * scores(f"readability?measure=flesch_kincaid_grade&target={target}", text)[0]


@pytest.mark.parametrize(
    ("text", "words", "syllables", "sentences"),
    [
        (LONG.format(""), 25, 25, 1),
        (LONG.format(" at 0.5 and 1.5"), 29, 29, 1),  # textstat: 2 sentences
        (LONG.format(" at .5"), 27, 27, 1),
        (LONG.format(" in front of Dr. Jones"), 30, 30, 1),
        (LONG.format(", e.g. the red sun"), 29, 29, 1),
        (LONG.format(", i.e. at 3.14.15 in the U.S. of the old"), 34, 34, 2),  # "U.S." is in no list
        (LONG.format(" at go.at of old"), 29, 29, 1),  # the word is "goat"
        (LONG.format(" low.The dog saw it too"), 30, 30, 2),  # a space is missing; "lowThe" is a word of textstat's
        (LONG.format(" low... so low") + " The dog saw it too!", 33, 33, 2),  # "so low" has two words
        (LONG.format("") + " It was 5. The dog was 3. No. The dog was not.", 37, 37, 4),  # "No." has one word
    ],
)
def test_sentences_end_where_they_end(text, words, syllables, sentences):
    """Kincaid et al., 1975, from counts made by hand; the point of 0.5 made two sentences, and grade 14 of 21."""
    assert grade_of(text) == pytest.approx(0.39 * words / sentences + 11.8 * syllables / words - 15.59, abs=1e-9)


def test_points_that_end_nothing_still_count_as_characters():
    # Automated readability index, Senter and Smith 1967: 4.71·characters/words + .5·words/sentences - 21.43
    text = "The dog ran 0.5 miles in the sun."
    index = 4.71 * (len(text) - text.count(" ")) / 8 + 0.5 * 8 - 21.43
    [found] = scores("readability?measure=automated_readability_index&target=100", text)
    assert found == pytest.approx(index / 100 - 1)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"measure": "smog"}, "expected one of flesch_reading_ease"),
        ({"measure": "gunning_fog"}, "needs the one to aim at"),
        ({"target": 0}, "above 0"),
        ({"target": float("nan")}, "above 0"),
    ],
)
def test_wrong_readability(bad, message):
    with pytest.raises(ValueError, match=message):
        Readability(**bad)


def test_without_textstat_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "textstat.textstat", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[readability\]'"):
        load_reward_model("readability")


def test_messages_are_read_too():
    message = [{"role": "assistant", "content": "good good"}]
    assert scores("repetition?n=1", message) == [-0.5]
    assert scores("regex?pattern=good", message) == [1]
    assert scores("words?words=good", message) == [1]
    assert scores("readability", message) == [1]
