# SPDX-License-Identifier: Apache-2.0
"""Result files as tables and plots beside them, and as the marked block of the README."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path

from earnest.bench import results, show
from earnest.bench.case import ALSO, OURS
from earnest.bench.plot import plot
from earnest.bench.results import Record

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
NOTHING_YET = "No measurements are committed yet: `make bench`."
_TITLES = ("case", "earnest", "best peer", "", "times faster", "target", "of the limit", "error", "memory")
_KIND_TITLES = ("kind", "cases", "times faster", "than the best of", "of the limit", "targets met")


def write(paths: Sequence[Path], readme: Path | None = None) -> list[Path]:
    """FILE.md and FILE.svg for each FILE.jsonl, and the readme's block if it has one; what was written."""
    written = []
    for path in paths:
        records = list(results.read(path).values())
        page, image = path.with_suffix(".md"), path.with_suffix(".svg")
        plot(records, image)
        page.write_text(page_of(records, path, image), encoding="utf-8")
        written += [page, image]
    if readme is not None and readme.is_file() and BEGIN in (text := readme.read_text(encoding="utf-8")):
        readme.write_text(with_block(text, block(paths)), encoding="utf-8")
        written.append(readme)
    return written


def block(paths: Sequence[Path]) -> str:
    """What stands between the marks of the README: for each file where it was measured, and a row for each
    kind of case that has a target; the file's own page has every case."""
    parts = []
    for path in paths:
        records = [r for r in results.read(path).values() if r["target"]]
        if records:
            page = path.with_suffix(".md").as_posix()
            parts.append(f"{heading(records)}. [Every case]({page}):\n\n{_kinds(records)}")
    return "\n\n".join(parts) or NOTHING_YET


def kind_of(case: str) -> str:
    """The words before the sizes: "ppo/gae" of "ppo/gae-16x1024", and "logmel" of "logmel/30s-80-bins"."""
    family, _, name = case.partition("/")
    word = re.match(r"[a-z]+(-[a-z]+)*(?=-|$)", name)
    return f"{family}/{word.group()}" if word else family


def _kinds(records: Iterable[Record]) -> str:
    kinds: dict[str, list[Record]] = {}
    for record in records:
        kinds.setdefault(kind_of(record["case"]), []).append(record)
    ours = [_kind(kind, some) for kind, some in kinds.items()]
    rows = [_KIND_TITLES, ("---", "---:", "---:", "---", "---:", "---:"), *ours]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _kind(kind: str, records: Sequence[Record]) -> tuple[str, ...]:
    peers = Counter(record["best_peer"] for record in records if record["ratio"])
    judged = [record["met"] for record in records if record["met"] is not None]
    return (
        kind,
        str(len(records)),
        _range([record["ratio"] for record in records], lambda ratio: f"{ratio:.2f}x"),
        "; ".join(name for name, _ in peers.most_common()) or "-",
        _range([record["fraction"] for record in records], lambda fraction: f"{100 * fraction:.0f}%"),
        f"{sum(judged)} of {len(judged)}",
    )


def _range(values: Iterable[float | None], words: Callable[[float], str]) -> str:
    """The least and the most of those that there are."""
    found = sorted(value for value in values if value is not None)
    ends = list(dict.fromkeys(words(value) for value in (found[:1] + found[-1:])))
    return " to ".join(ends) or "-"


def with_block(text: str, inside: str) -> str:
    """The text with `inside` between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{inside}\n{END}{after}"


def block_in(text: str) -> str:
    """What the text has between its marks."""
    found = re.search(f"{re.escape(BEGIN)}\n(.*?)\n{re.escape(END)}", text, re.S)
    return found.group(1) if found else ""


def heading(records: Sequence[Record]) -> str:
    """Where and with what: of the last record, which is what a reader wants to know first; and every commit
    that a record is of."""
    last = records[-1]
    versions = last["versions"]
    cpu = last["cpu"]
    return (
        f"{cpu['model']} ({cpu['family']}, {cpu['tier']}), {cpu['cores']} cores, {_commits(records)}, "
        f"{last['time'][:10]}, torch {versions.get('torch', '?')}; {_met(records)}"
    )


def _commits(records: Iterable[Record]) -> str:
    """Those of most records first."""
    names = Counter(
        (record.get("commit", "")[:7] or "?") + (" (changed)" if record.get("changed") else "")
        for record in records
    )
    shown = [name for name, _ in names.most_common()]
    return f"commit {shown[0]}" if len(shown) == 1 else f"commits {', '.join(shown)}"


def _met(records: Iterable[Record]) -> str:
    judged = [record["met"] for record in records if record["met"] is not None]
    return f"{sum(judged)} of {len(judged)} targets met" if judged else "no target judged (needs --peers)"


def page_of(records: Sequence[Record], path: Path, image: Path) -> str:
    """Every case with every implementation."""
    parts = [
        f"# {path.stem}",
        heading(records) + ".",
        f"Command of the last case: `{records[-1]['command']}`.",
    ]
    parts.append(
        "Times are medians; the line on a bar of the plot spans the quartiles of the ratio. A ratio is the "
        "best peer's time over ours, taken in turns. The limit is what this machine reads or computes at "
        f"most, measured in the same run.\n\n![Times faster than the best peer]({image.name})"
    )
    for family, some in groupby(records, key=lambda record: record["family"]):
        group = list(some)
        parts.append(f"## {family}\n\n{_table(group)}\n\n{_everybody(group)}")
    return "\n\n".join(parts) + "\n"


def _table(records: Iterable[Record]) -> str:
    rows = [_TITLES, ("---", "---:", "---:", "---", *["---:"] * 5), *map(show.cells, records)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _everybody(records: Iterable[Record]) -> str:
    """Each implementation's median and quartiles, its error, and who was absent."""
    lines = []
    for record in records:
        lines.append(f"- {record['case']}: " + "; ".join(_one(r, record) for r in record["results"]))
        lines += [f"  - {words}" for words in (*show.paths(record), *show.padding(record))]
        for name, reason in {**record["absent"], **record["wrong"]}.items():
            lines.append(f"  - not timed: {name}: {reason}")
    return "\n".join(lines)


def _one(result: Record, record: Record) -> str:
    per = record["per"][0]
    low, high = (show.seconds(result[q] / per) for q in ("q1", "q3"))
    text = f"{result['name']} {show.time_of(result, record)} ({low} to {high})"
    if result["role"] not in (OURS, ALSO):
        text += "" if result["error"] is None else f", error {result['error']:.0e}"
    return text + (f" [{result['definition']}]" if result.get("definition") else "")
