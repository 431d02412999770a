# SPDX-License-Identifier: Apache-2.0
"""Comparisons that a judge learns from: of the playground's listener, or preference lines in JSON-lines
files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from earnest.errors import InvalidInput
from earnest.learn.types import Case
from earnest.stages.cases import preference_cases
from earnest.stages.source import DataSettings, load_cases, world_of

if TYPE_CHECKING:
    from earnest.playground import World

FAR = 1 << 32  # more than there are dialogues


@dataclass(frozen=True, eq=False)
class Compared:
    """Two replies to a case and how a rater ordered them: level 2 = the first is much better ... -2 = the
    second. `true_level` is the order without the rater's noise, where a simulated rater can tell (evaluation
    only). `findings`: facts about each reply that a judge can learn to write down before its verdict."""

    case: Case
    first: str
    second: str
    level: int
    true_level: int | None = None
    findings: tuple[str, str] | None = None  # on the first and on the second, where they can be checked


def load_comparisons(
    data: DataSettings,
    n_mels: int,
    *,
    device: torch.device | str,
    split: str,
    phase: str,
    pairs: int = 1,
) -> list[Compared]:
    """Comparisons of a split, `pairs` on each dialogue of the playground. Raises InvalidInput where there are
    none."""
    if data.files:
        compared = [
            Compared(case, p.a, p.b, p.verdict)
            for path in data.files
            for case, p in preference_cases(Path(path), n_mels, device)
        ]
    else:
        world = world_of(data.playground)
        cases = load_cases(data, n_mels, device=device, split=split, phase=phase)
        # The pair of a dialogue is drawn by an index: those beyond the dialogues' own give it further ones.
        compared = [
            _compare(world, split, data.first + index + which * FAR, case)
            for index, case in enumerate(cases)
            for which in range(pairs)
        ]
    if not compared:
        raise InvalidInput("data", "files", "at least one comparison", "none")
    return compared


def _compare(world: World, split: str, index: int, case: Case) -> Compared:
    from earnest.playground import findings

    pair = world.pair(case.origin, split, index)
    true_level = world.listener.true_level(case.origin, pair.a, pair.b, pair.rubric)
    found = (findings(case.origin, pair.a.text, pair.rubric), findings(case.origin, pair.b.text, pair.rubric))
    return Compared(
        replace(case, rubric=pair.rubric), pair.a.text, pair.b.text, pair.level, true_level, found
    )
