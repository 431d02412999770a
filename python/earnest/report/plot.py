# SPDX-License-Identifier: Apache-2.0
"""One figure of a run for the README: what is right, what is liked, and how long replies are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from earnest.report.columns import (
    ACCURACY,
    STAGE_NAMES,
    UTILITY,
    WIN_VS_SFT,
    WORDS,
    Column,
    Metrics,
    read_metrics_file,
    stages_of,
)

COLOURS = {"midtrain": "#8b867e", "sft": "#3868ad", "rlvr": "#b8651b", "rlhf": "#1d7d63"}
PANELS = (
    ("Verified accuracy", ACCURACY),
    ("Listener's utility", UTILITY),
    ("Preferred to SFT", WIN_VS_SFT),
    ("Words in a reply", WORDS),
)


def plot(run_dir: Path, path: Path) -> Path:
    """Draws metrics.json of `run_dir` to the image `path` (its ending says which kind), 1600 pixels wide,
    and returns `path`. White lies behind it, so that it reads on dark pages too."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    stages = stages_of(read_metrics_file(Path(run_dir)))
    figure = Figure(figsize=(10, 3), dpi=160, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, column) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        _panel(axes, title, column, stages)
    figure.savefig(path, metadata={"Software": None} if Path(path).suffix == ".png" else None)
    return Path(path)


def _panel(axes: Any, title: str, column: Column, stages: dict[str, Metrics]) -> None:
    shown = {s: row for s, row in stages.items() if column.value(row) is not None}
    scale = 100 if column.kind == "rate" else 1
    for place, (stage, row) in enumerate(shown.items()):
        value, bounds = scale * (column.value(row) or 0.0), column.bounds(row)
        axes.bar(place, value, width=0.62, color=COLOURS.get(stage, "#8b867e"))
        top = value
        if bounds is not None:
            low, high = scale * bounds[0], scale * bounds[1]
            axes.plot([place, place], [low, high], color="#23211f", linewidth=1.4)
            top = max(high, value)
        text = f"{value:.0f}%" if column.kind == "rate" else column.text(value)
        axes.annotate(
            text,
            (place, max(top, 0)),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=11,
            color="#23211f",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    if column is WIN_VS_SFT:  # where neither is preferred
        axes.axhline(50, color="#77726b", linewidth=0.8, linestyle=(0, (3, 3)))
    axes.axhline(0, color="#77726b", linewidth=0.8)
    axes.set_title(title, fontsize=12.5, loc="left", color="#23211f", pad=10)
    names = ["mid" if stage == "midtrain" else STAGE_NAMES.get(stage, stage) for stage in shown]
    axes.set_xticks(range(len(shown)), names, fontsize=11, color="#23211f")
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.margins(y=0.16)
    axes.spines[:].set_visible(False)
