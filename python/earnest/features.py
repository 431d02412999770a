# SPDX-License-Identifier: Apache-2.0
"""What is measured from the waveform, on one clock of 100 frames a second: log-mel, pitch, voicing, energy.

Frame t is centred on second t / 100, and a clip has floor(seconds * 100) frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import soxr
import torch

import earnest._native as _native
from earnest.audio import resample
from earnest.errors import InvalidInput

_MAX_MAGNITUDE = 1e15  # squares of larger samples would leave float32


def _as_pcm(op: str, pcm: Any) -> np.ndarray:
    """The float32 samples of a numpy array or CPU tensor, without a copy."""
    if isinstance(pcm, torch.Tensor):
        if pcm.device.type != "cpu":
            raise InvalidInput(op, "pcm", "a tensor in CPU memory", f"one on {pcm.device}")
        if pcm.dtype != torch.float32:
            raise InvalidInput(op, "pcm", "float32", str(pcm.dtype).removeprefix("torch."))
        pcm = pcm.detach().numpy()
    if not isinstance(pcm, np.ndarray):
        raise InvalidInput(op, "pcm", "a numpy array or torch tensor", type(pcm).__name__)
    if pcm.dtype != np.float32:
        raise InvalidInput(op, "pcm", "float32", str(pcm.dtype))
    if pcm.ndim != 1:
        raise InvalidInput(op, "pcm", "one axis [samples]", f"{pcm.ndim} axes {list(pcm.shape)}")
    return np.ascontiguousarray(pcm)


def _check_samples(op: str, pcm: np.ndarray, before: int = 0) -> None:
    """Refuses what no feature can be computed from; `before` samples of the same stream came earlier."""
    if pcm.size + before == 0:
        raise InvalidInput(op, "pcm", "at least one sample", "none")
    wrong = ~(np.abs(pcm) <= _MAX_MAGNITUDE)
    if wrong.any():
        at = int(wrong.argmax())
        raise InvalidInput(
            op, "pcm", "finite samples of magnitude at most 1e15", f"{pcm[at]} at sample {before + at}"
        )


def _check_rate(op: str, sample_rate: int) -> None:
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, (int, np.integer)):
        raise InvalidInput(op, "sample_rate", "whole samples per second", repr(sample_rate))
    if not 1000 <= sample_rate <= 1_000_000:
        raise InvalidInput(op, "sample_rate", "1,000 to 1,000,000 samples per second", str(sample_rate))


def _like(source: Any, values: np.ndarray) -> Any:
    """values as what source is: a torch tensor (same memory) or the numpy array itself."""
    return torch.from_numpy(values) if isinstance(source, torch.Tensor) else values


class LogMel:
    """Log-mel features by Whisper's definition (kernels/logmel has the formula).

    n_mels: 1 to 256; Whisper's and Step-Audio's encoders take 80 or 128.
    padding: "whisper" gives floor(samples / 160) frames, which is none for a clip shorter than 160 samples;
    "step_audio" appends 479 zeros first, as that family does, and gives floor((samples + 479) / 160).
    A clip is reflected at both ends as often as its length makes necessary.
    """

    def __init__(self, n_mels: int = 128, *, padding: Literal["whisper", "step_audio"] = "whisper") -> None:
        if isinstance(n_mels, bool) or not isinstance(n_mels, (int, np.integer)) or not 1 <= n_mels <= 256:
            raise InvalidInput("logmel", "n_mels", "1 to 256", repr(n_mels))
        if padding not in ("whisper", "step_audio"):
            raise InvalidInput("logmel", "padding", "'whisper' or 'step_audio'", repr(padding))
        self.n_mels, self.padding = int(n_mels), padding
        self._step_audio = padding == "step_audio"

    def __call__(self, pcm: Any, sample_rate: int = 16000) -> Any:
        """pcm float32 [samples], mono -> float32 [n_mels, frames], normalised by the clip's own maximum.

        numpy array or CPU tensor in, the same out (no gradients). Another sample_rate than 16000 is resampled
        first (soxr, high quality). Raises InvalidInput for no samples, NaN, Inf, magnitudes above 1e15,
        another dtype or more than one axis.
        """
        raw = self._raw(pcm, sample_rate)
        _native.logmel_normalize(raw, raw)
        return _like(pcm, raw)

    def raw(self, pcm: Any, sample_rate: int = 16000) -> Any:
        """The same before the normaliser: log10 of the mel powers, at least -10, float32 [n_mels, frames]."""
        return _like(pcm, self._raw(pcm, sample_rate))

    @staticmethod
    def normalize(raw: Any) -> Any:
        """(max(raw, raw.max() - 8) + 4) / 4 of raw features float32 [n_mels, frames], a whole clip's."""
        array = raw.detach().numpy() if isinstance(raw, torch.Tensor) and raw.device.type == "cpu" else raw
        if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.ndim != 2:
            got = f"{getattr(raw, 'dtype', type(raw).__name__)} {list(getattr(raw, 'shape', []))}"
            raise InvalidInput("logmel", "raw", "float32 [n_mels, frames] in CPU memory", got)
        out = np.empty(array.shape, np.float32)
        _native.logmel_normalize(np.ascontiguousarray(array), out)
        return _like(raw, out)

    def frames(self, samples: int) -> int:
        """How many frames a clip of so many samples at 16 kHz has."""
        return _native.logmel_frames(samples, self._step_audio)

    def stream(self) -> LogMelStream:
        """The raw features of a clip at 16 kHz while its samples arrive."""
        return LogMelStream(self.n_mels, self._step_audio)

    def _raw(self, pcm: Any, sample_rate: int) -> np.ndarray:
        samples = _as_pcm("logmel", pcm)
        _check_rate("logmel", sample_rate)
        if sample_rate != 16000:
            _check_samples("logmel", samples)
            samples = resample(samples, int(sample_rate), 16000)
        out = np.empty((self.n_mels, self.frames(samples.size)), np.float32)
        try:
            _native.logmel(samples, out, self._step_audio)
        except ValueError:
            _check_samples("logmel", samples)  # says the same as an InvalidInput
            raise
        return out


class LogMelStream:
    """Push chunks of any size, take the frames that became ready, finish: raw frames, as of LogMel.raw.

    What push and finish return, concatenated, equals LogMel.raw of the whole clip bit for bit. The normaliser
    needs the whole clip's maximum, so it is left to the caller: LogMel.normalize of all frames. A frame is
    ready 200 samples after its centre. Made by LogMel.stream(); one owner, no threads.
    """

    def __init__(self, n_mels: int, step_audio: bool) -> None:
        self._stream = _native.LogMelStream(n_mels, step_audio)
        self._n_mels = n_mels
        self._torch = False  # finish gives what the last push was given

    def push(self, pcm: Any) -> Any:
        """pcm float32 [samples] at 16 kHz, none or more -> float32 [n_mels, k], the k >= 0 frames now ready.

        A refused chunk (InvalidInput, see LogMel) leaves the stream as it was.
        """
        # A chunk takes less than a microsecond: the native side checks it first, and only what that refuses
        # is looked at here.
        if type(pcm) is np.ndarray:
            try:
                out = self._push(pcm)
            except (TypeError, ValueError):
                pass
            else:
                self._torch = False
                return out
        samples = _as_pcm("logmel", pcm)
        try:
            out = self._push(samples)
        except ValueError:
            _check_samples("logmel", samples, self._stream.pushed())
            raise InvalidInput("logmel", "push", "a stream that is not finished", "one that is") from None
        self._torch = isinstance(pcm, torch.Tensor)
        return torch.from_numpy(out) if self._torch else out

    def _push(self, samples: np.ndarray) -> np.ndarray:
        out = np.empty((self._n_mels, self._stream.ready(samples.size)), np.float32)
        self._stream.push(samples, out)
        return out

    def finish(self) -> Any:
        """The last frames, float32 [n_mels, k]. Needs at least one sample; nothing can be pushed after."""
        try:
            self._stream.finish()
        except ValueError:
            _check_samples("logmel", np.zeros(0, np.float32), self._stream.pushed())
            raise InvalidInput("logmel", "finish", "a stream that is not finished", "one that is") from None
        out = np.empty((self._n_mels, self._stream.ready()), np.float32)
        self._stream.read(out)
        return torch.from_numpy(out) if self._torch else out


@dataclass(frozen=True, eq=False)
class PitchTrack:
    """Pitch frames, float32 [frames] each (torch tensors if the samples were one).

    f0: fundamental frequency in Hz, 0 where unvoiced.
    voicing: periodicity of the frame's best period, 0 (noise, silence) to 1 (a periodic wave).
    energy: mean square over the 20 ms around the frame's centre, without the clip's constant offset;
        10 * log10 of it is a level in dB.
    """

    f0: Any
    voicing: Any
    energy: Any


class Pitch:
    """Fundamental frequency by autocorrelation, with a path search that guards against octave errors.

    The method of Boersma (1993, "Accurate short-term analysis of the fundamental frequency ...", Praat's):
    the autocorrelation of a windowed frame, divided by the window's own, peaks at the period with a height
    that says how periodic the frame is. The tallest peaks of each frame compete with "unvoiced", and dynamic
    programming chooses the path over the whole clip, where leaps in pitch and changes of voicing cost.
    Unlike there, the spectrum's magnitude stands for its power and harmonics below 1 kHz weigh most: a strong
    first formant rings at a multiple of the pitch and is otherwise taken for it (120 digits of FSDD, whose
    speakers are men: 180 of 3,748 voiced frames lay above 1.6 times the speaker's median, now 26 of 3,395).

    f0_min, f0_max: range searched, Hz. voicing_threshold: periodicity below which a frame is unvoiced.
    silence_threshold: amplitude, relative to the loudest frame, below which a frame tends to unvoiced.
    """

    hop_seconds = 0.01
    _rate = 8000  # pitch needs no more than the lowest 4 kHz
    _kept = 4  # candidate periods of a frame
    _octave_cost = 0.03  # favours the higher of two equally good candidates: a period's multiples fit as well
    _leap_cost = 0.35  # of one octave between neighbouring frames
    _switch_cost = 0.14  # of a change between voiced and unvoiced
    _noise_floor = 1e-10  # power, relative to the loudest frame, under which there is only rounding to hear
    _weight_corner = 1000.0  # Hz; harmonics below it count most
    _block = 64  # frames worked on at once: small enough to stay in the cache

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
        self.f0_min, self.f0_max = float(f0_min), float(f0_max)
        self.voicing_threshold, self.silence_threshold = voicing_threshold, silence_threshold
        width = round(3 * self._rate / f0_min)
        longest = int(np.ceil(self._rate / f0_min))
        self._fft_size = 1 << int(np.ceil(np.log2(width + longest + 2)))
        self._window = (0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(width) + 0.5) / width)).astype(np.float32)
        self._lags = np.arange(int(self._rate / f0_max), longest + 1)
        # The correlation that the window's own magnitude spectrum has, to divide by.
        magnitude = np.abs(np.fft.rfft(self._window.astype(np.float64), self._fft_size))
        window_correlation = np.fft.irfft(magnitude, self._fft_size)
        around = slice(self._lags[0] - 1, self._lags[-1] + 2)
        self._around = around
        self._unwindow = (window_correlation[0] / window_correlation[around]).astype(np.float32)
        frequency = np.arange(self._fft_size // 2 + 1) * self._rate / self._fft_size
        self._spectral_weight = (1.0 / (1.0 + (frequency / self._weight_corner) ** 4)).astype(np.float32)
        octaves = np.log2(f0_min * self._lags / self._rate)
        self._long_period_cost = (self._octave_cost * octaves).astype(np.float32)

    def __call__(self, pcm: Any, sample_rate: int = 16000) -> PitchTrack:
        """pcm float32 [samples], mono -> PitchTrack of floor(samples * 100 / sample_rate) frames."""
        samples = _as_pcm("pitch", pcm)
        _check_samples("pitch", samples)
        _check_rate("pitch", sample_rate)
        samples = samples - np.float32(samples.mean(dtype=np.float64))
        frames = samples.size * 100 // int(sample_rate)
        energy = _frame_energy(samples, int(sample_rate), frames)
        if frames == 0:
            track = (np.zeros(0, np.float32), np.zeros(0, np.float32), energy)
        else:
            windows = self._windows(samples, int(sample_rate), frames)
            loudest = float(energy.max())
            strength, f0 = self._candidates(self._correlation(windows, loudest * self._noise_floor))
            chosen = self._best_path(strength, f0, self._unvoiced_strength(energy))
            voicing = np.clip(strength.max(1, initial=0.0), 0.0, 1.0)
            track = (np.take_along_axis(f0, chosen[:, None], 1)[:, 0], voicing, energy)
        return PitchTrack(*(_like(pcm, values) for values in track))

    def _windows(self, samples: np.ndarray, sample_rate: int, frames: int) -> np.ndarray:
        """The samples around each frame's centre, a view [frames, width]; silence beyond the clip."""
        if sample_rate != self._rate:
            samples = soxr.resample(samples, sample_rate, self._rate)
        hop, width = self._rate // 100, self._window.size
        padded = np.zeros((frames - 1) * hop + width, np.float32)
        body = padded[width // 2 : width // 2 + samples.size]
        body[:] = samples[: body.size]
        return np.lib.stride_tricks.sliding_window_view(padded, width)[::hop]

    def _correlation(self, windows: np.ndarray, floor: float) -> np.ndarray:
        """Normalised autocorrelation [frames, lags + 2]: the lags searched and one neighbour on each side.

        floor is the power of a frequency bin below which there is only rounding to hear.
        """
        correlation = np.empty((len(windows), self._unwindow.size), np.float32)
        least = np.float32(max(floor, 1e-37))
        for start in range(0, len(windows), self._block):
            block = windows[start : start + self._block]
            cut = (block - block.mean(1, keepdims=True)) * self._window
            # norm="ortho" keeps numpy in float32; the scale cancels in the division.
            spectrum = np.fft.rfft(cut, self._fft_size, norm="ortho")
            power = np.maximum(spectrum.real**2 + spectrum.imag**2, least)
            weighted = (np.sqrt(power) * self._spectral_weight).astype(np.complex64)
            lagged = np.fft.irfft(weighted, self._fft_size, norm="ortho")
            correlation[start : start + self._block] = (
                lagged[:, self._around] / lagged[:, :1] * self._unwindow
            )
        return correlation

    def _candidates(self, correlation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Strength and frequency of each frame's best peaks, [frames, kept + 1]; last column "unvoiced"."""
        left, here, right = correlation[:, :-2], correlation[:, 1:-1], correlation[:, 2:]
        score = np.where((here > left) & (here >= right) & (here > 0), here - self._long_period_cost, -1.0)
        rows = np.arange(len(score))
        strength = np.zeros((len(score), self._kept + 1), np.float32)
        f0 = np.zeros_like(strength)
        for k in range(self._kept):
            peak = score.argmax(1)
            found = score[rows, peak] > -1.0
            score[rows, peak] = -1.0
            a, b, c = left[rows, peak], here[rows, peak], right[rows, peak]
            bend = np.minimum(np.where(found, a - 2 * b + c, -1.0), -1e-12)  # negative at a peak
            shift = np.where(found, 0.5 * (a - c) / bend, 0.0)
            strength[:, k] = np.where(found, np.minimum(b - 0.25 * (a - c) * shift, 1.0), 0.0)
            f0[:, k] = np.where(found, self._rate / (self._lags[peak] + shift), 0.0)
        return strength, f0

    def _unvoiced_strength(self, energy: np.ndarray) -> np.ndarray:
        relative = np.sqrt(energy / max(float(energy.max()), float(np.finfo(np.float32).tiny)))
        quiet = 2.0 - relative * (1.0 + self.voicing_threshold) / self.silence_threshold
        return self.voicing_threshold + np.maximum(quiet, 0.0)

    def _best_path(self, strength: np.ndarray, f0: np.ndarray, unvoiced: np.ndarray) -> np.ndarray:
        """The candidate of each frame [frames] on the path with the greatest sum of strengths less costs."""
        voiced = f0 > 0
        octaves = np.log2(np.where(voiced, f0, 1.0))
        local = strength - self._octave_cost * np.where(voiced, np.log2(self.f0_min) - octaves, 0.0)
        local = np.where(voiced, local, -np.inf)
        local[:, -1] = unvoiced
        voiced[:, -1] = False
        both = voiced[:-1, :, None] & voiced[1:, None, :]
        leap = self._leap_cost * np.abs(octaves[:-1, :, None] - octaves[1:, None, :])
        switch = self._switch_cost * (voiced[:-1, :, None] != voiced[1:, None, :])
        step = local[1:, None, :] - np.where(both, leap, switch)
        came_from = np.empty((len(f0) - 1, f0.shape[1]), np.intp)
        best = local[0]
        for t in range(len(step)):
            through = best[:, None] + step[t]
            through.argmax(0, out=came_from[t])
            best = through.max(0)
        path = np.empty(len(f0), np.intp)
        path[-1] = best.argmax()
        for t in range(len(step) - 1, -1, -1):
            path[t] = came_from[t, path[t + 1]]
        return path


def _frame_energy(samples: np.ndarray, sample_rate: int, frames: int) -> np.ndarray:
    """Mean square over the 20 ms around each frame's centre (as far as the clip goes), float32 [frames]."""
    total = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    bounds = np.minimum((np.arange(-1, frames + 1) * sample_rate) // 100, samples.size)
    first, last = np.maximum(bounds[:-2], 0), bounds[2:]
    return ((total[last] - total[first]) / np.maximum(last - first, 1)).astype(np.float32)
