# SPDX-License-Identifier: Apache-2.0
"""How an utterance sounds, measured from its waveform: pitch in Hz, rate in syllables a second, level in dB.

The classes are ranges in these units, the same for every voice, with a gap between neighbours: an utterance
that falls into a gap has no clear label, and the playground speaks it again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from earnest.pitch import Pitch
from earnest.playground.samples import Sound

SAMPLE_RATE = 16000
Ranges = tuple[tuple[str, float, float], ...]

# (label, lowest, highest) of each property; what lies between two ranges is unclear.
PITCH_HZ = (("low", 0.0, 122.0), ("middle", 140.0, 182.0), ("high", 210.0, np.inf))
RATE_SYLLABLES = (("slow", 0.0, 3.2), ("normal", 3.8, 5.1), ("fast", 6.2, np.inf))
# Words recorded one at a time are longer than words in a sentence: most of FSDD's lie between 2 and 4.5.
RATE_OF_WORDS = (("slow", 0.0, 2.3), ("normal", 2.7, 3.6), ("fast", 4.4, np.inf))
LEVEL_DB = (("quiet", -np.inf, -33.0), ("normal", -30.0, -24.0), ("loud", -21.0, np.inf))

_ACTIVE_DB = 30.0  # a frame this far below the loudest one is silence
_PAUSE_FRAMES = 15  # silences shorter than this belong to speaking (the closure of a stop)
_pitch = Pitch(70.0, 450.0)


def label(ranges: Ranges, value: float) -> str | None:
    """The class whose range holds ``value``, or None in a gap."""
    return next((name for name, low, high in ranges if low <= value <= high), None)


@dataclass(frozen=True)
class Activity:
    """When speech is on. active bool [frames] of 10 ms; level_db over those; seconds less pauses."""

    active: np.ndarray
    level_db: float
    seconds: float


def activity(pcm: np.ndarray) -> Activity:
    """Where ``pcm`` (float32 [samples] at 16 kHz) speaks, by its energy in frames of 10 ms."""
    hop = SAMPLE_RATE // 100
    frames = max(len(pcm) // hop, 1)
    padded = np.zeros(frames * hop, np.float32)
    padded[: min(len(pcm), len(padded))] = pcm[: len(padded)]
    energy = np.square(padded.reshape(frames, hop)).mean(1, dtype=np.float64)
    # over 30 ms, so that the frames between two glottal pulses of a low voice are not silence
    energy = np.convolve(energy, np.full(3, 1 / 3), "same")
    active = energy > max(energy.max() * 10 ** (-_ACTIVE_DB / 10), 1e-12)
    if not active.any():
        return Activity(active, -120.0, 0.0)
    on = np.flatnonzero(active)
    gaps = np.diff(on)
    seconds = (1 + gaps[gaps <= _PAUSE_FRAMES].sum() + (gaps > _PAUSE_FRAMES).sum()) / 100
    return Activity(active, float(10 * np.log10(energy[active].mean())), float(seconds))


def voiced_f0(pcm: np.ndarray) -> np.ndarray:
    """Fundamental frequency in Hz, float32 [voiced frames of 10 ms], of 16 kHz speech."""
    f0 = _pitch(pcm, SAMPLE_RATE).f0
    return f0[f0 > 0]


def median_f0(pcm: np.ndarray, active: np.ndarray | None = None) -> float:
    """Median fundamental frequency in Hz over the voiced frames of 16 kHz speech; 0 where none is.

    active: bool [frames] of ``activity``; nothing before the first or after the last of these is looked at.
    """
    if active is not None and active.any():
        on = np.flatnonzero(active) * (SAMPLE_RATE // 100)
        pcm = pcm[on[0] : on[-1] + SAMPLE_RATE // 100]
    voiced = voiced_f0(pcm)
    return float(np.median(voiced)) if voiced.size else 0.0


def classify(
    f0_hz: float, syllables_per_second: float, level_db: float, rates: Ranges = RATE_SYLLABLES
) -> Sound | None:
    """The labels of three measurements, or None where one of them falls into a gap."""
    pitch, rate = label(PITCH_HZ, f0_hz), label(rates, syllables_per_second)
    loudness = label(LEVEL_DB, level_db)
    if not f0_hz or pitch is None or rate is None or loudness is None:
        return None
    return Sound(f0_hz, syllables_per_second, level_db, pitch, rate, loudness)


def measure(pcm: np.ndarray, syllables: int) -> Sound | None:
    """The sound of an utterance of ``syllables`` syllables, or None where a property is unclear."""
    speech = activity(pcm)
    if not speech.seconds:
        return None
    return classify(median_f0(pcm, speech.active), syllables / speech.seconds, speech.level_db)
