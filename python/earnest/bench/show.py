# SPDX-License-Identifier: Apache-2.0
"""A record in words: the lines of the terminal, and the cells that reports share with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from earnest.bench.case import OURS

Record = Mapping[str, Any]

WIDTHS = (46, 11, 11, 24, 7, 10, 6, 9, 9)
TITLES = ("case", "earnest", "best peer", "", "ratio", "target", "limit", "error", "memory")


def row(cells: tuple[str, ...]) -> str:
    left = (0, 3)
    return " ".join(
        c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, WIDTHS, strict=True))
    )


HEAD = row(TITLES)


def line(record: Record) -> str:
    """One line of the terminal, and under it our paths where there are several, what peers spend on padding,
    and what is wrong or absent."""
    text = row(cells(record)).rstrip()
    for words in (*paths(record), *padding(record)):
        text += f"\n  {words}"
    if "lost" in record:
        text += f"\n  LOST {record['lost']}"
    for name, reason in record["wrong"].items():
        text += f"\n  WRONG {name} {reason}"
    for name, reason in record["absent"].items():
        text += f"\n  absent {reason if reason.startswith(name) else f'{name} ({reason})'}"
    return text


def cells(record: Record) -> tuple[str, ...]:
    ours, best = our_result(record), best_peers_result(record)
    return (
        f"{record['case']} ({where(record)})",
        time_of(ours, record),
        time_of(best, record),
        best["name"] if best else "",
        "-" if record["ratio"] is None else f"{record['ratio']:.2f}x",
        target(record),
        "-" if record["fraction"] is None else f"{100 * record['fraction']:.0f}%",
        "-" if not ours or ours["error"] is None else f"{ours['error']:.0e}",
        "-" if not ours or ours["extra_bytes"] is None else f"{ours['extra_bytes'] / (1 << 20):.1f} MB",
    )


def paths(record: Record) -> list[str]:
    """Each of ours with its own ratio to the best peer, if there are several."""
    ours = [result for result in record["results"] if result["role"] == OURS]
    return [f"{one['name']}: {_beside_the_best(one, record)}" for one in ours] if len(ours) > 1 else []


def _beside_the_best(one: Record, record: Record) -> str:
    ratio = one.get("to_best_peer")
    return time_of(one, record) + ("" if ratio is None else f", {ratio:.2f}x {record['best_peer']}")


def padding(record: Record) -> list[str]:
    """Of each peer that pads: how many times faster we are as it is, and than its real work alone."""
    return [
        f"padding {one['padding']:.2f} of {one['name']}: {one['ratio']:.2f}x as it is, "
        f"{(1 - one['padding']) * one['ratio']:.2f}x without"
        for one in record["results"]
        if one.get("padding") and one["ratio"] is not None
    ]


def where(record: Record) -> str:
    """cuda, or how many threads."""
    return "cuda" if record.get("device") == "cuda" else f"{record['threads']}T"


def our_result(record: Record) -> Record | None:
    return next((r for r in record["results"] if r["role"] == OURS), None)


def best_peers_result(record: Record) -> Record | None:
    return next((r for r in record["results"] if r["name"] == record["best_peer"]), None)


def time_of(result: Record | None, record: Record) -> str:
    """A time of one frame, or of one call."""
    if result is None:
        return "-"
    count, unit = record["per"]
    text = seconds(result["median"] / count)
    return text if unit == "call" else f"{text}/{unit}"


def seconds(value: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-6:.3f} us"


def target(record: Record) -> str:
    """What is wanted, and whether it is met: "2.2x yes"."""
    wanted = record["target"]
    if not wanted:
        return "-"
    parts = []
    if "against" in wanted:
        have = record["yardstick_ratio"]
        whom = record.get("yardstick") or wanted["against"]
        parts.append(f"{whom} {'-' if have is None else f'{have:.2f}x'} of {wanted['ratio']:.2g}x")
    elif "ratio" in wanted:
        parts.append(f"{wanted['ratio']:.2g}x")
    ratios = {result["name"]: result["ratio"] for result in record["results"]} if "also" in wanted else {}
    for name, ratio in wanted.get("also", {}).items():
        have = ratios.get(name)
        parts.append(f"{name} {'-' if have is None else f'{have:.2f}x'} of {ratio:.2g}x")
    if "fraction" in wanted:
        parts.append(f"{100 * wanted['fraction']:.0f}%")
    if "seconds" in wanted:
        parts.append(f"at most {seconds(wanted['seconds'])}")
    if "extra_bytes" in wanted:
        parts.append(f"at most {wanted['extra_bytes'] / (1 << 20):.0f} MB")
    verdict = {True: " met", False: " missed", None: ""}[record["met"]]
    return "+".join(parts) + verdict


def surroundings(shared: Record) -> str:
    cpu, versions = shared["cpu"], shared["versions"]
    caches = ", ".join(f"{name} {size >> 10} KiB" for name, size in cpu["caches"].items())
    rest = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "earnest")
    commit = shared.get("commit", "")[:7] + (" with changes" if shared.get("changed") else "")
    gpu = f"\n{shared['gpu']['name']}, CUDA {shared['gpu']['cuda']}" if shared.get("gpu") else ""
    return (
        f"earnest {versions['earnest']} {commit}: {cpu['model']} ({cpu['family']}), {cpu['cores']} cores, "
        f"{caches}, tier {cpu['tier']}\n{rest}{gpu}"
    )
