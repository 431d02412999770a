# SPDX-License-Identifier: Apache-2.0
"""The table of a run, and of several runs together: plain text for a terminal, or Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from earnest.report.columns import (
    NOTHING,
    STAGE_NAMES,
    Column,
    Metrics,
    manner_parts,
    mean_and_spread,
    read_metrics_file,
    stages_of,
    table_parts,
)

Cell = Callable[[str, Column], str]
Parts = Sequence[tuple[str, Sequence[Column]]]


def table(metrics: Metrics) -> str:
    """One row per stage: what is right, and under it what is liked. Made for 100 columns of plain text."""
    stages = stages_of(metrics)
    return _text_table(list(stages), table_parts(stages.values()), lambda s, column: column.cell(stages[s]))


def table_by_manner(metrics: Metrics) -> str:
    """Accuracy by how the question sounds: its pitch, speaking rate and level; "" where none was measured."""
    stages = stages_of(metrics)
    parts = manner_parts(stages.values())
    return _text_table(list(stages), parts, lambda s, column: column.cell(stages[s]))


def markdown(metrics: Metrics) -> str:
    """The same as two Markdown tables."""
    stages = stages_of(metrics)
    parts = table_parts(stages.values())
    return _markdown_table(list(stages), parts, lambda s, column: column.cell(stages[s]))


def table_of_runs(run_dirs: Sequence[Path], *, as_markdown: bool = False) -> str:
    """Several runs of the same recipe (seeds) in one table: the mean over the runs ± their standard
    deviation."""
    runs = [stages_of(read_metrics_file(run_dir)) for run_dir in run_dirs]
    names = [stage for stage in STAGE_NAMES if any(stage in run for run in runs)]
    parts = table_parts(row for run in runs for row in run.values())

    def cell(stage: str, column: Column) -> str:
        return spread_cell([column.value(run[stage]) for run in runs if stage in run], column)

    write = _markdown_table if as_markdown else _text_table
    return f"{len(runs)} runs, mean ± standard deviation\n\n" + write(names, parts, cell)


def spread_cell(values: Sequence[float | None], column: Column) -> str:
    """Mean ± standard deviation of the values that are known."""
    known = [value for value in values if value is not None]
    if not known:
        return NOTHING
    mean, spread = mean_and_spread(known)
    return column.text(mean) if len(known) == 1 else f"{column.text(mean)} ± {column.spread_text(spread)}"


def _rows(stages: Sequence[str], head: str, columns: Sequence[Column], cell: Cell) -> list[list[str]]:
    titles = [head, *(column.title for column in columns)]
    return [titles, *([STAGE_NAMES.get(s, s), *(cell(s, column) for column in columns)] for s in stages)]


def _text_table(stages: Sequence[str], parts: Parts, cell: Cell) -> str:
    written = []
    for head, columns in parts:
        rows = _rows(stages, head, columns, cell)
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "  ".join(
                text.ljust(widths[0]) if i == 0 else text.rjust(widths[i]) for i, text in enumerate(row)
            )
            for row in rows
        ]
        written.append("\n".join([lines[0], "─" * len(lines[0]), *lines[1:]]))
    return "\n\n".join(written)


def _markdown_table(stages: Sequence[str], parts: Parts, cell: Cell) -> str:
    written = []
    for head, columns in parts:
        titles, *rows = _rows(stages, head, columns, cell)
        ruler = ["---", *("---:" for _ in columns)]
        written.append("\n".join("| " + " | ".join(row) + " |" for row in (titles, ruler, *rows)))
    return "\n\n".join(written)
