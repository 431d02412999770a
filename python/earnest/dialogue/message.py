# SPDX-License-Identifier: Apache-2.0
"""Messages: what one turn of a dialogue is made of, and its JSON form.

    {"role": "user", "content": [{"type": "audio", "audio": "a.wav"}, {"type": "text", "text": "..."}]}
    {"role": "assistant", "reasoning": "...", "content": "..."}

A content that is one piece of text may be a plain string. The reasoning of an assistant turn stands apart
from its reply; the ecosystem's habit of writing both into one string, ``<think>\\n...\\n</think>\\n...``, is
understood when a message without a "reasoning" key is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from earnest.errors import InvalidInput

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Text:
    """A piece of text. It is never searched for special tokens."""

    text: str


@dataclass(frozen=True, eq=False)
class Audio:
    """A clip: the path of a sound file, or float32 mono samples at 16 kHz. Exactly one of the two."""

    path: str | None = None
    pcm: np.ndarray | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.pcm is None):
            got = "neither" if self.path is None else "both"
            raise InvalidInput("Audio", "path, pcm", "exactly one of the two", got)
        if self.pcm is not None:
            pcm = np.asarray(self.pcm)
            if pcm.ndim != 1 or pcm.dtype != np.float32:
                raise InvalidInput(
                    "Audio", "pcm", "float32 samples of shape [n]", f"{pcm.dtype} {list(pcm.shape)}"
                )
            object.__setattr__(self, "pcm", pcm)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Audio):
            return NotImplemented
        if self.pcm is None or other.pcm is None:
            return self.pcm is other.pcm and self.path == other.path
        return np.array_equal(self.pcm, other.pcm)

    def __hash__(self) -> int:
        return hash(self.path) if self.pcm is None else hash((self.pcm.size, self.pcm[:16].tobytes()))


Part = Text | Audio


def _as_part(part: Text | Audio | str) -> Part:
    if isinstance(part, str):
        return Text(part)
    if isinstance(part, Text | Audio):
        return part
    raise InvalidInput("Message", "parts", "Text, Audio or str", type(part).__name__)


@dataclass(frozen=True)
class Message:
    """One turn. ``role`` is "system", "user", "assistant" or another word the template renders as it stands.

    ``reasoning`` belongs to assistant turns: None where none is known, "" where the turn has an empty
    thought.
    """

    role: str
    parts: tuple[Part, ...]
    reasoning: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.role, str) or not self.role or "\n" in self.role:
            raise InvalidInput("Message", "role", "a word", repr(self.role))
        object.__setattr__(self, "parts", tuple(_as_part(part) for part in self.parts))
        if self.reasoning is not None and self.role != "assistant":
            raise InvalidInput(
                "Message", "reasoning", "None unless the role is assistant", f"role {self.role!r}"
            )
        if self.role == "assistant" and any(isinstance(part, Audio) for part in self.parts):
            raise InvalidInput("Message", "parts", "text only in an assistant turn", "Audio")

    @staticmethod
    def user(*parts: Text | Audio | str) -> Message:
        return Message("user", tuple(_as_part(part) for part in parts))

    @staticmethod
    def assistant(text: str, reasoning: str | None = None) -> Message:
        return Message("assistant", (Text(text),), reasoning)

    @staticmethod
    def system(text: str) -> Message:
        return Message("system", (Text(text),))

    @property
    def text(self) -> str:
        """The text parts of the turn, joined by newlines as the templates join them."""
        return "\n".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def audios(self) -> tuple[Audio, ...]:
        return tuple(part for part in self.parts if isinstance(part, Audio))


def clips(messages: Sequence[Message]) -> list[Audio]:
    """All clips of a dialogue in the order in which they are heard."""
    return [audio for message in messages for audio in message.audios]


def _check_text(op: str, argument: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidInput(op, argument, "a string", _json_kind(value))
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidInput(
            op, argument, "text that UTF-8 can hold", f"a lone surrogate at character {error.start}"
        ) from None
    return value


def _json_kind(value: Any) -> str:
    kinds = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return kinds.get(type(value), type(value).__name__)


def _keys(op: str, argument: str, value: Any, required: set[str], optional: set[str]) -> Mapping[str, Any]:
    """``value`` if it is an object with these keys and no others."""
    if not isinstance(value, Mapping):
        raise InvalidInput(op, argument, "an object", _json_kind(value))
    missing, unknown = required - set(value), set(value) - required - optional
    if missing:
        raise InvalidInput(op, argument, f"the key {min(missing)!r}", f"the keys {sorted(value)}")
    if unknown:
        raise InvalidInput(op, argument, f"no keys but {sorted(required | optional)}", f"{min(unknown)!r}")
    return value


def part_from_dict(
    value: Any, *, argument: str = "part", resolve: Callable[[str], str] | None = None
) -> Part:
    """One element of a content list. ``resolve`` turns the path as written into the path to open."""
    if not isinstance(value, Mapping) or "type" not in value:
        raise InvalidInput("message", argument, 'an object with "type"', _json_kind(value))
    if value["type"] == "text":
        return Text(
            _check_text(
                "message",
                f"{argument}.text",
                _keys("message", argument, value, {"type", "text"}, set())["text"],
            )
        )
    if value["type"] == "audio":
        path = _check_text(
            "message",
            f"{argument}.audio",
            _keys("message", argument, value, {"type", "audio"}, set())["audio"],
        )
        if not path or "://" in path or path.startswith("data:"):
            raise InvalidInput(
                "message", f"{argument}.audio", "the path of a local sound file", repr(path[:80])
            )
        return Audio(path=resolve(path) if resolve else path)
    raise InvalidInput("message", f"{argument}.type", '"text" or "audio"', repr(value["type"]))


def split_think(text: str) -> tuple[str | None, str]:
    """(reasoning, reply) of an assistant text that opens with a closed think block; else (None, text)."""
    body = text.lstrip()
    close = body.find(THINK_CLOSE)
    if not body.startswith(THINK_OPEN) or close < 0:
        return None, text
    thought = body[len(THINK_OPEN) : close].removeprefix("\n").removesuffix("\n")
    return thought, body[close + len(THINK_CLOSE) :].lstrip("\n")


def message_from_dict(
    value: Any, *, argument: str = "message", resolve: Callable[[str], str] | None = None
) -> Message:
    """A Message from its JSON object; InvalidInput names the key that breaks the format."""
    fields = _keys("message", argument, value, {"role", "content"}, {"reasoning"})
    role = _check_text("message", f"{argument}.role", fields["role"])
    content, reasoning = fields["content"], fields.get("reasoning")
    if reasoning is not None:
        reasoning = _check_text("message", f"{argument}.reasoning", reasoning)
    if isinstance(content, str):
        text = _check_text("message", f"{argument}.content", content)
        if role == "assistant" and "reasoning" not in fields:
            reasoning, text = split_think(text)
        return Message(role, (Text(text),), reasoning)
    if not isinstance(content, list):
        raise InvalidInput(
            "message", f"{argument}.content", "a string or a list of parts", _json_kind(content)
        )
    parts = tuple(
        part_from_dict(part, argument=f"{argument}.content[{i}]", resolve=resolve)
        for i, part in enumerate(content)
    )
    return Message(role, parts, reasoning)


def message_to_dict(message: Message, *, audio_path: Callable[[Audio], str] | None = None) -> dict[str, Any]:
    """The JSON object of a message. ``audio_path`` gives the path to write for a clip (default: its own
    path)."""

    def name(audio: Audio) -> str:
        if audio_path is not None:
            return audio_path(audio)
        if audio.path is None:
            raise InvalidInput("message", "audio", "a clip with a path", "samples in memory")
        return audio.path

    content: str | list[dict[str, str]]
    if len(message.parts) == 1 and isinstance(message.parts[0], Text):
        content = message.parts[0].text
    else:
        content = [
            {"type": "text", "text": part.text}
            if isinstance(part, Text)
            else {"type": "audio", "audio": name(part)}
            for part in message.parts
        ]
    result: dict[str, Any] = {"role": message.role}
    # A reply that itself spells a think block needs the key, or reading it back would split the reply.
    if message.reasoning is not None or (
        message.role == "assistant" and split_think(message.text)[0] is not None
    ):
        result["reasoning"] = message.reasoning
    result["content"] = content
    return result
