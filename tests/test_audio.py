# SPDX-License-Identifier: Apache-2.0
"""Files people have, and files nobody should: each loads as what it sounds like, or is refused in one
sentence."""

import contextlib
import io
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from earnest.audio import load_audio, resample
from earnest.errors import InvalidInput


def tone(seconds: float, sample_rate: int, hz: float = 440.0) -> np.ndarray:
    t = np.arange(round(seconds * sample_rate)) / sample_rate
    return (0.5 * np.sin(2 * np.pi * hz * t)).astype(np.float32)


def encoded(
    samples: np.ndarray, sample_rate: int, container: str, subtype: str | None = None, **options
) -> bytes:
    file = io.BytesIO()
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with soundfile.SoundFile(
        file, "w", sample_rate, channels, subtype, format=container, **options
    ) as writer:
        writer.write(samples)
    return file.getvalue()


def assert_sounds_like(pcm: np.ndarray, expected: np.ndarray, bound: float) -> None:
    assert pcm.dtype == np.float32
    assert pcm.shape == expected.shape
    inner = slice(200, -200)
    assert np.abs(pcm[inner] - expected[inner]).max() < bound


@pytest.mark.parametrize(
    ("container", "subtype", "bound"),
    [
        ("WAV", "PCM_16", 1e-4),
        ("WAV", "PCM_U8", 1e-2),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "FLOAT", 1e-7),
        ("WAV", "DOUBLE", 1e-7),
        ("FLAC", None, 1e-4),
        ("AIFF", None, 1e-4),
        ("OGG", "VORBIS", 0.05),
        ("OGG", "OPUS", 0.1),
        ("MP3", None, 0.05),
    ],
)
def test_every_container_gives_the_same_samples(container: str, subtype: str | None, bound: float) -> None:
    wave = tone(0.5, 16000)
    assert_sounds_like(load_audio(encoded(wave, 16000, container, subtype)), wave, bound)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 192000])
def test_every_rate_becomes_the_one_asked_for(rate: int) -> None:
    pcm = load_audio(encoded(tone(0.48, rate), rate, "WAV", "FLOAT"))
    assert_sounds_like(pcm, tone(0.48, 16000), 1e-3)


def test_resampling_in_blocks_equals_resampling_the_whole() -> None:
    wave = tone(5.0, 44100) + 0.01 * np.random.default_rng(0).standard_normal(5 * 44100).astype(np.float32)
    np.testing.assert_array_equal(
        load_audio(encoded(wave, 44100, "WAV", "FLOAT")), resample(wave, 44100, 16000)
    )


def test_channels_are_averaged() -> None:
    channels = np.random.default_rng(0).uniform(-1, 1, (1000, 6)).astype(np.float32)
    pcm = load_audio(encoded(channels, 16000, "WAV", "FLOAT"))
    np.testing.assert_allclose(pcm, channels.astype(np.float64).mean(1), atol=1e-7)


def test_the_name_of_a_file_means_nothing(tmp_path: Path) -> None:
    for container, ending in (("MP3", "wav"), ("WAV", "mp3"), ("FLAC", "raw"), ("OGG", "txt"), ("WAV", "")):
        path = tmp_path / f"clip.{ending}"
        content = encoded(tone(0.25, 16000), 16000, container)
        path.write_bytes(content)
        np.testing.assert_array_equal(load_audio(path), load_audio(content))
        np.testing.assert_array_equal(load_audio(str(path)), load_audio(memoryview(content)))


def test_real_clips_load_with_their_manifest_lengths(shared_data: Path) -> None:
    lines = (shared_data / "stepfun_clips" / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    for clip in map(json.loads, lines):
        pcm = load_audio(shared_data / "stepfun_clips" / clip["file"])
        assert pcm.size == pytest.approx(clip["seconds"] * 16000, abs=800), clip["file"]
        assert 0.01 < np.abs(pcm).max() < 1.5


@pytest.mark.parametrize("rate", [8000, 16000, 192000])
def test_one_sample_is_a_clip(rate: int) -> None:
    pcm = load_audio(encoded(np.float32([0.25]), rate, "WAV", "FLOAT"))
    assert pcm.size == max(1, 16000 // rate)
    assert np.isfinite(pcm).all()
    assert resample(np.float32([0.25]), 192000, 16000).tolist() == [0.25]


def test_a_wav_written_to_a_pipe_has_no_length_and_loads() -> None:
    content = bytearray(encoded(tone(0.25, 16000), 16000, "WAV", "PCM_16"))
    at = content.index(b"data") + 4
    content[at : at + 4] = content[4:8] = b"\xff\xff\xff\xff"
    assert load_audio(content).size == 4000


def test_an_mp3_without_a_length_is_decoded_to_its_end() -> None:
    wave = tone(5.0, 16000) * np.repeat(np.float32([0.0, 1.0]), 40000)
    content = encoded(wave, 16000, "MP3", bitrate_mode="VARIABLE", compression_level=0.5)
    second = content.index(content[:2], 4)
    pcm = load_audio(content[second:])
    assert 0 <= pcm.size - 80000 <= 2400


@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG", "MP3", "AIFF"])
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_truncated_file_is_refused(container: str, kept: float) -> None:
    content = encoded(tone(3.0, 16000), 16000, container)
    with pytest.raises(
        InvalidInput, match=r"^\[load_audio\] source: expected a whole audio file, got \d+ bytes"
    ):
        load_audio(content[: int(len(content) * kept)])


def refused(source: object, says: str, **options: object) -> None:
    with pytest.raises(InvalidInput, match=r"^\[load_audio\] ") as error:
        load_audio(source, **options)  # type: ignore[arg-type]
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_paths_that_are_no_files_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, "a directory")
    refused(tmp_path / "none.wav", "none.wav', which does not exist")
    refused(tmp_path / "none.wav" / "x.wav", "does not exist")
    refused("nul\0.wav", "null")
    (tmp_path / "empty.wav").touch()
    refused(tmp_path / "empty.wav", "an empty file")
    os.mkfifo(tmp_path / "pipe.wav")
    refused(tmp_path / "pipe.wav", "not a regular file")
    refused(3, "expected a path or bytes, got int")


@pytest.mark.parametrize(
    "content", [b"x", b"RIFF", b"not audio at all" * 100, bytes(5000), b"OggS", b"ID3\x04", b"fLaC"]
)
def test_content_that_is_not_audio_is_refused(content: bytes, tmp_path: Path) -> None:
    refused(content, "audio file, got")
    path = tmp_path / "song.wav"
    path.write_bytes(content)
    refused(path, "song.wav'")


def test_no_bytes_and_no_samples_are_refused() -> None:
    refused(b"", "no bytes at all")
    refused(encoded(np.zeros(0, np.float32), 16000, "WAV"), "expected at least one sample, got none")


def wav_header(channels: int, rate: int, data_bytes: int) -> bytes:
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * 2 & 0xFFFFFFFF, channels * 2, 16)
    return (
        b"RIFF"
        + struct.pack("<I", 36 + data_bytes)
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + form
        + (b"data" + struct.pack("<I", data_bytes))
    )


def test_headers_that_lie_are_refused() -> None:
    refused(wav_header(0, 16000, 64) + bytes(64), "libsndfile says")
    refused(wav_header(1, 0, 64) + bytes(64), "got")
    refused(wav_header(1, 7, 64) + bytes(64), "got 7 in 108 bytes")
    refused(wav_header(1, 2_000_000_000, 64) + bytes(64), "got 2000000000 in 108 bytes")
    refused(wav_header(1, 16000, 1 << 30) + bytes(64), "lacks its last")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_samples_that_are_no_numbers_are_refused_with_their_place(value: float) -> None:
    samples = np.zeros((1000, 2), np.float32)
    samples[700, 1] = value
    refused(encoded(samples, 16000, "WAV", "FLOAT"), "at sample 700 of channel 1")


def test_two_hours_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    with path.open("wb") as file:  # a sparse file: reading it whole would take far longer than the header
        file.write(wav_header(1, 16000, 2 * 3600 * 32000))
        file.truncate(44 + 2 * 3600 * 32000)
    refused(path, "expected at most 3600 s of audio, got 7200.0 s")
    refused(encoded(tone(2.0, 8000), 8000, "FLAC"), "at most 1.5 s of audio, got 2.0 s", max_seconds=1.5)
    assert load_audio(encoded(tone(2.0, 8000), 8000, "FLAC"), max_seconds=2.0).size == 32000


@pytest.mark.parametrize("rate", [0, -1, 16000.0, True, "16000", 10**9])
def test_a_target_rate_that_is_none_is_refused(rate: object) -> None:
    refused(encoded(tone(0.1, 16000), 16000, "WAV"), "sample_rate", sample_rate=rate)


def test_random_damage_never_raises_anything_else() -> None:
    random = np.random.default_rng(0)
    for container in ("WAV", "FLAC", "OGG", "AIFF"):
        whole = encoded(tone(0.2, 16000), 16000, container)
        for _ in range(40):
            damaged = bytearray(whole)
            for at in random.integers(0, min(len(whole), 200), 4):
                damaged[at] = random.integers(256)
            with contextlib.suppress(InvalidInput):
                assert np.isfinite(load_audio(damaged)).all()
