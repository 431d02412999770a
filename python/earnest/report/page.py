# SPDX-License-Identifier: Apache-2.0
"""report.html: one file that needs no other and no network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from earnest.checkpoint import write_atomic
from earnest.report.chart import calibration_chart
from earnest.report.columns import (
    STAGE_NAMES,
    Column,
    Metrics,
    manner_parts,
    read_metrics_file,
    stages_of,
    table_parts,
)
from earnest.report.curves import curves_section
from earnest.report.dialogues import dialogues_section, playground_settings
from earnest.report.summary import summary
from earnest.report.table import spread_cell
from earnest.report.text import escape, paragraph

REPORT_FILE = "report.html"
# Nothing may be fetched and no script may run, whatever a model has said.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; media-src data:"
PHASES = {
    "midtrain": "mid-training",
    "sft": "SFT",
    "rlvr": "RLVR",
    "judge": "judge",
    "rlhf": "RLHF",
    "evaluate": "evaluation",
}


def write_report(run_dir: Path, together: Sequence[Path] = ()) -> Path:
    """Writes `run_dir`/report.html from metrics.json and what the stages left beside it, and returns its
    path. `together`: run folders (this one among them) whose mean and spread are shown too. What a run did
    not leave is named in the page; only without metrics.json there is no report (InvalidInput)."""
    run_dir = Path(run_dir)
    metrics = read_metrics_file(run_dir)
    path = run_dir / REPORT_FILE
    write_atomic(path, page(run_dir, metrics, together))
    return path


def page(run_dir: Path, metrics: Metrics, together: Sequence[Path] = ()) -> str:
    """The whole page."""
    sections = [
        ("What was run", _what_was_run(run_dir, metrics)),
        ("What it showed", "".join(paragraph(text) for text in summary(metrics))),
        ("The stages", _tables(metrics)),
    ]
    by_manner = _by_manner(metrics)
    if by_manner:
        sections.append(("How it sounds, and what is right", by_manner))
    if len(together) > 1:
        sections.append((f"{len(together)} runs", _runs_together(together)))
    sections += [
        ("Training", curves_section(run_dir)),
        ("The judge", _judge(metrics.get("judge") or {})),
        ("Three dialogues", DIALOGUES_NOTE + dialogues_section(run_dir, metrics)),
    ]
    body = "\n".join(
        f"<section class='part'><h2>{escape(title)}</h2>{inside}</section>" for title, inside in sections
    )
    title = f"earnest · {run_dir.resolve().name}"
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<meta name='color-scheme' content='light dark'>"
        f"<title>{escape(title)}</title><style>\n{style}</style></head>\n"
        f"<body><main><header><h1>earnest</h1>{paragraph(TAGLINE, 'tagline')}</header>\n"
        f"{body}</main></body></html>\n"
    )


TAGLINE = "A small audio model learns to listen, to reason, and to answer like someone worth talking to."
DIALOGUES_NOTE = paragraph(
    "From the held-out split: voices, sentences and numbers that were never trained on. They are not picked "
    "for looks: each is the case of its family in which RLHF's reply is liked more than RLVR's by the median "
    "amount. Reasoning is dim, the reply is plain; ✓ and ✗ say whether it holds the verified answer.",
    "note",
)


MANNER_NOTE = (
    "Verified accuracy by how the question sounds, measured from what the model heard, noise and all: median "
    "fundamental frequency, estimated speaking rate, level while somebody speaks. Every measure parts the "
    "cases into thirds; how many cases there are stands in brackets."
)


def _what_was_run(run_dir: Path, metrics: Metrics) -> str:
    spoken = playground_settings(run_dir)
    voices = str(spoken.get("voices", "")) or "unknown"
    cases = [int(row["cases"]) for row in stages_of(metrics).values() if isinstance(row.get("cases"), int)]
    facts = {
        "seed": metrics.get("seed", "unknown"),
        "voices": "eSpeak NG, synthetic" if voices == "espeak" else f"recordings, {Path(voices).name}",
        "speaker left out": spoken.get("leave_out") or None,
        "held-out cases": max(cases) if cases else None,
        "replies drawn at temperature": metrics.get("temperature"),
        "length": "quick" if metrics.get("quick") else "full",
    }
    rows = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in facts.items()
        if value is not None
    )
    return f"<dl class='facts'>{rows}</dl>{_seconds(metrics.get('seconds') or {})}"


def _seconds(seconds: dict[str, Any]) -> str:
    """Time spent in each phase, to scale."""
    known = {
        k: float(v) for k, v in seconds.items() if isinstance(v, int | float) and math.isfinite(v) and v >= 0
    }
    total = sum(known.values())
    if total <= 0:
        return ""
    bars = "".join(
        f"<div><span>{escape(PHASES.get(phase, phase))}</span><span class='bar'><i class='{escape(phase)}' "
        f"style='width:{100 * spent / max(known.values()):.1f}%'></i></span><span>{clock(spent)}</span></div>"
        for phase, spent in known.items()
    )
    in_all = f"<div><span>in all</span><span></span><span>{clock(total)}</span></div>"
    return f"<div class='seconds'>{bars}{in_all}</div>"


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes} min {rest:02d} s"
        if minutes
        else f"{seconds:.0f} s"
        if seconds >= 10
        else f"{seconds:.1f} s"
    )


def _tables(metrics: Metrics) -> str:
    stages = stages_of(metrics)
    if not stages:
        return paragraph("metrics.json holds no stages.", "missing")
    notes = "Small figures are 95% intervals (Wilson); a tie counts as half a win."
    parts = table_parts(stages.values())
    return _html_tables(list(stages), parts, _with_interval(stages)) + paragraph(notes, "note")


def _by_manner(metrics: Metrics) -> str:
    """Accuracy by the measured pitch, speaking rate and level of the question; "" where none was measured."""
    stages = stages_of(metrics)
    parts = manner_parts(stages.values())
    if not parts:
        return ""
    return paragraph(MANNER_NOTE, "note") + _html_tables(list(stages), parts, _with_interval(stages))


def _with_interval(stages: Mapping[str, Metrics]) -> Callable[[str, Column], str]:
    def cell(stage: str, column: Column) -> str:
        bounds = column.bounds(stages[stage])
        value = escape(column.text(column.value(stages[stage])))
        if bounds is None:
            return value
        return f"{value} <small>{100 * bounds[0]:.0f} to {100 * bounds[1]:.0f}</small>"

    return cell


def _runs_together(run_dirs: Sequence[Path]) -> str:
    metrics = [read_metrics_file(run_dir) for run_dir in run_dirs]
    runs = [stages_of(m) for m in metrics]
    names = [stage for stage in STAGE_NAMES if any(stage in run for run in runs)]

    def cell(stage: str, column: Column) -> str:
        return escape(spread_cell([column.value(run[stage]) for run in runs if stage in run], column))

    seeds = ", ".join(str(m.get("seed", "?")) for m in metrics)
    parts = table_parts(row for run in runs for row in run.values())
    note = paragraph(f"Mean ± standard deviation over seeds {seeds}.", "note")
    return note + _html_tables(names, parts, cell)


def _html_tables(
    stages: Sequence[str], parts: Sequence[tuple[str, Sequence[Column]]], cell: Callable[[str, Column], str]
) -> str:
    written = []
    for head, columns in parts:
        titles = "".join(
            f"<th scope='col' title='{escape(c.meaning)}'>{escape(c.title)}</th>" for c in columns
        )
        rows = "".join(
            f"<tr class='{escape(s)}'><th scope='row'>{escape(STAGE_NAMES.get(s, s))}</th>"
            + "".join(f"<td>{cell(s, c)}</td>" for c in columns)
            + "</tr>"
            for s in stages
        )
        written.append(
            f"<div class='scroll'><table><thead><tr><th scope='col'>{head}</th>{titles}</tr></thead>"
            f"<tbody>{rows}</tbody></table></div>"
        )
    return "".join(written)


def _judge(judge: Metrics) -> str:
    """Calibration curve, and the figures beside it."""
    if not judge:
        return paragraph("This run has no record of its judge (judge/judge.json).", "missing")

    def number(key: str, form: str = ".3f") -> str | None:
        value = judge.get(key)
        return format(value, form) if isinstance(value, int | float) and math.isfinite(value) else None

    facts = {
        "comparisons, held out": number("comparisons", ".0f"),
        "agrees with the listener, where it names a winner": number("accuracy", ".1%"),
        "agrees with the listener without its noise": number("accuracy_true", ".1%"),
        "what the listener's noise leaves reachable": number("rater_agrees_with_itself", ".1%"),
    }
    by_distance = judge.get("accuracy_by_distance")
    for distance, value in by_distance.items() if isinstance(by_distance, dict) else ():
        apart = "one level apart" if str(distance) == "1" else f"{distance} levels apart"
        facts[f"agrees, {apart}"] = f"{value:.1%}" if isinstance(value, int | float) else None
    bias, error = number("swap_bias", "+.3f"), number("swap_bias_standard_error")
    facts |= {
        "expected calibration error": number("ece"),
        "swap bias ± standard error": f"{bias} ± {error}" if bias and error else bias,
        "disagreement when swapped, mean |φ(a, b) + φ(b, a)|": number("swap_disagree"),
        "ties: judged / rated": " / ".join(
            filter(None, (number("ties_judged", ".0%"), number("ties_rated", ".0%")))
        )
        or None,
        "temperature of its verdicts": number("temperature"),
    }
    rows = "".join(
        f"<tr><th scope='row'>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value in facts.items()
        if value
    )
    curve = judge.get("calibration_curve")
    return (
        f"<div class='judge-part'>{calibration_chart(curve) if isinstance(curve, list) else ''}"
        f"<table class='plain'><tbody>{rows}</tbody></table></div>"
    )
