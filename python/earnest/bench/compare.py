# SPDX-License-Identifier: Apache-2.0
"""Whether a change made a case slower: two result files, compared by ratios to the same peer.

Times never count: machines differ and are busy. What counts is how our time stood to a peer's in the same
run, then and now.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from earnest.bench import results
from earnest.bench.case import PEER, YARDSTICK
from earnest.bench.results import Record
from earnest.errors import InvalidInput


@dataclass(frozen=True)
class Change:
    case: str
    against: str
    before: float  # times faster than the peer
    after: float | None  # None: gone, or wrong

    @property
    def factor(self) -> float:
        """How many times slower than before."""
        return float("inf") if not self.after else self.before / self.after


def compare(old: Path, new: Path) -> list[Change]:
    """A change for each case that both files have with a common peer, and for each case that is wrong or lost
    our implementation. Raises InvalidInput where nothing can be compared."""
    before, after = results.read(old), results.read(new)
    changes = []
    for name in before.keys() & after.keys():
        change = _change(before[name], after[name])
        if change is not None:
            changes.append(change)
    if not changes:
        raise InvalidInput(
            "bench", "compare", "a case with a common peer in both files", f"none in {old} and {new}"
        )
    return sorted(changes, key=lambda change: (-change.factor, change.case))


def _change(before: Record, after: Record) -> Change | None:
    then, now = _ratios(before), _ratios(after)
    if not then:
        return None
    if not now:
        return Change(before["case"], max(then, key=lambda peer: -then[peer]), min(then.values()), None)
    common = then.keys() & now.keys()
    if not common:
        return None
    best = min(common, key=lambda peer: then[peer])  # the strongest of the common peers
    return Change(before["case"], best, then[best], now[best])


def _ratios(record: Record) -> dict[str, float]:
    """Times faster than each peer or yardstick; none without a result of ours."""
    others = [r for r in record["results"] if r["role"] in (PEER, YARDSTICK)]
    return {r["name"]: r["ratio"] for r in others if r["ratio"]}


def table(changes: list[Change], limit: float) -> str:
    lines = [f"{'case':54} {'against':24} {'before':>8} {'after':>8} {'slower by':>9}"]
    for change in changes:
        after = "-" if change.after is None else f"{change.after:.2f}"
        mark = "  <- more than the limit" if change.factor > limit else ""
        figures = f"{change.before:8.2f} {after:>8} {change.factor:8.2f}x{mark}"
        lines.append(f"{change.case:54} {change.against:24} {figures}")
    return "\n".join(lines)
