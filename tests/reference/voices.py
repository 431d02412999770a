# SPDX-License-Identifier: Apache-2.0
"""Synthetic voices of known pitch: glottal pulses through formants, with jitter, hiss and noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.signal import lfilter

RATE = 16000
# Formants (Hz) of i, e, a, o, u of a man, after Peterson and Barney (1952); bandwidths are the usual ones.
VOWELS = ((270, 2290, 3010), (530, 1840, 2480), (730, 1090, 2440), (570, 840, 2410), (300, 870, 2240))
_BANDWIDTHS = (60, 90, 150)


@dataclass(frozen=True)
class Voice:
    """pcm float32 [samples] at 16 kHz; f0 [frames] in Hz, 0 where unvoiced, NaN at the edge of voicing."""

    pcm: np.ndarray
    f0: np.ndarray


def glottal_pulses(
    f0: np.ndarray, random: np.random.Generator, jitter: float, open_part: float
) -> np.ndarray:
    """The derivative of Rosenberg's pulse (1971) at four times the rate; each period is off by jitter."""
    over = 4
    fine = np.repeat(f0, over)
    phase = np.cumsum(fine) / (RATE * over)
    cycles = int(phase[-1]) + 2
    bounds = np.arange(cycles + 1) + np.concatenate([[0], jitter * random.standard_normal(cycles)])
    bounds = np.maximum.accumulate(bounds)
    cycle = np.searchsorted(bounds, phase, side="right") - 1
    cycle = np.clip(cycle, 0, cycles - 1)
    within = (phase - bounds[cycle]) / np.maximum(bounds[cycle + 1] - bounds[cycle], 1e-9)
    rise, fall = 0.7 * open_part, open_part
    flow = np.where(
        within < rise,
        0.5 - 0.5 * np.cos(np.pi * within / rise),
        np.where(within < fall, np.cos(0.5 * np.pi * (within - rise) / (fall - rise)), 0.0),
    )
    slope = np.diff(flow, prepend=0.0)
    kernel = np.hanning(4 * over + 3)[1:-1]
    return np.convolve(slope, kernel / kernel.sum(), "same")[::over]


def vowel(source: np.ndarray, formants: tuple[int, ...], scale: float) -> np.ndarray:
    for hz, width in zip(formants, _BANDWIDTHS, strict=True):
        radius = np.exp(-np.pi * width / RATE)
        a = [1.0, -2 * radius * np.cos(2 * np.pi * hz * scale / RATE), radius**2]
        source = lfilter([sum(a)], a, source)
    return source


@lru_cache(maxsize=64)
def voice(seed: int, snr_db: float | None = None, telephone: bool = False) -> Voice:
    """About four seconds: vowels on moving pitch between hisses and silences; not to be written to."""
    random = np.random.default_rng(seed)
    base = float(np.exp(random.uniform(np.log(80), np.log(320))))
    scale = 1.0 if base < 160 else 1.17
    parts, tracks = [], []
    for _ in range(8):
        seconds = random.uniform(0.15, 0.55)
        n = int(seconds * RATE)
        start, end = base * 2 ** (random.uniform(-0.5, 0.5, 2) * 0.8)
        bend = np.sin(np.linspace(0, np.pi, n)) * random.uniform(-0.15, 0.15)
        f0 = np.clip(np.exp(np.linspace(np.log(start), np.log(end), n)) * 2**bend, 70, 500)
        wave = vowel(
            glottal_pulses(f0, random, random.uniform(0, 0.02), random.uniform(0.5, 0.75)),
            VOWELS[random.integers(5)],
            scale,
        )
        wave = wave / np.sqrt(np.mean(wave**2)) * np.hanning(n) ** 0.25 * 10 ** (random.uniform(-8, 0) / 20)
        parts.append(wave)
        tracks.append(f0)
        gap = int(random.uniform(0.06, 0.2) * RATE)
        if random.random() < 0.5:
            hiss = lfilter([1, -0.9], [1], random.standard_normal(gap)) * np.hanning(gap) * 0.3
        else:
            hiss = np.zeros(gap)
        parts.append(hiss)
        tracks.append(np.zeros(gap))
    wave, f0 = 0.1 * np.concatenate(parts), np.concatenate(tracks)
    if telephone:  # nothing below 300 Hz: the fundamental of most voices is missing
        spectrum = np.fft.rfft(wave)
        hz = np.fft.rfftfreq(len(wave), 1 / RATE)
        wave = np.fft.irfft(spectrum * ((hz > 300) & (hz < 3400)), len(wave))
    if snr_db is not None:
        power = np.mean(wave[f0 > 0] ** 2)
        wave = wave + random.standard_normal(len(wave)) * np.sqrt(power / 10 ** (snr_db / 10))
    else:
        wave = wave + 1e-5 * random.standard_normal(len(wave))
    frames = len(wave) // 160
    track = f0[: 160 * frames : 160].copy()
    for t in range(frames):  # a frame within 15 ms of an edge is neither
        near = f0[max(0, 160 * t - 240) : 160 * t + 240] > 0
        if near.any() and not near.all():
            track[t] = np.nan
    return Voice(wave.astype(np.float32), track)
