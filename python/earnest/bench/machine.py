# SPDX-License-Identifier: Apache-2.0
"""Where and with what a measurement was made."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from earnest import __version__

PACKAGES = (
    "torch", "numpy", "asrfront", "kaldi-native-fbank", "librosa", "transformers", "zentorch", "numba",
    "scipy", "praat-parselmouth", "pyworld", "trl", "llama-cpp-python", "openvino", "openvino-genai",
    "ctranslate2", "pywhispercpp", "torchaudio", "triton", "liger-kernel",
    "flash-attn", "flash-attn-3", "flashinfer-python", "nvidia-cudnn-frontend", "nvidia-cudnn-cu13",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Of this package, Python and every peer that is installed."""
    found = {"earnest": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cpu() -> dict[str, Any]:
    """Model, cores, caches and the tier of the kernels."""
    from earnest import _native

    fields = {}
    info = Path("/proc/cpuinfo")
    if info.exists():
        first = info.read_text().split("\n\n")[0]
        fields = dict(re.findall(r"^([^\t:]+)\t*: (.*)$", first, re.M))
    model = fields.get("model name", platform.processor() or platform.machine())
    return {
        "model": model,
        "family": f"{fields.get('cpu family', '?')}/{fields.get('model', '?')}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "caches": caches(),
        "tier": _native.cpu_tier(),
    }


def caches() -> dict[str, int]:
    """Bytes of one cache of each level, {"L1": ..., "L2": ..., "L3": ...}, as far as the system tells."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            kind, level, size = ((index / name).read_text().strip() for name in ("type", "level", "size"))
        except OSError:
            continue
        if kind != "Instruction":
            found[f"L{level}"] = int(size.rstrip("KM")) * (1 << 20 if size.endswith("M") else 1 << 10)
    return found


def commit() -> dict[str, Any]:
    """The commit of the checkout this package lies in, and whether its code was changed since. Without a
    history, as where a copy was sent to, the one in EARNEST_COMMIT; {} without either."""
    given = os.environ.get("EARNEST_COMMIT")
    without = {"commit": given} if given else {}
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, timeout=30)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        name = git("rev-parse", "HEAD") if git("ls-files", "__init__.py") else ""
        root = git("rev-parse", "--show-toplevel")
        sources = [f"{root}/{folder}" for folder in ("kernels", "csrc", "python", "CMakeLists.txt")]
        changed = {"changed": bool(git("status", "--porcelain", "--", *sources))}
        return {"commit": name, **changed} if name else without
    except (OSError, subprocess.TimeoutExpired):
        return without


class Load:
    """How many cores other processes kept busy since this was made: what a timing should be doubted by."""

    def __init__(self) -> None:
        self._start = self._read()

    def others(self) -> float | None:
        if self._start is None or (now := self._read()) is None:
            return None
        wall, busy, mine = (b - a for a, b in zip(self._start, now, strict=True))
        return round(max(0.0, (busy - mine) / wall), 2) if wall > 0 else 0.0

    @staticmethod
    def _read() -> tuple[float, float, float] | None:
        """Seconds of wall time, of work of all cores, and of work of this process."""
        try:
            words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
            uptime = float(Path("/proc/uptime").read_text().split()[0])
        except OSError:
            return None
        user, nice, system, _, _, irq, softirq, _ = (int(w) / os.sysconf("SC_CLK_TCK") for w in words)
        times = os.times()
        return uptime, user + nice + system + irq + softirq, times.user + times.system
