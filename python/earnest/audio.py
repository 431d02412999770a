# SPDX-License-Identifier: Apache-2.0
"""Audio files to samples: any format libsndfile knows, told by content, to mono float32 at one rate."""

from __future__ import annotations

import io
import os
import stat
import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from earnest.errors import InvalidInput

MAX_SECONDS = 3600.0
_MIN_RATE, _MAX_RATE = 1000, 1_000_000  # samples a second; outside them a header is damaged or hostile
_MAX_MAGNITUDE = 1e15  # squares of larger samples would leave float32
_BLOCK = 1 << 16  # frames decoded at once


def load_audio(
    source: str | os.PathLike[str] | bytes | bytearray | memoryview,
    sample_rate: int = 16000,
    *,
    max_seconds: float = MAX_SECONDS,
) -> np.ndarray:
    """Decodes a file (a path, or its bytes) to float32 [samples], mono, at `sample_rate` samples a second.

    The format is told by content, never by the name's ending: wav, flac, ogg, mp3, aiff and what else
    libsndfile reads. Channels are averaged; integer samples are scaled to [-1, 1); other rates are resampled
    (soxr, high quality). A clip of less than one sample at the new rate becomes one sample, its mean.

    Raises InvalidInput for a path that is missing, a directory or not readable; for content that is empty,
    not audio, shorter than its header says (an MP3 without a length in its header cannot be told from a
    shorter one), without samples, with NaN, Inf or magnitudes above 1e15, or longer than `max_seconds`,
    which is refused before it is decoded where the header tells the length.
    """
    _check_target(sample_rate, max_seconds)
    file, name = _open(source)
    with file:
        _refuse_truncated_container(file, name)
        length_known = _tells_its_length(file)
        try:
            decoder = soundfile.SoundFile(file)
        except (soundfile.LibsndfileError, TypeError, ValueError) as error:
            reason = getattr(error, "error_string", str(error)).rstrip(".")
            raise InvalidInput(
                "load_audio", "source", "an audio file", f"{name}, of which libsndfile says: {reason}"
            ) from None
        with decoder:
            return _decode(decoder, length_known, name, sample_rate, max_seconds)


def resample(pcm: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """pcm float32 [samples] at from_rate -> float32 at to_rate (soxr, high quality); at least one sample."""
    if from_rate == to_rate:
        return pcm
    out = soxr.resample(pcm, from_rate, to_rate)
    return out if out.size else pcm.mean(keepdims=True)


def _check_target(sample_rate: int, max_seconds: float) -> None:
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, (int, np.integer)):
        raise InvalidInput("load_audio", "sample_rate", "whole samples per second", repr(sample_rate))
    if not _MIN_RATE <= sample_rate <= _MAX_RATE:
        raise InvalidInput("load_audio", "sample_rate", f"{_MIN_RATE} to {_MAX_RATE} Hz", str(sample_rate))
    if not max_seconds > 0:
        raise InvalidInput("load_audio", "max_seconds", "a positive number of seconds", str(max_seconds))


class _SeekableBytes(io.BytesIO):
    """Bytes as a file; a damaged header makes libsndfile seek before the start, where BytesIO would raise."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return super().seek(max(offset, 0) if whence == os.SEEK_SET else offset, whence)


class _SeekableFile(io.BufferedReader):
    """The same for a file on disk, without the name in which soundfile would look for an ending."""

    name = property(lambda self: "")

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return super().seek(max(offset, 0) if whence == os.SEEK_SET else offset, whence)


def _open(source: object) -> tuple[BinaryIO, str]:
    """The source as a seekable file, and the words by which errors call it."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        if len(source) == 0:
            raise InvalidInput("load_audio", "source", "an audio file", "no bytes at all")
        return _SeekableBytes(source), f"{len(source)} bytes"
    if isinstance(source, (str, os.PathLike)):
        name = f"'{os.fspath(source)}'"
        return _open_path(source, name), name
    raise InvalidInput("load_audio", "source", "a path or bytes", type(source).__name__)


def _open_path(path: str | os.PathLike[str], name: str) -> BinaryIO:
    try:
        kind = os.stat(path)
        if stat.S_ISDIR(kind.st_mode):
            raise InvalidInput("load_audio", "source", "an audio file", f"{name}, a directory")
        if not stat.S_ISREG(kind.st_mode):
            raise InvalidInput("load_audio", "source", "an audio file", f"{name}, not a regular file")
        if kind.st_size == 0:
            raise InvalidInput("load_audio", "source", "an audio file", f"{name}, an empty file")
        return _SeekableFile(io.FileIO(path))
    except FileNotFoundError:
        raise InvalidInput("load_audio", "source", "an audio file", f"{name}, which does not exist") from None
    except (OSError, ValueError) as error:
        if isinstance(error, InvalidInput):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidInput(
            "load_audio", "source", "an audio file", f"{name}, not readable: {reason}"
        ) from None


def _refuse_truncated_container(file: BinaryIO, name: str) -> None:
    """Refuses a RIFF, AIFF or Ogg file whose end is missing: libsndfile decodes the rest and says nothing."""
    magic = file.read(4)
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    missing = 0
    if magic == b"RIFF":
        missing = _missing_riff_bytes(file, size)
    elif magic == b"FORM" and size >= 8:
        file.seek(4)
        missing = 8 + int.from_bytes(file.read(4), "big") - size
    if missing > 0:
        got = f"{name}, which lacks its last {missing} bytes"
        raise InvalidInput("load_audio", "source", "a whole audio file", got)
    if magic == b"OggS" and not _ogg_ends(file, size):
        raise InvalidInput(
            "load_audio", "source", "a whole audio file", f"{name}, which lacks its last Ogg page"
        )
    file.seek(0)


def _missing_riff_bytes(file: BinaryIO, size: int) -> int:
    """How many bytes of the data chunk lie beyond the end of the file.

    A length of 0, or within 4 KiB of 2 or 4 GiB, is what programs write that do not know it yet (a pipe).
    """
    at = 12
    while at + 8 <= size:
        file.seek(at)
        kind, length = struct.unpack("<4sI", file.read(8))
        if kind == b"data":
            unknown = length >= 0xFFFFF000 or 0x7FFFF000 <= length <= 0x80000000
            return 0 if unknown else max(0, at + 8 + length - size)
        at += 8 + length + length % 2
    return 0  # no data chunk at all: libsndfile says so


def _ogg_ends(file: BinaryIO, size: int) -> bool:
    """Whether the last page is whole and carries the end-of-stream flag."""
    file.seek(max(0, size - (1 << 17)))  # a page has at most 65,307 bytes
    tail = file.read()
    at = tail.rfind(b"OggS")
    if at < 0 or at + 27 > len(tail):
        return False
    segments = tail[at + 26]
    table = tail[at + 27 : at + 27 + segments]
    return len(table) == segments and at + 27 + segments + sum(table) <= len(tail) and bool(tail[at + 5] & 4)


def _tells_its_length(file: BinaryIO) -> bool:
    """False for an MP3 without a Xing, Info or VBRI header, whose length libsndfile only estimates."""
    head = file.read(10)
    if head[:3] == b"ID3" and len(head) == 10:
        tag_size = 10 + sum((byte & 0x7F) << (7 * (3 - i)) for i, byte in enumerate(head[6:10]))
        file.seek(tag_size)
        head = file.read(4)
    is_mp3 = len(head) >= 2 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0
    frame = head + file.read(2048)
    file.seek(0)
    return not is_mp3 or any(mark in frame for mark in (b"Xing", b"Info", b"VBRI"))


def _decode(
    decoder: soundfile.SoundFile, length_known: bool, name: str, sample_rate: int, max_seconds: float
) -> np.ndarray:
    rate, announced = decoder.samplerate, decoder.frames
    if not _MIN_RATE <= rate <= _MAX_RATE:
        raise InvalidInput(
            "load_audio", "source", f"{_MIN_RATE} to {_MAX_RATE} samples a second", f"{rate} in {name}"
        )
    known = (
        length_known and 0 <= announced < 1 << 62
    )  # libsndfile's word for a length it does not know is the largest integer
    if known and announced > max_seconds * rate:
        raise InvalidInput(
            "load_audio",
            "source",
            f"at most {max_seconds:g} s of audio",
            f"{announced / rate:.1f} s in {name}",
        )
    resampler = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32") if rate != sample_rate else None
    parts, decoded, total = [], 0, 0.0
    for mono in _mono_blocks(decoder, name):
        decoded, total = decoded + mono.size, total + float(mono.sum(dtype=np.float64))
        if decoded > max_seconds * rate:
            raise InvalidInput(
                "load_audio", "source", f"at most {max_seconds:g} s of audio", f"more in {name}"
            )
        parts.append(mono if resampler is None else resampler.resample_chunk(mono))
    if known and decoded < announced:
        raise InvalidInput(
            "load_audio",
            "source",
            "a whole audio file",
            f"{name}, which ends after {decoded} of {announced} samples",
        )
    if decoded == 0:
        raise InvalidInput("load_audio", "source", "at least one sample", f"none in {name}")
    if resampler is not None:
        parts.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    pcm = np.concatenate(parts)
    return pcm if pcm.size else np.array([total / decoded], np.float32)


def _mono_blocks(decoder: soundfile.SoundFile, name: str) -> Iterator[np.ndarray]:
    """The mean of the channels, block by block, float32 [frames]."""
    at = 0
    while True:
        try:
            block = decoder.read(_BLOCK, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            reason = f"{name}, of which libsndfile says after {at} samples: {error.error_string.rstrip('.')}"
            raise InvalidInput("load_audio", "source", "a whole audio file", reason) from None
        if len(block) == 0:
            return
        wrong = ~(np.abs(block) <= _MAX_MAGNITUDE)
        if wrong.any():
            row, channel = np.argwhere(wrong)[0]
            raise InvalidInput(
                "load_audio",
                "source",
                "finite samples of magnitude at most 1e15",
                f"{block[row, channel]} at sample {at + row} of channel {channel} in {name}",
            )
        at += len(block)
        # From one channel the mean is that channel, bit for bit.
        yield (
            block[:, 0].copy() if block.shape[1] == 1 else block.mean(1, dtype=np.float64).astype(np.float32)
        )
