# SPDX-License-Identifier: Apache-2.0
"""Seconds for a whole run, as on a machine that is lent for minutes: what its cases have to time in follows
what is left, so that the last of them is measured too, though shorter."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

from earnest.bench.case import Case
from earnest.bench.timing import Pace

MOST = 1.2  # seconds that the implementations of one case are timed for together
LEAST = 0.1  # below that nothing is said of a case
PATIENCE, GRACE = 5.0, 15.0  # times what a case is predicted to take, and seconds: then it is said to hang


class Budget:
    """seconds: from now on; None: as many as it takes. setups: what the cases take beside their timing, as
    predicted, in their order. What a case took beyond its prediction is taken from all that follow."""

    def __init__(
        self, seconds: float | None, cases: Sequence[Case], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._end = None if seconds is None else clock() + seconds
        self._setups = [case.setup for case in cases]

    def pace(self, pace: Pace, done: int) -> Pace | None:
        """That of the next case, after so many; None where there is no time for it."""
        if self._end is None:
            return pace
        rest = self._setups[done:]
        left = self._end - self._clock()
        if left < rest[0] + LEAST:
            return None
        shared = (left - sum(rest)) / len(rest)
        return dataclasses.replace(pace, shared=min(MOST, max(LEAST, shared)))

    def limit(self, done: int) -> float | None:
        """Seconds after which the next case, that is asked now, is given up, at the end of the run at latest;
        None: never."""
        if self._end is None:
            return None
        return min(GRACE + PATIENCE * self._setups[done], self._end - self._clock())
