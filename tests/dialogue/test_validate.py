# SPDX-License-Identifier: Apache-2.0
"""Marks of a teacher's API in distilled answers are found; ordinary answers, JSON talk included, pass."""

import pytest

from earnest.dialogue import Dialogue, Message, validate_example

LEAKED = '{"model":"gemini-2.5-pro-vision-provider","prompt":"Listen closely'


def problems(reply, reasoning=None):
    return validate_example(
        Dialogue((Message.user("What do you hear?"), Message.assistant(reply, reasoning)))
    )


@pytest.mark.parametrize(
    "reply",
    [
        "A low voice.",
        'In JSON that would be {"name": "Kate", "age": 7}.',
        "The set {a, b} is finite; f(x) = {x}.",
        'He writes "model": and stops.',
        "[laughs] Seven, of course.",
    ],
)
def test_ordinary_replies_pass(reply):
    assert problems(reply, "The voice is low.") == []
    assert problems(reply) == []


@pytest.mark.parametrize(
    ("reply", "reasoning", "found"),
    [
        (LEAKED, "low", "an API envelope in the reply"),
        (LEAKED.replace('"', '\\"'), "low", "an API envelope in the reply"),
        ("Seven.\n" + LEAKED, None, "an API envelope in the reply"),
        ('{"choices": [{"message": {"role": "assistant", "content": "Seven."}}]}', None, "an API envelope"),
        ('{"content": "Seven.", "finish_reason": "stop"}', None, "an API envelope"),
        ('{"answer": "Seven."}', None, "a bare JSON object"),
        ("Seven.", LEAKED, "an API envelope in the reasoning"),
        ("<think>again</think>Seven.", "low", "2 think blocks"),
        ("<think>a</think>\n<think>b</think>Seven.", None, "2 think blocks"),
        ("<THINK>again</THINK>Seven.", "low", "2 think blocks"),
        ("<think>never closed", None, "never closed"),
        ("Seven.</think>", "low", "a think tag inside the reply"),
        ("Seven.", "low</think>", "a think tag inside the reasoning"),
        (" \n", "low", "an empty reply"),
        ("Seven.<|EOT|>", None, "the special token <|EOT|>"),
        ("Seven\ufffd", None, "a replacement character"),
    ],
)
def test_marks_are_found(reply, reasoning, found):
    assert any(
        found in problem and problem.startswith("messages[1]: ") for problem in problems(reply, reasoning)
    )


def test_shape_of_the_dialogue():
    assert "no assistant turn last" in validate_example([Message.user("a")])[0]
    assert validate_example([Message.user("a")], ends_with_assistant=False) == []
    assert "no user turn" in validate_example([Message.assistant("a")])[0]
    assert "in a row" in validate_example([Message.user("a"), *[Message.assistant("b")] * 2])[0]
    assert "an empty user turn" in validate_example([Message.user(" "), Message.assistant("b")])[0]
