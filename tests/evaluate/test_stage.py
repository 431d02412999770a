# SPDX-License-Identifier: Apache-2.0
"""Rates, intervals, win rates and the silenced control of the evaluation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from earnest.evaluate.playground import stage_metrics
from earnest.evaluate.stage import HOP, Answer, silenced, summarise, to_plain, wilson, win_rate
from earnest.features import LogMel
from earnest.learn.types import Case, Clip


def answer(
    case: int, *, task: str = "sound", right: bool = True, reply: str = "it is eight", **more: object
) -> Answer:
    fields = {"reasoning": "heard", "reasoning_tokens": 10, "utility": 0.0, "acknowledges": False} | more
    return Answer(case=str(case), task=task, reply=reply, right=right, **fields)


@pytest.mark.parametrize(("hits", "count"), [(50, 100), (0, 10), (10, 10), (336, 480), (1, 3)])
def test_the_ends_of_wilsons_interval_are_just_not_rejected(hits: int, count: int):
    rate, low, high = wilson(hits / count, count)
    assert rate == hits / count
    assert low < high
    for end in (low, high):  # the score test of a true rate `end` sees exactly z there: its definition
        assert (rate - end) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / count, abs=1e-12)


def test_wilson_of_nothing_is_unknown():
    assert all(math.isnan(value) for value in wilson(0.5, 0))


@given(st.integers(1, 5000), st.floats(0, 1))
def test_wilson_holds_the_rate_within_0_and_1(count: int, rate: float):
    rate, low, high = wilson(rate, count)
    assert 0 <= low <= rate + 1e-12
    assert rate <= high + 1e-12 <= 1 + 1e-12


def test_wins_count_one_ties_half_and_the_other_side_sees_the_rest():
    ours = [answer(i, utility=u) for i, u in enumerate((1.0, 2.0, 0.5, 0.5))]
    theirs = [answer(i, utility=u) for i, u in enumerate((0.0, 1.0, 0.5, 1.0))]
    rate, low, high = win_rate(ours, theirs)
    assert rate == 2.5 / 4
    assert (low, high) == wilson(2.5 / 4, 4)[1:]
    assert win_rate(theirs, ours)[0] == 1.5 / 4


def test_answers_to_different_cases_are_not_compared():
    with pytest.raises(AssertionError):
        win_rate([answer(1)], [answer(2)])
    with pytest.raises(ValueError, match="zip"):
        win_rate([answer(1)], [])


def test_the_summary_counts_what_it_says():
    given = [
        answer(0, task="sound", right=True, reply="fast", reasoning_tokens=4, utility=1.0, acknowledges=True),
        answer(
            1, task="sound", right=False, reply="it is slow", reasoning_tokens=8, utility=0.0, reasoning=" "
        ),
        answer(2, task="recall", right=True, reply="your name is ada", reasoning_tokens=6, utility=0.5),
    ]
    row = summarise(given)
    assert row["cases"] == 3
    assert row["accuracy"] == pytest.approx(2 / 3)
    assert row["accuracy_by_task"] == {"recall": 1.0, "sound": 0.5}
    assert row["reply_words"] == pytest.approx(8 / 3)
    assert row["reasoning_tokens"] == 6.0
    assert row["reasoning_present"] == pytest.approx(2 / 3)
    assert row["listener_utility"] == pytest.approx(0.5)
    assert row["acknowledges_speaker"] == pytest.approx(1 / 3)


def test_without_a_listener_there_is_no_utility():
    assert "listener_utility" not in summarise([answer(0, utility=None), answer(1)])
    assert math.isnan(summarise([])["accuracy"])


def test_rows_have_each_win_rate_beside_its_interval():
    heard = {
        "sft": [answer(i, utility=0.0) for i in range(4)],
        "rlhf": [answer(i, utility=1.0) for i in range(4)],
    }
    rows = stage_metrics(heard, {stage: [answer(0, right=False)] for stage in heard})
    assert rows["rlhf"]["win_rate_vs_sft"] == 1.0
    assert rows["rlhf"]["win_rate_vs_sft_low"] < 0.99
    assert rows["rlhf"]["win_rate_vs_sft_high"] == pytest.approx(1.0)
    assert rows["sft"]["win_rate_vs_sft"] == 0.5
    assert "win_rate_vs_rlvr" not in rows["rlhf"]
    assert rows["rlhf"]["accuracy_audio_zeroed"] == 0.0


def test_answers_come_back_from_plain_values():
    given = [answer(0, right=False)]
    assert [Answer(**plain) for plain in to_plain(given)] == given


def clip(name: str, frames: int, seed: int) -> Clip:
    mel = np.random.default_rng(seed).normal(size=(128, frames)).astype(np.float32)
    return Clip(name, mel, (("seven", 0.0, 0.3),), ("fast", "low", "loud"), (110.0, 6.5, -20.0))


def test_silence_is_as_long_and_tells_nothing():
    cases = [
        Case("a", "sound", (), ((clip("a", 40, 1), clip("b", 25, 2)), (clip("c", 40, 3),))),
        Case("b", "sound", (), ((clip("d", 40, 4),),)),
    ]
    silent = silenced(cases)
    assert [case.id for case in silent] == ["a", "b"]
    chunks = [chunk for case in silent for clip in case.clips for chunk in clip]
    assert [chunk.mel.shape for chunk in chunks] == [(128, 40), (128, 25), (128, 40), (128, 40)]
    assert all(chunk.words == () and chunk.measured == () for chunk in chunks)
    assert chunks[0].id == chunks[2].id == chunks[3].id != chunks[1].id  # what is kept for one serves all
    assert np.array_equal(chunks[0].mel, chunks[3].mel)
    nothing = LogMel(n_mels=128)(np.zeros(40 * HOP, np.float32))
    assert np.ptp(chunks[0].mel) == np.ptp(nothing) == 0
    assert chunks[0].mel[0, 0] == nothing[0, 0]
    assert not np.array_equal(cases[0].clips[0][0].mel, chunks[0].mel)  # the case itself still has its sound
