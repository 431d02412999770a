# SPDX-License-Identifier: Apache-2.0
"""Whether a change made a case slower: two result files, compared by ratios to the same peer.

Times never count: machines differ and are busy. What counts is how our time stood to a peer's in the same
run, then and now.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from earnest.bench import results
from earnest.bench.case import OURS, PEER, YARDSTICK
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


@dataclass
class Comparison:
    """changes: the worst first. lost: cases of the old file that the new one has not. added: the other way
    round. unknown: cases of both that cannot be compared, and why."""

    changes: list[Change] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)

    def is_worse(self, limit: float) -> bool:
        """Whether a case was lost, or became slower by more than this factor, or wrong."""
        return bool(self.lost) or any(change.factor > limit for change in self.changes)


def compare(old: Path, new: Path) -> Comparison:
    """A change for each case that both files have with a common peer, and for each case that is wrong now or
    lost our implementation; and what is left over. Raises InvalidInput where nothing can be compared."""
    before, after = results.read(old), results.read(new)
    found = Comparison(lost=sorted(before.keys() - after.keys()), added=sorted(after.keys() - before.keys()))
    for name in sorted(before.keys() & after.keys()):
        change = _change(before[name], after[name])
        if isinstance(change, str):
            found.unknown[name] = change
        else:
            found.changes.append(change)
    if not found.changes:
        raise InvalidInput(
            "bench", "compare", "a case with a common peer in both files", f"none in {old} and {new}"
        )
    found.changes.sort(key=lambda change: (-change.factor, change.case))
    return found


def _change(before: Record, after: Record) -> Change | str:
    """Or why there is nothing to say."""
    then, now = _ratios(before), _ratios(after)
    if any(r["role"] == OURS for r in before["results"]) and not any(
        r["role"] == OURS for r in after["results"]
    ):
        against = min(then, key=lambda peer: then[peer], default="-")
        return Change(before["case"], against, then.get(against, float("nan")), None)
    if not then:
        return "no peer in the old file"
    common = then.keys() & now.keys()
    if not common:
        return (
            f"no peer in both files: {', '.join(sorted(then))} then, {', '.join(sorted(now)) or 'none'} now"
        )
    best = min(common, key=lambda peer: then[peer])  # the strongest of the common peers
    return Change(before["case"], best, then[best], now[best])


def _ratios(record: Record) -> dict[str, float]:
    """Times faster than each peer or yardstick; none without a result of ours."""
    others = [r for r in record["results"] if r["role"] in (PEER, YARDSTICK)]
    return {r["name"]: r["ratio"] for r in others if r["ratio"]}


def table(found: Comparison, limit: float) -> str:
    lines = [f"{'case':54} {'against':24} {'before':>8} {'after':>8} {'slower by':>9}"]
    for change in found.changes:
        after = "-" if change.after is None else f"{change.after:.2f}"
        mark = "  <- more than the limit" if change.factor > limit else ""
        figures = f"{change.before:8.2f} {after:>8} {change.factor:8.2f}x{mark}"
        lines.append(f"{change.case:54} {change.against:24} {figures}")
    lines += [f"{name:54} LOST: not in the new file" for name in found.lost]
    lines += [f"{name:54} not compared: {reason}" for name, reason in found.unknown.items()]
    lines += [f"{name:54} not compared: not in the old file" for name in found.added]
    return "\n".join(lines)
