# SPDX-License-Identifier: Apache-2.0
"""`earnest bench`: measure cases, write a report of result files, compare two of them."""

from __future__ import annotations

import argparse
import importlib
import os
import secrets
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from earnest.bench import compare, harness, results, show, sitting
from earnest.bench.budget import Budget
from earnest.bench.case import Case, Target
from earnest.errors import InvalidInput
from earnest.progress import Progress

FAMILIES = ("logmel", "pitch", "ppo", "linear", "rowwise", "attention", "logprob", "learning", "engine")
ON_CUDA = ("logmel", "ppo", "attention", "logprob", "linear", "engine")
RESULTS = Path("bench") / "results"
OP = "bench"


def run(options: argparse.Namespace) -> int:
    """The exit code: 1 for a wrong result, or for a case that became slower than compare allows or was
    lost."""
    what, *rest = options.what or ["all"]
    if what == "report":
        return _report([Path(path) for path in rest])
    if what == "compare":
        return _compare(rest, options.ratio)
    return _measure(options)


def families(device: str) -> tuple[str, ...]:
    return ON_CUDA if device == "cuda" else FAMILIES


def all_cases(device: str = "cpu") -> list[Case]:
    modules = [f"gpu_{name}" if device == "cuda" else name for name in families(device)]
    modules = (["gpu_invariance"] if device == "cuda" else []) + modules  # whose cases are the engine's
    found = [case for name in modules for case in importlib.import_module(f"earnest.bench.{name}").cases()]
    return sorted(found, key=_comes_late) if device == "cuda" else found


def _comes_late(case: Case) -> bool:
    """A GPU's minutes may end before the last case: those of which something was promised come first. The
    engine's stay together, as they share weights."""
    return case.target == Target() and case.family != "engine"


def chosen(words: list[str], quick: bool, device: str = "cpu") -> list[Case]:
    """The cases of the families named, and those whose name contains a word with a slash in it, in the order
    of all."""
    known = all_cases(device)
    names: set[str] = set()
    for word in words or list(families(device)):
        some = [c for c in known if c.name == word]
        some = some or [c for c in known if c.family == word or ("/" in word and word in c.name)]
        if not some:
            expected = (
                f"{', '.join(families(device))}, part of a case's name with its slash, report or compare"
            )
            raise InvalidInput(OP, "FAMILY", expected, repr(word))
        names |= {c.name for c in some}
    found = [c for c in known if c.name in names]
    short = [c for c in found if c.quick]
    return short if quick and short else found


def _measure(options: argparse.Namespace) -> int:
    if options.threads is not None and not 1 <= options.threads <= (os.cpu_count() or 1):
        raise InvalidInput(OP, "--threads", f"1 to {os.cpu_count()}", str(options.threads))
    if options.seconds is not None and (options.device != "cuda" or not options.seconds > 0):
        raise InvalidInput(
            OP, "--seconds", "more than 0, with --device cuda", f"{options.seconds} on {options.device}"
        )
    if options.json in FAMILIES:
        raise InvalidInput(
            OP, "--json", "a file, or nothing after it", f"the family {options.json}: name it first"
        )
    cases = chosen(options.what, options.quick, options.device)
    settings = harness.Settings(
        threads=options.threads, peers=options.peers, quick=options.quick, seed=secrets.randbits(32)
    )
    out = sys.stderr if options.json == "-" else sys.stdout
    begin = partial(sitting.Here, options.device, settings, _said(sys.argv[1:]))
    try:
        where = sitting.Beside(cases, begin) if options.device == "cuda" else begin()
    except sitting.Gone as error:
        print(f"{len(cases)} cases not measured: {error}", file=out)
        return 1
    progress = Progress(OP, len(cases))
    try:
        print(show.surroundings(where.surroundings), file=out)
        print(show.HEAD, file=out, flush=True)
        failed = _all_of(cases, where, options, progress, out)
    finally:
        progress.close()
        where.close()
    return 1 if failed else 0


def _all_of(
    cases: Sequence[Case],
    where: sitting.Here | sitting.Beside,
    options: argparse.Namespace,
    progress: Progress,
    out: TextIO,
) -> int:
    """How many were wrong, or lost on the way. A case for which no time is left is named, and no failure."""
    failed, pace = 0, sitting.pace_of(options.device, options.quick)
    budget = Budget(options.seconds, cases)
    for done, case in enumerate(cases):
        left = budget.pace(pace, done)
        if left is None:
            reason = f"no time is left of {options.seconds:g} s"
            print(f"{case.name}: not measured, {reason}", file=out, flush=True)
            continue
        try:
            record = where.measure(case, left, partial(budget.limit, done))
        except sitting.NotMeasured as error:
            failed += 1
            print(f"{case.name}: not measured, {error}", file=out, flush=True)
        except sitting.Gone as error:
            print(f"{len(cases) - done} cases not measured: {error}", file=out, flush=True)
            return failed + 1
        else:
            failed += "lost" in record or any(_is_ours(name) for name in record["wrong"])
            _keep(record, options.json)
            print(show.line(record), file=out, flush=True)
        progress.update(done + 1)
    return failed


def _is_ours(name: str) -> bool:
    """Our implementation, or one path of it: "earnest, sm80"."""
    return name.partition(",")[0] == "earnest"


def _said(words: list[str]) -> str:
    """The command as anybody could give it: files by their names, without this machine's folders."""
    return shlex.join(["earnest", *(Path(word).name if Path(word).is_absolute() else word for word in words)])


def _keep(record: dict[str, Any], place: str | None) -> None:
    if place == "-":
        print(results.line_of(record), flush=True)
    elif place:
        results.append(record, Path(place))


def _report(paths: list[Path]) -> int:
    from earnest.bench import report

    paths = paths or sorted(RESULTS.glob("*.jsonl"))
    if not paths:
        raise InvalidInput(OP, "report", f"result files (or some in {RESULTS})", "none")
    for path in report.write(paths, readme=Path("README.md")):
        print(path)
    return 0


def _compare(words: list[str], limit: float) -> int:
    if len(words) != 2:
        raise InvalidInput(OP, "compare", "two result files, OLD and NEW", f"{len(words)}")
    if not limit >= 1:
        raise InvalidInput(OP, "--ratio", "a number of at least 1", str(limit))
    found = compare.compare(Path(words[0]), Path(words[1]))
    print(compare.table(found, limit))
    return 1 if found.is_worse(limit) else 0
