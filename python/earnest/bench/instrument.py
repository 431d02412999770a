# SPDX-License-Identifier: Apache-2.0
"""What a device is measured with: its clock, and how much memory a call takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from earnest.bench import memory
from earnest.bench.timing import Caller, Pace, Times, clock_for, interleave


class Instrument:
    """The CPU's."""

    device = "cpu"

    def clock(self, threads: int) -> str:
        return clock_for(threads).__name__

    def times(self, callers: Mapping[str, Caller], pace: Pace, threads: int) -> dict[str, Times]:
        return interleave(callers, pace, clock_for(threads))

    def broken(self) -> str:
        """Why nothing more can be measured in this process; "" where it can."""
        return ""

    def between(self) -> None:
        """What a case has left behind is given back before the next one."""

    def extra_bytes(self, call: Callable[[], Any]) -> int | None:
        """The most that the process held during the call beyond what it held before."""
        return memory.peak_extra_bytes(call)
