# SPDX-License-Identifier: Apache-2.0
"""Holds what ptxas reports of each kernel (registers, spills, stack frames) against a committed record.

python .ci/cuda_resources.py REPORT RECORD [--write]

A kernel must not spill or have a stack frame unless the record says why under "may_spill"; its registers must
not rise by more than a tenth and more than four; a kernel that the record does not know, or that is gone, is
an error too.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TypedDict

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")


class Usage(TypedDict):
    registers: int
    stack: int
    spills: int


Report = dict[str, dict[str, Usage]]  # kernel -> architecture -> what it uses


class Record(TypedDict):
    registers: dict[str, dict[str, int]]  # kernel -> architecture -> registers
    may_spill: dict[str, str]  # kernel -> why


def demangled(names: list[str]) -> list[str]:
    """Without what differs from machine to machine, and without parameters and the house's own namespace."""
    text = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout
    plain = [line.replace("(anonymous namespace)::", "").removeprefix("void ") for line in text.splitlines()]
    return [re.sub(r"\(.*", "", line).removeprefix("earnest::") for line in plain]


def read_report(text: str) -> Report:
    found: list[tuple[str, str, Usage]] = []
    for line in text.splitlines():
        if entry := ENTRY.search(line):
            found.append((entry[1], entry[2], Usage(registers=0, stack=0, spills=0)))
        elif found and (frame := FRAME.search(line)):
            found[-1][2]["stack"] = int(frame[1])
            found[-1][2]["spills"] = int(frame[2]) + int(frame[3])
        elif found and (used := USED.search(line)):
            found[-1][2]["registers"] = int(used[1])
    report: Report = {}
    for name, (_, architecture, usage) in zip(demangled([one[0] for one in found]), found, strict=True):
        report.setdefault(name, {})[architecture] = usage
    return report


def complaints(report: Report, record: Record) -> list[str]:
    found: list[str] = []
    for kernel, of_architectures in sorted(report.items()):
        for architecture, usage in sorted(of_architectures.items()):
            what = f"[cuda] {kernel} ({architecture})"
            if usage["registers"] == 0:
                found.append(f"{what}: expected a number of registers in ptxas's report, got none")
            if (usage["stack"] or usage["spills"]) and kernel not in record["may_spill"]:
                found.append(
                    f"{what}: expected neither spills nor a stack frame, got {usage['spills']} bytes spilled"
                    f" and a frame of {usage['stack']}"
                )
            before = record["registers"].get(kernel, {}).get(architecture)
            if before is None:
                found.append(f"{what}: expected a kernel of the record, got a new one (--write adds it)")
            elif usage["registers"] > before * 1.1 and usage["registers"] > before + 4:
                found.append(f"{what}: expected about {before} registers, got {usage['registers']}")
    for kernel, of_record in sorted(record["registers"].items()):
        found += [
            f"[cuda] {kernel} ({architecture}): expected this kernel as recorded, got none (--write drops it)"
            for architecture in sorted(of_record)
            if architecture not in report.get(kernel, {})
        ]
    return found


def written(report: Report, record: Record) -> Record:
    registers = {
        kernel: {architecture: usage["registers"] for architecture, usage in sorted(of.items())}
        for kernel, of in sorted(report.items())
    }
    return Record(
        registers=registers, may_spill={k: why for k, why in record["may_spill"].items() if k in registers}
    )


def main(arguments: list[str]) -> int:
    report_file, record_file = Path(arguments[0]), Path(arguments[1])
    report = read_report(report_file.read_text())
    record: Record = {"registers": {}, "may_spill": {}}
    if record_file.exists():
        record = json.loads(record_file.read_text())
    if arguments[2:] == ["--write"]:
        record = written(report, record)
        record_file.write_text(json.dumps(record, indent=1) + "\n")
    found = complaints(report, record)
    print(
        "\n".join(
            found or [f"cuda: {len(report)} kernels, no spills but those explained, registers as recorded"]
        )
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
