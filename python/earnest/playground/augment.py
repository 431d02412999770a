# SPDX-License-Identifier: Apache-2.0
"""What lies between a mouth and a microphone: a room, a limited band, a level, and noise.

Room and band come before the level is set and the sound is measured; noise comes last, 15 dB or more below
speech.
"""

from __future__ import annotations

import numpy as np

from earnest.playground.sound import SAMPLE_RATE


def room_and_band(pcm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``pcm`` (float32 [samples], 16 kHz) in a random small room through a random band; same length."""
    room, band, tilt = rng.random() < 0.5, rng.random() < 0.5, rng.uniform(-4, 4)
    size = _fast_size(len(pcm) + SAMPLE_RATE // 8)
    spectrum = np.fft.rfft(pcm, size).astype(np.complex64)
    hz = np.fft.rfftfreq(size, 1 / SAMPLE_RATE).astype(np.float32)
    gain = 10 ** (tilt / 20 * (np.log2(np.maximum(hz, 60) / 1000)) / 2)  # spectral tilt: dB per two octaves
    if band:
        low, high = rng.uniform(40, 110), rng.uniform(3300, 7600)
        gain = gain / np.sqrt(1 + (low / np.maximum(hz, 1)) ** 4) / np.sqrt(1 + (hz / high) ** 8)
    spectrum *= gain
    if room:
        spectrum *= np.fft.rfft(_impulse_response(rng), size)
    return np.fft.irfft(spectrum, size)[: len(pcm)].astype(np.float32)


def _impulse_response(rng: np.random.Generator) -> np.ndarray:
    """Direct sound and a tail of decaying noise, up to 120 ms."""
    seconds, ratio_db = rng.uniform(0.02, 0.12), rng.uniform(6, 18)
    n = int(seconds * SAMPLE_RATE)
    tail = rng.standard_normal(n, dtype=np.float32) * np.exp(-np.linspace(0, 6.9, n, dtype=np.float32))
    tail[:32] = 0  # the first reflection comes after 2 ms
    tail *= 10 ** (-ratio_db / 20) / max(float(np.sqrt(np.square(tail).sum())), 1e-9)
    tail[0] = 1.0
    return tail


def noise(pcm: np.ndarray, level_db: float, rng: np.random.Generator) -> np.ndarray:
    """``pcm`` plus coloured noise 15 to 40 dB below the speech's ``level_db``."""
    snr, colour = rng.uniform(15, 40), rng.uniform(0.0, 0.95)
    white = rng.standard_normal(len(pcm), dtype=np.float32)
    # one-pole colouring, cut to eight taps
    coloured = np.convolve(white, colour ** np.arange(8, dtype=np.float32), "same").astype(np.float32)
    rms = max(float(np.sqrt(np.mean(np.square(coloured)))), 1e-9)
    return np.clip(pcm + coloured * np.float32(10 ** ((level_db - snr) / 20) / rms), -1, 1).astype(np.float32)


def _fast_size(n: int) -> int:
    """The smallest 2**a or 3 * 2**a that holds n: lengths whose Fourier transform is quick."""
    power = 1 << (n - 1).bit_length()
    return power * 3 // 4 if power * 3 // 4 >= n else power
