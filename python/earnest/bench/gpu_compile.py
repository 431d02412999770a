# SPDX-License-Identifier: Apache-2.0
"""What torch compiles for cases on a GPU, compiled ahead into inductor's cache (TORCHINDUCTOR_CACHE_DIR), so
that the minutes in which nothing else may run are not spent on it. `python -m earnest.bench.gpu_compile
FAMILY...`

Each is built and called once, as the bench would; no result is looked at, and no time is taken. Tile sizes
that inductor chose meanwhile, of several by their times, are to be thrown away: others were at work here."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from earnest.bench import command
from earnest.bench.case import Case
from earnest.bench.limits import Threads


def of(cases: Sequence[Case]) -> int:
    """How many were compiled. What fails here fails again where it is measured, and is said there."""
    done = 0
    for case in cases:
        problem = case.problem(np.random.default_rng(0))
        for one in problem.implementations:
            if not one.compiles:
                continue
            try:
                with Threads(case.threads):
                    one.build()(*one.choose(*one.prepare(*problem.inputs[0])))
            except Exception as error:
                print(f"{case.name}, {one.name}: {str(error).strip()[:300]}", flush=True)
            else:
                done += 1
                print(f"{case.name}, {one.name}: compiled", flush=True)
    return done


def chosen(words: list[str]) -> list[Case]:
    """Cases whose setup says that something is compiled for them."""
    return [case for case in command.chosen(words, False, "cuda") if case.compiles]


if __name__ == "__main__":
    of(chosen(sys.argv[1:]))
