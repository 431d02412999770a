# SPDX-License-Identifier: Apache-2.0
"""Side by side: rounds in which everybody runs once, in an order that turns, until the time is spent."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Clock = Callable[[], float]
PATIENCE = 5
LOOK, LONGEST_REST = 0.005, 0.5  # seconds


@dataclass(frozen=True)
class Pace:
    """seconds: for each implementation of a case. sample: the least time of one sample; shorter calls are
    looped. rounds: the fewest samples of each; three will do where they take PATIENCE times the seconds.
    rest: seconds before each turn, or more (`settle`), in which the threads of whoever ran before go to
    sleep; a call that is not timed then wakes one's own. shared: seconds that all of a case have together,
    where a whole run has no more than so many (a GPU's)."""

    seconds: float = 2.0
    sample: float = 0.02
    rounds: int = 5
    most_rounds: int = 200
    rest: float = 0.02
    shared: float | None = None


QUICK = Pace(seconds=0.2, sample=0.004, rounds=3, most_rounds=25, rest=0.0)


@dataclass(frozen=True)
class Times:
    """Seconds of one call: the samples in the order of their rounds, and calls in a sample. captured: whether
    what was timed is a CUDA graph; None on the CPU."""

    samples: tuple[float, ...]
    repeats: int
    captured: bool | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        return quartiles(self.samples)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """The first and third quartile, between neighbouring values where need be."""
    if len(values) == 1:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third


def clock_for(threads: int) -> Clock:
    """With one thread the processor time of the whole process, so that what others do on the machine does not
    count; with more, the time on the wall."""
    return time.process_time if threads == 1 else time.perf_counter


class Caller:
    """One function and the sets of inputs that it is called with in turn."""

    def __init__(self, function: Callable[..., Any], inputs: Sequence[tuple]) -> None:
        self.function, self.inputs, self._next = function, inputs, 0

    def __call__(self, repeats: int) -> None:
        for _ in range(repeats):
            self.function(*self.inputs[self._next])
            self._next = (self._next + 1) % len(self.inputs)


def settle(rest: float) -> None:
    """Rests until no thread of this process works any more. Those of OpenMP look for more work for
    milliseconds after their last, those of OpenBLAS (numpy's products) for a tenth of a second: they would
    hold a core of whoever is timed next, whose processor time would count theirs."""
    time.sleep(rest)
    end = time.perf_counter() + LONGEST_REST
    while time.perf_counter() < end:
        began = time.process_time()
        time.sleep(LOOK)
        if time.process_time() - began < LOOK / 5:
            return


def interleave(callers: Mapping[str, Caller], pace: Pace, clock: Clock) -> dict[str, Times]:
    """Times of every caller. A caller is done when it has spent its time and has samples enough."""
    repeats = {}
    for name, caller in callers.items():
        settle(pace.rest)
        repeats[name] = _repeats(caller, pace, clock)
    samples: dict[str, list[float]] = {name: [] for name in callers}
    spent = dict.fromkeys(callers, 0.0)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for order in turning(list(callers), pace.most_rounds):
            due = [name for name in order if is_due(len(samples[name]), spent[name], pace)]
            if not due:
                break
            for name in due:
                if pace.rest and len(callers) > 1:
                    settle(pace.rest)
                    callers[name](1)
                began, wall = clock(), time.perf_counter()
                callers[name](repeats[name])
                samples[name].append((clock() - began) / repeats[name])
                spent[name] += time.perf_counter() - wall
    finally:
        if collecting:
            gc.enable()
    return {name: Times(tuple(samples[name]), repeats[name]) for name in callers}


def is_due(samples: int, spent: float, pace: Pace) -> bool:
    """Whether one is to be called again, after so many samples that took so many seconds."""
    if samples >= pace.rounds:
        return spent < pace.seconds
    return samples < 3 or spent < PATIENCE * pace.seconds


def turning(names: Sequence[str], rounds: int) -> Iterator[list[str]]:
    """The order of each round: everybody once, everybody first in turn, so that nobody always comes after the
    same."""
    for i in range(rounds):
        start = i % max(len(names), 1)
        yield [*names[start:], *names[:start]]


def _repeats(caller: Caller, pace: Pace, clock: Clock) -> int:
    """Warms up, every set of inputs once if that is quick, and says how many calls make a sample."""
    repeats, began = 1, time.perf_counter()
    for _ in caller.inputs:
        start = clock()
        caller(1)
        if clock() - start > 5 * pace.sample and time.perf_counter() - began > pace.seconds:
            return 1
        if time.perf_counter() - began > pace.seconds:
            break
    while True:
        start = clock()
        caller(repeats)
        took = clock() - start
        if took >= pace.sample or repeats >= 1 << 20:
            return repeats
        repeats = max(
            repeats * 2, round(repeats * 1.1 * pace.sample / took) if took > 0.1 * pace.sample else 0
        )
