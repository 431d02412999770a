# SPDX-License-Identifier: Apache-2.0
"""The ms-swift layout: ``{"messages": [{"role": "user", "content": "<audio>What?"}], "audios": ["a.wav"]}``.

Every ``<audio>`` in a content takes the next path of "audios"; paths for which there is no mark go, as there,
to the beginning of the first message that is not a system message. An assistant content holds its thought as
a think block.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from earnest.dialogue.message import THINK_CLOSE, THINK_OPEN, Audio, Message, Text, split_think
from earnest.dialogue.records import (
    BadLine,
    Dialogue,
    _AudioNames,
    _resolver,
    dialogue_from_dict,
    dialogue_to_dict,
    read_records,
    write_lines,
)
from earnest.errors import InvalidInput

MARK = "<audio>"


def _parts(content: str, audios: list[str], resolve: Callable[[str], str]) -> list[Text | Audio]:
    """A content as parts; takes the paths of its marks from the front of ``audios``."""
    parts: list[Text | Audio] = []
    pieces = content.split(MARK)
    for i, piece in enumerate(pieces):
        if piece or (len(pieces) == 1):
            parts.append(Text(piece))
        if i < len(pieces) - 1:
            if not audios:
                raise InvalidInput("swift", "audios", f"a path for every {MARK}", "too few")
            parts.append(Audio(path=resolve(audios.pop(0))))
    return parts


def swift_from_dict(
    record: dict[str, Any], *, resolve: Callable[[str], str] = str, origin: tuple[str, int] | None = None
) -> Dialogue:
    """A Dialogue from an object in the ms-swift layout. Keys other than messages and audios are kept."""
    audios = record.get("audios") or []
    if isinstance(audios, str):
        audios = [audios]
    if not isinstance(audios, list) or not all(isinstance(path, str) and path for path in audios):
        raise InvalidInput("swift", "audios", "a list of paths", repr(audios)[:80])
    raw = record.get("messages")
    if (
        not isinstance(raw, list)
        or not raw
        or not all(
            isinstance(m, dict)
            and set(m) == {"role", "content"}
            and isinstance(m["content"], str)
            and isinstance(m["role"], str)
            for m in raw
        )
    ):
        raise InvalidInput("swift", "messages", 'a list of {"role", "content": string}', repr(raw)[:80])
    waiting = list(audios)
    marks = sum(m["content"].count(MARK) for m in raw if m["role"] != "assistant")
    first = next((i for i, m in enumerate(raw) if m["role"] != "system"), 0)
    messages: list[Message] = []
    for i, message in enumerate(raw):
        role, content = message["role"], message["content"]
        if role == "assistant":
            reasoning, reply = split_think(content)
            messages.append(Message.assistant(reply, reasoning))
            continue
        if i == first:
            content = MARK * max(0, len(audios) - marks) + content
        messages.append(Message(role, tuple(_parts(content, waiting, resolve))))
    if waiting:
        raise InvalidInput("swift", "audios", f"a {MARK} for every path", f"{len(waiting)} more")
    rest = {key: value for key, value in record.items() if key not in ("messages", "audios")}
    # The checks of our own format (answer, rubric, reference, text that UTF-8 can hold) apply here too.
    checked = dialogue_from_dict(
        {"messages": [{"role": m["role"], "content": m["content"]} for m in raw]} | rest
    )
    return Dialogue(tuple(messages), checked.answer, checked.rubric, checked.reference, checked.extra, origin)


def _content(message: Message, audios: list[str], audio_path: Callable[[Audio], str]) -> str:
    pieces: list[str] = []
    for i, part in enumerate(message.parts):
        if isinstance(part, Audio):
            audios.append(audio_path(part))
            pieces.append(MARK)
            continue
        if MARK in part.text:
            raise InvalidInput(
                "swift",
                "text",
                f"no {MARK} spelled out, which that layout reads as a clip",
                repr(part.text[:40]),
            )
        if i and isinstance(message.parts[i - 1], Text):
            pieces.append("\n")
        pieces.append(part.text)
    text = "".join(pieces)
    return text if message.reasoning is None else f"{THINK_OPEN}\n{message.reasoning}\n{THINK_CLOSE}\n{text}"


def swift_to_dict(item: Dialogue, audio_path: Callable[[Audio], str] | None = None) -> dict[str, Any]:
    """The object of a dialogue in the ms-swift layout."""
    audios: list[str] = []
    messages = [
        {"role": m.role, "content": _content(m, audios, audio_path or (lambda audio: audio.path or ""))}
        for m in item.messages
    ]
    rest = dialogue_to_dict(Dialogue((), item.answer, item.rubric, item.reference, item.extra))
    del rest["messages"]
    return {"messages": messages} | ({"audios": audios} if audios else {}) | rest


def import_swift(path: str | os.PathLike[str], bad: list[BadLine] | None = None) -> list[Dialogue]:
    """Read a JSON-lines file in the ms-swift layout. Raises BadLine, or collects bad lines in ``bad``."""
    name, resolve = os.fspath(path), _resolver(path)
    return list(
        read_records(
            "import_swift",
            path,
            lambda record, line: swift_from_dict(record, resolve=resolve, origin=(name, line)),
            bad,
        )
    )


def export_swift(path: str | os.PathLike[str], items: Iterable[Dialogue]) -> None:
    """Write dialogues in the ms-swift layout; clips in memory become float WAV files beside the file."""
    names = _AudioNames(path)
    write_lines(path, (swift_to_dict(item, names) for item in items))
