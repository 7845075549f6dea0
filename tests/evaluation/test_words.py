"""Answers are found as whole words and numbers, however they are written."""

import pytest

from swaa.evaluation.words import normalise, says

FOUND = [
    ("It is 5.", "5"),
    ("is:\n5", "5"),
    ("5 %, $5, x=5,y=6", "5"),
    ("5年", "5"),
    ("about 3-5 km", "5"),
    ("-5 degrees", "-5"),
    ("3.14", "3.14"),
    ("It is 1,234,567.", "1234567"),
    ("1'234'567", "1,234,567"),
    ("1.234.567", "1234567"),
    ("1 234 567", "1234567"),
    ("1 234 567", "234"),  # or three numbers: either reading will do
    ("1\u202f234\u202f567 people", "1234567"),
    ("rooms 3,4,5", "4"),
    ("100, 200, 300", "200"),
    ("\uff15", "5"),
    ("\u0665", "5"),
    ("A cafe\u0301.", "caf\u00e9"),
    ("the \ufb01le", "file"),
    ("co\u00adoperate", "cooperate"),
    ("New\u00a0York", "new york"),
    ("STRASSE", "Straße"),
    ("It\u2019s Ada\u2019s.", "Ada's"),
    ("_Ada_ and **Paris**", "paris"),
    ("_Ada_", "Ada"),
    ("それは東京です。", "東京"),
    ("서울은", "서울"),
]
MISSED = [
    ("There were 15 ships.", "5"),
    ("12345", "234"),
    ("5th", "5"),
    ("5.5", "5"),
    ("2,5", "5"),
    ("0.15", "15"),
    ("it is -5", "5"),
    ("5,000", "5"),
    ("1,007", "7"),
    ("100,200,300", "200"),
    ("15年", "5年"),
    ("It was signed in Canada.", "Ada"),
    ("Adam", "Ada"),
    ("I do not know.", "no"),
    ("nowhere", "no"),
    ("हिन्दी", "हिन्द"),  # a vowel sign goes on
]


@pytest.mark.parametrize(("text", "answer"), FOUND)
def test_an_answer_is_found(text, answer):
    assert says(text, answer)


@pytest.mark.parametrize(("text", "answer"), MISSED)
def test_a_part_of_a_word_or_number_is_no_answer(text, answer):
    assert not says(text, answer)


def test_what_is_not_seen_is_nothing():
    assert normalise("\u200b \u00ad\n") == ""
