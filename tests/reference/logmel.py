# SPDX-License-Identifier: Apache-2.0
"""Whisper's log-mel in float64 numpy, written from its definition: reflect, window, FFT, filters, log10."""

import numpy as np


def slaney_filters(n_mels: int) -> np.ndarray:
    """[n_mels, 201]: triangles of area 1 between points equally spaced on Slaney's scale, 0 to 8000 Hz."""

    def to_mel(hz: np.ndarray) -> np.ndarray:
        return np.where(hz < 1000, hz * 3 / 200, 15 + 27 * np.log(np.maximum(hz, 1000) / 1000) / np.log(6.4))

    def to_hz(mel: np.ndarray) -> np.ndarray:
        return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))

    points = to_hz(np.linspace(0.0, to_mel(np.array(8000.0)), n_mels + 2))[:, None]
    low, peak, high = points[:-2], points[1:-1], points[2:]
    hz = np.linspace(0, 8000, 201)
    triangles = np.minimum((hz - low) / (peak - low), (high - hz) / (high - peak))
    return np.maximum(triangles, 0) * 2 / (high - low)


def raw(pcm: np.ndarray, n_mels: int, *, step_audio: bool = False) -> np.ndarray:
    """pcm [samples] -> log10 mel power [n_mels, frames]; the frame after the last whole hop is dropped."""
    x = np.asarray(pcm, np.float64)
    if step_audio:
        x = np.pad(x, (0, 479))
    frames = len(x) // 160
    x = np.pad(x, 200, mode="reflect" if len(x) > 1 else "edge")
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    cut = np.stack([x[160 * t : 160 * t + 400] for t in range(frames)]) if frames else np.zeros((0, 400))
    power = np.abs(np.fft.rfft(cut * hann)) ** 2
    return np.log10(np.maximum(slaney_filters(n_mels) @ power.T, 1e-10))


def normalize(raw_features: np.ndarray) -> np.ndarray:
    """The eight decades below the maximum, on Whisper's scale."""
    if raw_features.size == 0:
        return raw_features
    return (np.maximum(raw_features, raw_features.max() - 8) + 4) / 4
