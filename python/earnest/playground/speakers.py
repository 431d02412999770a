# SPDX-License-Identifier: Apache-2.0
"""A speaker of a dialogue: says sentences with a wanted pitch, rate and loudness, as measured."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import soxr

from earnest.playground import augment, voices
from earnest.playground.samples import Sound, Word
from earnest.playground.sentences import SYLLABLES, syllables_of, words_of
from earnest.playground.sound import (
    PITCH_HZ,
    RATE_SYLLABLES,
    SAMPLE_RATE,
    Activity,
    activity,
    classify,
    label,
)

# Where targets are drawn: inside the classes of sound.py, away from their edges.
TARGET_F0 = {"low": (92.0, 116.0), "middle": (144.0, 176.0), "high": (216.0, 300.0)}
TARGET_RATE = {"slow": (2.55, 3.05), "normal": (4.1, 4.75), "fast": (6.6, 7.5)}
TARGET_LEVEL = {"quiet": (-40.0, -34.0), "normal": (-29.0, -25.0), "loud": (-20.0, -16.0)}
_ATTEMPTS = 12


@dataclass(frozen=True, eq=False)
class Utterance:
    """A spoken sentence: float32 [samples] at 16 kHz, its words in time, and how it sounds."""

    pcm: np.ndarray
    words: tuple[Word, ...]
    sound: Sound


class OutOfReach(RuntimeError):
    """A voice did not come to sound as wanted; another one may."""


class Speaker(Protocol):
    """Someone who can speak; ``pitches`` are the pitch labels within this voice's reach."""

    name: str
    pitches: tuple[str, ...]

    def say(
        self, sentence: str, rng: np.random.Generator, *, pitch: str, rate: str, loudness: str
    ) -> Utterance: ...


class EspeakSpeaker:
    """An eSpeak voice behind a vocal tract that is a little shorter or longer than the voice's own.

    tract: all frequencies of the voice are multiplied by it, its resonances and its pitch.
    """

    def __init__(self, name: str, voice: voices.Voice, tract: float) -> None:
        self.name, self.voice, self.tract = name, voice, tract
        self._lowest, self._highest = voice.f0[0] * tract * 1.03, voice.f0[2] * tract * 0.97
        self.pitches = tuple(
            pitch
            for pitch, (low, high) in TARGET_F0.items()
            if max(self._lowest, low) <= min(self._highest, high) * 0.94
        )

    def say(
        self, sentence: str, rng: np.random.Generator, *, pitch: str, rate: str, loudness: str
    ) -> Utterance:
        """``sentence`` with the measured labels asked for; deterministic given the generator's state."""
        low, high = TARGET_F0[pitch]
        f0 = log_uniform(rng, max(low, self._lowest), min(high, self._highest))
        wanted_rate, wanted_db = rng.uniform(*TARGET_RATE[rate]), rng.uniform(*TARGET_LEVEL[loudness])
        spread, seed = int(rng.integers(35, 65)), int(rng.integers(1, 1 << 30))
        syllables, ask_f0 = syllables_of(sentence), f0 / self.tract
        ask_rate = voices.words_per_minute(sentence, syllables / wanted_rate, self.voice.pace * self.tract)
        for _ in range(_ATTEMPTS):
            speech = voices.speak(
                sentence,
                self.name,
                rate=round(min(max(ask_rate, 80), 449)),
                pitch=self.voice.pitch_setting(ask_f0),
                pitch_range=spread,
                seed=seed,
            )
            pcm = soxr.resample(speech.pcm, round(speech.sample_rate * self.tract), SAMPLE_RATE, quality="MQ")
            spoken = activity(pcm)
            measured = syllables / max(spoken.seconds, 0.05)
            if label(RATE_SYLLABLES, measured) != rate:
                ask_rate *= wanted_rate / measured
                continue
            pcm, words = _cut(pcm, spoken.active, align(sentence, speech, self.tract, spoken.active), rng)
            pcm, final = in_room(pcm, wanted_db, rng)
            measured_f0, measured = final.f0_hz, syllables / final.seconds
            sound = classify(measured_f0, measured, final.level_db)
            if sound is not None and (sound.pitch, sound.rate, sound.loudness) == (pitch, rate, loudness):
                return Utterance(augment.noise(pcm, sound.level_db, rng), words, sound)
            if measured_f0 and label(PITCH_HZ, measured_f0) != pitch:
                ask_f0 *= min(max(f0 / measured_f0, 0.75), 1.33)
            if label(RATE_SYLLABLES, measured) != rate:
                ask_rate *= wanted_rate / measured
        raise OutOfReach(f"{self.name} does not say {sentence!r} {rate}, {pitch}, {loudness}")


def espeak_speaker(rng: random.Random, split: str, pitch: str) -> EspeakSpeaker:
    """A voice of the split that reaches ``pitch``. Training, which has to make do with a few dozen voices,
    hears a wider range of vocal tracts than it is tested on."""
    table = voices.VOICES[split]
    shortest, longest = (0.85, 1.18) if split == "train" else (0.9, 1.1)
    while True:
        name = rng.choice(tuple(table))
        speaker = EspeakSpeaker(
            f"{rng.choice(voices.ACCENTS)}+{name}", table[name], rng.uniform(shortest, longest)
        )
        if pitch in speaker.pitches:
            return speaker


def align(sentence: str, speech: voices.Speech, tract: float, active: np.ndarray) -> list[Word]:
    """Start and end of every word: eSpeak's word events, with the silence around each word taken off.

    eSpeak speaks some pairs of words as one ("in the"): those share their time by syllables.
    """
    known = {position: second / tract for position, _, second in speech.starts}
    spans: list[tuple[list[str], float]] = []
    at = 0
    for word in words_of(sentence):
        at = sentence.index(word, at)
        second = known.get(at)  # None where eSpeak left the event out
        if second is None and spans:
            spans[-1][0].append(word)
        else:
            spans.append(([word], second or 0.0))
        at += len(word)
    ends = [second for _, second in spans[1:]] + [len(active) / 100]
    result: list[Word] = []
    for (group, start), end in zip(spans, ends, strict=True):
        first, last = int(start * 100), max(int(np.ceil(end * 100)), int(start * 100) + 1)
        on = spoken_run(active[first:last])
        if on is not None:
            start, end = max(start, (first + on[0]) / 100), min(end, (first + on[1] + 1) / 100)
        total = sum(SYLLABLES[word] for word in group)
        for word in group:
            length = (end - start) * SYLLABLES[word] / total
            result.append((word, start, start + length))
            start, total = start + length, total - SYLLABLES[word]
    return result


def spoken_run(active: np.ndarray) -> tuple[int, int] | None:
    """First and last frame of the longest stretch of speech; a silence of over 120 ms ends a stretch."""
    on = np.flatnonzero(active)
    if not on.size:
        return None
    breaks = np.flatnonzero(np.diff(on) > 12)
    firsts, lasts = on[np.r_[0, breaks + 1]], on[np.r_[breaks, on.size - 1]]
    longest = int(np.argmax(lasts - firsts))
    return int(firsts[longest]), int(lasts[longest])


def in_room(pcm: np.ndarray, level_db: float, rng: np.random.Generator) -> tuple[np.ndarray, Activity]:
    """``pcm`` as a microphone has it in some room, at a level of ``level_db`` while speech is on, and how it
    speaks then."""
    pcm = augment.room_and_band(pcm, rng)
    speech = activity(pcm)
    pcm = pcm * np.float32(10 ** ((level_db - speech.level_db) / 20))
    if np.abs(pcm).max() > 1:
        pcm = np.clip(pcm, -1, 1)
        return pcm, activity(pcm)
    return pcm, replace(speech, level_db=level_db)  # all else about it is relative to its own level


def _cut(
    pcm: np.ndarray, active: np.ndarray, words: list[Word], rng: np.random.Generator
) -> tuple[np.ndarray, tuple[Word, ...]]:
    """The spoken part with 60 to 250 ms of silence on each side, and its words on the new clock."""
    on = np.flatnonzero(active)
    hop = SAMPLE_RATE // 100
    first, last = on[0] * hop, min((on[-1] + 1) * hop, len(pcm))
    before, after = (int(seconds * SAMPLE_RATE) for seconds in rng.uniform(0.06, 0.25, 2))
    cut = np.zeros(before + last - first + after, np.float32)
    start, stop = max(first - before, 0), min(last + after, len(pcm))
    cut[before - (first - start) : before - (first - start) + stop - start] = pcm[start:stop]
    shift = (before - first) / SAMPLE_RATE
    end = len(cut) / SAMPLE_RATE
    moved = tuple((word, float(max(a + shift, 0.0)), float(min(b + shift, end))) for word, a, b in words)
    return cut, moved


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(max(high, low)))))
