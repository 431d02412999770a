# SPDX-License-Identifier: Apache-2.0
"""Cases of log-mel, Whisper's definition: whole clips, and a stream that a chunk arrives at.

Our timed call is at the level of the fastest peer's: the extension's own function with the caller's `out`.
The Python class is timed too, as "earnest LogMel".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from earnest.bench import peers
from earnest.bench.case import ALSO, OURS, Case, Implementation, Problem, Target, largest_difference

RATE, HOP, WINDOW = 16000, 160, 400
WHOLE = Target(ratio=2.2, error=2e-6)
# The targets are 0.6 and 2.0 us where the best peer took 3.4 and 5.8.
STREAM = {10: Target(ratio=3.4 / 0.6), 80: Target(ratio=5.8 / 2.0)}
TOLERANCE = 1e-4  # on Whisper's scale; float32 transforms differ by some 1e-5 where a band is almost empty
FILTER_TAPS = {80: 391, 128: 394}
CHECKED_SECONDS = 3
RECOMPUTED = "not a stream: the chunk and 400 samples before it anew, with their own maximum"


def cases() -> list[Case]:
    found = [whole(seconds, n_mels) for n_mels in (80, 128) for seconds in (30, 1)]
    return found + [stream(chunk, n_mels) for n_mels in (80, 128) for chunk in (10, 80)]


def operations(n_mels: int) -> int:
    """Of a frame: a real FFT of 400 (2.5 n log2 n), window and power, filters, some 20 for each logarithm."""
    return round(2.5 * WINDOW * np.log2(WINDOW)) + 1000 + 2 * FILTER_TAPS[n_mels] + 20 * n_mels


def whole(seconds: int, n_mels: int) -> Case:
    return Case(
        name=f"logmel/{seconds}s-{n_mels}-bins",
        problem=lambda rng: _whole_problem(rng, seconds, n_mels),
        shape={"seconds": seconds, "n_mels": n_mels},
        target=WHOLE if seconds == 30 else Target(),
        per=(100 * seconds, "frame"),
        quick=seconds == 1,
    )


def _whole_problem(rng: np.random.Generator, seconds: int, n_mels: int) -> Problem:
    frames = 100 * seconds
    moved = 4 * (RATE * seconds + n_mels * frames)

    def one() -> tuple[np.ndarray, np.ndarray]:
        pcm = rng.uniform(-0.5, 0.5, RATE * seconds).astype(np.float32)
        return pcm, np.zeros((n_mels, frames), np.float32)

    return Problem(
        inputs=[one() for _ in range(peers.sets_beyond_caches(moved))],
        reference=lambda pcm, out: [normalize(raw(pcm, n_mels))],
        error=largest_difference,
        implementations=[
            Implementation("earnest", _ours, OURS, tolerance=1e-5),
            Implementation("earnest LogMel", lambda: _our_class(n_mels), ALSO),
            Implementation("torch.stft", lambda: _torch(n_mels), prepare=_as_tensor, extra=False),
            Implementation("asrfront", lambda: _asrfront(n_mels)),
            Implementation("librosa", lambda: _librosa(n_mels)),
            Implementation("transformers", lambda: _transformers(n_mels), outputs=lambda x: [x[0]]),
        ][: None if seconds == 30 else 5],  # transformers pads every clip to 30 s
        tolerance=TOLERANCE,
        bytes=moved,
        operations=operations(n_mels) * frames,
    )


def stream(milliseconds: int, n_mels: int) -> Case:
    return Case(
        name=f"logmel/stream-{milliseconds}ms-{n_mels}-bins",
        problem=lambda rng: _stream_problem(rng, milliseconds, n_mels),
        shape={"milliseconds": milliseconds, "n_mels": n_mels},
        target=STREAM[milliseconds],
        per=(1, "push"),
        quick=n_mels == 80,
    )


def _stream_problem(rng: np.random.Generator, milliseconds: int, n_mels: int) -> Problem:
    samples, frames = RATE * milliseconds // 1000, milliseconds // 10
    clip = rng.uniform(-0.5, 0.5, RATE * CHECKED_SECONDS).astype(np.float32)
    chunks = [
        (
            rng.uniform(-0.5, 0.5, samples).astype(np.float32),
            rng.uniform(-0.5, 0.5, WINDOW).astype(np.float32),
        )
        for _ in range(16)
    ]

    def anew(chunk: np.ndarray, past: np.ndarray) -> list[np.ndarray]:
        return [normalize(raw(np.concatenate([past, chunk]), n_mels))]

    return Problem(
        inputs=chunks,
        reference=lambda *_: [raw(clip, n_mels)],
        error=largest_difference,
        implementations=[
            Implementation(
                "earnest",
                lambda: _push(n_mels),
                OURS,
                prepare=lambda chunk, past: (chunk,),
                checked=lambda *_: _streamed(clip, samples, n_mels),
                tolerance=1e-4,
            ),
            Implementation(
                "earnest LogMel",
                lambda: _our_stream(n_mels).push,
                ALSO,
                prepare=lambda chunk, past: (chunk,),
                checked=lambda *_: _streamed_by_class(clip, samples, n_mels),
                tolerance=1e-4,
            ),
            Implementation(
                "torch.stft",
                lambda: _torch(n_mels),
                prepare=lambda chunk, past: _as_tensor(*_recomputed(chunk, past, n_mels)),
                reference=anew,
                definition=RECOMPUTED,
                extra=False,
            ),
            Implementation(
                "asrfront",
                lambda: _asrfront(n_mels),
                prepare=lambda chunk, past: _recomputed(chunk, past, n_mels),
                reference=anew,
                definition=RECOMPUTED,
            ),
            Implementation(
                "kaldi-native-fbank",
                lambda: _kaldi(n_mels),
                prepare=lambda chunk, past: (chunk.tolist(),),
                reference=None,
                definition="Kaldi's filter banks (25 ms, FFT of 512), not Whisper's; not compared",
            ),
        ][: None if n_mels == 80 else 4],  # Kaldi's FFT is too short for 128 bands
        tolerance=TOLERANCE,
        bytes=4 * (samples + n_mels * frames),
        operations=operations(n_mels) * frames,
    )


# ---- the definition, in float64 ----


def filters(n_mels: int) -> np.ndarray:
    """[n_mels, 201]: Slaney's triangles of area 1 from 0 to 8000 Hz."""
    points = np.linspace(0.0, 15 + 27 * np.log(8.0) / np.log(6.4), n_mels + 2)
    hertz = np.where(points < 15, points * 200 / 3, 1000 * np.exp((points - 15) / 27 * np.log(6.4)))[:, None]
    bins = np.arange(WINDOW // 2 + 1) * RATE / WINDOW
    rising = (bins - hertz[:-2]) / (hertz[1:-1] - hertz[:-2])
    falling = (hertz[2:] - bins) / (hertz[2:] - hertz[1:-1])
    return np.clip(np.minimum(rising, falling), 0, None) * 2 / (hertz[2:] - hertz[:-2])


def hann() -> np.ndarray:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)


def raw(pcm: np.ndarray, n_mels: int) -> np.ndarray:
    """log10 of the mel powers [n_mels, frames]."""
    padded = np.pad(pcm.astype(np.float64), WINDOW // 2, mode="reflect")
    cut = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][: len(pcm) // HOP]
    power = np.abs(np.fft.rfft(cut * hann())) ** 2
    return np.log10(np.maximum(filters(n_mels) @ power.T, 1e-10))


def normalize(features: np.ndarray) -> np.ndarray:
    return (np.maximum(features, features.max() - 8) + 4) / 4


# ---- ours ----


def _ours() -> Callable[..., Any]:
    from earnest import _native

    def run(pcm: np.ndarray, out: np.ndarray) -> np.ndarray:
        _native.logmel(pcm, out, False)
        _native.logmel_normalize(out, out)
        return out

    return run


def _our_class(n_mels: int) -> Callable[..., Any]:
    from earnest.features import LogMel

    features = LogMel(n_mels)
    return lambda pcm, out: features(pcm)


def _our_stream(n_mels: int) -> Any:
    from earnest.features import LogMel

    return LogMel(n_mels).stream()


def _push(n_mels: int) -> Callable[..., Any]:
    from earnest import _native

    stream = _native.LogMelStream(n_mels, False)
    room = {k: np.empty((n_mels, k), np.float32) for k in range(20)}

    def push(chunk: np.ndarray) -> np.ndarray:
        out = room[stream.ready(chunk.size)]
        stream.push(chunk, out)
        return out

    return push


def _streamed(clip: np.ndarray, samples: int, n_mels: int) -> np.ndarray:
    """A whole clip through the function that is timed, and its end through the class's finish."""
    push = _push(n_mels)
    parts = [push(clip[i : i + samples]).copy() for i in range(0, len(clip), samples)]
    rest = _streamed_by_class(clip, samples, n_mels)[:, sum(part.shape[1] for part in parts) :]
    return np.concatenate([*parts, rest], 1)


def _streamed_by_class(clip: np.ndarray, samples: int, n_mels: int) -> np.ndarray:
    from earnest.bench.harness import WrongResult
    from earnest.features import LogMel

    stream = LogMel(n_mels).stream()
    parts = [stream.push(clip[i : i + samples]) for i in range(0, len(clip), samples)]
    found = np.concatenate([*parts, stream.finish()], 1)
    if not np.array_equal(found, LogMel(n_mels).raw(clip)):
        raise WrongResult("a stream's frames are not those of the whole clip, bit for bit")
    return found


# ---- peers ----


def _as_tensor(pcm: np.ndarray, out: np.ndarray) -> tuple:
    import torch

    return (torch.from_numpy(pcm),)


def _torch(n_mels: int) -> Callable[..., Any]:
    """openai-whisper's formula."""
    import torch

    window = torch.from_numpy(hann()).float()
    bank = torch.from_numpy(filters(n_mels)).float()

    def run(pcm: Any) -> Any:
        spectrum = torch.stft(pcm, WINDOW, HOP, window=window, return_complex=True)
        mel = bank @ spectrum[..., :-1].abs() ** 2
        logarithm = torch.clamp(mel, min=1e-10).log10()
        return (torch.maximum(logarithm, logarithm.max() - 8.0) + 4.0) / 4.0

    return run


def _asrfront(n_mels: int) -> Callable[..., Any]:
    front = peers.load("asrfront._ext", "asrfront").WhisperFrontend(n_mels=n_mels, pad_or_trim=False)

    def run(pcm: np.ndarray, out: np.ndarray) -> np.ndarray:
        front.log_mel(pcm, out)
        return out

    return run


def _recomputed(chunk: np.ndarray, past: np.ndarray, n_mels: int) -> tuple:
    both = np.concatenate([past, chunk])
    return both, np.empty((n_mels, len(both) // HOP), np.float32)


def _librosa(n_mels: int) -> Callable[..., Any]:
    librosa = peers.load("librosa")
    bank = filters(n_mels).astype(np.float32)

    def run(pcm: np.ndarray, out: np.ndarray) -> np.ndarray:
        spectrum = librosa.stft(pcm, n_fft=WINDOW, hop_length=HOP, pad_mode="reflect")[:, :-1]
        logarithm = np.log10(np.maximum(bank @ (np.abs(spectrum) ** 2), 1e-10))
        return (np.maximum(logarithm, logarithm.max() - 8) + 4) / 4

    return run


def _transformers(n_mels: int) -> Callable[..., Any]:
    extractor = peers.load("transformers").WhisperFeatureExtractor(feature_size=n_mels)
    return lambda pcm, out: extractor(pcm, sampling_rate=RATE, return_tensors="np").input_features


def _kaldi(n_mels: int) -> Callable[..., Any]:
    kaldi = peers.load("kaldi_native_fbank", "kaldi-native-fbank")
    options = kaldi.FbankOptions()
    options.frame_opts.dither = 0.0
    options.mel_opts.num_bins = n_mels
    stream, popped = kaldi.OnlineFbank(options), 0

    def push(chunk: list[float]) -> int:
        nonlocal popped
        stream.accept_waveform(RATE, chunk)
        ready = stream.num_frames_ready
        for frame in range(popped, ready):
            stream.get_frame(frame)
        stream.pop(ready - popped)
        popped = ready
        return ready

    return push
