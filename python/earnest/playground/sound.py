# SPDX-License-Identifier: Apache-2.0
"""How an utterance sounds, measured from its waveform: pitch in Hz, rate in syllables a second, level in dB.

The classes are ranges in these units, the same for every voice, with a gap between neighbours: an utterance
that falls into a gap has no clear label, and the playground speaks it again.

Pitch, level and the time spent speaking are read off one `earnest.pitch.PitchTrack`. The syllables are not
counted in it: the sentences of the playground are known, so that a rate is the sentence's syllables, exactly,
by the time measured. `PitchTrack.speaking_rate`, which has to find the syllables too, is for speech whose
words nobody knows (kernels/pitch/README.md says how far it is off).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from earnest.pitch import Pitch, PitchTrack
from earnest.playground.samples import Sound

SAMPLE_RATE = 16000
SILENCE_DB = -120.0  # the level of a clip in which nobody speaks
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


@dataclass(frozen=True, eq=False)
class Activity:
    """When speech is on, and how it sounds then.

    active: bool [frames of 10 ms]. level_db: mean over those. seconds: of speaking, pauses left out. f0_hz:
    median fundamental frequency of the voiced frames from the first active one to the last; 0 where none is.
    """

    active: np.ndarray
    level_db: float
    seconds: float
    f0_hz: float


def activity(pcm: np.ndarray) -> Activity:
    """Where and how ``pcm`` (float32 [samples] at 16 kHz) speaks."""
    return speaking(_pitch(pcm, SAMPLE_RATE))


def speaking(track: PitchTrack) -> Activity:
    """The same of a clip that was measured already."""
    at = np.asarray(track.energy, np.float64)
    # The track's frames are 20 ms around every hundredth of a second. Two neighbours are 30 ms around the
    # 10 ms between their centres: shorter ones would be silence between two glottal pulses of a low voice.
    energy = (at + np.append(at[1:], at[-1:])) / 2
    active = energy > max(energy.max(initial=0.0) * 10 ** (-_ACTIVE_DB / 10), 1e-12)
    if not active.any():
        return Activity(active, SILENCE_DB, 0.0, 0.0)
    on = np.flatnonzero(active)
    gaps = np.diff(on)
    seconds = (1 + gaps[gaps <= _PAUSE_FRAMES].sum() + (gaps > _PAUSE_FRAMES).sum()) / 100
    # CPU tiers differ in the last bits of a track's energy. Gains are made of this level: rounded, they do
    # not, and a world speaks the same samples on all of them.
    level_db = round(float(10 * np.log10(energy[active].mean())), 2)
    f0 = np.asarray(track.f0)[on[0] : on[-1] + 1]
    voiced = f0[f0 > 0]
    return Activity(active, level_db, float(seconds), float(np.median(voiced)) if voiced.size else 0.0)


def voiced_f0(pcm: np.ndarray) -> np.ndarray:
    """Fundamental frequency in Hz, float32 [voiced frames of 10 ms], of 16 kHz speech."""
    f0 = _pitch(pcm, SAMPLE_RATE).f0
    return f0[f0 > 0]


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
    return classify(speech.f0_hz, syllables / speech.seconds, speech.level_db)
