# SPDX-License-Identifier: Apache-2.0
"""The command `earnest report`: report.html of a run, and one table of several runs of the same recipe."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from earnest.checkpoint import write_atomic
from earnest.errors import InvalidInput
from earnest.report import plot, table, table_of_runs, write_report
from earnest.report.columns import METRICS_FILE, STAGE_NAMES, read_metrics_file
from earnest.settings import RunSettings, setting

COMBINED = "seeds"  # the combined table's file, .txt and .md


@dataclass(frozen=True)
class Settings:
    others: tuple[str, ...] = setting(
        (), "further runs of the same recipe (other seeds), for one table of all"
    )
    out: str = setting("", "where the table of several runs goes (nothing: the folder above the first)")
    plot: str = setting("", "an image to draw the first run's figure to, such as figure.png")
    run: RunSettings = field(default_factory=RunSettings)


def main(settings: Settings, run_dir: Path) -> dict[str, Any]:
    """Writes what is asked for, prints the table, and returns the metrics of the run (of several: by
    folder)."""
    run_dirs = [run_dir, *(Path(other) for other in settings.others if Path(other) != run_dir)]
    for folder in run_dirs:
        if not (folder / METRICS_FILE).is_file():
            rebuild_metrics(folder)
    written = [write_report(folder, run_dirs) for folder in run_dirs]
    if len(run_dirs) == 1:
        print(table(read_metrics_file(run_dir)))
    else:
        text = table_of_runs(run_dirs)
        out = Path(settings.out) if settings.out else run_dir.resolve().parent
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / f"{COMBINED}.txt", text + "\n")
        write_atomic(out / f"{COMBINED}.md", table_of_runs(run_dirs, as_markdown=True) + "\n")
        print(text)
        written.append(out / f"{COMBINED}.md")
    if settings.plot:
        written.append(plot(run_dir, Path(settings.plot)))
    for path in written:
        print(path)
    metrics = {str(folder): read_metrics_file(folder) for folder in run_dirs}
    return metrics[str(run_dir)] if len(run_dirs) == 1 else metrics


def rebuild_metrics(run_dir: Path) -> None:
    """Writes metrics.json again from the answers that an evaluation kept. InvalidInput where there are
    none."""
    from earnest.evaluate.playground import stage_metrics
    from earnest.evaluate.stage import Answer

    heard, unheard = {}, {}
    for stage in STAGE_NAMES:
        kept = _read(run_dir / "evaluation" / f"{stage}.json")
        if kept is not None:
            heard[stage], unheard[stage] = ([Answer(**a) for a in kept[key]] for key in ("heard", "unheard"))
    if not heard:
        raise InvalidInput("report", str(run_dir), "a run folder with metrics.json or evaluation/", "neither")
    demo = _settings(run_dir)
    metrics = {
        "seed": demo.get("seed"),
        "quick": bool(demo.get("quick")),
        "temperature": demo.get("temperature"),
        "seconds": _read(run_dir / "seconds.json") or {},
        "stages": stage_metrics(heard, unheard),
        "judge": _read(run_dir / "judge" / "judge.json"),
    }
    write_atomic(run_dir / METRICS_FILE, json.dumps(metrics, indent=1) + "\n")


def _settings(run_dir: Path) -> dict[str, Any]:
    import yaml

    file = run_dir / "settings.yaml"
    return (yaml.safe_load(file.read_text(encoding="utf-8")) or {}) if file.is_file() else {}


def _read(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidInput("report", str(path), "a JSON file of this run", str(error)) from None
