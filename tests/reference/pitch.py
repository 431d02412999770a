# SPDX-License-Identifier: Apache-2.0
"""The pitch tracker of kernels/pitch in float64 numpy, from its formula: filter, spectrum, peaks, path."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TAPS = 11  # of the half-band filter on each side


@dataclass(frozen=True)
class Settings:
    f0_min: float = 65.0
    f0_max: float = 600.0
    voicing_threshold: float = 0.45
    silence_threshold: float = 0.03
    octave_cost: float = 0.04
    leap_cost: float = 0.35
    switch_cost: float = 0.14
    lookahead: int = 20
    corner: float = 2500.0
    kept: int = 4
    decay: float = 0.5 ** (1 / 1000)  # of the loudest energy, a frame
    power: float = 0.75  # of the squared magnitude


def half_band() -> np.ndarray:
    n = np.arange(-TAPS, TAPS + 1)
    taps = 0.5 * np.sinc(n / 2) * np.kaiser(2 * TAPS + 3, 6.0)[1:-1]
    taps[TAPS] = 0.5
    odd = n % 2 != 0
    taps[odd] *= 0.5 / taps[odd].sum()
    return taps


def halve(pcm: np.ndarray) -> np.ndarray:
    """16 kHz -> 8 kHz; the first and the last sample go on beyond the clip."""
    padded = np.pad(pcm.astype(np.float64), TAPS, mode="edge")
    return np.convolve(padded, half_band(), "valid")[::2]


def width_of(f0_min: float) -> int:
    """Samples of a window: three periods, a multiple of 16."""
    return 16 * int(np.ceil(3 * 8000 / f0_min / 16))


def fft_size(f0_min: float) -> int:
    size = 512
    while width_of(f0_min) + int(np.ceil(8000 / f0_min)) + 2 > size:
        size *= 2
    return size


def frames_of(pcm: np.ndarray, s: Settings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windowed frames [frames, width], energy [frames], and the power of the rounding in a bin [frames]."""
    frames = len(pcm) // 160
    x = halve(pcm)
    width = width_of(s.f0_min)
    half = width // 2
    window = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(width) + 0.5) / width)
    cut = np.zeros((frames, width))
    energy = np.zeros(frames)
    floor = np.zeros(frames)
    for t in range(frames):
        first, last = max(80 * t - half, 0), min(80 * t - half + width, len(x))
        mean = x[first:last].mean()
        cut[t, first - (80 * t - half) : last - (80 * t - half)] = x[first:last] - mean
        raw = pcm[max(160 * t - 160, 0) : 160 * t + 160].astype(np.float64)
        energy[t] = np.mean((raw - mean) ** 2)
        floor[t] = 1e-12 * np.sum(x[first:last] ** 2)
    return cut * window, energy, floor


def correlation(cut: np.ndarray, floor: np.ndarray, s: Settings) -> np.ndarray:
    """Normalised autocorrelation of each frame at lags 0 .. longest + 1."""
    size = fft_size(s.f0_min)
    width = cut.shape[1]
    longest = int(np.ceil(8000 / s.f0_min))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(width) + 0.5) / width)
    own = np.fft.irfft(np.abs(np.fft.rfft(window, size)) ** (2 * s.power), size)
    hz = np.arange(size // 2 + 1) * 8000 / size
    weight = 1 / (1 + (hz / s.corner) ** 4)
    power = np.abs(np.fft.rfft(cut, size)) ** 2
    shaped = np.maximum(power, np.maximum(floor, 1e-36)[:, None]) ** s.power * weight
    lagged = np.fft.irfft(shaped, size)[:, : longest + 2]
    return lagged / lagged[:, :1] * (own[0] / own[: longest + 2])


def candidates(r: np.ndarray, s: Settings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Strength and f0 [frames, kept] of the best peaks, 0 where there is none, and the tallest [frames]."""
    lags = np.arange(int(8000 / s.f0_max), int(np.ceil(8000 / s.f0_min)) + 1)
    strength = np.zeros((len(r), s.kept))
    f0 = np.zeros((len(r), s.kept))
    tallest = np.zeros(len(r))
    for t, row in enumerate(r):
        found = []
        for lag in lags:
            a, b, c = row[lag - 1 : lag + 2]
            if not (b > a and b >= c and b > 0):
                continue
            bend = a - 2 * b + c
            shift = 0.5 * (a - c) / bend if bend < -1e-12 else 0.0
            height = min(b - 0.25 * (a - c) * shift, 1.0)
            cost = s.octave_cost * np.log2(s.f0_min * lag / 8000)
            found.append((height - cost, height, 8000 / (lag + shift)))
            tallest[t] = max(tallest[t], height)
        found.sort(key=lambda peak: -peak[0])
        for k, (_, height, hz) in enumerate(found[: s.kept]):
            strength[t, k], f0[t, k] = height, hz
    return strength, f0, tallest


def path(strength: np.ndarray, f0: np.ndarray, energy: np.ndarray, s: Settings) -> np.ndarray:
    """The f0 chosen for each frame, `lookahead` frames later."""
    frames, kept = f0.shape
    level = 0.0
    chosen = np.zeros(frames)
    back = np.zeros((frames, kept + 1), int)
    log_f0 = np.log2(np.where(f0 > 0, f0, 1.0))
    values = np.concatenate([f0, np.zeros((frames, 1))], 1)
    score = None
    for t in range(frames):
        level = max(energy[t], level * s.decay)
        relative = np.sqrt(energy[t] / level) if level > 0 else 0.0
        quiet = max(0.0, 2 - relative * (1 + s.voicing_threshold) / s.silence_threshold)
        local = np.where(f0[t] > 0, strength[t] + s.octave_cost * (log_f0[t] - np.log2(s.f0_min)), -1e9)
        local = np.append(local, s.voicing_threshold + quiet)
        if score is None:
            score = local
        else:
            cost = np.full((kept + 1, kept + 1), s.switch_cost)
            cost[:kept, :kept] = s.leap_cost * np.abs(log_f0[t - 1][:, None] - log_f0[t][None, :])
            cost[kept, kept] = 0
            through = score[:, None] - cost
            back[t] = through.argmax(0)
            score = through.max(0) + local
        last = t == frames - 1
        if t < s.lookahead and not last:
            continue
        state = int(score.argmax())
        for at in range(t, max(t - s.lookahead, 0) - 1, -1):
            if last or at == t - s.lookahead:
                chosen[at] = values[at, state]
            state = back[at, state]
    return chosen


DEFAULT = Settings()


def track(pcm: np.ndarray, s: Settings = DEFAULT) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """f0, voicing and energy [frames] of 16 kHz samples."""
    if len(pcm) < 160:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    cut, energy, floor = frames_of(pcm, s)
    strength, f0, tallest = candidates(correlation(cut, floor, s), s)
    return path(strength, f0, energy, s), tallest, energy
