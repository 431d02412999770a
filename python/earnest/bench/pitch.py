# SPDX-License-Identifier: Apache-2.0
"""Cases of fundamental frequency, on voices that are made so that their pitch is known: whole clips, and a
stream that a chunk arrives at.

There is no float64 definition to hold an estimate against: the error is the share of voiced frames whose
pitch is off by more than three in a hundred, or that are called unvoiced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from earnest.bench import peers
from earnest.bench.case import ALSO, OURS, Case, Implementation, Problem

RATE, FRAMES_PER_SECOND = 16000, 100
LOWEST, HIGHEST = 65.0, 600.0
OFF, TOLERANCE = 0.03, 0.05
EDGE = 5  # frames next to a pause: half a window is silent there
OPERATIONS = 18_000  # of a frame, by kernels/pitch/README.md; the limit is what they take at the full rate
PAST = RATE // 2  # samples before a chunk that those compute anew who have no streams
RECOMPUTED = "not a stream: the chunk and half a second before it anew"


def cases() -> list[Case]:
    return [case(10), case(3), stream(10), stream(80)]


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
        bytes=4 * seconds * (RATE + 3 * FRAMES_PER_SECOND),
        operations=OPERATIONS * seconds * FRAMES_PER_SECOND,
    )


def stream(milliseconds: int) -> Case:
    return Case(
        name=f"pitch/stream-{milliseconds}ms",
        problem=partial(_stream_problem, milliseconds=milliseconds),
        shape={"milliseconds": milliseconds},
        per=(1, "push"),
        quick=milliseconds == 10,
    )


def _stream_problem(rng: np.random.Generator, milliseconds: int) -> Problem:
    clip, truth = voice(rng, 3)
    samples, frames = RATE * milliseconds // 1000, FRAMES_PER_SECOND * milliseconds // 1000
    starts = range(PAST, len(clip) - samples + 1, samples)  # the chunks follow one another

    def piece_of(start: int) -> tuple[np.ndarray, np.ndarray]:
        hop = RATE // FRAMES_PER_SECOND
        return clip[start - PAST : start + samples], truth[(start - PAST) // hop : (start + samples) // hop]

    return Problem(
        inputs=[(clip[start : start + samples], *piece_of(start)) for start in starts],
        reference=lambda *_: [truth],
        error=share_off,
        implementations=[
            Implementation(
                "earnest",
                _push,
                OURS,
                prepare=lambda chunk, *_: (chunk,),
                checked=lambda *_: _streamed(_push(), clip, samples),
            ),
            Implementation(
                "earnest Pitch",
                lambda: _our_stream().push,
                ALSO,
                prepare=lambda chunk, *_: (chunk,),
                checked=lambda *_: _streamed_by_class(clip, samples),
            ),
            Implementation(
                "parselmouth",
                _praat,
                prepare=lambda _, pcm, expected: _as_sound(pcm, expected),
                outputs=lambda pitch: [_on_our_frames(pitch, (PAST + samples) / RATE)],
                reference=lambda chunk, pcm, expected: [expected],
                definition=RECOMPUTED,
            ),
            Implementation(
                "pyworld dio",
                _dio,
                prepare=lambda _, pcm, expected: _as_double(pcm, expected),
                outputs=lambda f0: [f0[:-1]],
                reference=lambda chunk, pcm, expected: [expected],
                definition=RECOMPUTED,
            ),
        ],
        tolerance=TOLERANCE,
        bytes=4 * (samples + 3 * frames),
        operations=OPERATIONS * frames,
    )


def _ours() -> Callable[..., Any]:
    from earnest.features import Pitch

    pitch = Pitch(LOWEST, HIGHEST)
    return lambda pcm, truth: pitch(pcm)


def _our_stream() -> Any:
    from earnest.features import Pitch

    return Pitch(LOWEST, HIGHEST).stream()


def _push() -> Callable[..., Any]:
    """The extension's own functions, with memory of the caller's for the frames, as log-mel's."""
    from earnest import _native

    stream = _native.PitchStream(_native.PitchSettings(LOWEST, HIGHEST, 0.45, 0.03))
    room = [np.empty((3, frames), np.float32) for frames in range(100)]

    def push(chunk: np.ndarray) -> np.ndarray:
        stream.push(chunk)
        out = room[stream.ready()]
        stream.read(out)
        return out

    return push


def _streamed(push: Callable[..., Any], clip: np.ndarray, samples: int) -> np.ndarray:
    """A whole clip through the function that is timed, and its end through the class's finish."""
    parts = [push(clip[i : i + samples])[0].copy() for i in range(0, len(clip), samples)]
    return np.concatenate([*parts, _streamed_by_class(clip, samples)[sum(map(len, parts)) :]])


def _streamed_by_class(clip: np.ndarray, samples: int) -> np.ndarray:
    from earnest.bench.harness import WrongResult
    from earnest.features import Pitch

    stream = _our_stream()
    parts = [stream.push(clip[i : i + samples]).f0 for i in range(0, len(clip), samples)]
    found = np.concatenate([*parts, stream.finish().f0])
    if not np.array_equal(found, Pitch(LOWEST, HIGHEST)(clip).f0):
        raise WrongResult("a stream's frames are not those of the whole clip, bit for bit")
    return found


def _as_sound(pcm: np.ndarray, truth: Any) -> tuple:
    return (peers.load("parselmouth", "praat-parselmouth").Sound(pcm.astype(np.float64), RATE),)


def _praat() -> Callable[..., Any]:
    peers.load("parselmouth", "praat-parselmouth")
    return lambda sound: sound.to_pitch_ac(
        time_step=1 / FRAMES_PER_SECOND, pitch_floor=LOWEST, pitch_ceiling=HIGHEST
    )


def _on_our_frames(pitch: Any, seconds: float) -> np.ndarray:
    """Praat centres its frames in the clip; the one nearest to each of ours."""
    times = np.arange(round(seconds * FRAMES_PER_SECOND)) / FRAMES_PER_SECOND
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
