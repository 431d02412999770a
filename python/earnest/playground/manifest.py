# SPDX-License-Identifier: Apache-2.0
"""The manifest of a folder or tar of recorded digits: one JSON object a line, UTF-8.

    {"file": "7_lucas_12.wav", "digit": 7, "speaker": "lucas", "take": 12}

A line may say "word": "seven" for "digit": 7, may leave "take" out (then takes are numbered in order), and
may hold more keys, which are not looked at. The manifest is ``manifest.jsonl`` in the folder, in the tar, or
beside the tar; the files are in the folder or in the one tar that lies there. Recordings are read where they
are: nothing is ever unpacked to disk.
"""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from earnest.dialogue.records import BadLine, parse_line
from earnest.errors import InvalidInput
from earnest.playground.sentences import DIGITS

MANIFEST = "manifest.jsonl"
_MOST_BYTES = 1 << 26  # of one recording: minutes of sound, where a word is wanted


@dataclass(frozen=True)
class Recording:
    """One take of a word. path, offset, size: the bytes that hold it."""

    word: str
    speaker: str
    take: int
    line: int
    path: str
    offset: int
    size: int


def read_manifest(path: str | os.PathLike[str]) -> tuple[str, list[Recording]]:
    """The manifest's name and its recordings. Raises InvalidInput, or BadLine with the file and line."""
    name, raw, files = _open(os.fspath(path))
    entries: list[Recording] = []
    seen: set[str] = set()
    takes: dict[tuple[str, str], int] = defaultdict(int)
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = parse_line(line.rstrip(b"\r"))
            file, word, speaker, take = _fields(record)
            if file in seen:
                raise InvalidInput("recordings", "file", "each file once", repr(file))
            where = files.find(file)
        except InvalidInput as error:
            got = error.got if error.argument == "line" else f"{error.got} in {error.argument}"
            raise BadLine("recordings", name, number, error.expected, got) from None
        seen.add(file)
        take = takes[speaker, word] if take is None else take
        takes[speaker, word] += 1
        entries.append(Recording(word, speaker, take, number, *where))
    if not entries:
        raise InvalidInput("recordings", name, "at least one recording", "none")
    return name, entries


def _fields(record: dict[str, Any]) -> tuple[str, str, str, int | None]:
    """File, word, speaker and take of a line."""
    for key in ("file", "speaker"):
        if not isinstance(record.get(key), str) or not record[key]:
            raise InvalidInput("recordings", key, "a name", repr(record.get(key)))
    file = posixpath.normpath(record["file"])
    if file.startswith(("/", "..")) or "\0" in file:
        raise InvalidInput("recordings", "file", "a name inside the folder or tar", repr(record["file"]))
    digit, word, take = record.get("digit"), record.get("word"), record.get("take")
    if digit is None and word is None:
        raise InvalidInput("recordings", "line", "the key 'digit' or 'word'", f"the keys {sorted(record)}")
    if digit is not None and (type(digit) is not int or not 0 <= digit <= 9):
        raise InvalidInput("recordings", "digit", "a whole number from 0 to 9", repr(digit))
    if word is not None and word not in DIGITS:
        raise InvalidInput("recordings", "word", f"one of {' '.join(DIGITS)}", repr(word))
    if digit is not None and word is not None and DIGITS[digit] != word:
        raise InvalidInput("recordings", "word", f"{DIGITS[digit]!r} as in digit", repr(word))
    if take is not None and (type(take) is not int or take < 0):
        raise InvalidInput("recordings", "take", "a whole number of at least 0", repr(take))
    return file, word or DIGITS[digit or 0], record["speaker"], take


class _Files:
    """Where the bytes of a file are: in a folder, or in a tar, whose members are located, never unpacked."""

    def __init__(self, folder: str | None, tar: str | None) -> None:
        self.folder, self.tar = folder, tar
        self.members = {} if tar is None else _members(tar)

    def find(self, name: str) -> tuple[str, int, int]:
        """(path, offset, size) of a file."""
        if name in self.members:
            assert self.tar is not None
            where = (self.tar, *self.members[name])
        else:
            path = None if self.folder is None else os.path.join(self.folder, name)
            if path is None or not os.path.isfile(path):
                places = " or ".join(f"'{place}'" for place in (self.folder, self.tar) if place is not None)
                raise InvalidInput("recordings", "file", f"a file in {places}", f"{name!r}")
            where = (path, 0, os.path.getsize(path))
        if not 0 < where[2] <= _MOST_BYTES:
            raise InvalidInput("recordings", "file", f"1 to {_MOST_BYTES} bytes", f"{where[2]}: {name!r}")
        return where


def _members(tar: str) -> dict[str, tuple[int, int]]:
    """Offset and size of every plain file in a tar."""
    try:
        with tarfile.open(tar, "r:") as opened:
            return {
                posixpath.normpath(member.name): (member.offset_data, member.size)
                for member in opened
                if member.isreg() and not member.issparse()
            }
    except tarfile.TarError as error:
        raise InvalidInput(
            "recordings", "voices", "a folder or an uncompressed tar of recorded words", f"'{tar}' ({error})"
        ) from None
    except OSError as error:
        raise InvalidInput("recordings", "voices", "a readable tar", f"'{tar}' ({error.strerror})") from None


def _open(path: str) -> tuple[str, bytes, _Files]:
    """The manifest's name and bytes, and its files."""
    if not os.path.exists(path):
        raise InvalidInput(
            "recordings",
            "voices",
            f"a folder or tar of recorded words with a {MANIFEST}",
            f"'{path}', which does not exist",
        )
    if os.path.isdir(path):
        tars = sorted(name for name in os.listdir(path) if name.endswith(".tar"))
        if len(tars) > 1:
            raise InvalidInput(
                "recordings",
                "voices",
                "one tar in a folder",
                f"{len(tars)} in '{path}' (name one of them instead of the folder)",
            )
        files = _Files(path, os.path.join(path, tars[0]) if tars else None)
        manifest = os.path.join(path, MANIFEST)
    else:
        files = _Files(None, path)
        manifest = os.path.join(os.path.dirname(path), MANIFEST)
        if MANIFEST in files.members:
            return f"{path}/{MANIFEST}", _read(path, *files.members[MANIFEST]), files
    return manifest, _read(manifest), files


def _read(path: str, offset: int = 0, size: int = -1) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)
    except OSError as error:
        raise InvalidInput(
            "recordings", "manifest", "a readable file", f"'{path}' ({error.strerror})"
        ) from None
