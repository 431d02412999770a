# SPDX-License-Identifier: Apache-2.0
"""What is measured from the waveform, on one clock of 100 frames a second: log-mel, pitch, voicing, energy.

Frame t is centred on second t / 100, and a clip has floor(seconds * 100) frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

import earnest._native as _native
from earnest import logmel_batch
from earnest.audio import resample
from earnest.errors import InvalidInput
from earnest.logmel_batch import LogMelStreams
from earnest.ops import cuda
from earnest.ops.cupy_arrays import accepts_cupy
from earnest.pitch import Pitch, PitchStream, PitchTrack
from earnest.waveform import as_pcm as _as_pcm
from earnest.waveform import check_rate as _check_rate
from earnest.waveform import check_samples as _check_samples
from earnest.waveform import like as _like

__all__ = ["LogMel", "LogMelStream", "LogMelStreams", "Pitch", "PitchStream", "PitchTrack"]


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
        self._scratch: dict[tuple[torch.device, int], torch.Tensor] = {}  # of the GPU

    @accepts_cupy
    def __call__(self, pcm: Any, sample_rate: int = 16000) -> Any:
        """pcm float32 [samples], mono -> float32 [n_mels, frames], normalised by the clip's own maximum.

        numpy or cupy array or tensor in, the same out (no gradients). Another sample_rate than 16000 is
        resampled first (soxr, high quality; on the CPU alone). Raises InvalidInput for no samples, NaN, Inf,
        magnitudes above 1e15, another dtype or more than one axis.
        """
        if _on_cuda(pcm):
            return self._clips_on_cuda([pcm], sample_rate, normalized=True)[0]
        raw = self._raw(pcm, sample_rate)
        _native.logmel_normalize(raw, raw)
        return _like(pcm, raw)

    @accepts_cupy
    def raw(self, pcm: Any, sample_rate: int = 16000) -> Any:
        """The same before the normaliser: log10 of the mel powers, at least -10, float32 [n_mels, frames]."""
        if _on_cuda(pcm):
            return self._clips_on_cuda([pcm], sample_rate, normalized=False)[0]
        return _like(pcm, self._raw(pcm, sample_rate))

    @accepts_cupy
    def batch(self, pcm: Sequence[Any] | Any, sample_rate: int = 16000, *, raw: bool = False) -> Any:
        """The features of many clips, on cuda in one launch.

        Clips [samples] in a list -> a list of float32 [n_mels, frames]; tensor or cupy array [clips, samples]
        -> its like [clips, n_mels, frames]. Each as `__call__` (or `raw`) gives it, bit for bit. InvalidInput
        names the clip."""
        if isinstance(pcm, torch.Tensor):
            if pcm.ndim != 2:
                raise InvalidInput("logmel", "pcm", "[clips, samples], or a list", str(list(pcm.shape)))
            if _on_cuda(pcm):
                return self._clips_on_cuda(pcm, sample_rate, normalized=not raw)
            return torch.stack(self._clips_by_turns(list(pcm), sample_rate, normalized=not raw))
        clips = list(pcm)
        run = self._clips_on_cuda if clips and all(map(_on_cuda, clips)) else self._clips_by_turns
        return run(clips, sample_rate, normalized=not raw)

    @staticmethod
    @accepts_cupy
    def normalize(raw: Any) -> Any:
        """(max(raw, raw.max() - 8) + 4) / 4 of raw features float32 [n_mels, frames], a whole clip's."""
        if _on_cuda(raw) and raw.dtype == torch.float32 and raw.ndim == 2:
            return logmel_batch.normalized(raw.detach(), {})
        array = raw.detach().numpy() if isinstance(raw, torch.Tensor) and raw.device.type == "cpu" else raw
        if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.ndim != 2:
            got = f"{getattr(raw, 'dtype', type(raw).__name__)} {list(getattr(raw, 'shape', []))}"
            raise InvalidInput("logmel", "raw", "float32 [n_mels, frames]", got)
        out = np.empty(array.shape, np.float32)
        _native.logmel_normalize(np.require(array, requirements=["C", "A"]), out)
        return _like(raw, out)

    def frames(self, samples: int) -> int:
        """How many frames a clip of so many samples at 16 kHz has."""
        return _native.logmel_frames(samples, self._step_audio)

    def stream(self) -> LogMelStream:
        """The raw features of a clip at 16 kHz while its samples arrive."""
        return LogMelStream(self.n_mels, self._step_audio)

    def streams(self, count: int, device: torch.device | str = "cuda") -> LogMelStreams:
        """The raw features of many clips at 16 kHz while their samples arrive, on a GPU."""
        return LogMelStreams(self.n_mels, self._step_audio, count, device)

    def _clips_on_cuda(self, clips: list[Any] | torch.Tensor, sample_rate: int, normalized: bool) -> Any:
        _check_rate("logmel", sample_rate)
        if sample_rate != 16000:
            raise InvalidInput("logmel", "sample_rate", "16000 on cuda", str(sample_rate))
        for place, clip in enumerate(clips):
            logmel_batch.check_samples(_name(place, clips), clip, clips[0].device)
            if not len(clip):
                raise InvalidInput("logmel", _name(place, clips), "at least one sample", "none")
        given = clips.detach() if isinstance(clips, torch.Tensor) else [clip.detach() for clip in clips]

        def explain() -> None:
            self._clips_by_turns([clip.cpu() for clip in given], sample_rate, normalized)

        settings = (self.n_mels, self._step_audio, normalized, self._scratch)
        return logmel_batch.features(given, *settings, explain)

    def _clips_by_turns(self, clips: list[Any], sample_rate: int, normalized: bool) -> list[Any]:
        run, found = self if normalized else self.raw, []
        for place, clip in enumerate(clips):
            try:
                found.append(run(clip, sample_rate))
            except InvalidInput as error:
                name = _name(place, clips) if error.argument == "pcm" else error.argument
                raise InvalidInput(error.op, name, error.expected, error.got) from None
        return found

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


def _on_cuda(pcm: Any) -> bool:
    return isinstance(pcm, torch.Tensor) and cuda.takes(pcm)


def _name(place: int, clips: Any) -> str:
    return "pcm" if len(clips) == 1 else f"pcm[{place}]"


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
