# SPDX-License-Identifier: Apache-2.0
"""Free replies against known answers: what counts as the same, and what must not."""

import pytest

from earnest.evaluate.matching import choice_right, chosen_option, short_answer_right, tokens

CHOICES = ["Soft and melodic", "Aggressive and talking", "High-pitched and singing", "Whispering"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Answer is Forty-Two!", ["answer", "is", "42"]),
        ("twenty one 1,234 3.50 007", ["21", "1234", "3.5", "7"]),
        ("twenty, thirty five", ["20", "35"]),
        ("forty ten", ["40", "10"]),
        ("it is -3, not 5-3", ["it", "is", "-3", "not", "5", "3"]),
        ("ＡＢＣ　１２", ["abc", "12"]),  # noqa: RUF001
        ("男性, 约30岁", ["男", "性", "约", "30", "岁"]),
        ("It’s the singer's", ["it's", "singer's"]),  # noqa: RUF001
        ("", []),
    ],
)
def test_tokens_are_normalised(text: str, expected: list[str]):
    assert tokens(text) == expected


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        ("165", "388 minus 223 is 165."),
        ("165", "one hundred? no: 165"),
        ("8", "It is eight."),
        ("8", "8.0"),
        ("1,200", "about 1200"),
        ("-3", "it is -3"),
        ("Paris", "The capital is Paris!"),
        ("valid", "Valid."),
        ("new york", "It was New-York."),
        ("男", "说话人是男性"),
        ("yes", "Yes, it does."),
        ("no", "No."),
    ],
)
def test_right_answers(answer: str, reply: str):
    assert short_answer_right(answer, reply)


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        ("165", "165 and 388 make 553"),
        ("8", "eighty"),
        ("8", "28"),
        ("8", "-8"),
        ("fast", "It is not fast."),
        ("valid", "invalid"),
        ("art", "party"),
        ("new york", "York is new"),
        ("男", "不男不女"),
        ("Paris", ""),
        ("", "anything"),
        ("8", "no number"),
        ("1.5", "15"),
    ],
)
def test_wrong_answers(answer: str, reply: str):
    assert not short_answer_right(answer, reply)


@pytest.mark.parametrize(
    ("reply", "index"),
    [
        ("B", 1),
        ("(c)", 2),
        ("D. Whispering", 3),
        ("b: it is aggressive", 1),
        ("The answer is (A).", 0),
        ("I would say the correct answer is C", 2),
        ("Option B.", 1),
        ("whispering", 3),
        ("She is whispering here.", 3),
        ("A man sings", None),
        ("I hear both soft and melodic and whispering", None),
        ("E", None),
        ("", None),
        ("not whispering", None),
        ("I am sure", None),
    ],
)
def test_the_option_a_reply_takes(reply: str, index: int | None):
    assert chosen_option(reply, CHOICES) == index


def test_the_longer_of_two_options_that_hold_each_other():
    assert chosen_option("It is classical music.", ["music", "classical music", "speech"]) == 1
    assert chosen_option("It is music.", ["music", "classical music", "speech"]) == 0


def test_the_right_choice_may_be_given_as_text_or_letter():
    assert choice_right("Whispering", CHOICES, "D")
    assert choice_right("D", CHOICES, "She is whispering.")
    assert choice_right("(b)", CHOICES, "Aggressive and talking")
    assert not choice_right("D", CHOICES, "A")
    assert not choice_right("Shouting", CHOICES, "Shouting")  # not one of the choices
    assert choice_right("a", ["b", "a"], "a") is False  # the letter A is the first choice, here named "b"
