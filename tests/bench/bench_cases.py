# SPDX-License-Identifier: Apache-2.0
"""A made-up case whose implementations take no time, for the tests of everything around it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from earnest.bench.case import OURS, Case, Implementation, Problem, Target
from earnest.bench.harness import Settings
from earnest.bench.limits import Limits
from earnest.bench.timing import Pace

BLINK = Pace(seconds=0.0, sample=1e-5, rounds=3, most_rounds=3, rest=0.0)


def doubled(x: np.ndarray) -> np.ndarray:
    return x * 2


def slowly_doubled(x: np.ndarray) -> np.ndarray:
    until = time.process_time() + 1e-3
    while time.process_time() < until:
        pass
    return x * 2


def case(*more: Implementation, ours: Any = doubled, target: Target | None = None) -> Case:
    """Doubling ten numbers: ours, a slow peer, and `more`."""

    def problem(rng: np.random.Generator) -> Problem:
        return Problem(
            inputs=[(rng.standard_normal(10),)],
            reference=lambda x: [x.astype(np.float64) * 2],
            implementations=[
                Implementation("earnest", lambda: ours, OURS),
                Implementation("slow", lambda: slowly_doubled, extra=False),
                *more,
            ],
            tolerance=1e-9,
            bytes=160,
            operations=10,
        )

    return Case("toy/doubling", problem, {"numbers": 10}, target=target or Target())


def settings(**changes: Any) -> Settings:
    return Settings(**({"pace": BLINK, "seed": 1} | changes))


class FakeLimits(Limits):
    """Round rates: 1 GB/s, 1 GFLOP/s."""

    def read_rate(self, bytes_read: int, threads: int) -> float:
        return self._reads.get(self._read_key(bytes_read, threads), 1e9)

    def arithmetic(self, dtype: str, threads: int) -> dict[str, float]:
        return self._arithmetic.setdefault((threads, dtype), {"loop": 1e9, "product": 0.5e9})

    def table(self, threads: int) -> dict[str, float]:
        return {"read L2": 1.0}
