# SPDX-License-Identifier: Apache-2.0
"""Cases of log-mel on a GPU: clips of 30 s, one and many, and one step of many streams."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from earnest.bench import peers
from earnest.bench.case import ALSO, OURS, Absent, Case, Implementation, Problem, Target, largest_difference
from earnest.bench.gpu_forecast import BRIEF, LOADING
from earnest.bench.logmel import HOP, RATE, WINDOW, filters, operations

MELS = 128
PATHS = ("loops", "unrolled bands", "unrolled")  # of one kernel (kernels/logmel/README.md)
CHECKED_STEPS = 10
TOLERANCE = 1e-4  # on Whisper's scale: peers' transforms are in float32


def cases() -> list[Case]:
    return [clips(1), clips(64), streams(512, 80)]


def clips(count: int, seconds: int = 30, device: str = "cuda") -> Case:
    targets = {1: Target(seconds=12e-6, ratio=10.0), 64: Target(fraction=0.6, ratio=10.0)}
    return Case(
        name=f"logmel/cuda-{count}x{seconds}s-{MELS}-bins",
        problem=partial(_clips, count=count, seconds=seconds, device=device),
        shape={"clips": count, "seconds": seconds, "n_mels": MELS},
        target=targets.get(count, Target()),
        per=(100 * seconds * count, "frame"),
        quick=count == 1,
        device=device,
        setup=2 * BRIEF + LOADING,
        compiles=True,
    )


def streams(count: int, milliseconds: int, device: str = "cuda") -> Case:
    return Case(
        name=f"logmel/cuda-{count}-streams-{milliseconds}ms-{MELS}-bins",
        problem=partial(_streams, count=count, milliseconds=milliseconds, device=device),
        shape={"streams": count, "milliseconds": milliseconds, "n_mels": MELS},
        target=Target(seconds=20e-6),
        per=(count, "stream"),
        quick=True,
        device=device,
        setup=2 * BRIEF,
    )


def _noise(rng: np.random.Generator, *shape: int, device: str) -> Any:
    import torch

    g = torch.Generator(device).manual_seed(int(rng.integers(1 << 31)))
    return torch.rand(shape, generator=g, device=device) - 0.5


def _clips(rng: np.random.Generator, count: int, seconds: int, device: str) -> Problem:
    frames = count * 100 * seconds
    return Problem(
        inputs=[(_noise(rng, count, RATE * seconds, device=device),)],
        reference=lambda pcm: [normalized(raw(pcm))],
        error=largest_difference,
        implementations=[
            Implementation("earnest", _ours, OURS, tolerance=1e-5),
            *(
                Implementation(f"earnest, {path}", partial(_by, path, device), ALSO, tolerance=1e-5)
                for path in PATHS
            ),
            Implementation("torch.stft", lambda: _by_stft(device), extra=False),
            Implementation(
                "torch.compile, torch.stft", lambda: peers.compiled(_by_stft(device)), compiles=True
            ),
            Implementation(
                "torchaudio MelSpectrogram",
                lambda: _torchaudio(device),
                outputs=lambda power: [normalized(power[..., :-1].clamp(min=1e-10).log10())],
                definition="the powers alone: no logarithm, no normaliser",
            ),
        ],
        tolerance=TOLERANCE,
        bytes=4 * (count * RATE * seconds + MELS * frames),
        operations=operations(MELS) * frames,
    )


def _ours() -> Callable[..., Any]:
    from earnest.features import LogMel

    return LogMel(MELS).batch


def _by(path: str, device: str) -> Callable[..., Any]:
    from earnest import logmel_batch

    if device != "cuda":
        raise Absent("paths are the GPU's")
    scratch: dict[Any, Any] = {}
    return lambda pcm: logmel_batch.features(pcm, MELS, False, True, scratch, lambda: None, path)


def _streams(rng: np.random.Generator, count: int, milliseconds: int, device: str) -> Problem:
    samples, frames = RATE * milliseconds // 1000, milliseconds // 10
    pcm = _noise(rng, count, samples * CHECKED_STEPS, device=device)
    last = pcm[:, -samples:].contiguous()

    def stepped(*_: Any) -> Any:
        """Some steps of all streams, and their ends."""
        import torch

        made = _made(count, device)
        parts = [made.push(pcm[:, i : i + samples].contiguous()) for i in range(0, pcm.shape[1], samples)]
        parts.append(made.finish())
        return torch.stack([torch.cat(stream, 1) for stream in zip(*parts, strict=True)])

    return Problem(
        inputs=[(last,)],
        reference=lambda _: [raw(pcm)],
        error=largest_difference,
        implementations=[
            Implementation(
                "earnest", lambda: _made(count, device).push, OURS, checked=stepped, tolerance=1e-4
            ),
            Implementation(
                "torch.stft",
                lambda: _by_stft(device),
                prepare=lambda chunk: (pcm[:, -samples - WINDOW :].contiguous(),),
                reference=lambda _: [normalized(raw(pcm[:, -samples - WINDOW :]))],
                definition="not streams: the chunks and 400 samples before them anew",
                extra=False,
            ),
        ],
        tolerance=TOLERANCE,
        bytes=4 * count * (samples + MELS * frames + 2 * WINDOW),
        operations=operations(MELS) * frames * count,
    )


def _made(count: int, device: str) -> Any:
    from earnest.features import LogMel

    return LogMel(MELS).streams(count, device)


# ---- by its definition, and by others ----


def raw(pcm: Any) -> Any:
    """log10 of the mel powers in float64, [clips, n_mels, frames], of pcm [clips, samples]."""
    import torch

    window = torch.hann_window(WINDOW, dtype=torch.float64, device=pcm.device)
    return _log_powers(pcm.double(), window, _filters(pcm.device).double())


def normalized(raw_features: Any) -> Any:
    import torch

    top = raw_features.amax((1, 2), keepdim=True) - 8
    return (torch.maximum(raw_features, top) + 4) / 4


def _by_stft(device: str) -> Callable[..., Any]:
    """As transformers and Whisper compute it, in float32."""
    import torch

    window, mel = torch.hann_window(WINDOW, device=device), _filters(device)
    return lambda pcm: normalized(_log_powers(pcm, window, mel))


def _log_powers(pcm: Any, window: Any, mel: Any) -> Any:
    import torch

    spectrum = torch.stft(pcm, WINDOW, HOP, window=window, return_complex=True)[..., :-1]
    return (mel @ (spectrum.real**2 + spectrum.imag**2)).clamp(min=1e-10).log10()


def _filters(device: Any) -> Any:
    import torch

    return torch.from_numpy(filters(MELS)).float().to(device)


def _torchaudio(device: str) -> Callable[..., Any]:
    transforms = peers.load("torchaudio.transforms", "torchaudio")
    return transforms.MelSpectrogram(
        RATE, WINDOW, hop_length=HOP, n_mels=MELS, norm="slaney", mel_scale="slaney"
    ).to(device)
