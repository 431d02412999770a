# SPDX-License-Identifier: Apache-2.0
"""Thought and reply come apart the same way however the stream is cut."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earnest.dialogue import ReasoningStream, split_reasoning
from earnest.dialogue.tokenizer import EOT

PIECES = st.lists(
    st.one_of(
        st.sampled_from(["<think>", "</think>", "\n", "<", "</", "think", ">", " ", "é🙂"]),
        st.text(max_size=4),
    ),
    max_size=10,
).map("".join)


def together(deltas, kind):
    return "".join(delta.text for delta in deltas if delta.kind == kind)


@pytest.mark.parametrize(
    ("text", "inside", "reasoning", "reply", "closed", "stray"),
    [
        ("<think>\nlow voice\n</think>\nSeven.", False, "low voice", "Seven.", True, 0),
        ("low voice\n</think>\n\nSeven.", True, "low voice", "Seven.", True, 0),
        ("<think>\n\n</think>\nSeven.", False, "", "Seven.", True, 0),
        ("\n</think>\nSeven.", True, "", "Seven.", True, 0),
        ("\n<think>\nlow</think>Seven.", False, "low", "Seven.", True, 0),
        ("Seven.", False, None, "Seven.", False, 0),
        ("  Seven <think>", False, None, "  Seven <think>", False, 1),
        ("<thin", False, None, "<thin", False, 0),
        ("<think>\nnever closed\n", False, "never closed\n", "", False, 0),
        ("<think>a</think>b</think>c", False, "a", "b</think>c", True, 1),
        ("<think>a<think>b</think>c", False, "a<think>b", "c", True, 1),
        ("", True, "", "", False, 0),
        ("", False, None, "", False, 0),
    ],
)
def test_split(text, inside, reasoning, reply, closed, stray):
    split = split_reasoning(text, inside=inside)
    assert (split.reasoning, split.reply, split.closed, split.stray_tags) == (reasoning, reply, closed, stray)


@given(text=PIECES, inside=st.booleans(), cuts=st.lists(st.integers(0, 40), max_size=6))
def test_cutting_changes_nothing(text, inside, cuts):
    whole = split_reasoning(text, inside=inside)
    stream, deltas = ReasoningStream(inside=inside), []
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for start, end in pairwise(bounds):
        deltas += stream.push(text[start:end])
    deltas += stream.finish()
    assert together(deltas, "reasoning") == (whole.reasoning or "")
    assert together(deltas, "reply") == whole.reply


@given(text=PIECES)
def test_hold_back_is_bounded(text):
    """Inside a thought no more than a tag's length and one newline wait; in a reply nothing does."""
    stream, given_out = ReasoningStream(inside=True), 0
    for i, character in enumerate(text):
        given_out += sum(len(delta.text) for delta in stream.push(character))
        if not stream.closed:
            assert i + 1 - given_out <= len("\n</think>") - 1


@given(text=PIECES, cut=st.integers(1, 4))
def test_ids_and_text_agree(tokenizer, text, cut):
    """Tags as tokens or as text, other special tokens give nothing."""
    ids = []
    for piece in re.split("(</?think>)", text):
        is_tag = piece in ("<think>", "</think>")
        ids += [tokenizer.special(piece)] if is_tag else tokenizer.encode(piece)
    stream, deltas = ReasoningStream(inside=True, tokenizer=tokenizer), []
    ids.append(tokenizer.special(EOT))
    for i in range(0, len(ids), cut):
        deltas += stream.push(ids[i : i + cut])
    deltas += stream.finish()
    whole = split_reasoning(text, inside=True)
    assert together(deltas, "reasoning") == whole.reasoning
    assert together(deltas, "reply") == whole.reply


@pytest.mark.parametrize(
    ("text", "well_formed"),
    [
        ("<think>\nlow\n</think>\nSeven.", True),
        ("<think>\n \n</think>\nSeven.", False),
        ("<think>\nlow\n</think>\n \n", False),
        ("<think>\nlow", False),
        ("Seven.", False),
        ("<think>\na\n</think>\n<think>\nb\n</think>\nSeven.", False),
    ],
)
def test_well_formed(text, well_formed):
    assert split_reasoning(text).well_formed is well_formed


def test_ids_need_a_tokenizer():
    with pytest.raises(TypeError, match="tokenizer"):
        split_reasoning([1, 2])
