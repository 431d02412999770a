# SPDX-License-Identifier: Apache-2.0
"""Features of clips of any length, in pieces of any size: those of the Python pipeline, chunk by chunk."""

import itertools

import numpy as np
import pytest

from earnest import _native
from earnest.features import LogMel
from earnest.model.features import CHUNK_SAMPLES, MAX_CHUNK_SAMPLES, chunk_audio

LENGTHS = [
    1,
    160,
    5000,
    CHUNK_SAMPLES,
    MAX_CHUNK_SAMPLES,
    MAX_CHUNK_SAMPLES + 1,
    2 * CHUNK_SAMPLES,
    1_000_123,
]


DEVICES = ["cpu", "cuda"]  # cuda, where samples are cut and handed on, needs no GPU


def clip(samples):
    return np.random.default_rng(samples).standard_normal(samples).astype(np.float32)


def taken(chunks, n_mels=80):
    return [(samples, np.array(mel, np.float32).reshape(-1, n_mels).T) for samples, mel in chunks]


def in_pieces(pcm, device):
    features, random = _native.engine.ClipFeatures(80, device), np.random.default_rng(1)
    cuts = [0, *sorted(random.integers(0, len(pcm) + 1, 7)), len(pcm)]
    chunks = [c for a, b in itertools.pairwise(cuts) for c in features.push(pcm[a:b])]
    return chunks + features.finish()


@pytest.mark.parametrize("samples", LENGTHS)
def test_chunks_are_those_of_the_python_pipeline_bit_for_bit(samples):
    pcm, log_mel = clip(samples), LogMel(80, padding="step_audio")
    got, want = taken(in_pieces(pcm, "cpu")), chunk_audio(pcm)
    assert [n for n, _ in got] == [len(part) for part in want]
    for (_, mel), part in zip(got, want, strict=True):
        assert np.array_equal(mel, log_mel(part))


@pytest.mark.parametrize("samples", LENGTHS)
def test_for_a_gpu_the_same_chunks_are_handed_on_as_samples(samples):
    pcm = clip(samples)
    got, want = in_pieces(pcm, "cuda"), chunk_audio(pcm)
    assert [n for n, _ in got] == [len(part) for part in want]
    for (_, handed_on), part in zip(got, want, strict=True):
        assert np.array_equal(np.array(handed_on, np.float32), part)


@pytest.mark.parametrize("device", DEVICES)
def test_a_chunk_closes_as_soon_as_nothing_can_change_it(device):
    pcm, features = clip(MAX_CHUNK_SAMPLES + 1), _native.engine.ClipFeatures(8, device)
    assert features.push(pcm[:-1]) == []
    assert len(features.push(pcm[-1:])) == 1
    rest = 2 * CHUNK_SAMPLES - len(pcm)
    assert features.push(pcm[: rest - 1]) == []
    assert len(features.push(pcm[:1])) == 1
    assert features.finish() == []
    assert [n for n, _ in features.push(pcm[:300]) + features.finish()] == [300]  # another clip


def test_a_bad_sample_is_named_and_forgotten():
    features, pcm = _native.engine.ClipFeatures(8), clip(1000)
    features.push(pcm)
    bad = pcm.copy()
    bad[7] = np.nan
    with pytest.raises(ValueError, match=r"pcm: expected finite samples .* got nan at sample 1007"):
        features.push(bad)
    features.push(pcm)
    [(samples, mel)] = taken(features.finish(), 8)
    assert samples == 2000
    assert np.array_equal(mel, LogMel(8, padding="step_audio")(np.concatenate([pcm, pcm])))
    assert features.finish() == []


def test_a_number_of_bands_that_no_features_have_is_refused():
    for bands in (0, 257, 2**33):
        with pytest.raises(ValueError, match="n_mels"):
            _native.engine.ClipFeatures(bands)
