# SPDX-License-Identifier: Apache-2.0
"""How far a phase is: one bar in a terminal, a plain line about every ten seconds anywhere else. On stderr,
so that what a command prints for other programs stays clean."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
LINE_EVERY_SECONDS = 10.0
SHOWN_METRICS = 4


class Progress:
    """The progress of one phase of `total` steps that starts at `start`. `update(done, metrics)` after each
    step."""

    def __init__(self, phase: str, total: int, start: int = 0) -> None:
        self.phase, self.total, self.start = phase, total, start
        self._began = time.monotonic()
        self._last_line = -float("inf")
        self._bar: Any = None
        self._task: Any = None
        if sys.stderr.isatty():
            self._open_bar()

    def update(self, done: int, metrics: Mapping[str, Any] | None = None) -> None:
        words = _words(metrics or {})
        if self._bar is not None:
            self._bar.update(self._task, completed=done, words=words)
            return
        now = time.monotonic()
        if done < self.total and now - self._last_line < LINE_EVERY_SECONDS:
            return
        self._last_line = now
        share = f"{done}/{self.total} ({100 * done // max(self.total, 1)}%)"
        rest = f"took {_clock(now - self._began)}" if done >= self.total else f"{self._eta(done, now)} left"
        print(f"{self.phase}: {share}, {rest}" + (f", {words}" if words else ""), file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _eta(self, done: int, now: float) -> str:
        steps = done - self.start
        return "?" if steps <= 0 else _clock((now - self._began) / steps * (self.total - done))

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[words]}"),
            console=Console(stderr=True),
            refresh_per_second=4,
        )
        self._task = self._bar.add_task(self.phase, total=self.total, completed=self.start, words="")
        self._bar.start()


def track(items: Iterable[T], phase: str, total: int) -> Iterator[T]:
    """`items` with a progress bar, for work that keeps no state (evaluation, rendering a corpus)."""
    progress = Progress(phase, total)
    try:
        for done, item in enumerate(items, 1):
            yield item
            progress.update(done)
    finally:
        progress.close()


def _words(metrics: Mapping[str, Any]) -> str:
    numbers = {
        key: value
        for key, value in metrics.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    return ", ".join(f"{key} {value:.3g}" for key, value in list(numbers.items())[:SHOWN_METRICS])


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
