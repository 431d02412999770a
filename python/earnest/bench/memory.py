# SPDX-License-Identifier: Apache-2.0
"""How much memory a call takes beyond what is there: the kernel's own high-water mark, reset before it.

Linux keeps the largest resident set of a process (VmHWM) and forgets it when "5" is written to clear_refs.
Heap that earlier calls left behind is given back first (malloc_trim), or it would hide what a call uses.
Results count. A page has 4 KiB and each thread's counter may lag by 64 pages: some hundred KiB are noise.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_extra_bytes(call: Callable[[], Any]) -> int | None:
    """The largest resident set during call(), less that before it; None where the system does not tell."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR.write_text("5")
        before = _resident("VmRSS")
    except (OSError, AttributeError, KeyError):
        return None
    result = call()
    peak = _resident("VmHWM")
    del result
    return max(0, peak - before)


def _resident(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)
