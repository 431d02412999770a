# SPDX-License-Identifier: Apache-2.0
"""Recorded digits as voices: the takes each split may use, and a speaker who is made of one's takes."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from earnest.audio import load_audio
from earnest.dialogue.records import BadLine
from earnest.errors import InvalidInput
from earnest.playground import augment
from earnest.playground.manifest import Recording, read_manifest
from earnest.playground.samples import SPLITS, Word
from earnest.playground.sentences import DIGITS, syllables_of, words_of
from earnest.playground.sound import (
    PITCH_HZ,
    RATE_OF_WORDS,
    SAMPLE_RATE,
    activity,
    classify,
    label,
    voiced_f0,
)
from earnest.playground.speakers import (
    TARGET_F0,
    TARGET_LEVEL,
    OutOfReach,
    Utterance,
    in_room,
    log_uniform,
    spoken_run,
)
from earnest.playground.warp import warp

TARGET_RATE = {"slow": (1.8, 2.2), "normal": (2.85, 3.4), "fast": (4.6, 5.5)}  # syllables a second
_LONGEST = 3.0  # seconds of one word, silence around it included
_STRETCH = (0.4, 2.5)  # how much shorter or longer a word may become
_PITCH_SHIFT = (0.5, 3.2)
_DRAWS, _ATTEMPTS = 8, 4  # choices of takes, and corrections of each
_KEPT = 4096  # words held in memory by one process


@dataclass(frozen=True, eq=False)
class Spoken:
    """A recorded word: float32 [samples] at 16 kHz, silence cut off, at a level of -25 dB; its voiced F0."""

    pcm: np.ndarray
    f0: np.ndarray


class Recordings:
    """The takes of every split, told apart by speaker and take; reads a recording when it is first wanted.

    leave_out: the speaker of the held-out split (default: the last in alphabetical order). Of every other
    speaker the first fifth of a word's takes, five at most, is for validation (for the Free Spoken Digit
    Dataset these are its test takes 0 to 4), the rest for training.
    """

    def __init__(self, path: str | Path, leave_out: str | None = None) -> None:
        self.manifest, entries = read_manifest(path)
        self.speakers = tuple(sorted({entry.speaker for entry in entries}))
        if len(self.speakers) < 2:
            raise InvalidInput(
                "recordings",
                self.manifest,
                "at least two speakers, one to leave out",
                f"{self.speakers[0]!r} alone",
            )
        self.leave_out = self.speakers[-1] if leave_out is None else leave_out
        if self.leave_out not in self.speakers:
            raise InvalidInput("recordings", "leave_out", f"one of {self.speakers}", repr(leave_out))
        self.takes = _split(self.manifest, entries, self.speakers, self.leave_out)
        self._spoken: dict[Recording, Spoken] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_spoken": {}}

    def speaker(self, rng: random.Random, split: str) -> RecordedSpeaker:
        """A speaker of the split, with a vocal tract up to 8% shorter or longer; any reaches all pitches."""
        return RecordedSpeaker(self, rng.choice(tuple(self.takes[split])), split, rng.uniform(0.92, 1.08))

    def spoken(self, recording: Recording) -> Spoken:
        """A recording as samples. Raises BadLine where it cannot be read or holds no speech."""
        found = self._spoken.get(recording)
        if found is None:
            if len(self._spoken) >= _KEPT:
                self._spoken.clear()
            found = self._spoken[recording] = _decode(self.manifest, recording)
        return found


def _decode(manifest: str, recording: Recording) -> Spoken:
    try:
        with open(recording.path, "rb") as file:
            file.seek(recording.offset)
            pcm = load_audio(file.read(recording.size), SAMPLE_RATE, max_seconds=_LONGEST)
    except InvalidInput as error:
        raise BadLine("recordings", manifest, recording.line, error.expected, error.got) from None
    except OSError as error:
        raise BadLine(
            "recordings",
            manifest,
            recording.line,
            "a readable file",
            f"'{recording.path}' ({error.strerror})",
        ) from None
    speech = activity(pcm)
    run = spoken_run(speech.active)
    shortest = 5 if speech.f0_hz else 10  # frames: a click is short and has no pitch
    if run is None or speech.level_db < -70 or run[1] - run[0] < shortest:
        raise BadLine("recordings", manifest, recording.line, "a spoken word", "a recording without speech")
    hop = SAMPLE_RATE // 100
    pcm = pcm[max(run[0] * hop - hop // 2, 0) : (run[1] + 1) * hop + hop // 2].copy()
    fade = np.linspace(0, 1, hop // 2, dtype=np.float32)
    pcm[: len(fade)] *= fade
    pcm[-len(fade) :] *= fade[::-1]
    pcm *= np.float32(10 ** ((-25 - activity(pcm).level_db) / 20))
    return Spoken(pcm, voiced_f0(pcm))


class RecordedSpeaker:
    """Says digits out of one speaker's takes, moved to the pitch, pace and level wanted.

    tract: the resonances of the voice are multiplied by it.
    """

    pitches = tuple(TARGET_F0)

    def __init__(self, recordings: Recordings, name: str, split: str, tract: float) -> None:
        self.recordings, self.name, self.tract = recordings, name, tract
        self._takes = recordings.takes[split][name]

    def say(
        self, sentence: str, rng: np.random.Generator, *, pitch: str, rate: str, loudness: str
    ) -> Utterance:
        """``sentence`` (digits; a comma is a pause) with the measured labels asked for."""
        for _ in range(_DRAWS):
            takes = [self._takes[word] for word in words_of(sentence)]
            words = [self.recordings.spoken(found[int(rng.integers(len(found)))]) for found in takes]
            utterance = self._moved(sentence, words, rng, pitch, rate, loudness)
            if utterance is not None:
                return utterance
        raise OutOfReach(f"{self.name} does not say {sentence!r} {rate}, {pitch}, {loudness}")

    def _moved(
        self,
        sentence: str,
        words: list[Spoken],
        rng: np.random.Generator,
        pitch: str,
        rate: str,
        loudness: str,
    ) -> Utterance | None:
        """These takes, corrected until they measure as wanted, or None."""
        wanted_f0, wanted_rate = log_uniform(rng, *TARGET_F0[pitch]), rng.uniform(*TARGET_RATE[rate])
        wanted_db, syllables = rng.uniform(*TARGET_LEVEL[loudness]), syllables_of(sentence)
        gaps = _gaps(sentence, rate, rng)
        voiced = np.concatenate([word.f0 for word in words])
        if not voiced.size:
            return None
        spoken = sum(len(word.pcm) for word in words) / SAMPLE_RATE
        pauses = sum(gap for gap in gaps if gap < 0.15)
        shift, time = wanted_f0 / float(np.median(voiced)), (syllables / wanted_rate - pauses) / spoken
        for _ in range(_ATTEMPTS):
            shift, time = float(np.clip(shift, *_PITCH_SHIFT)), float(np.clip(time, *_STRETCH))
            # higher voices have shorter tracts: a fifth of an octave per octave
            moved = [warp(word.pcm, pitch=shift, time=time, tract=self.tract * shift**0.2) for word in words]
            pcm, placed = _join(moved, words_of(sentence), gaps, rng)
            pcm, final = in_room(pcm, wanted_db, rng)
            f0, measured = final.f0_hz, syllables / max(final.seconds, 0.05)
            sound = classify(f0, measured, final.level_db, RATE_OF_WORDS)
            if sound is not None and (sound.pitch, sound.rate, sound.loudness) == (pitch, rate, loudness):
                return Utterance(augment.noise(pcm, sound.level_db, rng), placed, sound)
            if f0 and label(PITCH_HZ, f0) != pitch:
                shift *= min(max(wanted_f0 / f0, 0.75), 1.33)
            if label(RATE_OF_WORDS, measured) != rate:
                time *= measured / wanted_rate
        return None


def _gaps(sentence: str, rate: str, rng: np.random.Generator) -> list[float]:
    """Seconds of silence before each word but the first: digits run on or stand apart, a comma is a pause."""
    scale = {"slow": 1.3, "normal": 1.0, "fast": 0.6}[rate]
    apart = rng.random() < 0.5
    gaps = []
    for word in sentence.split()[:-1]:
        if word.endswith(","):
            gaps.append(rng.uniform(0.35, 0.6))
        else:
            gaps.append(scale * (rng.uniform(0.27, 0.4) if apart else rng.uniform(0.03, 0.1)))
    return gaps


def _join(
    pieces: list[np.ndarray], names: tuple[str, ...], gaps: list[float], rng: np.random.Generator
) -> tuple[np.ndarray, tuple[Word, ...]]:
    """Words one after the other with silence around them, each up to 1.5 dB louder or softer than written."""
    before, after = rng.uniform(0.06, 0.25, 2)
    parts, placed = [np.zeros(int(before * SAMPLE_RATE), np.float32)], []
    at = len(parts[0])
    for piece, name, gap in zip(pieces, names, [*gaps, float(after)], strict=True):
        silence = np.zeros(int(gap * SAMPLE_RATE), np.float32)
        placed.append((name, at / SAMPLE_RATE, (at + len(piece)) / SAMPLE_RATE))
        parts += [piece * np.float32(10 ** (rng.uniform(-1.5, 1.5) / 20)), silence]
        at += len(piece) + len(silence)
    return np.concatenate(parts), tuple(placed)


Takes = dict[str, dict[str, tuple[Recording, ...]]]  # by speaker and word


def _split(
    manifest: str, entries: list[Recording], speakers: tuple[str, ...], leave_out: str
) -> dict[str, Takes]:
    found: dict[tuple[str, str], list[Recording]] = defaultdict(list)
    for entry in entries:
        found[entry.speaker, entry.word].append(entry)
    splits: dict[str, Takes] = {split: {} for split in SPLITS}
    for speaker in speakers:
        for word in DIGITS:
            takes = sorted(found[speaker, word], key=lambda entry: (entry.take, entry.line))
            needed = 1 if speaker == leave_out else 3
            if len(takes) < needed:
                raise InvalidInput(
                    "recordings", manifest, f"at least {needed} of {word!r} by {speaker!r}", str(len(takes))
                )
            kept = min(max(len(takes) // 5, 1), 5)
            parts = (
                {"heldout": takes}
                if speaker == leave_out
                else {
                    "validation": takes[:kept],
                    "practice": takes[kept : 2 * kept],
                    "train": takes[2 * kept :],
                }
            )
            for split, part in parts.items():
                splits[split].setdefault(speaker, {})[word] = tuple(part)
    return splits
