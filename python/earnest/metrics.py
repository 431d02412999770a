# SPDX-License-Identifier: Apache-2.0
"""The metrics of a run: JSON lines that are the same whether or not the run was ever interrupted, and
TensorBoard scalars.

A line: ``{"phase": "rlvr", "step": 3, "reward": 0.4, ..., "wall": {"time": ..., "step_seconds": ...}}``.
Everything that depends on the clock stands under "wall"; the rest is a function of the settings. Numbers that
JSON cannot say are the strings "nan", "inf", "-inf"."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE = "metrics.jsonl"
CLOCK_ENDINGS = ("seconds", "per_second")


class MetricsLog:
    """Appends to `folder`/metrics.jsonl. While `live` is false, what is logged is known to stand there
    already (a resumed run walks through its finished phases again) and is dropped."""

    def __init__(self, folder: Path, *, tensorboard: bool) -> None:
        self._folder, self._tensorboard = folder, tensorboard
        self._file = (folder / FILE).open("ab")
        self._writer: Any = None
        self._phase, self._from_step = "", 0
        self.latest: dict[str, Any] = {}
        self.live = False

    def truncate(self, size: int, step: int = 0) -> None:
        """Drops what was logged after the restored state, and goes live; `step` is where TensorBoard goes
        on."""
        if self._file.seek(0, os.SEEK_END) < size:
            print(f"warning: {self._folder / FILE} is shorter than at the last save", file=sys.stderr)
        else:
            self._file.truncate(size)
            self._file.seek(0, os.SEEK_END)
        self._from_step = step
        self.live = True

    def begin_phase(self, phase: str) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._phase, self._from_step, self.latest = None, phase, 0, {}

    def write(self, phase: str, step: int, metrics: Mapping[str, Any]) -> None:
        plain = {name: plain_value(name, value) for name, value in metrics.items()}
        wall = {name: value for name, value in plain.items() if name.endswith(CLOCK_ENDINGS)}
        self.latest = {name: value for name, value in plain.items() if name not in wall}
        if not self.live:
            return
        line = {
            "phase": phase,
            "step": step,
            **_sayable(self.latest),
            "wall": {"time": time.time(), **_sayable(wall)},
        }
        self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._file.flush()
        if self._tensorboard:
            self._scalars(step, plain)

    def sync(self) -> int:
        """Brings everything to the disk and returns the size of the log in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._writer is not None:
            self._writer.flush()
        return self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        self._file.close()
        if self._writer is not None:
            self._writer.close()

    def _scalars(self, step: int, plain: Mapping[str, Any]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            folder = self._folder / "tensorboard" / (self._phase or "run").replace("/", "-")
            self._writer = SummaryWriter(str(folder), purge_step=self._from_step or None)
        for name, value in plain.items():
            if isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, step)


def read_metrics(folder: str | Path, phase: str | None = None) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl (of one `phase`); a line that a kill cut short is left out."""
    lines = []
    for text in (Path(folder) / FILE).read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if phase is None or line["phase"] == phase:
            lines.append(line)
    return lines


def plain_value(name: str, value: Any) -> Any:
    """A metric as a plain number, bool or string; TypeError for anything else."""
    if hasattr(value, "item") and getattr(value, "size", None) is not None:  # a torch or numpy scalar
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"[metrics] {name}: expected a number, a string or a one-element tensor, got {type(value).__name__}"
    )


def _sayable(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in metrics.items()
    }
