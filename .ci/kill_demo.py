# SPDX-License-Identifier: Apache-2.0
"""Kills a quick demo with SIGKILL in every phase, runs the same command again each time, and compares what
it ends with to a demo that nobody killed: every model bit for bit, and every figure of metrics.json that does
not come from a clock.

    python .ci/kill_demo.py runs/whole runs/killed .venv/bin/earnest
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

STAGES = ("midtrain", "sft", "rlvr", "judge", "rlhf")
PHASES = (  # folder of the stage, the phase in its metrics, lines of the phase to wait for
    ("midtrain", "learning to hear", 7),
    ("midtrain", "mid-training", 4),
    ("sft", "fine-tuning", 3),
    ("rlvr", "policy", 2),
    ("judge", "judge training", 3),
    ("rlhf", "policy", 2),
)
LONGEST = 600.0  # seconds until a phase is reached


def lines_of(run: Path, stage: str, phase: str) -> int:
    file = run / stage / "metrics.jsonl"
    return file.read_text(errors="replace").count(f'"phase": "{phase}"') if file.is_file() else 0


def start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def kill_in(command: list[str], run: Path, stage: str, phase: str, lines: int) -> None:
    """Runs the command until the phase has logged so many lines, then kills it and all its processes."""
    process = start(command)
    deadline = time.monotonic() + LONGEST
    while lines_of(run, stage, phase) < lines:
        if process.poll() is not None:
            sys.exit(f"kill_demo: the demo ended before {phase!r}: {process.stderr.read().decode()[-2000:]}")
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            sys.exit(f"kill_demo: {phase!r} was not reached in {LONGEST:.0f} s")
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    print(f"killed in {phase} of {stage}", flush=True)


def fingerprint(run: Path) -> dict[str, str]:
    """What a run ended with, by name."""
    found = {
        f"{stage}/{file.name}": hashlib.sha256(file.read_bytes()).hexdigest()
        for stage in STAGES
        for file in sorted((run / stage).glob("*.safetensors"))
    }
    metrics = json.loads((run / "metrics.json").read_text())
    del metrics["seconds"]
    return {**found, "metrics.json": json.dumps(metrics, sort_keys=True)}


def main(whole: Path, killed: Path, earnest: str) -> None:
    command = [earnest, "demo", "--run", str(killed), "--quick", "--set", "run.save_every_steps=2"]
    for stage, phase, lines in PHASES:
        kill_in(command, killed, stage, phase, lines)
    last = start(command)
    if last.wait() != 0:
        sys.exit(f"kill_demo: the last run failed: {last.stderr.read().decode()[-2000:]}")
    want, got = fingerprint(whole), fingerprint(killed)
    different = sorted(name for name in want.keys() | got.keys() if want.get(name) != got.get(name))
    if different or len(want) < len(STAGES) + 1:
        sys.exit(f"kill_demo: not what an uninterrupted run ends with: {different or list(want)}")
    print(f"killed {len(PHASES)} times; all of {len(want)} results are the same, bit for bit")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
