# SPDX-License-Identifier: Apache-2.0
"""What cases are predicted to take on a GPU that is lent for minutes, those of attention from their bytes,
operations and peers alone: so that bench/gpu.sh gives its steps what they need, and a run of few seconds
knows what it still has to prepare. No GPU has confirmed any of these numbers; they are meant to be high."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from earnest.bench.case import Case, Implementation

START = 16.0  # seconds: imports, torch's compiler too, the context, a copy of 2 GiB and a product as limits
ENOUGH = 0.25  # seconds of timing that a case should have for all that it compares
CALLS = 7  # of each implementation: the check, two to warm up, memory, three samples at least
EACH = 0.05  # seconds of each implementation beside its calls: Python, a graph's capture, memory
ABSENT = 0.01  # to find out that a package is not installed
PLAN = 0.4  # seconds in which cudnn plans for a shape, or compiles for it
BRIEF = 0.5  # seconds of a case of few bytes beside its timing
LOADING = 1.0  # and where torch loads what gpu_compile.py had it compile; 4 to 8 where that did not run
DRAWN = 200e9  # bytes a second of normal numbers
COPIED = 2e12  # bytes a second, where the copy's rate is not reached
FLOAT64 = 15e12  # operations a second of the references
PACKAGES = ("flash-attn", "flashinfer", "cudnn")  # that the machine lacks unless somebody brings them

# Operations a second that are taken for granted, by the first words of a name; the backward pass has half.
RATES = {
    "earnest, sm90a": 400e12,
    "earnest": 250e12,
    "torch, cudnn": 400e12,
    "torch, efficient": 120e12,
    "torch": 250e12,
    "flash-attn 3": 400e12,
    "": 250e12,
}


class Work(Protocol):
    """Bytes that are drawn and read once, and operations of one call."""

    @property
    def bytes(self) -> int: ...
    @property
    def operations(self) -> int: ...


def setup(
    work: Work,
    entries: Sequence[Implementation],
    of_reference: float = 32e9,
    slower: float = 1.0,
    drawn: int = 0,
) -> float:
    """Seconds of a case beside its timing. of_reference: operations in float64. slower: how many times more
    than the work's operations say (2.5 products and half the rate of a backward pass: 5). drawn: bytes of
    inputs, if those are not the work's."""
    once = (drawn or work.bytes) / DRAWN + of_reference / FLOAT64 + 0.02
    return once + sum(_of(one, work, slower) for one in entries)


def _of(one: Implementation, work: Work, slower: float) -> float:
    refused = one.name.startswith("torch, cudnn") and one.name.endswith("deterministic")
    if one.name.startswith(PACKAGES) or refused:
        return ABSENT
    rate = next(rate for words, rate in RATES.items() if one.name.startswith(words))
    call = max(slower * work.operations / rate, work.bytes / COPIED) / (1 - one.padding)
    return EACH + CALLS * call + (PLAN if "cudnn" in one.name else 0.0)


def of_run(cases: Sequence[Case]) -> float:
    """Seconds of a run in which each case is timed for long enough."""
    return START + sum(case.setup + ENOUGH for case in cases)
