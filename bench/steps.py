# SPDX-License-Identifier: Apache-2.0
"""Carries out a plan: each step as soon as those that it waits for have ended, however they did, so that what
does not disturb each other runs side by side. bench/gpu.sh hands its plan in on standard input:

    NAME  LIMIT  FORECAST  AFTER[,AFTER...]  COMMAND [WORD...]

LIMIT: seconds after which a step is ended with all that it has started, `rest` for what the whole has left
but for the steps behind it. FORECAST: how many it will take, by guess. AFTER: `-` for nothing. A COMMAND may
be a function that bash has exported; it finds the time of its end in $ENDS (seconds since 1970).

What a step says stands together in OUT/log.txt once it has ended; OUT/summary.json has codes and seconds.
Exit code: that of the worst step."""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SHELL = ("bash", "-uo", "pipefail", "-c", '"$@"', "step")
TOO_LATE = 124  # the code of a step that was ended, as timeout's
LOOK = 0.2  # seconds between looks whether to stop
PATIENCE = 2.0  # seconds to end in, after a first word
LEAST = 2  # seconds; a step that would have fewer is not begun


@dataclass(frozen=True)
class Step:
    name: str
    limit: int | None
    forecast: int
    after: tuple[str, ...]
    words: tuple[str, ...]


def steps_of(text: str) -> list[Step]:
    found: list[Step] = []
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, limit, forecast, after, *words = line.split()
        waits = () if after == "-" else tuple(after.split(","))
        if unknown := [one for one in waits if one not in {step.name for step in found}]:
            raise SystemExit(f"gpu.sh: expected {name} behind steps above it, got {', '.join(unknown)}")
        limited = None if limit == "rest" else int(limit)
        found.append(Step(name, limited, int(forecast), waits, tuple(words)))
    return found


def limit_of(step: Step, steps: Sequence[Step], left: float) -> int:
    """left: seconds of the whole. What comes behind a step without a limit keeps its own."""
    if step.limit is not None:
        return int(min(step.limit, left))
    return int(left) - sum(one.limit or 0 for one in steps if step.name in one.after)


def forecast(steps: Sequence[Step]) -> dict[str, tuple[int, int]]:
    """When each begins and ends if it takes what it should."""
    found: dict[str, tuple[int, int]] = {}
    for step in steps:
        begins = max((found[name][1] for name in step.after if name in found), default=0)
        found[step.name] = begins, begins + step.forecast
    return found


class Run:
    """most: seconds of the whole."""

    def __init__(self, steps: Sequence[Step], out: Path, summary: str, most: float) -> None:
        self._steps, self._out, self._summary = steps, out, out / summary
        self._began, self._most = time.monotonic(), most
        self._processes: list[subprocess.Popen[bytes]] = []
        self._stopped = False
        self._ended: list[dict[str, object]] = []
        self.worst = 0

    def all(self) -> int:
        waiting, running = list(self._steps), {}
        names = {step.name for step in waiting}
        with concurrent.futures.ThreadPoolExecutor(max(len(waiting), 1)) as pool:
            while waiting or running:
                ended = {str(one["step"]) for one in self._ended}
                for step in [s for s in waiting if names & set(s.after) <= ended]:
                    waiting.remove(step)
                    running[pool.submit(self._one, step)] = step
                done, _ = concurrent.futures.wait(running, LOOK, "FIRST_COMPLETED")
                for future in done:
                    self._keep(running.pop(future), *future.result())
                if self._stopped:
                    waiting.clear()
                    for process in [one for one in self._processes if one.poll() is None]:
                        end_all_of(process)
        return self.worst

    def stop(self, word: int, _: object = None) -> None:
        """On a signal: all that runs; what it said is kept. An exception would break into locks."""
        self._stopped, self.worst = True, 128 + word

    def _one(self, step: Step) -> tuple[int, float, float]:
        """Its code, when it began and how many seconds it took."""
        began = time.monotonic()
        limit = limit_of(step, self._steps, self._most - (began - self._began))
        print(f"::: {step.name} (at most {limit} s): {' '.join(step.words)}", flush=True)
        code = TOO_LATE
        if limit >= LEAST:
            with self._said(step).open("wb") as file:
                environment = os.environ | {"ENDS": str(int(time.time() + limit))}
                process = subprocess.Popen(
                    [*SHELL, *step.words], stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                    env=environment, start_new_session=True,
                )  # fmt: skip
                self._processes.append(process)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(limit)
                end_all_of(process)
        return code, began - self._began, time.monotonic() - began

    def _said(self, step: Step) -> Path:
        return self._out / f".{step.name}.log"

    def _keep(self, step: Step, code: int, began: float, seconds: float) -> None:
        self.worst = max(self.worst, code if code >= 0 else 128 - code)
        line = f"::: {step.name}: exit code {code} after {seconds:.0f} s"
        print(line, flush=True)
        said = self._said(step)
        with (self._out / "log.txt").open("ab") as log:
            log.write(f"::: {step.name}: {' '.join(step.words)}\n".encode())
            if said.exists():
                log.write(shortened(said.read_bytes()))
                said.unlink()
            log.write(f"{line}\n".encode())
        self._ended.append(
            {"step": step.name, "code": code, "began": round(began), "seconds": round(seconds)}
        )
        commit = os.environ.get("EARNEST_COMMIT") or "unknown"
        total = round(time.monotonic() - self._began)
        words = {"commit": commit, "seconds": total, "worst": self.worst, "steps": self._ended}
        self._summary.write_text(json.dumps(words) + "\n")


def shortened(said: bytes, most: int = 1 << 20) -> bytes:
    """Without its middle, where it is long: what comes back from a lent machine may not be."""
    if len(said) <= most:
        return said
    half = most // 2
    return said[:half] + b"\n::: (%d bytes left out)\n" % (len(said) - 2 * half) + said[-half:]


def end_all_of(process: subprocess.Popen[bytes]) -> None:
    """Whatever the step has started and left, in groups of their own too: all have its session, but for those
    that ask for a new one."""
    for last, word in ((False, signal.SIGTERM), (True, signal.SIGKILL)):
        for one in of_session(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, word)
        if not last:
            wait_until(lambda: process.poll() is not None and not of_session(process.pid), PATIENCE)
    with contextlib.suppress(subprocess.TimeoutExpired):  # who waits for a GPU that hangs cannot be ended
        process.wait(PATIENCE)


def of_session(session: int) -> list[int]:
    """Processes that have not ended yet."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, sid = stat.read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue
        if int(sid) == session and state != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_until(holds: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)


def told(steps: Sequence[Step], most: int) -> str:
    """The plan for people."""
    when = forecast(steps)
    lines = [
        f"{'rest' if step.limit is None else step.limit:>4} s  {step.name:<12} "
        f"{when[step.name][0]:>4} to {when[step.name][1]:>3} s  {' '.join(step.words)}"
        for step in steps
    ]
    ends = max((end for _, end in when.values()), default=0)
    return "\n".join([*lines, f"{ends} s forecast, at most {most} s in all"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="gpu.sh")
    parser.add_argument("--most", type=int, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("only", nargs="*")
    options = parser.parse_args()
    steps = steps_of(sys.stdin.read())
    known = [step.name for step in steps]
    if unknown := [name for name in options.only if name not in known]:
        print(f"gpu.sh: expected a step ({' '.join(known)}), got {', '.join(unknown)}", file=sys.stderr)
        return 2
    chosen = [step for step in steps if step.name in (options.only or known)]
    if options.out is None:
        print(told(chosen, options.most))
        return 0
    if not options.only:
        (options.out / "log.txt").write_text("")
    # What was called for some steps keeps what the call before it has written.
    summary = "-".join(["summary", *options.only[:1]]) + ".json"
    run = Run(chosen, options.out, summary, options.most)
    signal.signal(signal.SIGTERM, run.stop)
    signal.signal(signal.SIGINT, run.stop)
    return run.all()


if __name__ == "__main__":
    sys.exit(main())
