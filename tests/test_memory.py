# SPDX-License-Identifier: Apache-2.0
"""Memory that a loop frees and asks for again."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from earnest.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()

def step():
    torch.empty(12 << 20).fill_(1)  # 48 MiB

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

step(), step()
before = faults()
for _ in range(4):
    step()
print(faults() - before)
"""


def pages(how: str) -> int:
    said = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return int(said.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_a_loop_that_keeps_its_memory_waits_for_no_page_twice() -> None:
    kept = pages("kept")
    assert kept < 100  # of some 12,000 pages of 4 KiB in each step
    assert kept < pages("given back")
