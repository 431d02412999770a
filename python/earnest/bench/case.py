# SPDX-License-Identifier: Apache-2.0
"""What is measured: a case, its problem (inputs and float64 results), and the implementations that solve it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

OURS, PEER, YARDSTICK, ALSO = "ours", "peer", "yardstick", "also"  # the roles of an implementation


class Absent(Exception):
    """An implementation that cannot run here; its message says why."""


@dataclass(frozen=True)
class Implementation:
    """One way to solve a problem.

    build: imports what it needs and returns the function that is timed, which takes one set of (prepared)
        inputs; raises Absent where it cannot.
    prepare: untimed, turns a set of inputs into what this implementation likes best (a layout, packed
        weights).
    outputs: turns its result into the arrays that the problem's reference returns, for the check.
    checked: what is checked in place of the timed function, where one call of that shows too little.
    tolerance: the largest error that is not a wrong result; the problem's if None.
    definition: what else it computes, if not quite the same; its result is then not compared.
    compiles: takes seconds to start (torch.compile), left out of quick runs.
    """

    name: str
    build: Callable[[], Callable[..., Any]]
    role: str = PEER
    prepare: Callable[..., tuple] = lambda *inputs: inputs
    outputs: Callable[[Any], Sequence[Any]] = lambda result: [result]
    checked: Callable[..., Any] | None = None
    tolerance: float | None = None
    definition: str = ""
    extra: bool = True  # needs the extra `bench`, so that it runs only with --peers
    compiles: bool = False


@dataclass(frozen=True)
class Problem:
    """Fresh random inputs and what every implementation must make of them.

    inputs: sets to rotate through; more than one where the caches would not hold them in real life.
    reference: one set of inputs -> float64 arrays. error: (outputs, reference) -> one number.
    bytes: read and written at least, once each; operations: products and sums of a call; both for the limit.
    """

    inputs: Sequence[tuple]
    reference: Callable[..., Sequence[Any]]
    implementations: Sequence[Implementation]
    tolerance: float
    bytes: int
    operations: int = 0
    error: Callable[[Sequence[Any], Sequence[Any]], float] = lambda got, expected: largest_error(got, expected)

    @property
    def working_set(self) -> int:
        return self.bytes * len(self.inputs)


@dataclass(frozen=True)
class Target:
    """What this project wants of a case. ratio: so many times faster than the best peer (or than `against`,
    one implementation by name). fraction: of this machine's limit. extra_bytes: of memory beside outputs."""

    ratio: float | None = None
    fraction: float | None = None
    extra_bytes: int | None = None
    against: str = ""


@dataclass(frozen=True)
class Case:
    """name: family/what-size-dtype. problem: makes it, given a random generator. per: what one call counts,
    for people: (1500, "frame"). quick: belongs to `--quick` too."""

    name: str
    problem: Callable[[np.random.Generator], Problem]
    shape: Mapping[str, Any]
    dtype: str = "float32"
    threads: int = 1
    target: Target = field(default_factory=Target)
    per: tuple[int, str] = (1, "call")
    quick: bool = False

    @property
    def family(self) -> str:
        return self.name.partition("/")[0]


def largest_error(got: Sequence[Any], expected: Sequence[Any]) -> float:
    """The largest absolute difference, in units of each array's largest value where that is above 1; NaN and
    shapes that differ count as infinite."""
    worst = 0.0
    if len(got) != len(expected):
        return float("inf")
    for a, b in zip(got, expected, strict=True):
        a, b = as_float64(a), as_float64(b)
        if a.shape != b.shape:
            return float("inf")
        if a.size == 0:
            continue
        error = float(np.abs(a - b).max()) / max(1.0, float(np.abs(b).max()))
        worst = max(worst, error if error == error else float("inf"))
    return worst


def as_float64(x: Any) -> np.ndarray:
    """A torch tensor (bfloat16 too) or an array, as numpy float64."""
    if hasattr(x, "detach"):
        return x.detach().double().numpy()
    return np.asarray(x, np.float64)
