# SPDX-License-Identifier: Apache-2.0
"""Reasoning: taking a completion apart into thought and reply, whole or as it streams.

A completion reads ``<think>\\nthought\\n</think>\\nreply``. Whether it starts inside the thought is known
from the prompt alone (its last tokens opened the tag), never by searching the history. The first ``</think>``
ends the thought; any later tag is literal text of the reply. A thought that is never closed is all thought.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from earnest.dialogue.message import THINK_CLOSE, THINK_OPEN
from earnest.dialogue.tokenizer import TextStream, Tokenizer


@dataclass(frozen=True)
class Delta:
    """A piece of one of the two texts, in the order in which they were spoken."""

    kind: Literal["reasoning", "reply"]
    text: str


@dataclass(frozen=True)
class Split:
    """A completion taken apart. ``reasoning`` is None where there was no thought; ``stray_tags`` counts think
    tags that are not the frame (a second block, an opening tag inside the thought)."""

    reasoning: str | None
    reply: str
    closed: bool
    stray_tags: int

    @property
    def well_formed(self) -> bool:
        """Exactly one non-empty think block, closed before a non-empty reply."""
        return bool(
            self.closed
            and not self.stray_tags
            and self.reasoning
            and self.reasoning.strip()
            and self.reply.strip()
        )


def _held_back(text: str, ending: str) -> int:
    """How many characters at the end of ``text`` may be the start of ``ending``."""
    for size in range(min(len(text), len(ending) - 1), 0, -1):
        if ending.startswith(text[-size:]):
            return size
    return 0


class ReasoningStream:
    """Text or ids in, `Delta` out. At most the characters that may belong to a tag (and one newline) are held
    back."""

    def __init__(self, *, inside: bool = False, tokenizer: Tokenizer | None = None) -> None:
        """``inside``: the prompt ended with an opened think tag (`Rendered.inside_thought`)."""
        self._state = "thought" if inside else "start"
        self._pending = ""
        self._text = TextStream(tokenizer, keep=(THINK_OPEN, THINK_CLOSE)) if tokenizer is not None else None
        self._trim_thought = not inside  # the newline after <think> was part of the prompt
        self._trim_reply = False
        self.thought_seen, self.closed = inside, False

    def push(self, piece: str | Iterable[int]) -> list[Delta]:
        """Take more of the completion; the deltas that are now certain."""
        if not isinstance(piece, str):
            if self._text is None:
                raise TypeError("[ReasoningStream] tokenizer: expected one to read ids with, got None")
            piece = self._text.push(piece)
        self._pending += piece
        return self._drain(final=False)

    def finish(self) -> list[Delta]:
        """The completion is over: give out what was held back."""
        if self._text is not None:
            self._pending += self._text.finish()
        return self._drain(final=True)

    def _drain(self, final: bool) -> list[Delta]:
        deltas: list[Delta] = []
        if self._state == "start":
            self._read_start(final)
        if self._state == "thought":
            self._read_thought(deltas, final)
        if self._state == "reply":
            self._read_reply(deltas)
        return deltas

    def _read_start(self, final: bool) -> None:
        body = self._pending.lstrip()
        if body.startswith(THINK_OPEN):
            self._pending, self._state, self.thought_seen = body[len(THINK_OPEN) :], "thought", True
        elif final or not THINK_OPEN.startswith(body):
            self._state = "reply"

    def _read_thought(self, deltas: list[Delta], final: bool) -> None:
        if self._trim_thought and self._pending:
            self._pending, self._trim_thought = self._pending.removeprefix("\n"), False
        end = self._pending.find(THINK_CLOSE)
        if end >= 0:
            thought = self._pending[:end].removesuffix("\n")
            self._pending = self._pending[end + len(THINK_CLOSE) :]
            self._state, self.closed, self._trim_reply = "reply", True, True
        else:
            # A newline before the closing tag belongs to the frame, so the newline waits as the tag does.
            keep = (
                0
                if final
                else max(
                    _held_back(self._pending, THINK_CLOSE), _held_back(self._pending, "\n" + THINK_CLOSE)
                )
            )
            thought, self._pending = (
                self._pending[: len(self._pending) - keep],
                self._pending[len(self._pending) - keep :],
            )
        if thought:
            deltas.append(Delta("reasoning", thought))

    def _read_reply(self, deltas: list[Delta]) -> None:
        if self._trim_reply:
            self._pending = self._pending.lstrip("\n")
            self._trim_reply = not self._pending
        if self._pending:
            deltas.append(Delta("reply", self._pending))
            self._pending = ""


def split_reasoning(
    completion: str | Iterable[int], *, inside: bool = False, tokenizer: Tokenizer | None = None
) -> Split:
    """Take a whole completion apart: text, or ids (special tokens other than the think tags give no text)."""
    stream = ReasoningStream(inside=inside, tokenizer=tokenizer)
    deltas = stream.push(completion) + stream.finish()
    thought = "".join(delta.text for delta in deltas if delta.kind == "reasoning")
    reply = "".join(delta.text for delta in deltas if delta.kind == "reply")
    stray = sum(text.count(tag) for text in (thought, reply) for tag in (THINK_OPEN, THINK_CLOSE))
    return Split(thought if stream.thought_seen else None, reply, stream.closed, stray)
