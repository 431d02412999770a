# SPDX-License-Identifier: Apache-2.0
"""What is measured: a case, its problem (inputs and their results), implementations that solve it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# The roles of an implementation. Ours may be several, paths to one result: the fastest is judged.
OURS, PEER, YARDSTICK, ALSO = "ours", "peer", "yardstick", "also"


class Absent(Exception):
    """An implementation that cannot run here; its message says why."""


def _the_problems(*_: Any) -> Any:
    raise AssertionError("a mark, never called")


@dataclass(frozen=True)
class Implementation:
    """One way to solve a problem.

    build: imports what it needs and returns the function that is timed, which takes one set of (prepared)
        inputs; raises Absent where it cannot.
    prepare: untimed, turns a set of inputs into what this implementation likes best (a layout, packed
        weights).
    outputs: turns its result into the arrays that the reference returns, for the check.
    choose: turns a prepared set into the one that the check calls with.
    checked: called with a set of inputs in place of all that, where one call of the timed function shows too
        little; returns what `outputs` takes.
    reference: of what it computes, if that is not quite the problem's (`definition` says what); None for
        results that are not compared, which never make a best peer.
    tolerance: the largest error that is not a wrong result; the problem's if None.
    result_bytes: of a result, to be taken off the peak memory of a call.
    extra: needs the extra `bench`, so that it runs only with --peers.
    compiles: takes seconds to start (torch.compile, numba), so that quick runs leave it out.
    padding: the share of its work that goes into rows which nobody asked for.
    """

    name: str
    build: Callable[[], Callable[..., Any]]
    role: str = PEER
    prepare: Callable[..., tuple] = lambda *inputs: inputs
    outputs: Callable[[Any], Sequence[Any]] = lambda result: [result]
    choose: Callable[..., tuple] = lambda *prepared: prepared
    checked: Callable[..., Any] | None = None
    reference: Callable[..., Sequence[Any]] | None = _the_problems
    definition: str = ""
    tolerance: float | None = None
    result_bytes: Callable[[Any], int] = lambda result: 0
    extra: bool = True
    compiles: bool = False
    padding: float = 0.0


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
    error: Callable[[Sequence[Any], Sequence[Any]], float] = lambda got, expected: largest_error(
        got, expected
    )

    def reference_of(self, implementation: Implementation) -> Callable[..., Sequence[Any]] | None:
        own = implementation.reference
        return self.reference if own is _the_problems else own

    @property
    def working_set(self) -> int:
        return self.bytes * len(self.inputs)


@dataclass(frozen=True)
class Target:
    """What this project wants of a case. ratio: so many times faster than the best peer, or than `against`,
    one implementation by name (where that is not there, than `instead`); also: and than others by theirs.
    fraction: of this machine's limit. seconds: of one call at most. extra_bytes: of memory beside the results
    at most. error: against float64 at most."""

    ratio: float | None = None
    against: str = ""
    instead: str = ""
    also: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    fraction: float | None = None
    extra_bytes: int | None = None
    error: float | None = None


@dataclass(frozen=True)
class Case:
    """name: family/what-size-dtype. problem: makes it, given a random generator. per: what one call counts,
    for people: (1500, "frame"). quick: belongs to `--quick` too. kernel: what earnest.which is asked about,
    if that is not the family. setup: seconds that all but its timing is predicted to take, where a run has
    no more than so many (budget.py). compiles: torch compiles one of its implementations (gpu_compile.py)."""

    name: str
    problem: Callable[[np.random.Generator], Problem]
    shape: Mapping[str, Any]
    dtype: str = "float32"
    threads: int = 1
    target: Target = field(default_factory=Target)
    per: tuple[int, str] = (1, "call")
    quick: bool = False
    device: str = "cpu"
    kernel: str = ""
    setup: float = 0.0
    compiles: bool = False

    @property
    def family(self) -> str:
        return self.name.partition("/")[0]


def largest_error(got: Sequence[Any], expected: Sequence[Any]) -> float:
    """The largest difference, each array's in units of its largest value."""
    return _worst(got, expected, lambda b: float(np.abs(b).max()) or 1.0)


def largest_difference(got: Sequence[Any], expected: Sequence[Any]) -> float:
    """The largest difference as it is, for values whose scale is fixed."""
    return _worst(got, expected, lambda b: 1.0)


def share_off(got: Sequence[Any], expected: Sequence[Any]) -> float:
    """The size of the differences in units of the values' own, each array's as one vector: for what a few
    numbers much larger than all others would hide, or be off in."""
    if len(got) != len(expected):
        return float("inf")
    worst = 0.0
    for a, b in zip(map(as_float64, got), map(as_float64, expected), strict=True):
        if a.shape != b.shape:
            return float("inf")
        worst = max(worst, _or_infinite(np.linalg.norm(a - b) / (np.linalg.norm(b) or 1.0)))
    return worst


def _worst(got: Sequence[Any], expected: Sequence[Any], unit: Callable[[np.ndarray], float]) -> float:
    """NaN, missing arrays and other shapes are infinitely wrong."""
    worst = 0.0 if len(got) == len(expected) else float("inf")
    for a, b in zip(map(as_float64, got), map(as_float64, expected), strict=False):
        if a.shape != b.shape:
            return float("inf")
        if a.size:
            worst = max(worst, _or_infinite(np.abs(a - b).max() / unit(b)))
    return worst


def _or_infinite(error: Any) -> float:
    """NaN counts as infinite: max() would pass over it."""
    return float(error) if error == error else float("inf")


def as_float64(x: Any) -> np.ndarray:
    """A number, an array or a torch tensor (bfloat16 too, on any device) as numpy float64."""
    if hasattr(x, "detach"):
        return x.detach().double().cpu().numpy()
    return np.asarray(x, np.float64)
