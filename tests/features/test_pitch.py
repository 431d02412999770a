# SPDX-License-Identifier: Apache-2.0
"""Pitch against its float64 definition, waves whose fundamental is known, and the inputs it must refuse."""

import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from earnest import _native
from earnest.errors import InvalidInput
from earnest.features import Pitch, PitchTrack
from reference import pitch as reference
from reference.voices import voice
from tiers import usable_tiers
from tolerances import PITCH


@pytest.fixture(params=usable_tiers("pitch"))
def tier(request: pytest.FixtureRequest) -> Iterator[str]:
    _native.force_cpu_tier(request.param)
    yield request.param
    _native.force_cpu_tier("")


def buzz(f0: np.ndarray, sample_rate: int, harmonics: int = 12) -> np.ndarray:
    """Harmonics of a moving fundamental f0 [samples] with a spectrum that falls like a voice's."""
    phase = 2 * np.pi * np.cumsum(f0) / sample_rate
    wave = sum(np.sin(k * phase) / k for k in range(1, harmonics + 1) if k * f0.max() < sample_rate / 2)
    return (0.1 * wave).astype(np.float32)


def same_bits(a: PitchTrack, b: PitchTrack) -> None:
    for ours, other in ((a.f0, b.f0), (a.voicing, b.voicing), (a.energy, b.energy)):
        np.testing.assert_array_equal(ours, other)


# ---- the definition ----


@pytest.mark.usefixtures("tier")
@pytest.mark.parametrize(("f0_min", "f0_max"), [(65.0, 600.0), (70.0, 450.0), (40.0, 900.0), (20.0, 2000.0)])
def test_it_is_the_definition_in_float64(f0_min: float, f0_max: float) -> None:
    pcm = voice(5, snr_db=15).pcm[:20000] + np.float32(0.05)
    f0, voicing, energy = reference.track(pcm, reference.Settings(f0_min, f0_max))
    track = Pitch(f0_min, f0_max)(pcm)
    assert np.abs(track.voicing - voicing).max() <= PITCH["voicing"]
    np.testing.assert_allclose(track.energy, energy, rtol=PITCH["energy"])
    np.testing.assert_allclose(track.f0, f0, rtol=PITCH["f0"])
    assert 0.2 < (f0 > 0).mean() < 1.0


@pytest.mark.parametrize("samples", [160, 161, 319, 480, 1001, 3600])
def test_short_clips_follow_the_same_definition(samples: int) -> None:
    pcm = voice(6, snr_db=30).pcm[4000 : 4000 + samples]
    f0, voicing, energy = reference.track(pcm)
    track = Pitch()(pcm)
    assert np.abs(track.voicing - voicing).max() <= PITCH["voicing"]
    np.testing.assert_allclose(track.energy, energy, rtol=PITCH["energy"])
    np.testing.assert_allclose(track.f0, f0, rtol=PITCH["f0"])


# ---- known pitch ----


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


@pytest.mark.parametrize("hz", [100.0, 170.0, 240.0])
def test_a_missing_fundamental_is_found_by_its_harmonics(hz: float) -> None:
    t = np.arange(16000) / 16000
    wave = sum(np.sin(2 * np.pi * k * hz * t + k) for k in range(3, 8))
    assert np.abs(np.log2(Pitch()((0.1 * wave).astype(np.float32)).f0[4:-4] / hz)).max() < 0.01


def test_a_strong_formant_at_the_fifth_harmonic_is_not_taken_for_the_pitch() -> None:
    t = np.arange(16000) / 16000
    wave = buzz(np.full(16000, 100.0), 16000) + 0.3 * np.sin(2 * np.pi * 500 * t).astype(np.float32)
    assert abs(np.median(Pitch()(wave.astype(np.float32)).f0) - 100) < 2


@pytest.mark.parametrize(
    ("snr_db", "gross", "wrongly_voiced"), [(None, 0.0, 0.002), (20, 0.0, 0.005), (10, 0.01, 0.03)]
)
def test_voices_of_known_pitch_are_followed_through_noise(
    snr_db: float | None, gross: float, wrongly_voiced: float
) -> None:
    slips = both = wrong = counted = 0
    cents = []
    for seed in range(100, 108):
        made = voice(seed, snr_db)
        f0, known = Pitch()(made.pcm).f0, ~np.isnan(made.f0)
        wrong += int(((f0 > 0) != (made.f0 > 0))[known].sum())
        counted += int(known.sum())
        voiced = known & (f0 > 0) & (made.f0 > 0)
        off = np.abs(np.log2(f0[voiced] / made.f0[voiced]))
        slips, both = slips + int((off > np.log2(1.2)).sum()), both + len(off)
        cents.append(1200 * off)
    assert both > 1500
    assert slips <= gross * both
    assert wrong <= wrongly_voiced * counted
    assert np.median(np.concatenate(cents)) < 6


def test_noise_clicks_and_silence_are_unvoiced_and_speech_between_them_is_found() -> None:
    random = np.random.default_rng(0)
    noise = (0.05 * random.standard_normal(16000)).astype(np.float32)
    clicks = np.zeros(16000, np.float32)
    clicks[random.integers(0, 16000, 5)] = 0.5
    parts = [np.zeros(16000, np.float32), buzz(np.full(16000, 150.0), 16000), noise, clicks]
    voiced = Pitch()(np.concatenate(parts)).f0 > 0
    assert voiced[105:195].all()
    assert not voiced[:97].any()
    assert not voiced[204:].any()


def test_loudness_changes_energy_by_its_square_and_nothing_else() -> None:
    pcm = buzz(np.full(8000, 130.0), 16000)
    loud, quiet = Pitch()(pcm), Pitch()(pcm * np.float32(0.125))
    np.testing.assert_allclose(quiet.energy, loud.energy / 64, rtol=1e-5)
    np.testing.assert_allclose(quiet.f0, loud.f0, rtol=1e-4)


def test_a_constant_offset_changes_nothing() -> None:
    pcm = voice(9).pcm[:16000]
    plain, moved = Pitch()(pcm), Pitch()(pcm + np.float32(0.25))
    loud = plain.energy > 1e-4 * plain.energy.max()
    np.testing.assert_allclose(moved.f0, plain.f0, rtol=1e-3)
    np.testing.assert_allclose(moved.energy[loud], plain.energy[loud], rtol=1e-3)


def test_energy_is_the_mean_square_around_the_frame() -> None:
    track = Pitch()(np.tile(np.float32([0.5, -0.5]), 8000))
    np.testing.assert_allclose(track.energy, 0.25, rtol=1e-5)


@pytest.mark.parametrize("samples", [1, 2, 159, 160, 161, 500])
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_short_and_constant_clips_are_unvoiced(samples: int, value: float) -> None:
    track = Pitch()(np.full(samples, value, np.float32))
    assert track.f0.shape == (samples // 160,)
    assert not track.f0.any()
    assert np.isfinite(track.voicing).all()
    assert track.speaking_rate == 0.0


# ---- streams, batches, threads ----


def streamed(pcm: np.ndarray, cuts: list[int], pitch: Pitch) -> PitchTrack:
    stream, bounds = pitch.stream(), [0, *sorted(cuts), len(pcm)]
    return PitchTrack.join([*(stream.push(pcm[a:b]) for a, b in pairwise(bounds)), stream.finish()])


@settings(max_examples=50, deadline=None)
@given(data=st.data(), samples=st.integers(1, 12000), f0_min=st.sampled_from([65.0, 30.0]))
def test_chunks_give_the_bits_of_the_whole(data: st.DataObject, samples: int, f0_min: float) -> None:
    pcm = voice(7, snr_db=20).pcm[3000 : 3000 + samples]
    cuts = data.draw(st.lists(st.integers(0, samples), max_size=12))
    pitch = Pitch(f0_min)
    whole, joined = pitch(pcm), streamed(pcm, cuts, pitch)
    same_bits(joined, whole)
    assert joined.speaking_rate == whole.speaking_rate
    np.testing.assert_array_equal(joined.syllable_nuclei, whole.syllable_nuclei)


@pytest.mark.usefixtures("tier")
def test_hops_give_the_bits_of_the_whole_on_every_tier() -> None:
    pcm = voice(8, snr_db=20).pcm[:16099]
    same_bits(streamed(pcm, list(range(160, len(pcm), 160)), Pitch()), Pitch()(pcm))


def test_a_stream_decides_each_frame_as_soon_as_its_samples_are_in() -> None:
    stream, pcm = Pitch().stream(), voice(1).pcm[:5200]
    counts = [len(stream.push(pcm[i : i + 1]).f0) for i in range(len(pcm))]
    assert [i + 1 for i, count in enumerate(counts) if count] == [160 * t + 3594 for t in range(11)]
    assert len(stream.finish().f0) == 32 - 11


def test_tracks_are_joined_in_order_and_keep_their_kind() -> None:
    pcm = voice(3).pcm[:9000]
    whole, stream = Pitch()(pcm), Pitch().stream()
    parts = [stream.push(torch.from_numpy(pcm[:5000])), stream.push(pcm[5000:]), stream.finish()]
    joined = PitchTrack.join(iter(parts))
    assert isinstance(joined.f0, torch.Tensor)
    same_bits(PitchTrack(*(np.asarray(v) for v in (joined.f0, joined.voicing, joined.energy))), whole)
    assert isinstance(PitchTrack.join(parts[1:]).energy, np.ndarray)
    same_bits(PitchTrack.join([whole]), whole)
    nothing = PitchTrack.join([])
    assert nothing.f0.shape == nothing.voicing.shape == nothing.energy.shape == (0,)
    assert nothing.f0.dtype == np.float32
    assert (nothing.speaking_rate, nothing.syllable_nuclei.size) == (0.0, 0)
    with pytest.raises(InvalidInput, match=r"^\[pitch\] tracks: expected PitchTracks, got ndarray"):
        PitchTrack.join([whole, whole.f0])  # type: ignore[list-item]


@pytest.mark.usefixtures("tier")
def test_a_batch_gives_what_its_clips_give_alone_whatever_the_threads() -> None:
    clips = [voice(seed, snr_db=20).pcm[: 3000 * (seed + 1)] for seed in range(5)] + [np.zeros(1, np.float32)]
    alone = [Pitch()(clip) for clip in clips]
    threads = _native.num_threads()
    try:
        for count in (1, 3):
            _native.set_num_threads(count)
            for ours, other in zip(Pitch().batch(clips), alone, strict=True):
                same_bits(ours, other)
            same_bits(Pitch()(clips[4]), alone[4])
    finally:
        _native.set_num_threads(threads)
    assert Pitch().batch([]) == []
    clips[2] = clips[2].copy()
    clips[2][17] = np.nan
    with pytest.raises(InvalidInput, match="got nan at sample 17"):
        Pitch().batch(clips)


def test_torch_in_gives_torch_out_with_the_same_numbers() -> None:
    pcm = buzz(np.full(8000, 200.0), 16000)
    track = Pitch()(torch.from_numpy(pcm).requires_grad_())
    assert isinstance(track.f0, torch.Tensor)
    np.testing.assert_array_equal(track.f0.numpy(), Pitch()(pcm).f0)
    assert track.speaking_rate == Pitch()(pcm).speaking_rate
    stream = Pitch().stream()
    assert isinstance(stream.push(torch.from_numpy(pcm)).f0, torch.Tensor)
    assert isinstance(stream.finish().energy, torch.Tensor)
    same_bits(Pitch()(np.repeat(pcm, 2)[::2]), Pitch()(pcm))  # not contiguous


def test_pitch_alone_loads_no_torch() -> None:
    program = "import sys, earnest.pitch, numpy as np; earnest.pitch.Pitch()(np.ones(999, np.float32)); "
    done = subprocess.run(
        [sys.executable, "-c", program + "print('torch' in sys.modules)"],
        env={"PYTHONPATH": ":".join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"


# ---- speaking rate ----


@pytest.mark.parametrize("hz", [90.0, 220.0])
@pytest.mark.parametrize("rate", [2.0, 4.0, 6.0])
def test_syllables_of_a_steady_pace_are_counted(rate: float, hz: float) -> None:
    t = np.arange(4 * 16000) / 16000
    wave = buzz(np.full(t.size, hz), 16000) * (0.04 + np.sin(np.pi * rate * t) ** 2)
    random = np.random.default_rng(3)
    pause = np.zeros(16000)
    pcm = np.concatenate([pause, wave, pause, wave, pause]) + 1e-4 * random.standard_normal(11 * 16000)
    track = Pitch()(pcm.astype(np.float32))
    assert abs(len(track.syllable_nuclei) - 8 * rate) <= 1
    assert track.speaking_rate == pytest.approx(rate, rel=0.08)
    centres = (np.arange(4 * rate) + 0.5) / rate
    expected = np.concatenate([1 + centres, 6 + centres])
    nearest = np.abs(track.syllable_nuclei[:, None] / 100 - expected[None]).min(1)
    assert nearest.max() < 0.06


def test_a_stream_knows_the_rate_of_what_it_has_heard_so_far() -> None:
    """Four syllables a second, then two a second: the rate follows, and in the end is the whole clip's."""
    rng = np.random.default_rng(5)
    t = np.arange(6 * 16000) / 16000
    swell = np.concatenate([np.sin(np.pi * 4 * t) ** 2, np.sin(np.pi * 2 * t) ** 2])
    wave = buzz(np.full(swell.size, 140.0), 16000) * (0.04 + swell)
    pcm = (wave + 1e-4 * rng.standard_normal(swell.size)).astype(np.float32)
    whole, stream = Pitch()(pcm), Pitch().stream()
    parts: list[PitchTrack] = []
    rates = []
    for start in range(0, len(pcm), 1600):
        parts.append(stream.push(pcm[start : start + 1600]))
        so_far = PitchTrack.join(parts)
        frames = len(so_far.f0)
        heard = PitchTrack(whole.f0[:frames], whole.voicing[:frames], whole.energy[:frames])
        same_bits(so_far, heard)
        assert so_far.speaking_rate == heard.speaking_rate
        rates.append(so_far.speaking_rate)
    assert rates[0] == 0.0  # nothing is decided yet
    assert rates[29] == pytest.approx(4, rel=0.1)  # after three seconds
    assert rates[59] == pytest.approx(4, rel=0.05)
    assert rates[89] == pytest.approx(30 / 9, rel=0.08)
    joined = PitchTrack.join([*parts, stream.finish()])
    same_bits(joined, whole)
    assert joined.speaking_rate == whole.speaking_rate == pytest.approx(3, rel=0.05)


def test_somebody_who_speaks_up_changes_what_was_speech_before() -> None:
    """Why a stream's rate is only of the clip so far: the loudest frames say what is loud enough."""
    t = np.arange(3 * 16000) / 16000
    spoken = buzz(np.full(t.size, 140.0), 16000) * (0.04 + np.sin(np.pi * 3 * t) ** 2)
    pcm = np.concatenate([0.01 * spoken, spoken]).astype(np.float32)
    stream = Pitch().stream()
    murmur = stream.push(pcm[: 3 * 16000])
    assert abs(len(murmur.syllable_nuclei) - 8) <= 1
    all_of_it = PitchTrack.join([murmur, stream.push(pcm[3 * 16000 :]), stream.finish()])
    assert all_of_it.syllable_nuclei.min() > 290
    assert abs(len(all_of_it.syllable_nuclei) - 9) <= 1
    assert all_of_it.speaking_rate == pytest.approx(3, rel=0.1)


def test_hiss_has_no_syllables() -> None:
    t = np.arange(32000) / 16000
    noise = np.random.default_rng(1).standard_normal(32000) * np.sin(np.pi * 4 * t) ** 2
    track = Pitch()((0.1 * noise).astype(np.float32))
    assert track.syllable_nuclei.size == 0
    assert track.speaking_rate == 0.0


# ---- what is refused ----


@pytest.mark.parametrize(
    ("pcm", "says"),
    [
        (np.zeros(0, np.float32), "expected at least one sample, got none"),
        (np.float32([0, np.nan]), "got nan at sample 1"),
        (np.float32([np.inf, 0]), "got inf at sample 0"),
        (np.float32([0, 2e15]), "magnitude at most 1e15"),
        (np.zeros(100), "expected float32, got float64"),
        (np.zeros(100, np.int16), "expected float32, got int16"),
        (np.zeros((2, 100), np.float32), "expected one axis"),
        (torch.zeros(100, dtype=torch.float64), "expected float32, got float64"),
        (torch.zeros(100, device="meta"), "expected a tensor in CPU memory, got one on meta"),
        ([0.0, 1.0], "expected a numpy array or torch tensor, got list"),
    ],
)
def test_hostile_input_is_refused_in_one_sentence(pcm: object, says: str) -> None:
    for rate in (16000, 8000):
        with pytest.raises(InvalidInput, match=r"^\[pitch\] pcm: ") as refused:
            Pitch()(pcm, rate)
        assert says in str(refused.value)


@pytest.mark.parametrize("rate", [0, -16000, 16000.0, True])
def test_a_sample_rate_that_is_none_is_refused(rate: object) -> None:
    with pytest.raises(InvalidInput, match="sample_rate"):
        Pitch()(np.zeros(100, np.float32), rate)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        {"f0_min": 19.0},
        {"f0_min": 600.0},
        {"f0_max": 2001.0},
        {"f0_min": float("nan")},
        {"voicing_threshold": -0.1},
        {"silence_threshold": 1.1},
    ],
)
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(InvalidInput, match=r"^\[pitch\] "):
        Pitch(**wrong)


def test_a_refused_chunk_leaves_the_stream_as_it_was() -> None:
    pcm = voice(2).pcm[:9000]
    stream = Pitch().stream()
    with pytest.raises(InvalidInput, match="at least one sample, got none"):
        stream.finish()
    parts = [stream.push(pcm[:900])]
    with pytest.raises(InvalidInput, match="got nan at sample 901"):
        stream.push(np.float32([0, np.nan]))
    with pytest.raises(InvalidInput, match="expected float32"):
        stream.push(np.zeros(3))
    parts += [stream.push(pcm[900:]), stream.finish()]
    np.testing.assert_array_equal(np.concatenate([part.f0 for part in parts]), Pitch()(pcm).f0)
    for late in (stream.finish, lambda: stream.push(pcm)):
        with pytest.raises(InvalidInput, match="not finished, got one that is"):
            late()
