# SPDX-License-Identifier: Apache-2.0
"""Stretching and shifting of recorded words: length, pitch and resonances change one at a time."""

import numpy as np
import pytest

from earnest.playground.sound import activity
from earnest.playground.warp import stretch, warp


def vowel(f0=110.0, formant=900.0, seconds=0.6):
    """Harmonics of f0 under one resonance, float32 at 16 kHz."""
    t = np.arange(int(seconds * 16000)) / 16000
    wave = sum(
        np.cos(2 * np.pi * k * f0 * t + k) / (1 + ((k * f0 - formant) / 120) ** 2)
        for k in range(1, int(7000 / f0))
    )
    return (0.1 * wave * np.hanning(len(t)) ** 0.2).astype(np.float32)


def resonance(pcm):
    """The frequency around which the power between 300 and 2500 Hz lies."""
    power = np.abs(np.fft.rfft(pcm)) ** 2
    hz = np.fft.rfftfreq(len(pcm), 1 / 16000)
    band = (hz > 300) & (hz < 2500)
    return float((power[band] * hz[band]).sum() / power[band].sum())


def test_nothing_changes_where_nothing_is_asked():
    pcm = vowel()
    assert np.abs(stretch(pcm, 1.0) - pcm).max() < 1e-5
    assert np.abs(warp(pcm) - pcm).max() < 1e-4


@pytest.mark.parametrize("factor", [0.4, 0.7, 1.3, 2.5])
def test_stretching_changes_length_alone(factor):
    pcm = vowel()
    longer = stretch(pcm, factor)
    assert len(longer) == round(len(pcm) * factor)
    assert longer.dtype == np.float32
    assert activity(longer).f0_hz == pytest.approx(110, rel=0.01)
    middle = slice(len(longer) // 3, 2 * len(longer) // 3)
    level = np.sqrt(np.mean(longer[middle] ** 2) / np.mean(pcm[len(pcm) // 3 : 2 * len(pcm) // 3] ** 2))
    assert level == pytest.approx(1.0, abs=0.05)  # pieces that did not fit together would cancel


@pytest.mark.parametrize("pitch", [0.8, 1.5, 2.2])
def test_pitch_moves_and_resonances_stay(pitch):
    pcm = vowel()
    moved = warp(pcm, pitch=pitch, time=1.2)
    assert len(moved) == round(len(pcm) * 1.2)
    assert activity(moved).f0_hz == pytest.approx(110 * pitch, rel=0.02)
    assert resonance(moved) == pytest.approx(resonance(pcm), rel=0.15)  # by 0.8 .. 2.2 without correction


@pytest.mark.parametrize("tract", [0.9, 1.12])
def test_resonances_move_and_pitch_stays(tract):
    pcm = vowel(f0=100.0, formant=1100.0)
    moved = warp(pcm, tract=tract)
    assert activity(moved).f0_hz == pytest.approx(100, rel=0.01)
    assert resonance(moved) / resonance(pcm) == pytest.approx(tract, rel=0.05)


def test_silence_and_the_shortest_clips_survive():
    for pcm in (np.zeros(4000, np.float32), np.ones(10, np.float32), vowel()[:400]):
        for time in (0.4, 1.0, 2.5):
            moved = warp(pcm, pitch=1.7, time=time, tract=1.1)
            assert abs(len(moved) - len(pcm) * time) <= 1
            assert np.isfinite(moved).all()
