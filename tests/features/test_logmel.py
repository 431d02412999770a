# SPDX-License-Identifier: Apache-2.0
"""Log-mel against its float64 definition and transformers' extractor, on every tier; streams too."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from earnest import _native
from earnest.audio import load_audio
from earnest.errors import InvalidInput
from earnest.features import LogMel
from reference import logmel as reference
from tiers import usable_tiers
from tolerances import LOGMEL


@pytest.fixture(params=usable_tiers("logmel"))
def tier(request: pytest.FixtureRequest) -> Iterator[str]:
    _native.force_cpu_tier(request.param)
    yield request.param
    _native.force_cpu_tier("")


def speechlike(samples: int, seed: int = 0) -> np.ndarray:
    """Harmonics, a sweep and noise over six decades of power: loud and nearly silent bands in one frame."""
    t = np.arange(samples) / 16000
    wave = sum(np.sin(2 * np.pi * 130 * k * t) / k**2 for k in range(1, 20)) + 0.1 * np.sin(9000 * t**2)
    noise = np.random.default_rng(seed).standard_normal(samples)
    return (0.2 * wave * (0.6 - 0.4 * np.cos(3 * t)) + 1e-4 * noise).astype(np.float32)


def awkward(name: str) -> np.ndarray:
    """Two seconds each, in which float32 arithmetic would lose the quiet bands beside the loud ones."""
    t, random = np.arange(32000) / 16000, np.random.default_rng(1)
    noise = random.standard_normal(t.size)
    waves = {
        "speech": speechlike(t.size),
        "tone over faint noise": 0.9 * np.sin(2 * np.pi * 5000 * t) + 1e-4 * noise,
        "rumble": np.sin(2 * np.pi * 20 * t) + 3e-5 * noise,
        "click": 1e-4 * noise + (np.arange(t.size) % 4000 == 123),
        "offset": 0.7 + 1e-4 * noise,
        "loud": 1e3 * noise * np.sin(3 * t),
        "silence, then noise": noise * (t > 1),
    }
    return waves[name].astype(np.float32)


@pytest.mark.usefixtures("tier")
@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize(
    "name", ["speech", "tone over faint noise", "rumble", "click", "offset", "loud", "silence, then noise"]
)
def test_it_is_whisper_to_the_rounding_of_float32_even_beside_loud_bands(name: str, n_mels: int) -> None:
    pcm = awkward(name)
    expected = reference.raw(pcm, n_mels)
    assert np.abs(LogMel(n_mels)(pcm) - reference.normalize(expected)).max() <= LOGMEL["normal"]
    audible = expected > max(expected.max() - 8, -9.9)
    assert np.abs(LogMel(n_mels).raw(pcm) - expected)[audible].max() <= LOGMEL["raw"]


@pytest.mark.usefixtures("tier")
@pytest.mark.parametrize("step_audio", [False, True])
@pytest.mark.parametrize("samples", [1, 2, 3, 159, 160, 161, 199, 200, 201, 320, 361, 479, 480, 1000])
def test_clips_shorter_than_the_reflection_follow_the_same_definition(samples: int, step_audio: bool) -> None:
    pcm = speechlike(samples, seed=samples)
    features = LogMel(80, padding="step_audio" if step_audio else "whisper")
    expected = reference.raw(pcm, 80, step_audio=step_audio)
    assert expected.shape == (80, (samples + 479 * step_audio) // 160) == (80, features.frames(samples))
    assert features(pcm).shape == expected.shape
    np.testing.assert_allclose(features.raw(pcm), expected, rtol=0, atol=LOGMEL["raw"])
    np.testing.assert_allclose(features(pcm), reference.normalize(expected), rtol=0, atol=LOGMEL["normal"])


@pytest.mark.usefixtures("tier")
def test_a_pure_tone_lights_the_band_it_lies_in() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000).astype(np.float32)
    bands = LogMel(80).raw(tone)[:, 50]
    centre = reference.slaney_filters(80)[bands.argmax()] @ np.linspace(0, 8000, 201)
    centre /= reference.slaney_filters(80)[bands.argmax()].sum()
    assert abs(centre - 1000) < 40
    assert bands.max() - bands[-1] > 5


@pytest.mark.parametrize("n_mels", [80, 128])
def test_transformers_extracts_the_same_features(n_mels: int) -> None:
    transformers = pytest.importorskip("transformers")
    extractor = transformers.WhisperFeatureExtractor(feature_size=n_mels)
    pcm = speechlike(40000)
    theirs = extractor(pcm, sampling_rate=16000, padding="do_not_pad", return_tensors="np")["input_features"][
        0
    ]
    ours = LogMel(n_mels)(pcm)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= LOGMEL["peer"]


def test_transformers_agrees_on_real_speech(shared_data: Path) -> None:
    transformers = pytest.importorskip("transformers")
    extractor = transformers.WhisperFeatureExtractor(feature_size=128)
    for path in sorted((shared_data / "stepfun_clips").glob("*.wav")):
        pcm = load_audio(path)[:80000]
        theirs = extractor(pcm, sampling_rate=16000, padding="do_not_pad", return_tensors="np")
        ours, exact = LogMel(128)(pcm), reference.normalize(reference.raw(pcm, 128))
        assert np.abs(ours - theirs["input_features"][0]).max() <= LOGMEL["peer"], path.name
        assert np.abs(ours - exact).max() <= LOGMEL["normal"], path.name


def streamed(features: LogMel, pcm: np.ndarray, cuts: list[int]) -> np.ndarray:
    stream, bounds = features.stream(), [0, *sorted(cuts), len(pcm)]
    blocks = [stream.push(pcm[a:b]) for a, b in pairwise(bounds)]
    return np.concatenate([*blocks, stream.finish()], axis=1)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), samples=st.integers(1, 3000), padding=st.sampled_from(["whisper", "step_audio"]))
def test_chunks_give_the_bits_of_the_whole(data: st.DataObject, samples: int, padding: str) -> None:
    pcm = speechlike(samples, seed=samples)
    cuts = data.draw(st.lists(st.integers(0, samples), max_size=12))
    features = LogMel(80, padding=padding)  # type: ignore[arg-type]
    np.testing.assert_array_equal(streamed(features, pcm, cuts), features.raw(pcm))


@pytest.mark.usefixtures("tier")
@pytest.mark.parametrize("n_mels", [1, 13, 80, 128, 256])
@pytest.mark.parametrize("chunk", [160, 320, 480, 1280, 2000])
def test_chunks_of_the_usual_sizes_give_the_bits_of_the_whole_on_every_tier(n_mels: int, chunk: int) -> None:
    pcm = speechlike(7000, seed=chunk)
    pieces = streamed(LogMel(n_mels), pcm, list(range(chunk, 7000, chunk)))
    np.testing.assert_array_equal(pieces, LogMel(n_mels).raw(pcm))


@pytest.mark.usefixtures("tier")
def test_sample_by_sample_gives_the_bits_of_the_whole_on_every_tier() -> None:
    pcm = speechlike(1203)
    features = LogMel(128, padding="step_audio")
    whole = features.raw(pcm)
    pieces = streamed(features, pcm, list(range(1203)))
    np.testing.assert_array_equal(pieces, whole)
    np.testing.assert_array_equal(LogMel.normalize(pieces), features(pcm))


def test_a_stream_gives_each_frame_as_soon_as_its_samples_are_in() -> None:
    stream, pcm = LogMel(80).stream(), speechlike(1000)
    counts = [stream.push(pcm[i : i + 1]).shape[1] for i in range(1000)]
    assert [i + 1 for i, count in enumerate(counts) if count] == [201, 360, 520, 680, 840, 1000]
    assert stream.finish().shape == (80, 0)


@pytest.mark.usefixtures("tier")
def test_the_length_of_a_clip_and_the_threads_change_no_bit_of_a_frame() -> None:
    pcm = speechlike(160 * 600)
    long = LogMel(80).raw(pcm)
    np.testing.assert_array_equal(LogMel(80).raw(pcm[: 160 * 300 + 200])[:, :300], long[:, :300])
    threads = _native.num_threads()
    try:
        for count in (1, 3):
            _native.set_num_threads(count)
            np.testing.assert_array_equal(LogMel(80).raw(pcm), long)
    finally:
        _native.set_num_threads(threads)


def test_torch_in_gives_torch_out_and_numpy_numpy() -> None:
    pcm = speechlike(2000)
    features = LogMel(80)
    ours, tensor = features(pcm), features(torch.from_numpy(pcm).requires_grad_())
    assert isinstance(ours, np.ndarray)
    assert isinstance(tensor, torch.Tensor)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(tensor.numpy(), ours)
    stream = features.stream()
    parts = [stream.push(torch.from_numpy(pcm)), stream.finish()]
    assert all(isinstance(part, torch.Tensor) for part in parts)
    np.testing.assert_array_equal(features.normalize(torch.cat(parts, 1)).numpy(), ours)
    np.testing.assert_array_equal(features(np.repeat(pcm, 2)[::2]), ours)  # not contiguous


def test_another_rate_is_resampled() -> None:
    t = np.arange(8000) / 8000
    tone_8k = (0.3 * np.sin(2 * np.pi * 600 * t)).astype(np.float32)
    tone_16k = (0.3 * np.sin(2 * np.pi * 600 * np.arange(16000) / 16000)).astype(np.float32)
    loud = LogMel(80)(tone_16k) > 0.5
    ours = LogMel(80)(tone_8k, sample_rate=8000)
    assert ours.shape == (80, 100)
    np.testing.assert_allclose(ours[loud][5:-5], LogMel(80)(tone_16k)[loud][5:-5], atol=0.02)


@pytest.mark.parametrize(
    ("pcm", "says"),
    [
        (np.zeros(0, np.float32), "expected at least one sample, got none"),
        (np.float32([0, 1, np.nan]), "got nan at sample 2"),
        (np.float32([-np.inf]), "got -inf at sample 0"),
        (np.float32([0, 2e15]), "magnitude at most 1e15"),
        (np.zeros(400), "expected float32, got float64"),
        (np.zeros(400, np.int16), "expected float32, got int16"),
        (np.zeros(400, np.float16), "expected float32, got float16"),
        (np.zeros((1, 400), np.float32), "expected one axis [samples], got 2 axes [1, 400]"),
        (np.float32(0), "expected a numpy array or torch tensor, got float32"),
        (torch.zeros(400, dtype=torch.bfloat16), "expected float32, got bfloat16"),
        (torch.zeros(400, device="meta"), "expected a tensor in CPU memory, got one on meta"),
        ("clip.wav", "expected a numpy array or torch tensor, got str"),
        (None, "got NoneType"),
    ],
)
def test_hostile_input_is_refused_in_one_sentence(pcm: object, says: str) -> None:
    for rate in (16000, 8000):
        with pytest.raises(InvalidInput, match=r"^\[logmel\] pcm: ") as refused:
            LogMel(80)(pcm, rate)
        assert says in str(refused.value)


@pytest.mark.parametrize("settings", [{"n_mels": 0}, {"n_mels": 257}, {"n_mels": 80.0}, {"padding": "none"}])
def test_wrong_settings_are_refused(settings: dict) -> None:
    with pytest.raises(InvalidInput, match=r"^\[logmel\] "):
        LogMel(**settings)


def test_a_refused_chunk_leaves_the_stream_as_it_was() -> None:
    pcm = speechlike(2000)
    stream = LogMel(80).stream()
    with pytest.raises(InvalidInput, match="at least one sample, got none"):
        stream.finish()
    blocks = [stream.push(pcm[:900])]
    with pytest.raises(InvalidInput, match="got nan at sample 901"):
        stream.push(np.float32([0, np.nan]))
    with pytest.raises(InvalidInput, match="expected float32"):
        stream.push(np.zeros(3))
    blocks += [stream.push(pcm[900:]), stream.finish()]
    np.testing.assert_array_equal(np.concatenate(blocks, 1), LogMel(80).raw(pcm))
    for late in (stream.finish, lambda: stream.push(pcm)):
        with pytest.raises(InvalidInput, match="not finished, got one that is"):
            late()


def test_only_whole_features_are_normalised() -> None:
    assert LogMel.normalize(np.zeros((80, 0), np.float32)).shape == (80, 0)
    for wrong in (np.zeros((80, 3)), np.zeros(80, np.float32), [[1.0]], torch.zeros(2, 2, device="meta")):
        with pytest.raises(InvalidInput, match=r"^\[logmel\] raw: "):
            LogMel.normalize(wrong)
