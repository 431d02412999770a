# SPDX-License-Identifier: Apache-2.0
"""What the table of a run has columns for, how each is read from metrics.json and how it is written."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from earnest.errors import InvalidInput

METRICS_FILE = "metrics.json"
STAGE_NAMES = {"midtrain": "mid-trained", "sft": "SFT", "rlvr": "RLVR", "rlhf": "RLHF"}
TASK_ORDER = ("arithmetic", "sound", "recall", "instruction", "consistency", "repair")
NOTHING = "-"

Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One figure of a stage: `path` leads to it in the stage's row. A figure with an interval has it in the
    same place, as `<name>_low` and `<name>_high`."""

    path: tuple[str, ...]
    title: str
    meaning: str
    kind: Literal["rate", "score", "count"]
    interval: bool = False

    def value(self, row: Metrics) -> float | None:
        return _number(row, self.path)

    def bounds(self, row: Metrics) -> tuple[float, float] | None:
        """The interval of the figure, where there is one."""
        *place, name = self.path
        low, high = (_number(row, (*place, f"{name}_{end}")) for end in ("low", "high"))
        return None if not self.interval or low is None or high is None else (low, high)

    def text(self, value: float | None) -> str:
        """A value as it stands in a table."""
        if value is None:
            return NOTHING
        if self.kind == "rate":
            return f"{100 * value:.1f}%"
        return f"{value:.2f}" if self.kind == "score" else f"{value:.1f}"

    def spread_text(self, value: float) -> str:
        """A standard deviation in the unit of the column, without the unit's sign."""
        return f"{100 * value:.1f}" if self.kind == "rate" else self.text(value)

    def cell(self, row: Metrics) -> str:
        """The value, and the interval behind it."""
        text, bounds = self.text(self.value(row)), self.bounds(row)
        return text if bounds is None or text == NOTHING else f"{text} {interval_text(bounds)}"


def interval_text(bounds: tuple[float, float]) -> str:
    return f"[{100 * bounds[0]:.0f}, {100 * bounds[1]:.0f}]"


ACCURACY = Column(("accuracy",), "all", "share of held-out cases answered right, as verified", "rate", True)
ZEROED = Column(
    ("accuracy_audio_zeroed",),
    "no audio",
    "accuracy on spoken cases with the sound replaced by silence",
    "rate",
)
UTILITY = Column(
    ("listener_utility",),
    "utility",
    "mean of the listener's hidden liking of a reply, about -3 to 3",
    "score",
)
WORDS = Column(("reply_words",), "reply words", "mean words of a reply", "count")
ACKNOWLEDGES = Column(
    ("acknowledges_speaker",),
    "takes up voice",
    "share of replies that aptly take up how the speaker sounds",
    "rate",
)
REASONING = Column(("reasoning_tokens",), "reasoning", "mean tokens of reasoning before a reply", "count")
WIN_VS_SFT, WIN_VS_RLVR = (
    Column(
        (f"win_rate_vs_{other}",),
        f"wins vs {STAGE_NAMES[other]}",
        f"how often the listener prefers the reply to that of {STAGE_NAMES[other]}; a tie counts half",
        "rate",
        True,
    )
    for other in ("sft", "rlvr")
)
REPLIES = (UTILITY, WIN_VS_SFT, WIN_VS_RLVR, WORDS, ACKNOWLEDGES, REASONING)


def accuracy_columns(stages: Iterable[Metrics]) -> list[Column]:
    """Accuracy: overall, of every task family there is, and with the audio zeroed."""
    found = {task for row in stages for task in row.get("accuracy_by_task") or ()}
    tasks = [task for task in TASK_ORDER if task in found] + sorted(found - set(TASK_ORDER))
    by_task = [
        Column(("accuracy_by_task", task), task, f"accuracy on {task} cases", "rate") for task in tasks
    ]
    return [ACCURACY, *by_task, ZEROED]


def table_parts(rows: Iterable[Metrics]) -> list[tuple[str, list[Column]]]:
    """The two halves of the table, (head, columns): what is right, and what the replies are like. A column of
    which no row knows the figure is left out."""
    rows = list(rows)
    parts = (("accuracy", accuracy_columns(rows)), ("replies", list(REPLIES)))
    return [
        (head, [c for c in columns if any(c.value(row) is not None for row in rows)])
        for head, columns in parts
    ]


MANNER = {
    "f0_hz": ("pitch", "Hz", 0),
    "syllables_per_second": ("rate", "syllables/s", 1),
    "level_db": ("level", "dB", 0),
}
THIRDS = {
    "none": "nothing to measure",
    "low": "lowest third",
    "middle": "middle third",
    "high": "highest third",
}


def manner_parts(rows: Iterable[Metrics]) -> list[tuple[str, list[Column]]]:
    """(measure, columns) of the accuracy by how the question sounds. A column is named by the range of values
    in its third, or, where the rows are of different cases, only by which third it is."""
    rows = list(rows)
    return [
        (f"by {name}", columns)
        for measure, (name, unit, digits) in MANNER.items()
        if (columns := [c for third in THIRDS if (c := _third(rows, measure, third, unit, digits))])
    ]


def _third(rows: Sequence[Metrics], measure: str, third: str, unit: str, digits: int) -> Column | None:
    path = ("accuracy_by_measured", measure, third)
    known = [row for row in rows if _number(row, (*path, "accuracy")) is not None]
    if not known:
        return None
    ends = {tuple(_number(row, (*path, end)) for end in ("from", "to", "cases")) for row in known}
    title = THIRDS[third]
    if len(ends) == 1 and None not in (found := ends.pop()):
        low, high, cases = found
        if third != "none":
            title = f"{low:.{digits}f} to {high:.{digits}f} {unit}"
        title += f" ({cases:.0f})"
    return Column((*path, "accuracy"), title, f"accuracy on these cases, {THIRDS[third]}", "rate", True)


def stages_of(metrics: Metrics) -> dict[str, Metrics]:
    """The rows of the table, in the order of the recipe. How often a stage wins against itself says nothing
    and is left out."""
    stages = metrics.get("stages") or {}
    order = [*(s for s in STAGE_NAMES if s in stages), *(s for s in stages if s not in STAGE_NAMES)]
    return {
        stage: {name: v for name, v in stages[stage].items() if not name.startswith(f"win_rate_vs_{stage}")}
        for stage in order
    }


def read_metrics_file(run_dir: Path) -> dict[str, Any]:
    """The metrics.json of a run. Raises InvalidInput where there is none or it is damaged."""
    file = Path(run_dir) / METRICS_FILE
    if not file.is_file():
        raise InvalidInput("report", str(file), "the metrics of a finished run", "no such file")
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidInput("report", str(file), "valid JSON", str(error)) from None
    stages = metrics.get("stages") if isinstance(metrics, dict) else None
    if not isinstance(stages, dict) or not all(isinstance(row, dict) for row in stages.values()):
        raise InvalidInput(
            "report", str(file), "an object with the rows of its stages", type(stages).__name__
        )
    return metrics


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """(mean, sample standard deviation) of one value or more; one has no spread."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return mean, 0.0
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _number(row: Metrics, path: Sequence[str]) -> float | None:
    value: Any = row
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
