# SPDX-License-Identifier: Apache-2.0
"""One dialogue: texts and clips in, answers out."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from numpy.typing import ArrayLike

from earnest import _native
from earnest.engine.answer import Answer
from earnest.engine.checks import OP, as_samples, whole
from earnest.errors import InvalidInput


class Session:
    """One dialogue: messages of a role, each with texts and clips. What is added goes to the last message if
    it has the same role, else to a new one; an answer closes it. For one thread at a time.

    While an answer runs, what would change the dialogue raises Busy."""

    def __init__(self, native: Any, keep: Callable[[Any], Session]) -> None:
        self._native: Any = native
        self._keep = keep  # makes a session that the engine knows
        self._answers: weakref.WeakSet[Answer] = weakref.WeakSet()

    def add_text(self, text: str, *, role: str = "user") -> None:
        """A text, never searched for special tokens."""
        self._open().add_text(role, text)

    def add_audio(
        self, pcm: ArrayLike | str | os.PathLike[str], sample_rate: int = 16_000, *, role: str = "user"
    ) -> None:
        """A whole clip: float32, float64 or int16 [samples] or [samples, channels] at 1,000 to 192,000
        samples a second, or the path of an audio file. ValueError for samples that are not finite,
        ContextFull for more than there is room for."""
        if isinstance(pcm, str | os.PathLike):
            from earnest.audio import load_audio

            pcm, sample_rate = load_audio(pcm, 16_000), 16_000
        samples = as_samples(pcm, None)
        with self.speak(sample_rate, channels=samples.shape[1], role=role) as clip:
            clip.push(samples)

    def speak(self, sample_rate: int, *, channels: int = 1, role: str = "user") -> Clip:
        """A clip that comes in pieces, features and all computed as it comes:

        with session.speak(48_000) as clip:
            clip.push(piece)
        """
        rate = whole("sample_rate", sample_rate)
        count = whole("channels", channels)
        return Clip(_native.session.Clip(self._open(), role, rate, count), count)

    def add_answer(self, reply: str, reasoning: str | None = None) -> None:
        """A past answer from elsewhere: a closed message."""
        self._open().add_answer(reasoning, reply)

    def end_message(self) -> None:
        """Closes the last message: what is added next begins another."""
        self._open().end_message()

    def __len__(self) -> int:
        """Messages so far."""
        return len(self._open())

    def tokens(self, message: int) -> int:
        """How many tokens a message has."""
        count: int = self._open().tokens(whole("message", message, 2**63 - 1, least=0))
        return count

    def fork(self) -> Session:
        """A second dialogue with the same past."""
        return self._keep(self._open().fork())

    def truncate(self, messages: int) -> None:
        """Forgets all but the first messages."""
        self._open().truncate(whole("messages", messages, 2**63 - 1, least=0))

    def warm(self) -> None:
        """Reads the dialogue so far while nobody waits, so that the next answer starts sooner."""
        self._open().warm()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the dialogue with all that was computed for it; `Engine.load_session` goes on from there."""
        self._open().save(os.fspath(path))

    def generate(
        self,
        *,
        max_tokens: int | None = None,
        temperature: float = 0.7,
        top_p: float = 0.9,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        seed: int = 0,
        thinking: bool | None = None,
        stop: Sequence[str] = (),
        stop_ids: Sequence[int] = (),
        prefill: str | None = None,
    ) -> Answer:
        """Begins to answer the dialogue as it stands; the events are taken from what this returns.

        max_tokens: None for as many as there is room for. temperature 0 takes the likeliest token. The same
        dialogue and seed (0 to 2^64 - 1) give the same answer whatever else runs (but see `products` of the
        Engine). thinking: True opens a thought, False leaves it to the model, None is the template's habit.
        stop: texts before the first of which the reply ends; stop_ids: tokens that end it, beside the model's
        own. prefill: how the answer begins, verbatim.

        Raises ValueError for numbers out of range, Busy where the queue is full, ContextFull where there is
        no room for a token more."""
        answer = Answer(
            _native.session.Answer(
                self._open(),
                whole("max_tokens", max_tokens),
                0 if thinking is None else 1 if thinking else 2,
                float(temperature),
                whole("top_k", top_k, 2**31 - 1, least=0),
                float(top_p),
                float(min_p),
                float(repetition_penalty),
                float(presence_penalty),
                float(frequency_penalty),
                whole("seed", seed, 2**64 - 1, least=0),
                [stop] if isinstance(stop, str) else list(stop),
                [int(token) for token in stop_ids],
                prefill,
            )
        )
        self._answers.add(answer)
        return answer

    def reply(
        self,
        text: str | None = None,
        *,
        audio: ArrayLike | str | os.PathLike[str] | None = None,
        sample_rate: int = 16_000,
        **sampling: Any,
    ) -> str:
        """One turn in one call: the clip and the text, if any, and then the reply to them. sampling: as
        `generate` takes it."""
        if audio is not None:
            self.add_audio(audio, sample_rate)
        if text is not None:
            self.add_text(text)
        with self.generate(**sampling) as answer:
            for _ in answer:
                pass
            return answer.reply

    def close(self) -> None:
        """Cancels its answers and gives its memory back."""
        for answer in list(self._answers):
            answer.close()
        self._native = None

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> Any:
        if self._native is None:
            raise InvalidInput(OP, "session", "one that is open", "a closed one")
        return self._native


class Clip:
    """A clip that is being spoken. As a context manager it is committed at the end, and forgotten where
    something is raised."""

    def __init__(self, native: Any, channels: int) -> None:
        self._native: Any = native
        self._channels = channels

    def push(self, pcm: ArrayLike) -> None:
        """More of it: float32, float64 or int16 [samples] or [samples, channels], any number of samples."""
        self._open().push(as_samples(pcm, self._channels))

    @property
    def seconds(self) -> float:
        """Pushed so far."""
        seconds: float = self._open().seconds
        return seconds

    def clear(self) -> None:
        """Forgets what was pushed."""
        self._open().clear()

    def commit(self) -> None:
        """The end of the clip. One without samples adds nothing."""
        self._open().commit()
        self._native = None

    def __enter__(self) -> Clip:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._native is not None:
            self.commit()
        self._native = None

    def _open(self) -> Any:
        if self._native is None:
            raise InvalidInput(OP, "clip", "one that is being spoken", "one that has ended")
        return self._native
