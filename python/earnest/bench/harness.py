# SPDX-License-Identifier: Apache-2.0
"""One case: check everybody against the reference, time them side by side, and say where that stands."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Container, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

import earnest
from earnest.bench import gpu, machine
from earnest.bench.case import ALSO, OURS, PEER, Absent, Case, Implementation, Problem, Target
from earnest.bench.instrument import Instrument
from earnest.bench.limits import Limits, Threads
from earnest.bench.timing import Caller, Pace, Times, quartiles


class WrongResult(Exception):
    """An implementation that does not compute what it should: it is not timed."""


@dataclass(frozen=True)
class Settings:
    """threads: None for each case's own. peers: those of the extra `bench` too. quick: a short look, without
    what takes long to start."""

    threads: int | None = None
    peers: bool = False
    quick: bool = False
    pace: Pace = field(default_factory=Pace)
    seed: int = 0
    instrument: Instrument = field(default_factory=Instrument)


@dataclass
class Entry:
    """An implementation that runs here, ready to be timed."""

    implementation: Implementation
    caller: Caller
    error: float | None
    first_bytes: int | None  # extra memory of its first call


def measure(case: Case, settings: Settings, limits: Limits) -> dict[str, Any]:
    """Everything about one case, as results.py keeps it. If no result of ours is right, no times at all."""
    threads = settings.threads or case.threads
    with Threads(threads):
        problem = case.problem(np.random.default_rng(settings.seed))
        entries, absent, wrong = _prepare(problem, settings)
        record: dict[str, Any] = {
            "case": case.name, "family": case.family, "dtype": case.dtype, "shape": dict(case.shape),
            "backend": _backend(case), "device": case.device, "threads": threads,
            "clock": settings.instrument.clock(threads),
            "seed": settings.seed, "quick": settings.quick, "per": list(case.per),
            "absent": absent, "wrong": wrong, "results": [],
            "best_peer": None, "ratio": None, "ratio_quartiles": None,
            "yardstick": "", "yardstick_ratio": None,
            "limit": None, "fraction": None,
            "target": {k: v for k, v in asdict(case.target).items() if v}, "met": None,
        }  # fmt: skip
        ours = [one.name for one in problem.implementations if one.role == OURS]
        if any(name in wrong for name in ours) and all(name in wrong or name in absent for name in ours):
            return record
        if not entries:
            return record
        load = machine.Load()
        callers = {e.implementation.name: e.caller for e in entries}
        times = settings.instrument.times(callers, settings.pace, threads)
        record["others_load"] = load.others()
        record["results"] = _fastest_of_ours_first(
            [_result(entry, times[entry.implementation.name], settings.instrument) for entry in entries]
        )
        record |= _standing(case, problem, record["results"], times, limits, threads)
        complete = settings.peers and not settings.quick
        record["met"] = is_met(case.target, record) if complete else None
    return record


# ---- before: build and check ----


def _prepare(problem: Problem, settings: Settings) -> tuple[list[Entry], dict[str, str], dict[str, str]]:
    """(ready to be timed, why others are absent, why others are wrong)."""
    entries, absent, wrong = [], {}, {}
    expected: dict[Any, Sequence[Any]] = {}
    for one in problem.implementations:
        if (one.extra and one.role == PEER and not settings.peers) or (one.compiles and settings.quick):
            continue
        try:
            entries.append(_ready(one, problem, expected, settings.instrument))
        except Absent as reason:
            absent[one.name] = str(reason)
        except WrongResult as reason:
            wrong[one.name] = str(reason)
        except Exception as error:  # whatever goes wrong inside a peer must not end the run
            wrong[one.name] = f"fails: {type(error).__name__}: {str(error).strip()[:300]}"
    return entries, absent, wrong


def _ready(
    one: Implementation, problem: Problem, expected: dict[Any, Sequence[Any]], instrument: Instrument
) -> Entry:
    function = one.build()
    prepared = [one.prepare(*inputs) for inputs in problem.inputs]
    result: Any = None

    def first() -> None:
        nonlocal result
        result = function(*one.choose(*prepared[0]))

    extra = instrument.extra_bytes(first)
    extra = None if extra is None else max(0, extra - one.result_bytes(result))
    error, reference = None, problem.reference_of(one)
    if reference is not None:
        if reference not in expected:
            expected[reference] = reference(*problem.inputs[0])
        found = result if one.checked is None else one.checked(*problem.inputs[0])
        error = problem.error(one.outputs(found), expected[reference])
        tolerance = problem.tolerance if one.tolerance is None else one.tolerance
        if not error <= tolerance:
            raise WrongResult(f"is off by {error:.2g}, more than {tolerance:.2g}")
    return Entry(one, Caller(function, prepared), error, extra)


# ---- after: where it stands ----


def _result(entry: Entry, times: Times, instrument: Instrument) -> dict[str, Any]:
    one, caller = entry.implementation, entry.caller
    result_bytes = 0

    def call() -> Any:
        nonlocal result_bytes
        result = caller.function(*caller.inputs[0])
        result_bytes = one.result_bytes(result)
        return result

    extra = instrument.extra_bytes(call)
    extra = None if extra is None else max(0, extra - result_bytes)
    q1, q3 = times.quartiles
    return {
        "name": one.name, "role": one.role, "median": times.median, "q1": q1, "q3": q3,
        "least": min(times.samples),
        "samples": len(times.samples), "calls": times.repeats, "captured": times.captured,
        "error": entry.error,
        "extra_bytes": extra, "first_call_bytes": entry.first_bytes,
        "definition": one.definition, "ratio": None, "padding": one.padding, "to_best_peer": None,
    }  # fmt: skip


def _fastest_of_ours_first(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """It is judged, and whoever reads a record finds it as the first of ours."""
    ours = min((r for r in results if r["role"] == OURS), key=lambda r: r["median"], default=None)
    return sorted(results, key=lambda r: r is not ours)


def _standing(
    case: Case, problem: Problem, results: list[dict], times: dict[str, Times], limits: Limits, threads: int
) -> dict[str, Any]:
    found: dict[str, Any] = {"machine_limits": limits.table(threads)}
    if problem.bytes or problem.operations:
        limits.reached(problem, case.dtype, threads, min(result["median"] for result in results))
    if problem.operations:
        rates = limits.arithmetic(case.dtype, threads)
        found["machine_limits"] |= {f"{k} GFLOP/s": round(v / 1e9, 1) for k, v in rates.items()}
        found["operations"] = problem.operations
    found["bytes"], found["working_set"] = problem.bytes, problem.working_set
    ours = next((r for r in results if r["role"] == OURS), None)
    if problem.bytes or problem.operations:
        seconds, kind = limits.time(problem, case.dtype, threads)
        found["limit"] = {"seconds": seconds, "by": kind}
        found["fraction"] = seconds / ours["median"] if ours else None
    peers = [r for r in results if r["role"] == PEER and r["error"] is not None]
    best = min(peers, key=lambda r: r["median"], default=None)
    if best:
        found["best_peer"] = best["name"]
    if ours:
        for result in results:
            result["ratio"] = statistics.median(ratios(times[ours["name"]], times[result["name"]]))
        if best:
            found["ratio"] = best["ratio"]
            found["ratio_quartiles"] = list(quartiles(ratios(times[ours["name"]], times[best["name"]])))
            for result in results:
                if result["role"] in (OURS, ALSO):
                    theirs = ratios(times[result["name"]], times[best["name"]])
                    result["to_best_peer"] = statistics.median(theirs)
        by_name = {result["name"]: result["ratio"] for result in results}
        found["yardstick"] = _yardstick(case.target, by_name)
        found["yardstick_ratio"] = by_name.get(found["yardstick"])
        found |= _without_padding(peers) if any(peer["padding"] for peer in peers) else {}
    return found


def _yardstick(target: Target, timed: Container[str]) -> str:
    """Whom the target's ratio is to, of those that were timed; "" for the best peer."""
    return target.instead if target.against not in timed and target.instead in timed else target.against


def _without_padding(peers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The best peer if its time were that of its real work alone: what the padding is worth, apart from what
    it costs (`ratio` counts it)."""

    def real(peer: dict[str, Any]) -> float:
        return (1 - peer["padding"]) * peer["ratio"]

    best = min(peers, key=real)
    return {"best_peer_without_padding": best["name"], "ratio_without_padding": real(best)}


def ratios(ours: Times, other: Times) -> list[float]:
    """How many times longer the other took, in each round that both ran in: what the machine did meanwhile
    happened to both."""
    return [b / a for b, a in zip(other.samples, ours.samples, strict=False) if a > 0] or [float("nan")]


def is_met(target: Target, record: dict[str, Any]) -> bool | None:
    """Whether every part of the target is; None where there is no target or nothing to judge it by."""
    ours = next((r for r in record["results"] if r["role"] == OURS), None)
    if ours is None or target == Target():
        return None
    judged: list[tuple[float | None, float | None, Callable[[float, float], bool]]] = [
        (
            target.ratio,
            record["yardstick_ratio" if target.against else "ratio"],
            lambda want, have: have >= want,
        ),
        (target.fraction, record["fraction"], lambda want, have: have >= want),
        (target.seconds, ours.get("median"), lambda want, have: have <= want),
        (target.extra_bytes, most_bytes(ours), lambda want, have: have <= want),
        (target.error, ours["error"], lambda want, have: have <= want),
    ]
    ratios_to = {result["name"]: result["ratio"] for result in record["results"]} if target.also else {}
    judged += [(w, ratios_to.get(name), lambda want, have: have >= want) for name, w in target.also.items()]
    wanted = [(want, have, holds) for want, have, holds in judged if want is not None]
    if any(have is None for _, have, _ in wanted):
        return None
    return all(holds(want, have) for want, have, holds in wanted if have is not None)


def _backend(case: Case) -> str | None:
    """What would run, such as "cpu/avx512"; None for a family that this version does not know."""
    kernel = case.kernel or case.family
    details = {"dtype": case.dtype, "dim": case.shape.get("dim", 64)} if kernel == "attention" else {}
    try:
        return earnest.which(kernel, case.device, **details)
    except ValueError:
        return None


def most_bytes(result: dict[str, Any]) -> int | None:
    """Of a call, the first one included: only there shows what is kept from then on (and what starts up)."""
    known = [result[key] for key in ("extra_bytes", "first_call_bytes") if result[key] is not None]
    return max(known, default=None)


def surroundings(command: str, device: str = "cpu") -> dict[str, Any]:
    """What every record of a run shares."""
    return {
        "command": command,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": machine.cpu(),
        "versions": machine.versions(),
        **machine.commit(),
        **({"gpu": gpu.about()} if device == "cuda" else {}),
    }
