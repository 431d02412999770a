# SPDX-License-Identifier: Apache-2.0
"""Pitch against waves whose fundamental is known, and the inputs it must refuse."""

import numpy as np
import pytest
import torch

from earnest.errors import InvalidInput
from earnest.features import Pitch


def buzz(f0: np.ndarray, sample_rate: int, harmonics: int = 12) -> np.ndarray:
    """Harmonics of a moving fundamental f0 [samples] with a spectrum that falls like a voice's."""
    phase = 2 * np.pi * np.cumsum(f0) / sample_rate
    wave = sum(np.sin(k * phase) / k for k in range(1, harmonics + 1) if k * f0.max() < sample_rate / 2)
    return (0.1 * wave).astype(np.float32)


@pytest.mark.parametrize("sample_rate", [8000, 16000, 22050, 48000])
@pytest.mark.parametrize("hz", [75.0, 110.0, 180.0, 260.0, 420.0])
def test_a_steady_tone_is_measured_within_a_hundredth_of_an_octave(hz: float, sample_rate: int) -> None:
    track = Pitch()(buzz(np.full(sample_rate, hz), sample_rate), sample_rate)
    assert track.f0.shape == track.voicing.shape == track.energy.shape == (100,)
    inner = slice(4, -4)
    assert np.abs(np.log2(track.f0[inner] / hz)).max() < 0.01
    assert track.voicing[inner].min() > 0.95


def test_a_glide_over_two_octaves_is_followed_without_a_leap() -> None:
    t = np.arange(32000) / 16000
    f0 = 90 * 2 ** (t / t[-1] * 2)
    track = Pitch()(buzz(f0, 16000))
    error = np.abs(np.log2(track.f0[5:-5] / f0[::160][5:-5]))
    assert error.max() < 0.03


def test_a_strong_formant_at_the_fifth_harmonic_is_not_taken_for_the_pitch() -> None:
    t = np.arange(16000) / 16000
    wave = buzz(np.full(16000, 100.0), 16000) + 0.3 * np.sin(2 * np.pi * 500 * t).astype(np.float32)
    assert abs(np.median(Pitch()(wave.astype(np.float32)).f0) - 100) < 2


def test_noise_and_silence_are_unvoiced_and_speech_between_them_is_found() -> None:
    random = np.random.default_rng(0)
    noise = (0.05 * random.standard_normal(16000)).astype(np.float32)
    pcm = np.concatenate([np.zeros(16000, np.float32), buzz(np.full(16000, 150.0), 16000), noise])
    voiced = Pitch()(pcm).f0 > 0
    assert voiced[105:195].all()
    assert not voiced[:97].any()
    assert not voiced[204:].any()


def test_loudness_changes_energy_by_its_square_and_nothing_else() -> None:
    pcm = buzz(np.full(8000, 130.0), 16000)
    loud, quiet = Pitch()(pcm), Pitch()(pcm * np.float32(0.125))
    np.testing.assert_allclose(quiet.energy, loud.energy / 64, rtol=1e-5)
    np.testing.assert_allclose(quiet.f0, loud.f0, rtol=1e-4)


def test_energy_is_the_mean_square_around_the_frame() -> None:
    track = Pitch()(np.tile(np.float32([0.5, -0.5]), 8000))
    np.testing.assert_allclose(track.energy, 0.25, rtol=1e-6)


@pytest.mark.parametrize("samples", [1, 2, 159, 160, 161, 500])
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_short_and_constant_clips_are_unvoiced(samples: int, value: float) -> None:
    track = Pitch()(np.full(samples, value, np.float32))
    assert track.f0.shape == (samples // 160,)
    assert not track.f0.any()
    assert np.isfinite(track.voicing).all()


def test_torch_in_gives_torch_out_with_the_same_numbers() -> None:
    pcm = buzz(np.full(8000, 200.0), 16000)
    track = Pitch()(torch.from_numpy(pcm))
    assert isinstance(track.f0, torch.Tensor)
    np.testing.assert_array_equal(track.f0.numpy(), Pitch()(pcm).f0)


@pytest.mark.parametrize(
    ("pcm", "says"),
    [
        (np.zeros(0, np.float32), "expected at least one sample, got none"),
        (np.float32([0, np.nan]), "got nan at sample 1"),
        (np.float32([np.inf, 0]), "got inf at sample 0"),
        (np.zeros(100), "expected float32, got float64"),
        (np.zeros(100, np.int16), "expected float32, got int16"),
        (np.zeros((2, 100), np.float32), "expected one axis"),
        (torch.zeros(100, dtype=torch.float64), "expected float32, got float64"),
        ([0.0, 1.0], "expected a numpy array or torch tensor, got list"),
    ],
)
def test_hostile_input_is_refused_in_one_sentence(pcm: object, says: str) -> None:
    with pytest.raises(InvalidInput, match=r"^\[pitch\] pcm: ") as refused:
        Pitch()(pcm)
    assert says in str(refused.value)


@pytest.mark.parametrize("rate", [0, -16000, 16000.0, True])
def test_a_sample_rate_that_is_none_is_refused(rate: object) -> None:
    with pytest.raises(InvalidInput, match="sample_rate"):
        Pitch()(np.zeros(100, np.float32), rate)  # type: ignore[arg-type]
