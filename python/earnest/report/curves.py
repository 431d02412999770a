# SPDX-License-Identifier: Apache-2.0
"""The training curves of a run, from the metrics.jsonl of its stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earnest.metrics import FILE, read_metrics
from earnest.report.chart import Line, Point, line_chart
from earnest.report.columns import STAGE_NAMES
from earnest.report.text import paragraph

Logged = Mapping[str, Sequence[Mapping[str, Any]]]  # stage -> lines
RL = ("rlvr", "rlhf")


@dataclass(frozen=True)
class Chart:
    """One chart: curves as (stage, metric, name, dashed)."""

    title: str
    curves: tuple[tuple[str, str, str, bool], ...]
    percent: bool = False
    log: bool = False


def _both(title: str, metric: str, *, percent: bool = False, log: bool = False) -> Chart:
    curves = tuple((stage, metric, STAGE_NAMES[stage], False) for stage in RL)
    return Chart(title, curves, percent, log)


SUPERVISED = (
    Chart(
        "Learning to hear: loss",
        (("midtrain", "word_loss", "words", False), ("midtrain", "manner_loss", "manner", True)),
    ),
    Chart("Mid-training: loss, nats per token", (("midtrain", "loss", "mid-training", False),)),
    Chart("SFT: loss, nats per token", (("sft", "loss", "SFT", False),)),
    Chart("Judge: loss", (("judge", "loss", "verdict", False), ("judge", "notes_loss", "notes", True))),
)
REINFORCED = (
    _both("Reward", "reward"),
    _both("Verified reward", "verified"),
    _both("Sampled replies that are right", "accuracy", percent=True),
    Chart(
        "Judge's reward",
        (("rlhf", "judge_rubric", "with a rubric", False), ("rlhf", "judge_plain", "plain", True)),
    ),
    _both("Reply length, words", "reply_words"),
    _both("Reasoning length, words", "reasoning_words"),
    _both("KL to the reference, nats per reply", "kl_per_reply"),
    _both("Clip fraction", "clip_fraction", percent=True),
    _both("Entropy, nats per token", "entropy"),
    Chart(
        "Trainer against sampler, |Δ log p|",
        tuple(
            (stage, f"sampler_gap_{kind}", f"{STAGE_NAMES[stage]}, {kind}", kind == "max")
            for stage in RL
            for kind in ("mean", "max")
        ),
        log=True,
    ),
    Chart("Swap disagreement of the judge", (("rlhf", "swap_disagree", "RLHF", False),)),
    _both("Well-formed replies", "well_formed", percent=True),
)


def read_curves(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """What every stage logged; a stage that left no log is not there."""
    stages = ("midtrain", "sft", "rlvr", "judge", "rlhf")
    return {s: read_metrics(run_dir / s) for s in stages if (run_dir / s / FILE).is_file()}


def curves_section(run_dir: Path) -> str:
    """The charts, supervised and reinforced; a line that says so where nothing was logged."""
    logged = read_curves(run_dir)
    supervised, reinforced = (_charts(charts, logged) for charts in (SUPERVISED, REINFORCED))
    if not supervised and not reinforced:
        return paragraph(
            f"No {FILE} was found in the folders of the stages, so there are no curves.", "missing"
        )
    return f"<div class='charts narrow'>{supervised}</div><div class='charts'>{reinforced}</div>"


def _charts(charts: Sequence[Chart], logged: Logged) -> str:
    return "".join(
        line_chart(
            chart.title,
            [
                Line(name, stage, points_of(logged.get(stage, ()), metric), dashed)
                for stage, metric, name, dashed in chart.curves
            ],
            percent=chart.percent,
            log=chart.log,
        )
        for chart in charts
    )


def points_of(lines: Sequence[Mapping[str, Any]], metric: str) -> list[Point]:
    """(step, value) wherever the metric is a number; "nan" and "inf" are words there and left out."""
    points = []
    for line in lines:
        step, value = line.get("step"), line.get(metric)
        if isinstance(step, int) and isinstance(value, int | float) and not isinstance(value, bool):
            points.append((float(step), float(value)))
    return points
