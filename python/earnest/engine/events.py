# SPDX-License-Identifier: Apache-2.0
"""What happens while an answer is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

_FINISH = ("none", "stop", "length", "cancelled", "error")
FinishReason: TypeAlias = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Prefill:
    """`done` of `total` tokens of the prompt have been read."""

    done: int
    total: int


@dataclass(frozen=True)
class Reasoning:
    """More of the thought, whole characters."""

    text: str


@dataclass(frozen=True)
class Reply:
    """More of the reply, whole characters."""

    text: str


@dataclass(frozen=True)
class Usage:
    """What an answer took. Cached and audio tokens are of the prompt, reasoning tokens of the completion;
    times in milliseconds, the last two since the start."""

    prompt_tokens: int
    cached_tokens: int
    audio_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    waiting_ms: float
    prefill_ms: float
    first_token_ms: float
    total_ms: float


@dataclass(frozen=True)
class Done:
    """The last event. finish_reason: "stop" (the model ended its turn, or a stop came), "length", or
    "cancelled"."""

    finish_reason: FinishReason
    usage: Usage


Event: TypeAlias = Prefill | Reasoning | Reply | Done


def next_event(native: Any, timeout_ms: int) -> Event | None:
    """The next event of a native answer; None where nothing came in so many milliseconds (-1: for ever)."""
    came = native.next(timeout_ms)
    if came is None:
        return None
    kind, text, done, total, finish = came
    if kind == 1:
        return Prefill(done, total)
    if kind == 2:
        return Reasoning(text)
    if kind == 3:
        return Reply(text)
    return Done(_FINISH[finish], Usage(**native.usage()))  # type: ignore[arg-type]
