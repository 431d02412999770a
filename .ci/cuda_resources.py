# SPDX-License-Identifier: Apache-2.0
"""Holds what ptxas reports of each kernel (registers, spills, frames, shared memory) against the record.

python .ci/cuda_resources.py REPORT RECORD [--write]

A kernel must not spill or have a stack frame, whatever the record says; its registers must not rise by more
than a tenth and more than four, nor so that fewer of its blocks fit on a multiprocessor; a kernel that the
record does not know, or that is gone, is an error too.
"""

import re
import sys
from pathlib import Path

import cuda_record
from cuda_record import Launch, Record, Usage

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


Reports = dict[str, dict[str, Usage]]  # kernel -> architecture -> what it uses


def read_report(text: str) -> Reports:
    found: list[tuple[str, str, Usage]] = []
    for line in text.splitlines():
        if entry := ENTRY.search(line):
            found.append((entry[1], entry[2], Usage(registers=0, spilled=0, shared=0)))
        elif found and (frame := FRAME.search(line)):
            if int(frame[1]):
                found[-1][2]["frame"] = int(frame[1])
            found[-1][2]["spilled"] = int(frame[2]) + int(frame[3])
        elif found and (used := USED.search(line)):
            found[-1][2]["registers"] = int(used[1])
            if shared := SHARED.search(line):
                found[-1][2]["shared"] = int(shared[1])
    reports: Reports = {}
    for name, (_, architecture, report) in zip(
        cuda_record.demangled([one[0] for one in found]), found, strict=True
    ):
        reports.setdefault(name, {})[architecture] = report
    return reports


def of_kernel(
    what: str, architecture: str, report: Usage, before: Usage, launches: list[Launch]
) -> list[str]:
    """What is worse than, or no longer as, it was."""
    found, registers = [], before["registers"]
    if report["registers"] > registers * 1.1 and report["registers"] > registers + 4:
        found.append(f"{what}: expected about {registers} registers, got {report['registers']}")
    if report["shared"] != before["shared"]:
        found.append(
            f"{what}: expected {before['shared']} bytes of static shared memory,"
            f" got {report['shared']} (--write records it)"
        )
    for launch in launches:
        was, now = (cuda_record.blocks(architecture, one, launch) for one in (before, report))
        if now < was:
            found.append(
                f"{what}: expected {was} blocks of {launch.threads} threads on a multiprocessor, got {now}"
                f" with {report['registers']} registers and {report['shared']} + {launch.shared} bytes shared"
            )
    return found


def complaints(reports: Reports, record: Record) -> list[str]:
    found: list[str] = []
    for kernel, of_architectures in sorted(reports.items()):
        for architecture, report in sorted(of_architectures.items()):
            what = f"[cuda] {kernel} ({architecture})"
            if report["registers"] == 0:
                found.append(f"{what}: expected a number of registers in ptxas's report, got none")
            spilled, frame = report["spilled"], report.get("frame", 0)
            if frame or spilled:
                found.append(
                    f"{what}: expected neither spills nor a stack frame,"
                    f" got {spilled} bytes spilled and a frame of {frame}"
                )
            before = record["kernels"].get(kernel, {}).get(architecture)
            if before is None:
                found.append(f"{what}: expected a kernel of the record, got a new one (--write adds it)")
            else:
                launches = record["launches"].get(kernel, [])
                found += of_kernel(what, architecture, report, before, launches)
    for kernel, of_record in sorted(record["kernels"].items()):
        found += [
            f"[cuda] {kernel} ({architecture}): expected this kernel as recorded, got none (--write drops it)"
            for architecture in sorted(of_record)
            if architecture not in reports.get(kernel, {})
        ]
    return found


def written(reports: Reports, record: Record) -> Record:
    """The record with what is reported now; launches stay with the kernels that there are."""
    kernels = {kernel: dict(sorted(of.items())) for kernel, of in sorted(reports.items())}
    return Record(
        kernels=kernels,
        launches={kernel: of for kernel, of in record["launches"].items() if kernel in kernels},
    )


def main(arguments: list[str]) -> int:
    file = Path(arguments[1])
    reports, record = read_report(Path(arguments[0]).read_text()), cuda_record.read(file)
    if arguments[2:] == ["--write"]:
        record = written(reports, record)
        cuda_record.write(file, record)
    fine = f"cuda: {len(reports)} kernels, no spills, registers and blocks as recorded"
    return cuda_record.tell(file, complaints(reports, record), fine)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
