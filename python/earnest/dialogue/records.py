# SPDX-License-Identifier: Apache-2.0
"""Records: JSON-lines files of dialogues and of preferences, read and written without losing anything.

    {"messages": [...], "answer": ..., "rubric": [...], "reference": ...}
    {"messages": [...], "a": ..., "b": ..., "verdict": -2..2, "rubric": null | [...], "annotator": ...}

Keys that the format does not name are kept in ``extra`` and written back. A line that breaks the format
raises `BadLine`, or is collected where the caller hands in a list: in no case does it vanish. Paths of sound
files are relative to the folder of the file that names them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from earnest.dialogue.message import (
    Audio,
    Message,
    _check_text,
    _json_kind,
    message_from_dict,
    message_to_dict,
)
from earnest.errors import InvalidInput

SAMPLE_RATE = 16000
Record = TypeVar("Record")


class BadLine(InvalidInput):
    """A line of a file that breaks the format: ``[op] file:line: expected X, got Y``."""

    def __init__(self, op: str, file: str, line: int, expected: str, got: str) -> None:
        super().__init__(op, f"{file}:{line}", expected, got)
        self.file, self.line = file, line
        self.reason = f"expected {expected}, got {got}"

    def __reduce__(self) -> tuple:
        return type(self), (self.op, self.file, self.line, self.expected, self.got)


@dataclass(frozen=True)
class Dialogue:
    """One line of a dialogue file. ``origin`` is the (file, line) it came from, for error messages."""

    messages: tuple[Message, ...]
    answer: str | int | float | None = None
    rubric: tuple[str, ...] | None = None
    reference: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    origin: tuple[str, int] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Preference:
    """Two replies to one dialogue and how a rater ordered them: verdict 2 = a much better ... -2 = b much
    better."""

    messages: tuple[Message, ...]
    a: str
    b: str
    verdict: int
    rubric: tuple[str, ...] | None = None
    annotator: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    origin: tuple[str, int] | None = field(default=None, compare=False)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise InvalidInput(
            "json", "line", "each key once", repr(next(n for n in names if names.count(n) > 1))
        )
    return result


def _not_json(constant: str) -> Any:
    raise InvalidInput("json", "line", "numbers that JSON knows", constant)


def parse_line(raw: bytes) -> dict[str, Any]:
    """The JSON object of one line; InvalidInput says what is wrong with any other bytes."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            "json", "line", "UTF-8", f"the byte 0x{raw[error.start]:02x} at {error.start}"
        ) from None
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_not_json)
    except json.JSONDecodeError as error:
        raise InvalidInput(
            "json", "line", "one JSON object", f"{error.msg} at column {error.colno}"
        ) from None
    except RecursionError:
        raise InvalidInput("json", "line", "one JSON object", "brackets nested too deep") from None
    if not isinstance(value, dict):
        raise InvalidInput("json", "line", "one JSON object", _json_kind(value))
    return value


def read_records(
    op: str,
    path: str | os.PathLike[str],
    parse: Callable[[dict[str, Any], int], Record],
    bad: list[BadLine] | None = None,
) -> Iterator[Record]:
    """Yield ``parse(object, line number)`` for every line that is not blank.

    With ``bad`` given, lines that break the format are appended to it; without it the first one is raised.
    """
    name = os.fspath(path)
    try:
        stream = open(path, "rb")  # noqa: SIM115  (closed below; only opening may raise this error)
    except OSError as error:
        raise InvalidInput(op, "path", "a readable JSON-lines file", f"{name} ({error.strerror})") from error
    with stream:
        for number, raw in enumerate(stream, start=1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if not raw.strip():
                continue
            try:
                yield parse(parse_line(raw.rstrip(b"\r\n")), number)
            except InvalidInput as error:
                got = error.got if error.argument == "line" else f"{error.got} in {error.argument}"
                line = BadLine(op, name, number, error.expected, got)
                if bad is None:
                    raise line from None
                bad.append(line)


def _messages(value: Any, resolve: Callable[[str], str]) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise InvalidInput(
            "record",
            "messages",
            "a list of at least one message",
            _json_kind(value) if not isinstance(value, list) else "an empty list",
        )
    return tuple(
        message_from_dict(item, argument=f"messages[{i}]", resolve=resolve) for i, item in enumerate(value)
    )


def _rubric(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise InvalidInput("record", "rubric", "null or a list of strings", _json_kind(value))
    return tuple(_check_text("record", f"rubric[{i}]", item) for i, item in enumerate(value))


def _optional_text(record: dict[str, Any], key: str) -> str | None:
    return None if record.get(key) is None else _check_text("record", key, record[key])


def _extra(record: dict[str, Any], known: set[str]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in known}


def dialogue_from_dict(
    record: dict[str, Any], *, resolve: Callable[[str], str] = str, origin: tuple[str, int] | None = None
) -> Dialogue:
    """A Dialogue from its JSON object."""
    if "messages" not in record:
        raise InvalidInput("record", "line", "the key 'messages'", f"the keys {sorted(record)}")
    answer = record.get("answer")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
        raise InvalidInput("record", "answer", "a string, a number or null", _json_kind(answer))
    return Dialogue(
        _messages(record["messages"], resolve),
        answer,
        _rubric(record.get("rubric")),
        _optional_text(record, "reference"),
        _extra(record, {"messages", "answer", "rubric", "reference"}),
        origin,
    )


def preference_from_dict(
    record: dict[str, Any], *, resolve: Callable[[str], str] = str, origin: tuple[str, int] | None = None
) -> Preference:
    """A Preference from its JSON object."""
    for key in ("messages", "a", "b", "verdict"):
        if key not in record:
            raise InvalidInput("record", "line", f"the key {key!r}", f"the keys {sorted(record)}")
    verdict = record["verdict"]
    if type(verdict) is not int or not -2 <= verdict <= 2:
        raise InvalidInput("record", "verdict", "a whole number from -2 to 2", repr(verdict))
    messages = _messages(record["messages"], resolve)
    if messages[-1].role == "assistant":
        raise InvalidInput(
            "record", "messages", "a dialogue that ends before the two replies", "an assistant turn last"
        )
    return Preference(
        messages,
        _check_text("record", "a", record["a"]),
        _check_text("record", "b", record["b"]),
        verdict,
        _rubric(record.get("rubric")),
        _optional_text(record, "annotator"),
        _extra(record, {"messages", "a", "b", "verdict", "rubric", "annotator"}),
        origin,
    )


def _resolver(path: str | os.PathLike[str]) -> Callable[[str], str]:
    folder = os.path.dirname(os.fspath(path))
    return lambda name: os.path.join(folder, name)


def read_dialogues(path: str | os.PathLike[str], bad: list[BadLine] | None = None) -> Iterator[Dialogue]:
    """The dialogues of a file, one by one. Raises BadLine at a bad line, or collects bad lines in ``bad``."""
    name, resolve = os.fspath(path), _resolver(path)
    return read_records(
        "read_dialogues",
        path,
        lambda record, line: dialogue_from_dict(record, resolve=resolve, origin=(name, line)),
        bad,
    )


def read_preferences(path: str | os.PathLike[str], bad: list[BadLine] | None = None) -> Iterator[Preference]:
    """The preferences of a file, one by one. Raises BadLine at a bad line, or collects them in ``bad``."""
    name, resolve = os.fspath(path), _resolver(path)
    return read_records(
        "read_preferences",
        path,
        lambda record, line: preference_from_dict(record, resolve=resolve, origin=(name, line)),
        bad,
    )


def load_dialogues(path: str | os.PathLike[str], bad: list[BadLine] | None = None) -> list[Dialogue]:
    """All dialogues of a file, as `read_dialogues` gives them."""
    return list(read_dialogues(path, bad))


def load_preferences(path: str | os.PathLike[str], bad: list[BadLine] | None = None) -> list[Preference]:
    """All preferences of a file, as `read_preferences` gives them."""
    return list(read_preferences(path, bad))


def write_float_wav(path: Path, pcm: Any, sample_rate: int = SAMPLE_RATE) -> None:
    """Write float32 mono samples as a float WAV file, bit for bit."""
    import soundfile

    soundfile.write(path, pcm, sample_rate, format="WAV", subtype="FLOAT")


class _AudioNames:
    """Paths to write for the clips of a file; clips in memory are stored beside it under their content's
    hash."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.folder = Path(path).parent
        self.store = f"{Path(path).stem}_audio"

    def __call__(self, audio: Audio) -> str:
        if audio.path is not None:
            inside = os.path.relpath(audio.path, self.folder)
            return os.path.abspath(audio.path) if inside.startswith("..") else inside
        assert audio.pcm is not None
        name = f"{self.store}/{hashlib.sha256(audio.pcm.tobytes()).hexdigest()[:20]}.wav"
        target = self.folder / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished = target.with_suffix(".part")
            write_float_wav(unfinished, audio.pcm)
            os.replace(unfinished, target)
        return name


def dialogue_to_dict(item: Dialogue, audio_path: Callable[[Audio], str] | None = None) -> dict[str, Any]:
    """The JSON object of a dialogue."""
    record: dict[str, Any] = {"messages": [message_to_dict(m, audio_path=audio_path) for m in item.messages]}
    for key, value in (("answer", item.answer), ("rubric", item.rubric), ("reference", item.reference)):
        if value is not None:
            record[key] = list(value) if isinstance(value, tuple) else value
    return record | item.extra


def preference_to_dict(item: Preference, audio_path: Callable[[Audio], str] | None = None) -> dict[str, Any]:
    """The JSON object of a preference."""
    return {
        "messages": [message_to_dict(m, audio_path=audio_path) for m in item.messages],
        "a": item.a,
        "b": item.b,
        "verdict": item.verdict,
        "rubric": None if item.rubric is None else list(item.rubric),
        "annotator": item.annotator,
    } | item.extra


def write_lines(path: str | os.PathLike[str], records: Iterable[dict[str, Any]]) -> None:
    """Write objects as JSON lines beside ``path`` and rename, so that a reader never sees half a file."""
    unfinished = f"{os.fspath(path)}.part"
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(unfinished, "w", encoding="utf-8", newline="\n") as stream:
            for record in records:
                stream.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        os.replace(unfinished, path)
    finally:
        if os.path.exists(unfinished):
            os.unlink(unfinished)


def save_dialogues(path: str | os.PathLike[str], items: Iterable[Dialogue]) -> None:
    """Write dialogues; clips in memory become float WAV files in ``<stem>_audio`` beside the file."""
    names = _AudioNames(path)
    write_lines(path, (dialogue_to_dict(item, names) for item in items))


def save_preferences(path: str | os.PathLike[str], items: Iterable[Preference]) -> None:
    """Write preferences; clips in memory become float WAV files in ``<stem>_audio`` beside the file."""
    names = _AudioNames(path)
    write_lines(path, (preference_to_dict(item, names) for item in items))
