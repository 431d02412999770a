# SPDX-License-Identifier: Apache-2.0
"""How the turns that were answered sound, as measured from their waveforms, and how often the answers are
right by that: whether a model hears high voices, fast speech and quiet speech as well as others.

The three measures are the same for every clip, spoken by the playground or read from a file: nothing that is
known about a clip goes into them. So the speaking rate is `PitchTrack.speaking_rate`, an estimate, and not
the playground's label, whose syllables are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from earnest.evaluate.stage import Answer, wilson
from earnest.learn.types import Case
from earnest.pitch import Pitch
from earnest.playground.sound import SILENCE_DB, speaking

# Each measure, and what it is where there is nothing to measure.
NOTHING = {"f0_hz": 0.0, "syllables_per_second": 0.0, "level_db": SILENCE_DB}
THIRDS = ("low", "middle", "high")
_pitch = Pitch()


def measure(pcm: np.ndarray) -> tuple[float, float, float]:
    """(median F0 in Hz, syllables a second, level in dB of full scale) while somebody speaks in ``pcm``
    (float32 [samples] at 16 kHz); 0, 0 and SILENCE_DB where nobody does."""
    track = _pitch(pcm)
    speech = speaking(track)
    return speech.f0_hz, track.speaking_rate, speech.level_db


def with_measures(answers: Sequence[Answer], cases: Sequence[Case]) -> list[Answer]:
    """The answers with what was measured of the turn that each answers: the last clip of its case. A case
    without a clip, or whose clips were not measured, leaves its answer as it is."""
    found = []
    for given, case in zip(answers, cases, strict=True):
        if case.clips and case.clips[-1][0].measured:
            f0, rate, level = case.clips[-1][0].measured
            given = replace(given, f0_hz=f0, syllables_per_second=rate, level_db=level)
        found.append(given)
    return found


def accuracy_by_measured(answers: Sequence[Answer]) -> dict[str, dict[str, dict[str, Any]]]:
    """For each measure the thirds of the cases, {"low" | "middle" | "high": {"from", "to", "cases",
    "accuracy", "accuracy_low", "accuracy_high"}}, the last two a 95% interval, from and to the least and the
    greatest value in the third. Where there was nothing to measure, the third is "none". {} where no clip was
    measured."""
    result = {}
    for name in NOTHING:
        known = [(float(value), a.right) for a in answers if (value := getattr(a, name)) is not None]
        if known:
            result[name] = _by_third(known, NOTHING[name])
    return result


def _by_third(known: Sequence[tuple[float, bool]], nothing: float) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[tuple[float, bool]]] = {"none": [], **{third: [] for third in THIRDS}}
    edges = _edges([value for value, _ in known if value != nothing])
    for value, right in known:
        third = "none" if value == nothing else THIRDS[sum(value > edge for edge in edges)]
        groups[third].append((value, right))
    return {third: _figures(group) for third, group in groups.items() if group}


def _edges(values: Sequence[float]) -> list[float]:
    """The greatest value of the lowest third and of the middle one. Equal values (one clip asked about more
    than once) are never parted, so that thirds may differ in size, or be missing."""
    ordered = sorted(values)
    return [ordered[(len(ordered) - 1) * part // 3] for part in (1, 2)] if ordered else []


def _figures(group: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    values = [value for value, _ in group]
    accuracy, low, high = wilson(sum(right for _, right in group) / len(group), len(group))
    return {
        "from": min(values),
        "to": max(values),
        "cases": len(group),
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
    }
