# SPDX-License-Identifier: Apache-2.0
"""The engine takes completions apart as the Python side does, delta by delta, however they are cut."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earnest import _native
from earnest.dialogue import ReasoningStream

BLANKS = "\n \t\r\x1c\x1d\x1e\x1f\x85\u00a0\u1680\u2003\u2028\u202f\u205f\u3000\u200b\ufeff"
PIECES = st.lists(
    st.one_of(
        st.sampled_from(
            ["<think>", "</think>", "\n", "<", "</", "think", ">", " ", "é🙂", "\n</think", "\n\n"]
        ),
        st.text(BLANKS, max_size=3),
        st.text(max_size=4),
    ),
    max_size=12,
).map("".join)


def encodable(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


@settings(max_examples=400, deadline=None)
@given(text=PIECES.filter(encodable), inside=st.booleans(), cuts=st.lists(st.integers(0, 50), max_size=8))
def test_equal_to_the_python_side(text, inside, cuts):
    native, python = _native.ReasoningStream(inside=inside), ReasoningStream(inside=inside)
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for start, end in pairwise(bounds):
        expected = [(delta.kind, delta.text) for delta in python.push(text[start:end])]
        assert native.push(text[start:end]) == expected
    assert native.finish() == [(delta.kind, delta.text) for delta in python.finish()]
    assert (native.thought_seen, native.closed) == (python.thought_seen, python.closed)


@pytest.mark.parametrize("inside", [False, True])
def test_character_by_character(inside):
    text = "\n <think>\nlow\n\nvoice </thin \n</think>\n\n\nSeven.</think>\n<think>"
    native, python = _native.ReasoningStream(inside=inside), ReasoningStream(inside=inside)
    for character in text:
        assert native.push(character) == [(delta.kind, delta.text) for delta in python.push(character)]
    assert native.finish() == [(delta.kind, delta.text) for delta in python.finish()]
    assert native.closed


def test_what_is_certain_comes_at_once():
    stream = _native.ReasoningStream(inside=True)
    assert stream.push("low voice\n</thin") == [("reasoning", "low voice")]
    assert stream.push("g") == [("reasoning", "\n</thing")]
    assert stream.push("</think>\n\nSe") == [("reply", "Se")]
    assert stream.push("</think>") == [("reply", "</think>")]


def test_a_thought_that_is_never_closed_is_all_thought():
    stream = _native.ReasoningStream()
    assert stream.push("<think>\nlow\n</thi") == [("reasoning", "low")]
    assert stream.finish() == [("reasoning", "\n</thi")]
    assert stream.thought_seen
    assert not stream.closed
