# SPDX-License-Identifier: Apache-2.0
"""One figure of a result file: how many times faster than the best peer each case is, and what was wanted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from earnest.bench.results import Record

INK, RULE, BAR, BEHIND, WANTED = "#23211f", "#77726b", "#1d7d63", "#b8651b", "#3868ad"


def plot(records: Sequence[Record], path: Path) -> Path:
    """Draws to `path`, on white; the same records give the same bytes. Cases without a ratio are left out."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [record for record in records if record["ratio"]]
    with rc_context({"svg.hashsalt": "earnest", "svg.fonttype": "none"}):
        height = 1.0 + 0.24 * max(len(shown), 1)
        figure = Figure(figsize=(9, height), facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        _draw(figure.subplots(), shown)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {"Software": None})
    return path


def _draw(axes: Any, records: Sequence[Record]) -> None:
    for place, record in enumerate(records):
        ratio = record["ratio"]
        axes.barh(place, ratio, height=0.62, color=BAR if ratio >= 1 else BEHIND)
        low, high = record["ratio_quartiles"]
        axes.plot([low, high], [place, place], color=INK, linewidth=1.2)
        wanted = None if "against" in record["target"] else record["target"].get("ratio")
        if wanted:
            axes.plot([wanted, wanted], [place - 0.42, place + 0.42], color=WANTED, linewidth=2)
        beyond = max(ratio, high, wanted if wanted and wanted < 2.2 * ratio else 0.0)
        words = f" {ratio:.2f}x {record['best_peer']}"
        axes.text(beyond, place, words, va="center", fontsize=8, color=INK)
    axes.set_yticks(range(len(records)), [r["case"] for r in records], fontsize=8, color=INK)
    axes.set_ylim(len(records) - 0.4, -0.6)
    axes.set_xscale("log")
    most = max((r["ratio"] for r in records), default=1.0)
    least = min((r["ratio"] for r in records), default=1.0)
    axes.set_xlim(min(0.5, least / 1.2), max(2.0, most) * 2.5)
    ticks = [
        2.0**k
        for k in range(math.floor(math.log2(min(0.5, least))), math.ceil(math.log2(max(2.0, most))) + 1)
    ]
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks], fontsize=8, color=INK)
    axes.set_xticks([], minor=True)
    axes.axvline(1, color=RULE, linewidth=1)
    axes.set_title(
        "Times faster than the best peer (blue: what is wanted)", fontsize=10, loc="left", color=INK
    )
    axes.spines[["top", "right"]].set_visible(False)
