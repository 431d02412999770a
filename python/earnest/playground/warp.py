# SPDX-License-Identifier: Apache-2.0
"""A recorded word at another pitch, pace and length of vocal tract.

Pitch: the word is resampled, which moves pitch and resonances together, and the resonances are put back.
Pace: overlapping pieces are laid down closer or wider apart, each moved so that it continues the one before
it (WSOLA; Verhelst and Roelands 1993). Resonances: in every short-time spectrum, the smooth part of the log
magnitude (its low cepstrum) is replaced by that of the original at the same moment.
"""

from __future__ import annotations

import numpy as np
import soxr

from earnest.playground.sound import SAMPLE_RATE

_PIECE, _STEP, _SEARCH = 480, 240, 160  # samples: pieces of 30 ms, moved by up to 10 ms (a period of 50 Hz)
_FRAME, _HOP = 512, 128  # samples of a short-time spectrum (32 ms) and between two of them
_SMOOTH = 26  # cepstral coefficients kept, 1.6 ms: the resonances, not the harmonics of a voice below 600 Hz
_GAIN = np.log(10 ** (24 / 20))  # largest change of a band, log magnitude
_WINDOW = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_FRAME) / _FRAME)).astype(np.float32)


def stretch(pcm: np.ndarray, factor: float) -> np.ndarray:
    """``pcm`` (float32 [samples], 16 kHz) lasting ``factor`` times as long, its pitch kept."""
    length = round(len(pcm) * factor)
    pieces = max(-(-length // _STEP), 1)
    source = np.zeros(max(len(pcm), round(pieces * _STEP / factor)) + 2 * (_PIECE + _SEARCH), np.float32)
    start = _SEARCH + _STEP  # where the sample 0 of pcm lies in source
    source[start : start + len(pcm)] = pcm
    window = (0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(_PIECE) + 0.5) / _PIECE)).astype(np.float32)
    out = np.zeros((pieces + 2) * _STEP, np.float32)
    at = start - _STEP  # of the piece before: the one that ends the silence in front
    for k in range(pieces + 1):
        wanted = start + round((k - 1) * _STEP / factor)
        if k:
            natural = source[at + _STEP : at + _STEP + _PIECE]
            near = source[wanted - _SEARCH : wanted + _SEARCH + _PIECE]
            likeness = np.correlate(near, natural, "valid")
            power = np.cumsum(np.square(near, dtype=np.float64))
            power = power[_PIECE - 1 :] - np.concatenate(([0.0], power[:-_PIECE]))
            at = wanted - _SEARCH + int(np.argmax(likeness / np.sqrt(np.maximum(power, 1e-9))))
        piece = source[at : at + _PIECE]
        out[k * _STEP : k * _STEP + len(piece)] += piece * window[: len(piece)]
    return out[_STEP : _STEP + length]


def warp(pcm: np.ndarray, *, pitch: float = 1.0, time: float = 1.0, tract: float = 1.0) -> np.ndarray:
    """``pcm`` (float32 [samples], 16 kHz): F0 times ``pitch``, length times ``time``, resonances times
    ``tract``."""
    rate = round(SAMPLE_RATE * pitch)
    moved = soxr.resample(pcm, rate, SAMPLE_RATE, quality="MQ") if rate != SAMPLE_RATE else pcm
    moved = stretch(moved, time * len(pcm) / len(moved))
    centres = np.arange(-_HOP, len(moved) + 2 * _HOP, _HOP)
    spectrum = _spectra(moved, centres)
    origin = _spectra(pcm, np.maximum(np.round(centres / time).astype(np.int64), -_HOP))
    wanted = _envelope(origin)
    bins = np.arange(wanted.shape[1])
    below = np.minimum(bins / tract, bins[-1])
    left = np.minimum(below.astype(np.int64), bins[-2])
    part = (below - left).astype(np.float32)
    wanted = wanted[:, left] * (1 - part) + wanted[:, left + 1] * part
    gain = np.exp(np.clip(wanted - _envelope(spectrum), -_GAIN, _GAIN))
    return _overlap_add(spectrum * gain, len(moved))


def _spectra(pcm: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Short-time spectra, complex [frames, bins], of windows centred on ``centres`` (silence outside)."""
    padded = np.zeros(max(int(centres[-1]), len(pcm)) + 2 * _FRAME, np.float32)
    padded[_FRAME : _FRAME + len(pcm)] = pcm
    return np.fft.rfft(padded[centres[:, None] + np.arange(_FRAME // 2, _FRAME // 2 + _FRAME)] * _WINDOW)


def _envelope(spectrum: np.ndarray) -> np.ndarray:
    """Log magnitude without its fine structure, [frames, bins]; at most 60 dB below the loudest bin."""
    magnitude = np.abs(spectrum)
    log = np.log(np.maximum(magnitude, max(float(magnitude.max()), 1e-6) * 1e-3))
    cepstrum = np.fft.irfft(log)
    cepstrum[:, _SMOOTH : -_SMOOTH + 1] = 0
    return np.fft.rfft(cepstrum).real.astype(np.float32)


def _overlap_add(spectrum: np.ndarray, length: int) -> np.ndarray:
    """float32 [length] from spectra of windows ``_HOP`` apart, the first centred on -``_HOP``; the squares of
    the windows sum to 1.5."""
    frames = np.fft.irfft(spectrum, _FRAME).astype(np.float32) * (_WINDOW / np.float32(1.5))
    out = np.zeros(len(frames) * _HOP + _FRAME, np.float32)
    for k, frame in enumerate(frames):
        out[k * _HOP : k * _HOP + _FRAME] += frame
    start = _FRAME // 2 + _HOP
    return out[start : start + length]
