# SPDX-License-Identifier: Apache-2.0
"""Holds the launches that the tests make in the emulator (threads, dynamic shared memory) against the record.

python .ci/cuda_launches.py LAUNCHES RECORD [--write]

LAUNCHES is what the emulator has listed, a line "PROGRAM OFFSET THREADS BYTES" each, in the file that
EARNEST_LAUNCHES names (kernels/common/launches_emulated.cc). A kernel of the record that is launched in other
ways than it says, or that no test launches, is an error.
"""

import re
import subprocess
import sys
from pathlib import Path

import cuda_record
from cuda_record import Launch, Record


def kernels_of(program: str) -> dict[int, list[str]]:
    """Offset in the program -> the functions there."""
    lines = subprocess.run(
        ["nm", "--defined-only", program], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    functions = [line.split() for line in lines if re.search(r" [tTwW] ", line)]
    names = cuda_record.demangled([name for _, _, name in functions])
    found: dict[int, list[str]] = {}
    for (offset, _, _), name in zip(functions, names, strict=True):
        found.setdefault(int(offset, 16), []).append(name)
    return found


def read_launches(text: str) -> dict[str, list[Launch]]:
    """Function -> how it is launched, each way once, ascending."""
    found: dict[str, set[Launch]] = {}
    programs: dict[str, dict[int, list[str]]] = {}
    for line in text.splitlines():
        program, offset, threads, shared = line.rsplit(" ", 3)
        if program not in programs:
            programs[program] = kernels_of(program)
        for name in programs[program].get(int(offset), []):
            found.setdefault(name, set()).add(Launch(int(threads), int(shared)))
    return {name: sorted(launches) for name, launches in found.items()}


def words(launches: list[Launch]) -> str:
    return ", ".join(f"{one.threads} threads with {one.shared} bytes" for one in launches) or "none"


def complaints(launches: dict[str, list[Launch]], record: Record) -> list[str]:
    found = []
    for kernel in sorted(record["kernels"]):
        before, now = record["launches"].get(kernel, []), launches.get(kernel, [])
        if not now:
            found.append(f"[cuda] {kernel}: expected a launch by some test, got none")
        elif now != before:
            found.append(
                f"[cuda] {kernel}: expected launches of {words(before)},"
                f" got {words(now)} (--write records them)"
            )
    return found


def main(arguments: list[str]) -> int:
    launches, file = read_launches(Path(arguments[0]).read_text()), Path(arguments[1])
    record = cuda_record.read(file)
    if arguments[2:] == ["--write"]:
        record["launches"] = {kernel: launches[kernel] for kernel in record["kernels"] if kernel in launches}
        cuda_record.write(file, record)
    fine = f"cuda: {len(record['kernels'])} kernels are launched as recorded"
    return cuda_record.tell(file, complaints(launches, record), fine)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
