# SPDX-License-Identifier: Apache-2.0
"""The committed record of what each CUDA kernel takes of a multiprocessor (kernels/cuda_resources.json), and
its table for readers beside it (cuda_resources.md).

python .ci/cuda_record.py RECORD    writes the table

What nvcc gives a kernel comes from .ci/cuda_resources.py, what launches ask for from .ci/cuda_launches.py.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple, NotRequired, TypedDict

import occupancy


class Usage(TypedDict):
    registers: int
    spilled: int  # bytes stored and loaded
    shared: int  # bytes, static
    frame: NotRequired[int]  # bytes of a stack, where there is one


class Launch(NamedTuple):
    threads: int
    shared: int  # bytes, dynamic


class Record(TypedDict):
    kernels: dict[str, dict[str, Usage]]  # kernel -> architecture -> what it is given
    launches: dict[str, list[Launch]]  # kernel -> what launches ask for, ascending


def demangled(names: list[str]) -> list[str]:
    """Without what differs from machine to machine, and without parameters and the house's own namespace."""
    text = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    ).stdout
    plain = [line.replace("(anonymous namespace)::", "").removeprefix("void ") for line in text.splitlines()]
    return [re.sub(r"\(.*", "", line).removeprefix("earnest::") for line in plain]


def blocks(architecture: str, usage: Usage, launch: Launch) -> int:
    shared = usage["shared"] + launch.shared
    return occupancy.blocks(architecture, usage["registers"], launch.threads, shared)


# ---- the file ----


def read(path: Path) -> Record:
    if not path.exists():
        return {"kernels": {}, "launches": {}}
    record: Record = json.loads(path.read_text())
    record["launches"] = {kernel: [Launch(*one) for one in of] for kernel, of in record["launches"].items()}
    return record


def text_of(record: Record) -> str:
    """A line for each entry: so that changes read well."""
    parts = []
    for name, entries in record.items():
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(entries.items())]
        parts.append(f' "{name}": {{\n' + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def table_file(path: Path) -> Path:
    return path.with_suffix(".md")


def write(path: Path, record: Record) -> None:
    path.write_text(text_of(record))
    table_file(path).write_text(table(record))


def stale(path: Path) -> list[str]:
    """A complaint, if the table is not that of the record."""
    file = table_file(path)
    if file.exists() and file.read_text() == table(read(path)):
        return []
    command = f"python .ci/cuda_record.py {path}"
    return [f"[cuda] {file}: expected the table of {path.name}, got another ({command} writes it)"]


def tell(path: Path, found: list[str], fine: str) -> int:
    """Prints what was found, or that all is fine; the status to exit with."""
    found = found + stale(path)
    print("\n".join(found or [fine]))
    return 1 if found else 0


# ---- the table ----

HEAD = """<!-- SPDX-License-Identifier: Apache-2.0 -->
# What each CUDA kernel takes of a multiprocessor

Written by `python .ci/cuda_record.py kernels/cuda_resources.json`, from the record beside it. The gate holds
it against what nvcc reports (registers of a thread, bytes spilled, bytes of static shared memory; sm_80 and
sm_90a apart where they differ) and against every launch that the tests make in the emulator (threads of a
block, bytes of dynamic shared memory).

**No GPU has run any of it.** How many blocks, and warps of at most 64, a multiprocessor of an A100 (sm_80)
and of an H200 (sm_90a) holds at a time is reckoned from these numbers (`.ci/occupancy.py`). Kernels of sm_80
alone come to an H200 as PTX: `~` takes sm_80's registers for those that they get there. 0: no block fits.
"""
COLUMNS = "| kernel | threads | dynamic | registers | spilled | static | sm_80: blocks; warps | sm_90a |\n"
CUT = "|---|---|---|---|---|---|---|---|\n"


def shortened(kernel: str, namespace: str) -> str:
    plain = kernel.removeprefix(namespace + "::").replace(" >", ">")
    return re.sub(r"(\w+::)+", "", plain)


def namespace_of(kernel: str) -> str:
    return "::".join(kernel.split("<")[0].split("::")[:-1])


def residents(architecture: str, usage: dict[str, Usage], launch: Launch | None) -> str:
    given = usage.get(architecture, usage.get("sm_80"))
    if given is None or launch is None:
        return ""
    count = blocks(architecture, given, launch)
    warps = count * occupancy.warps_of(launch.threads)
    return f"{'' if architecture in usage else '~'}{count}; {warps}"


def row(name: str, usage: dict[str, Usage], launch: Launch | None) -> str:
    asked = ("", "") if launch is None else (str(launch.threads), f"{launch.shared:,}")

    def given(what: str) -> str:
        values = [f"{one[what]:,}" for _, one in sorted(usage.items())]  # type: ignore[literal-required]
        return values[0] if len(set(values)) == 1 else "; ".join(values)

    cells = [f"`{name}`", *asked, given("registers"), given("spilled"), given("shared")]
    cells += [residents(architecture, usage, launch) for architecture in occupancy.SHARED]
    return "| " + " | ".join(cells) + " |\n"


def table(record: Record) -> str:
    text, section = HEAD, ""
    for kernel, usage in sorted(record["kernels"].items(), key=lambda one: (namespace_of(one[0]), one[0])):
        namespace = namespace_of(kernel)
        if namespace != section:
            text += f"\n## {namespace}\n{COLUMNS}{CUT}"
            section = namespace
        name = shortened(kernel, namespace)
        text += "".join(row(name, usage, one) for one in record["launches"].get(kernel, []) or [None])
    return text


if __name__ == "__main__":
    write(Path(sys.argv[1]), read(Path(sys.argv[1])))
