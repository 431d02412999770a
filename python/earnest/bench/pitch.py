# SPDX-License-Identifier: Apache-2.0
"""Cases of fundamental frequency, on voices that are made so that their pitch is known.

There is no float64 definition to hold an estimate against: the error is the share of voiced frames whose
pitch is off by more than three in a hundred, or that are called unvoiced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from earnest.bench import peers
from earnest.bench.case import OURS, Case, Implementation, Problem

RATE, FRAMES_PER_SECOND = 16000, 100
LOWEST, HIGHEST = 65.0, 600.0
OFF, TOLERANCE = 0.03, 0.05
EDGE = 5  # frames next to a pause: half a window is silent there


def cases() -> list[Case]:
    return [case(10), case(3)]


def case(seconds: int) -> Case:
    return Case(
        name=f"pitch/{seconds}s",
        problem=partial(_problem, seconds=seconds),
        shape={"seconds": seconds},
        per=(seconds * FRAMES_PER_SECOND, "frame"),
        quick=seconds == 3,
    )


def voice(rng: np.random.Generator, seconds: int) -> tuple[np.ndarray, np.ndarray]:
    """(samples, f0 of each frame, 0 in pauses): twenty harmonics that glide, a pause in every second."""
    time = np.arange(RATE * seconds) / RATE
    steps = np.linspace(0, seconds, 3 * seconds + 1)
    f0 = np.interp(time, steps, rng.uniform(100, 260, steps.size))
    phase = 2 * np.pi * np.cumsum(f0) / RATE + rng.uniform(0, 2 * np.pi)
    wave = sum(np.sin(k * phase + rng.uniform(0, 2 * np.pi)) / k for k in range(1, 21))
    voiced = (time + rng.uniform()) % 1.0 < 0.8
    samples = 0.1 * wave * voiced + 1e-4 * rng.standard_normal(time.size)
    centres = np.arange(seconds * FRAMES_PER_SECOND) * RATE // FRAMES_PER_SECOND
    return samples.astype(np.float32), np.where(voiced, f0, 0)[centres]


def share_off(got: Sequence[Any], expected: Sequence[Any]) -> float:
    """Of the voiced frames that are not next to a pause."""
    f0, truth = np.asarray(got[0], np.float64), np.asarray(expected[0])
    if f0.shape != truth.shape:
        return float("inf")
    away = np.convolve(truth > 0, np.ones(2 * EDGE + 1), "same") == 2 * EDGE + 1
    return float((np.abs(f0[away] / truth[away] - 1) > OFF).mean())


def _problem(rng: np.random.Generator, seconds: int) -> Problem:
    clips = [voice(rng, seconds) for _ in range(4)]
    return Problem(
        inputs=clips,
        reference=lambda pcm, truth: [truth],
        error=share_off,
        implementations=[
            Implementation("earnest", _ours, OURS, outputs=lambda track: [track.f0]),
            Implementation(
                "parselmouth",
                _praat,
                prepare=_as_sound,
                outputs=lambda pitch: [_on_our_frames(pitch, seconds)],
            ),
            Implementation("pyworld dio", _dio, prepare=_as_double, outputs=lambda f0: [f0[:-1]]),
            Implementation("pyworld harvest", _harvest, prepare=_as_double, outputs=lambda f0: [f0[:-1]]),
        ],
        tolerance=TOLERANCE,
        bytes=0,  # neither reading nor a known number of operations limits it
    )


def _ours() -> Callable[..., Any]:
    from earnest.features import Pitch

    pitch = Pitch(LOWEST, HIGHEST)
    return lambda pcm, truth: pitch(pcm)


def _as_sound(pcm: np.ndarray, truth: Any) -> tuple:
    return (peers.load("parselmouth", "praat-parselmouth").Sound(pcm.astype(np.float64), RATE),)


def _praat() -> Callable[..., Any]:
    peers.load("parselmouth", "praat-parselmouth")
    return lambda sound: sound.to_pitch_ac(
        time_step=1 / FRAMES_PER_SECOND, pitch_floor=LOWEST, pitch_ceiling=HIGHEST
    )


def _on_our_frames(pitch: Any, seconds: int) -> np.ndarray:
    """Praat centres its frames in the clip; the one nearest to each of ours."""
    times = np.arange(seconds * FRAMES_PER_SECOND) / FRAMES_PER_SECOND
    nearest = np.abs(pitch.xs()[:, None] - times).argmin(0)
    return pitch.selected_array["frequency"][nearest]


def _as_double(pcm: np.ndarray, truth: Any) -> tuple:
    return (pcm.astype(np.float64),)


def _dio() -> Callable[..., Any]:
    world = peers.pyworld()
    period = 1000 / FRAMES_PER_SECOND

    def run(samples: np.ndarray) -> np.ndarray:
        coarse, times = world.dio(samples, RATE, f0_floor=LOWEST, f0_ceil=HIGHEST, frame_period=period)
        return world.stonemask(samples, coarse, times, RATE)

    return run


def _harvest() -> Callable[..., Any]:
    world = peers.pyworld()
    period = 1000 / FRAMES_PER_SECOND
    return lambda samples: world.harvest(
        samples, RATE, f0_floor=LOWEST, f0_ceil=HIGHEST, frame_period=period
    )[0]
