# SPDX-License-Identifier: Apache-2.0
"""Medians, quartiles and the order of rounds, on a clock that the test turns."""

import gc

import pytest

from earnest.bench.harness import ratios
from earnest.bench.timing import Caller, Pace, Times, _is_due, clock_for, interleave, quartiles, turning


class FakeTime:
    """A clock; calls of a function made by `taking` move it on."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, []

    def __call__(self) -> float:
        return self.now

    def taking(self, name: str, seconds: float):
        def function(*inputs: object) -> None:
            self.calls.append((name, *inputs))
            self.now += seconds

        return function


def test_median_and_quartiles_by_hand():
    times = Times((4.0, 1.0, 3.0, 2.0, 100.0), repeats=1)
    assert times.median == 3.0
    assert times.quartiles == (2.0, 4.0)
    assert quartiles([7.0]) == (7.0, 7.0)
    assert quartiles([1.0, 2.0]) == (1.25, 1.75)


def test_everybody_is_first_in_turn_and_runs_once_a_round():
    assert list(turning(["a", "b", "c"], 4)) == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]


def test_rounds_alternate_and_times_are_of_one_call():
    time = FakeTime()
    callers = {
        "slow": Caller(time.taking("slow", 0.5), [()]),
        "fast": Caller(time.taking("fast", 0.125), [()]),
    }
    found = interleave(callers, Pace(seconds=1.0, sample=0.1, rounds=4, most_rounds=4, rest=0.0), time)
    assert found["slow"] == Times((0.5,) * 4, 1)
    assert found["fast"] == Times((0.125,) * 4, 1)
    measured = [name for name, *_ in time.calls][-8:]
    assert measured == ["slow", "fast", "fast", "slow", "slow", "fast", "fast", "slow"]


def test_after_a_rest_everybody_wakes_their_own_threads_untimed(monkeypatch):
    time = FakeTime()
    rests = []
    monkeypatch.setattr("time.sleep", lambda seconds: (rests.append(seconds), time.calls.append(("rest",))))
    callers = {name: Caller(time.taking(name, 0.5), [()]) for name in "ab"}
    found = interleave(callers, Pace(seconds=1.0, sample=0.1, rounds=2, most_rounds=2, rest=0.03), time)
    assert found["a"] == found["b"] == Times((0.5, 0.5), 1)
    assert rests == [0.03] * 4
    assert [name for name, *_ in time.calls][-6:] == ["rest", "b", "b", "rest", "a", "a"]


def test_short_calls_are_looped_to_the_least_sample():
    time = FakeTime()
    found = interleave(
        {"a": Caller(time.taking("a", 0.001), [()])}, Pace(0.0, sample=0.5, rounds=2, rest=0.0), time
    )
    assert 500 <= found["a"].repeats <= 1024
    assert found["a"].median == pytest.approx(0.001)


def test_who_has_spent_the_time_leaves_and_the_others_go_on():
    time = FakeTime()
    callers = {name: Caller(time.taking(name, took), [()]) for name, took in (("slow", 10.0), ("fast", 1.0))}
    # The budget is wall time, which this fake does not spend: only the number of rounds can end it.
    found = interleave(callers, Pace(seconds=1e9, sample=0.5, rounds=2, most_rounds=6, rest=0.0), time)
    assert len(found["slow"].samples) == len(found["fast"].samples) == 6
    found = interleave(callers, Pace(seconds=0.0, sample=0.5, rounds=3, most_rounds=6, rest=0.0), time)
    assert len(found["slow"].samples) == 3


def test_three_rounds_are_enough_for_what_takes_minutes():
    pace = Pace(seconds=2.0, rounds=5)
    assert [_is_due(n, spent, pace) for n, spent in ((0, 0.0), (2, 60.0), (3, 9.0), (3, 11.0))] == [
        True, True, True, False
    ]  # fmt: skip
    assert _is_due(5, 1.9, pace)
    assert not _is_due(5, 2.1, pace)


def test_sets_of_inputs_take_turns():
    time = FakeTime()
    caller = Caller(time.taking("a", 1.0), [(1,), (2,), (3,)])
    caller(2)
    caller(2)
    assert [x for _, x in time.calls] == [1, 2, 3, 1]


def test_collection_of_garbage_is_off_while_timing_and_on_again_after():
    seen = []
    interleave({"a": Caller(lambda: seen.append(gc.isenabled()), [()])}, Pace(0.0, 0.0, rounds=1), FakeTime())
    assert seen[-1] is False
    assert gc.isenabled()


def test_ratios_are_of_the_rounds_that_both_ran_in():
    ours, other = Times((1.0, 2.0, 4.0), 1), Times((2.0, 8.0, 4.0, 100.0), 1)
    assert ratios(ours, other) == [2.0, 4.0, 1.0]


def test_one_thread_is_timed_by_the_processor_and_more_by_the_wall():
    assert clock_for(1).__name__ == "process_time"
    assert clock_for(2).__name__ == "perf_counter"
