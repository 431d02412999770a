# SPDX-License-Identifier: Apache-2.0
"""By what people judge speech: pitch, voicing and energy in 100 frames a second, and speaking rate.

Importing this loads no torch. Use it through earnest.features, where its names stand beside log-mel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import earnest._native as _native
from earnest.audio import resample
from earnest.errors import InvalidInput
from earnest.waveform import as_pcm, check_rate, check_samples, like


@dataclass(frozen=True, eq=False)
class PitchTrack:
    """Pitch frames, float32 [frames] each (torch tensors if the samples were one).

    f0: fundamental frequency in Hz, 0 where unvoiced.
    voicing: periodicity of the frame's best period, 0 (noise, silence) to 1 (a periodic wave).
    energy: mean square over the 20 ms around the frame's centre, without a constant offset; 10 * log10 of it
        is a level in dB.
    """

    f0: Any
    voicing: Any
    energy: Any

    @staticmethod
    def join(tracks: Iterable[PitchTrack]) -> PitchTrack:
        """One track of the frames of several, in their order; of the kind (numpy or torch) of the first.

        Joined parts of a stream are the frames of its clip so far, with f0, voicing and energy final, bit for
        bit. Nuclei and speaking rate are those of the clip so far: how loud a syllable has to be depends on
        the loudest frames of the track, so that both may change for frames long past when somebody speaks up.
        When all of the clip is joined, they too are exactly those of the whole clip.
        """
        parts = list(tracks)
        wrong = next((part for part in parts if not isinstance(part, PitchTrack)), None)
        if wrong is not None:
            raise InvalidInput("pitch", "tracks", "PitchTracks", type(wrong).__name__)
        if not parts:
            return PitchTrack(*np.empty((3, 0), np.float32))
        values = [
            np.concatenate([np.asarray(getattr(part, name)) for part in parts])
            for name in ("f0", "voicing", "energy")
        ]
        return PitchTrack(*(like(parts[0].f0, joined) for joined in values))

    @property
    def syllable_nuclei(self) -> np.ndarray:
        """The frames of the syllables' nuclei, int64 [nuclei]: voiced peaks of the level with dips of 2 dB
        between them (de Jong and Wempe 2009)."""
        return self._nuclei()[0]

    @property
    def speaking_rate(self) -> float:
        """Syllable nuclei per second of speaking, silences above 150 ms left out; 0 where nobody speaks.

        An estimate: fast speech is taken for slower than it is (kernels/pitch has the figures).
        """
        nuclei, seconds = self._nuclei()
        return len(nuclei) / seconds if seconds else 0.0

    def _nuclei(self) -> tuple[np.ndarray, float]:
        at = np.empty(len(self.f0), np.int64)
        count, seconds = _native.pitch_nuclei(np.asarray(self.energy), np.asarray(self.f0), at)
        return at[:count], seconds


class Pitch:
    """Fundamental frequency by autocorrelation and a path search that guards against octave errors.

    kernels/pitch has the formula, its sources and how it compares with Praat and WORLD. A frame is decided
    from 225 ms of what follows it, so that a stream gives the same bits as the whole clip.

    f0_min, f0_max: range searched, Hz. voicing_threshold: periodicity below which a frame is unvoiced.
    silence_threshold: amplitude, relative to the loudest frame so far, below which a frame tends to unvoiced.
    """

    hop_seconds = 0.01

    def __init__(
        self,
        f0_min: float = 65.0,
        f0_max: float = 600.0,
        *,
        voicing_threshold: float = 0.45,
        silence_threshold: float = 0.03,
    ) -> None:
        if not 20.0 <= f0_min < f0_max <= 2000.0:
            bounds = "20 <= f0_min < f0_max <= 2000 Hz"
            raise InvalidInput("pitch", "f0_min, f0_max", bounds, f"{f0_min}, {f0_max}")
        thresholds = {"voicing_threshold": voicing_threshold, "silence_threshold": silence_threshold}
        for name, value in thresholds.items():
            if not 0.0 <= value <= 1.0:
                raise InvalidInput("pitch", name, "0 to 1", repr(value))
        self.f0_min, self.f0_max = float(f0_min), float(f0_max)
        self.voicing_threshold, self.silence_threshold = voicing_threshold, silence_threshold

    def __call__(self, pcm: Any, sample_rate: int = 16000) -> PitchTrack:
        """pcm float32 [samples], mono -> PitchTrack of floor(samples * 100 / sample_rate) frames.

        numpy array or CPU tensor in, the same out. Another sample_rate than 16000 is resampled first (soxr,
        high quality). Raises InvalidInput for no samples, NaN, Inf, magnitudes above 1e15, another dtype or
        more than one axis.
        """
        samples = _at_16k(pcm, sample_rate)
        out = np.empty((3, samples.size // 160), np.float32)
        try:
            _native.pitch(samples, self._settings(), out)
        except ValueError:
            check_samples("pitch", samples)  # says the same as an InvalidInput
            raise
        return _track(pcm, out)

    def batch(self, clips: Sequence[Any], sample_rate: int = 16000) -> list[PitchTrack]:
        """What calling it with each clip gives, bit for bit; a clip a thread."""
        samples = [_at_16k(pcm, sample_rate) for pcm in clips]
        out = [np.empty((3, clip.size // 160), np.float32) for clip in samples]
        try:
            _native.pitch_batch(samples, self._settings(), out)
        except ValueError:
            for clip in samples:
                check_samples("pitch", clip)
            raise
        return [_track(pcm, values) for pcm, values in zip(clips, out, strict=True)]

    def stream(self) -> PitchStream:
        """The frames of a clip at 16 kHz while its samples arrive."""
        return PitchStream(self._settings())

    def _settings(self) -> _native.PitchSettings:
        thresholds = self.voicing_threshold, self.silence_threshold
        return _native.PitchSettings(self.f0_min, self.f0_max, *thresholds)


class PitchStream:
    """Push chunks of any size, take the frames that were decided, finish.

    What push and finish return, joined (PitchTrack.join), equals Pitch of the whole clip bit for bit; what
    they have returned so far, joined, has the nuclei and the speaking rate of the clip so far. The stream
    keeps no frame that it has returned. With f0_min 65 a frame is decided 225 ms after its centre. Made by
    Pitch.stream(); one owner, no threads.
    """

    def __init__(self, settings: _native.PitchSettings) -> None:
        self._stream = _native.PitchStream(settings)
        self._pushed = 0
        self._kind: Any = None  # finish gives what the last push was given

    def push(self, pcm: Any) -> PitchTrack:
        """pcm float32 [samples] at 16 kHz, none or more -> the k >= 0 frames that are now decided.

        A refused chunk (InvalidInput, see Pitch) leaves the stream as it was.
        """
        samples = as_pcm("pitch", pcm)
        try:
            self._stream.push(samples)
        except ValueError:
            check_samples("pitch", samples, self._pushed)
            raise InvalidInput("pitch", "push", "a stream that is not finished", "one that is") from None
        self._pushed += samples.size
        self._kind = pcm[:0]  # its type, without its memory's contents
        return self._read()

    def finish(self) -> PitchTrack:
        """The last frames. Needs at least one sample; nothing can be pushed after."""
        try:
            self._stream.finish()
        except ValueError:
            check_samples("pitch", np.zeros(0, np.float32), self._pushed)
            raise InvalidInput("pitch", "finish", "a stream that is not finished", "one that is") from None
        return self._read()

    def _read(self) -> PitchTrack:
        out = np.empty((3, self._stream.ready()), np.float32)
        self._stream.read(out)
        return _track(self._kind, out)


def _at_16k(pcm: Any, sample_rate: int) -> np.ndarray:
    """The samples at 16 kHz, as many as floor(samples * 100 / sample_rate) frames have, or the few more."""
    samples = as_pcm("pitch", pcm)
    check_rate("pitch", sample_rate)
    if sample_rate == 16000:
        return samples
    check_samples("pitch", samples)
    length = samples.size * 16000 // int(sample_rate)  # the resampler may give one more or less
    moved = resample(samples, int(sample_rate), 16000)[: max(length, 1)]
    return np.pad(moved, (0, max(length - moved.size, 0)), mode="edge")


def _track(source: Any, values: np.ndarray) -> PitchTrack:
    f0, voicing, energy = values
    return PitchTrack(like(source, f0), like(source, voicing), like(source, energy))
