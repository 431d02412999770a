# SPDX-License-Identifier: Apache-2.0
"""What is measured from the waveform, on one clock of 100 frames a second: log-mel, pitch, voicing, energy.

Frame t is centred on second t / 100, and a clip has floor(seconds * 100) frames.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

import earnest._native as _native
from earnest.audio import resample
from earnest.errors import InvalidInput
from earnest.pitch import Pitch, PitchStream, PitchTrack
from earnest.waveform import as_pcm as _as_pcm
from earnest.waveform import check_rate as _check_rate
from earnest.waveform import check_samples as _check_samples
from earnest.waveform import like as _like

__all__ = ["LogMel", "LogMelStream", "Pitch", "PitchStream", "PitchTrack"]


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
        _native.logmel_normalize(np.require(array, requirements=["C", "A"]), out)
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
