# SPDX-License-Identifier: Apache-2.0
"""Result files: one JSON line for each case measured, the latest of a case last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from earnest.errors import InvalidInput

Record = dict[str, Any]

REQUIRED = (
    "case", "family", "dtype", "shape", "threads", "time", "command", "system", "cpu", "versions", "results",
    "absent", "wrong", "best_peer", "ratio", "ratio_quartiles", "yardstick_ratio", "limit", "fraction",
    "target", "met", "per", "quick",
)  # fmt: skip
REQUIRED_OF_A_RESULT = ("name", "role", "median", "q1", "q3", "samples", "ratio", "error", "extra_bytes")


def line_of(record: Record) -> str:
    """Short floats: three figures more than any clock gives."""

    def short(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.6g}")
        if isinstance(value, dict):
            return {k: short(v) for k, v in value.items()}
        return [short(v) for v in value] if isinstance(value, (list, tuple)) else value

    return json.dumps(short(record), ensure_ascii=False)


def append(record: Record, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(line_of(record) + "\n")


def read(path: Path) -> dict[str, Record]:
    """The last record of each case, in the order of the cases' first ones. Raises InvalidInput with file,
    line and reason."""
    found: dict[str, Record] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidInput("bench", "results", "a file of results", f"{path} ({reason})") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            record = _checked(line, f"{path}:{number}")
            found[record["case"]] = record
    return found


def _checked(line: str, place: str) -> Record:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise InvalidInput("bench", place, "a JSON object", str(error)) from None
    if not isinstance(record, dict):
        raise InvalidInput("bench", place, "a JSON object", type(record).__name__)
    missing = [key for key in REQUIRED if key not in record]
    missing += [
        f"results.{key}" for r in record.get("results", ()) for key in REQUIRED_OF_A_RESULT if key not in r
    ]
    if missing:
        raise InvalidInput("bench", place, "every field of a result", f"none called {missing[0]}")
    return record
