# SPDX-License-Identifier: Apache-2.0
"""Medians, quartiles and the order of rounds, on a clock that the test turns."""

import gc
import threading
import time

import pytest

from earnest.bench.harness import ratios
from earnest.bench.timing import (
    LONGEST_REST,
    Caller,
    Pace,
    Times,
    clock_for,
    interleave,
    is_due,
    quartiles,
    settle,
    turning,
)


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
    clock = FakeTime()
    callers = {
        "slow": Caller(clock.taking("slow", 0.5), [()]),
        "fast": Caller(clock.taking("fast", 0.125), [()]),
    }
    found = interleave(callers, Pace(seconds=1.0, sample=0.1, rounds=4, most_rounds=4, rest=0.0), clock)
    assert found["slow"] == Times((0.5,) * 4, 1)
    assert found["fast"] == Times((0.125,) * 4, 1)
    measured = [name for name, *_ in clock.calls][-8:]
    assert measured == ["slow", "fast", "fast", "slow", "slow", "fast", "fast", "slow"]


def test_after_a_rest_everybody_wakes_their_own_threads_untimed(monkeypatch):
    clock = FakeTime()
    rests = []
    monkeypatch.setattr("time.sleep", lambda seconds: (rests.append(seconds), clock.calls.append(("rest",))))
    callers = {name: Caller(clock.taking(name, 0.5), [()]) for name in "ab"}
    found = interleave(callers, Pace(seconds=1.0, sample=0.1, rounds=2, most_rounds=2, rest=0.03), clock)
    assert found["a"] == found["b"] == Times((0.5, 0.5), 1)
    assert rests[::2] == [0.03] * 6  # the warm-ups too; each is followed by one look at who still works
    calls = [name for name, *_ in clock.calls]
    assert calls[-8:] == ["rest", "rest", "b", "b", "rest", "rest", "a", "a"]


def test_a_rest_lasts_until_the_threads_of_the_one_before_sleep():
    end = time.perf_counter() + 0.15

    def spin() -> None:
        while time.perf_counter() < end:
            pass

    spinning = threading.Thread(target=spin)
    spinning.start()
    settle(0.0)
    assert time.perf_counter() >= end
    spinning.join()
    began = time.perf_counter()
    settle(0.01)
    assert time.perf_counter() - began < LONGEST_REST


def test_short_calls_are_looped_to_the_least_sample():
    clock = FakeTime()
    found = interleave(
        {"a": Caller(clock.taking("a", 0.001), [()])}, Pace(0.0, sample=0.5, rounds=2, rest=0.0), clock
    )
    assert 500 <= found["a"].repeats <= 1024
    assert found["a"].median == pytest.approx(0.001)


def test_who_has_spent_the_time_leaves_and_the_others_go_on():
    clock = FakeTime()
    callers = {name: Caller(clock.taking(name, took), [()]) for name, took in (("slow", 10.0), ("fast", 1.0))}
    # The budget is wall time, which this fake does not spend: only the number of rounds can end it.
    found = interleave(callers, Pace(seconds=1e9, sample=0.5, rounds=2, most_rounds=6, rest=0.0), clock)
    assert len(found["slow"].samples) == len(found["fast"].samples) == 6
    found = interleave(callers, Pace(seconds=0.0, sample=0.5, rounds=3, most_rounds=6, rest=0.0), clock)
    assert len(found["slow"].samples) == 3


def test_three_rounds_are_enough_for_what_takes_minutes():
    pace = Pace(seconds=2.0, rounds=5)
    assert [is_due(n, spent, pace) for n, spent in ((0, 0.0), (2, 60.0), (3, 9.0), (3, 11.0))] == [
        True, True, True, False
    ]  # fmt: skip
    assert is_due(5, 1.9, pace)
    assert not is_due(5, 2.1, pace)


def test_sets_of_inputs_take_turns():
    clock = FakeTime()
    caller = Caller(clock.taking("a", 1.0), [(1,), (2,), (3,)])
    caller(2)
    caller(2)
    assert [x for _, x in clock.calls] == [1, 2, 3, 1]


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
