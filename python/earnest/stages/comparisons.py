# SPDX-License-Identifier: Apache-2.0
"""Comparisons that a judge learns from: of the playground's listener, or preference lines in JSON-lines files."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from earnest.errors import InvalidInput
from earnest.learn.types import Case
from earnest.stages.cases import case_of, in_processes, preference_cases
from earnest.stages.source import DataSettings, world_of


if TYPE_CHECKING:
    from earnest.playground import World


@dataclass(frozen=True, eq=False)
class Compared:
    """Two replies to a case and how a rater ordered them: level 2 = the first is much better ... -2 = the second.
    `true_level` is the order without the rater's noise, where a simulated rater can tell (evaluation only)."""

    case: Case
    first: str
    second: str
    level: int
    true_level: int | None = None


def load_comparisons(data: DataSettings, n_mels: int, *, split: str, phase: str) -> list[Compared]:
    """Comparisons of a split. Raises InvalidInput where there are none."""
    if data.files:
        compared = [Compared(case, p.a, p.b, p.verdict) for path in data.files for case, p in preference_cases(Path(path), n_mels)]
    else:
        indices = range(data.first, data.first + data.cases)
        make = functools.partial(_make, world_of(data.playground), split, n_mels)
        compared = in_processes(make, indices, data.processes or os.cpu_count() or 1, phase)
    if not compared:
        raise InvalidInput("data", "files", "at least one comparison", "none")
    return compared


def _make(world: World, split: str, n_mels: int, indices: range) -> list[Compared]:
    made = []
    for index in indices:
        comparison = world.comparison(split, index)
        case = replace(case_of(comparison.sample, n_mels), rubric=comparison.rubric)
        true_level = world.listener.true_level(comparison.sample, comparison.a, comparison.b, comparison.rubric)
        made.append(Compared(case, comparison.a.text, comparison.b.text, comparison.level, true_level))
    return made
