# SPDX-License-Identifier: Apache-2.0
"""Where the cases of a run are measured: in this process, or a GPU's in one beside it (apart.py), so that a
kernel that faults or hangs costs its own case alone."""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Callable, Sequence
from typing import Any

from earnest.bench import gpu, harness, timing
from earnest.bench.apart import LEAVING, Apart, Lost, Words
from earnest.bench.budget import LEAST
from earnest.bench.case import Case
from earnest.bench.gpu_attention_paths import WITHOUT
from earnest.bench.instrument import Instrument
from earnest.bench.limits import Limits
from earnest.bench.timing import Pace
from earnest.errors import InvalidInput
from earnest.ops import cuda

OP = "bench"
PATH = "sm90a"  # whose kernels wait for each other: of ours the one to suspect
WITH_PATHS = ("attention", "logprob", "engine")  # families that try it
BEGINS = 60.0  # seconds in which a device has to answer at all
Limit = Callable[[], float | None]  # seconds from now on after which a case is said to hang; None: never


class NotMeasured(RuntimeError):
    """One case; the message says why. A GPU may say so while it is timed, and the others' cases be fine."""


class Gone(RuntimeError):
    """Nothing more can be measured."""


def pace_of(device: str, quick: bool) -> Pace:
    if device == "cuda":
        return gpu.QUICK if quick else gpu.PACE
    return timing.QUICK if quick else Pace()


def measured_with(device: str, quick: bool) -> tuple[Instrument, Limits]:
    """InvalidInput where there is no such device."""
    if device == "cuda":
        cuda.require(OP)
        return gpu.Gpu(), gpu.GpuLimits()
    return Instrument(), Limits(seconds=0.05, most_bytes=256 << 20) if quick else Limits()


class Here:
    """In this process."""

    def __init__(self, device: str, settings: harness.Settings, command: str) -> None:
        instrument, self._limits = measured_with(device, settings.quick)
        self._settings = dataclasses.replace(settings, instrument=instrument)
        self.surroundings = harness.surroundings(command, device)
        self.instrument = instrument

    def measure(self, case: Case, pace: Pace, limit: Limit = lambda: None) -> dict[str, Any]:
        """limit: only who measures apart can end what hangs."""
        settings = dataclasses.replace(self._settings, pace=pace)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        found = harness.measure(case, settings, self._limits)
        return {"case": case.name, "time": now, **self.surroundings, **found}

    def close(self) -> None:
        pass


class Beside:
    """In a process of its own, and in a new one after a case that spoiled it. Such a case is tried again
    without path sm90a; where that helps, the path is left out of what follows in its family."""

    def __init__(self, cases: Sequence[Case], begin: Callable[[], Here]) -> None:
        self._cases = {case.name: case for case in cases}
        self._apart = Apart(lambda: _answering(begin(), self._cases))
        self._without: set[str] = set()  # families
        self.surroundings = self._begun()

    def measure(self, case: Case, pace: Pace, limit: Limit = lambda: None) -> dict[str, Any]:
        without = case.family in self._without or PATH in os.environ.get(WITHOUT, "").split(",")
        try:
            return self._ask(case, pace, limit(), without)
        except Lost as error:
            if without or case.family not in WITH_PATHS:
                raise NotMeasured(str(error)) from None
            left = limit()
            if left is not None and left < LEAST:
                raise NotMeasured(f"{error}; no time is left to try it without {PATH}") from None
            try:
                found = self._ask(case, pace, left, without=True)
            except Lost as again:
                raise NotMeasured(f"{error}; without {PATH}: {again}") from None
            self._without.add(case.family)
            return found | {"lost": f"{error}; measured without {PATH}, as are all others of {case.family}"}

    def close(self) -> None:
        self._apart.close()

    def _ask(self, case: Case, pace: Pace, seconds: float | None, without: bool) -> dict[str, Any]:
        if self._apart.is_new:
            self._begun()
        asked = {"case": case.name, "pace": dataclasses.asdict(pace), "without": without}
        answer = self._apart.ask(asked, seconds)
        if LEAVING in answer:
            raise Lost(answer[LEAVING])
        if "not measured" in answer:
            raise NotMeasured(answer["not measured"])
        return answer["record"]

    def _begun(self) -> dict[str, Any]:
        """A new process is first asked where it is: one that cannot say so has no device any more."""
        try:
            answer = self._apart.ask({}, BEGINS)
        except Lost as error:
            raise Gone(str(error)) from None
        if LEAVING in answer:
            raise Gone(answer[LEAVING])
        return answer["surroundings"]


def _answering(here: Here, cases: dict[str, Case]) -> Callable[[Words], Words]:
    before = os.environ.get(WITHOUT, "")

    def answer(asked: Words) -> Words:
        if not asked:
            reason = here.instrument.broken()
            return {LEAVING: reason} if reason else {"surroundings": here.surroundings}
        os.environ[WITHOUT] = ",".join(filter(None, [before, PATH])) if asked["without"] else before
        try:
            said: Words = {"record": here.measure(cases[asked["case"]], Pace(**asked["pace"]))}
        except InvalidInput:
            raise
        except RuntimeError as error:
            said = {"not measured": str(error).strip().splitlines()[0]}
        if reason := here.instrument.broken():
            said = {LEAVING: reason}
        else:
            here.instrument.between()
        return said

    return answer
